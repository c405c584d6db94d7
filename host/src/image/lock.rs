//! VMware's lock beside a disk: a file or folder `NAME.lck`.

use std::path::{Path, PathBuf};

use guestmnt_protocol::path::Printable;

use super::error::path_bytes;

/// The lock beside the image at `real`, if there is one.
pub fn beside(real: &Path) -> Option<PathBuf> {
    let mut lock = real.as_os_str().to_owned();
    lock.push(".lck");
    let lock = PathBuf::from(lock);
    lock.symlink_metadata().is_ok().then_some(lock)
}

/// Says in a sentence that a VM may be using the image at `real`, where a lock stands beside
/// it. Reading does no harm to the VM, but may show a state that never was on the disk.
pub fn warning(real: &Path) -> Option<String> {
    let lock = beside(real)?;
    Some(format!(
        "{} says that a virtual machine uses the disk; what is read may be torn until it is off",
        Printable(path_bytes(&lock))
    ))
}
