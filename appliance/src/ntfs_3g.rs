//! NTFS by ntfs-3g, a program of the distribution, for what the kernel's ntfs3 does not show: alternate
//! data streams and the data of reparse points; and for what it refuses.
//!
//! It serves the filesystem through the guest's own FUSE, several times slower than ntfs3, so it does
//! so only where it is named or ntfs3 fails.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;

use crate::assembly::Assembly;
use crate::filesystems::join_options;

/// The type by which it is asked for.
pub const NAME: &str = "ntfs-3g";

/// What always holds: the volume is neither written to nor its journal replayed.
const OPTIONS: &str = "ro,nosuid,nodev,noexec";

/// Mounts the volume with the node `node` on `target`. The program goes to the background once that
/// is done, and ends when the volume is unmounted.
///
/// # Errors
/// `EIO` with what it said.
pub fn mount(
    node: &Path,
    target: &Path,
    options: &str,
    assembly: &Assembly,
) -> Result<(), Failure> {
    // A module that is missing is one that is built in, or mounting fails.
    let _ = assembly.modules.load("fuse");
    let options = join_options(&[OPTIONS, options]);
    let (node, target) = (node.to_string_lossy(), seen_by_others(target));
    let arguments = ["-o", &options, node.as_ref(), &target.to_string_lossy()];
    match assembly.programs.run(assembly.modules, "ntfs-3g", &arguments, &[])? {
        Ok(_) => Ok(()),
        Err(failed) => Err(failed.explained(Errno::EIO, "ntfs-3g cannot mount it")),
    }
}

/// A path by one of this process's descriptors, as another process has to call it.
fn seen_by_others(path: &Path) -> PathBuf {
    match path.strip_prefix("/proc/self") {
        Ok(rest) => Path::new("/proc").join(std::process::id().to_string()).join(rest),
        Err(_) => path.to_owned(),
    }
}
