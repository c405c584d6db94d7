//! Access control lists, and what they and other attributes change of each other. See
//! [`crate::fs::access_lists`].

use guestmnt_protocol::change::NewAttributes;
use guestmnt_protocol::xattr::XattrName;
use nix::errno::Errno;

use super::Changes;
use crate::fs::access_lists::{ACCESS, DEFAULT, is_list};
use crate::fs::nodes::NodeId;

impl Changes {
    /// The mode of a new file in a directory: without the bits of `umask`, unless the directory has a
    /// default list.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn masked(&self, parent: NodeId, mode: u32, umask: u32) -> Result<u32, Errno> {
        let without = mode & !(umask & 0o777);
        if without == mode || self.is_plain(parent)? { Ok(without) } else { Ok(mode) }
    }

    /// Whether a directory has no default list.
    fn is_plain(&self, directory: NodeId) -> Result<bool, Errno> {
        if self.plain.holds(directory) {
            return Ok(true);
        }
        match self.get_xattr(directory, DEFAULT) {
            Ok(_) => Ok(false),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {
                self.plain.insert(directory);
                Ok(true)
            }
            Err(errno) => Err(errno),
        }
    }

    /// A directory was made in another one, whose default list it has if there is one.
    pub(super) fn inherits_access_list(&self, parent: NodeId, directory: NodeId) {
        if self.plain.holds(parent) {
            self.plain.insert(directory);
        }
    }

    /// An extended attribute was set or removed, or may have been.
    pub(super) fn access_list_changed(&self, node: NodeId, name: &XattrName) {
        if is_list(name.as_bytes()) {
            self.plain.forget(node);
            // The kernel does this by itself where it enforces lists, and only there.
            self.invalidations.attributes(node);
        }
    }

    /// Takes the set-group-ID bit away from a file whose list was set by somebody else's group: the
    /// guest does everything as root, who keeps it. The kernel tells a user's group, and none of the
    /// user's further ones.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn check_set_group_id(
        &self,
        node: NodeId,
        name: &[u8],
        uid: u32,
        gid: u32,
    ) -> Result<(), Errno> {
        if name != ACCESS || uid == 0 || !self.operations.enforces_access_lists() {
            return Ok(());
        }
        let attr = self.get_attr(node)?;
        let mode = u32::from(attr.perm);
        if attr.gid == gid || mode & libc::S_ISGID == 0 {
            return Ok(());
        }
        let mode = Some(mode & !libc::S_ISGID);
        self.set_attr(node, NewAttributes { mode, ..NewAttributes::default() }).map(drop)
    }
}
