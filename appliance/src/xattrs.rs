//! Extended attributes, as the filesystem has them.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use guestmnt_protocol::limits::MAX_XATTR;
use guestmnt_protocol::path::GuestPath;

use crate::payload::Payload;
use crate::resolve;
use crate::sys;
use crate::tree::Tree;

impl Tree {
    /// Puts the names of a file's extended attributes into `payload`, each with a NUL behind it.
    ///
    /// # Errors
    /// As [`resolve::locate`] and listxattr(2); `E2BIG` for more than [`MAX_XATTR`] bytes.
    pub fn list_xattr(&self, path: &GuestPath, payload: &mut Payload) -> nix::Result<()> {
        let file = self.xattr_path(path)?;
        whole(payload, |names| sys::listxattr(&file.path, names))
    }

    /// Puts the value of an extended attribute into `payload`.
    ///
    /// # Errors
    /// As [`resolve::locate`] and getxattr(2); `ENODATA` where there is no such attribute, `E2BIG`
    /// for more than [`MAX_XATTR`] bytes, `EINVAL` for a name with a NUL.
    pub fn get_xattr(
        &self,
        path: &GuestPath,
        name: &[u8],
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let file = self.xattr_path(path)?;
        whole(payload, |value| sys::getxattr(&file.path, &name, value))
    }

    fn xattr_path(&self, path: &GuestPath) -> nix::Result<Located> {
        let fd = resolve::locate(self.root(), path)?;
        // fgetxattr(2) refuses O_PATH descriptors. The detour by /proc ends at the file itself,
        // also where it is a symbolic link, so that the calls which follow links are the right
        // ones.
        let path = CString::new(resolve::proc_path(fd.as_fd())).expect("a number has no NUL");
        Ok(Located { path, _open: fd })
    }
}

/// A file's path under `/proc/self/fd`, good as long as the descriptor is open.
struct Located {
    path: CString,
    _open: OwnedFd,
}

/// Reads into the largest space that the protocol has for it, in one call: asking for the length
/// first would be a second one.
fn whole(
    payload: &mut Payload,
    read: impl FnOnce(&mut [u8]) -> nix::Result<usize>,
) -> nix::Result<()> {
    let length = read(payload.space(MAX_XATTR)).map_err(|errno| match errno {
        Errno::ERANGE => Errno::E2BIG,
        other => other,
    })?;
    payload.truncate(length);
    Ok(())
}
