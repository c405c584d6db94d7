//! POSIX access control lists (ACLs), where the kernel enforces permissions (`default_permissions`).
//!
//! The kernel then asks for the list of each file whose permissions it checks, and keeps it
//! (`FUSE_POSIX_ACL`). It forgets list and mode when either is changed by way of the mount.
//! Elsewhere lists are attributes like all others, and only the mode that follows from one has to be
//! invalidated.
//! Source: `fuse_get_acl()` and `fuse_set_acl()` in fs/fuse/acl.c.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::nodes::NodeId;

/// The list that access to a file is checked by.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

/// The list that files in a directory begin with.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Directories of which one list is remembered to be missing. Beyond, they are asked again.
const MAX_PLAIN: usize = 1 << 16;

/// Whether an extended attribute is a list.
#[must_use]
pub fn is_list(name: &[u8]) -> bool {
    [ACCESS, DEFAULT].contains(&name)
}

/// What the kernel is told that asks for an extended attribute to check permissions: a filesystem
/// without lists has none. Of any other error it makes one of the access that is checked.
///
/// # Errors
/// Those of `value`.
pub fn for_a_check(name: &[u8], value: Result<Vec<u8>, Errno>) -> Result<Vec<u8>, Errno> {
    value.map_err(|errno| match errno {
        Errno::EOPNOTSUPP if is_list(name) => Errno::ENODATA,
        other => other,
    })
}

/// The directories that are known to have no default list. In these, the umask of whoever makes a
/// file applies; in others, the list instead. See umask(2).
///
/// Only this mount changes the files, so what is known stays true until an attribute is set.
#[derive(Default)]
pub struct Plain(Mutex<HashSet<NodeId>>);

impl Plain {
    /// Whether this directory is one.
    #[must_use]
    pub fn holds(&self, directory: NodeId) -> bool {
        self.lock().contains(&directory)
    }

    /// Notes one.
    pub fn insert(&self, directory: NodeId) {
        let mut plain = self.lock();
        if plain.len() >= MAX_PLAIN {
            plain.clear();
        }
        plain.insert(directory);
    }

    /// Forgets one that may have a list from now on, or whose number may be given to another.
    pub fn forget(&self, directory: NodeId) {
        self.lock().remove(&directory);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        // No step leaves it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_without_lists_has_none_and_other_errors_stay() {
        let told = |name, errno| for_a_check(name, Err(errno)).unwrap_err();
        assert_eq!(told(ACCESS, Errno::EOPNOTSUPP), Errno::ENODATA);
        assert_eq!(told(DEFAULT, Errno::EOPNOTSUPP), Errno::ENODATA);
        assert_eq!(told(b"user.note", Errno::EOPNOTSUPP), Errno::EOPNOTSUPP);
        assert_eq!(told(ACCESS, Errno::EIO), Errno::EIO);
        assert_eq!(for_a_check(ACCESS, Ok(vec![2])), Ok(vec![2]));
    }

    #[test]
    fn directories_are_known_until_they_are_forgotten_or_too_many() {
        let plain = Plain::default();
        plain.insert(NodeId(7));
        assert!(plain.holds(NodeId(7)) && !plain.holds(NodeId(8)));
        plain.forget(NodeId(7));
        assert!(!plain.holds(NodeId(7)));
        (0..=MAX_PLAIN as u64).for_each(|id| plain.insert(NodeId(id)));
        assert!(plain.lock().len() == 1);
    }
}
