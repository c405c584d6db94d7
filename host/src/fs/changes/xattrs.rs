//! Extended attributes, and what is known of them without asking.

use guestmnt_protocol::change::XattrMode;
use guestmnt_protocol::xattr::XattrName;
use nix::errno::Errno;

use super::Changes;
use crate::fs::nodes::NodeId;

/// For which the kernel asks at each write, to take it away.
const CAPABILITIES: &[u8] = b"security.capability";

impl Changes {
    /// As [`crate::fs::operations::Operations::get_xattr`].
    ///
    /// # Errors
    /// As [`crate::fs::operations::Operations::get_xattr`].
    pub fn get_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let file = self.open.get(node).filter(|_| name == CAPABILITIES);
        if file.as_ref().is_some_and(|file| file.is_without_capabilities()) {
            return Err(Errno::ENODATA);
        }
        let _settled = self.settled();
        self.complete(node);
        let value = match self.nameless(node) {
            Some(held) => {
                let name = XattrName::new(name).map_err(|_| Errno::ERANGE)?;
                self.guest.get_xattr_held(held.file(), name)
            }
            None => self.operations.get_xattr(node, name),
        };
        if let (Some(file), Err(Errno::ENODATA | Errno::EOPNOTSUPP)) = (file, &value) {
            file.set_without_capabilities(true);
        }
        value
    }

    /// As [`crate::fs::operations::Operations::list_xattr`].
    ///
    /// # Errors
    /// As [`crate::fs::operations::Operations::list_xattr`].
    pub fn list_xattr(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        let _settled = self.settled();
        self.complete(node);
        match self.nameless(node) {
            Some(held) => self.guest.list_xattr_held(held.file()),
            None => self.operations.list_xattr(node),
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn set_xattr(
        &self,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        how: XattrMode,
    ) -> Result<(), Errno> {
        let name = XattrName::new(name).map_err(|_| Errno::ERANGE)?;
        let _settled = self.settled();
        self.complete(node);
        let (place, _lease) = self.place(node)?;
        let set = self.guest.set_xattr(place, name.clone(), value, how);
        self.attributes_changed(node, &name);
        set
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<(), Errno> {
        let name = XattrName::new(name).map_err(|_| Errno::ERANGE)?;
        let _settled = self.settled();
        self.complete(node);
        let (place, _lease) = self.place(node)?;
        let removed = self.guest.remove_xattr(place, name.clone());
        self.attributes_changed(node, &name);
        removed
    }

    fn attributes_changed(&self, node: NodeId, name: &XattrName) {
        self.access_list_changed(node, name);
        if let Some(file) = self.open.get(node) {
            file.set_without_capabilities(false);
        }
        self.operations.changed();
    }
}
