//! FUSE's device: whether a mount of this user can have it.
//!
//! fusermount3 gives up root before it opens the device, so what counts is what the caller may. udev
//! lets everybody; where none ran, as in many a container, the device is root's alone.
//! Source: `try_open_fuse_device` of libfuse's util/fusermount.c.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Where it is.
pub const PATH: &str = "/dev/fuse";

/// Why a mount cannot have it.
#[derive(Debug)]
pub enum FuseDeviceError {
    /// It is not there.
    Missing,
    /// It cannot be opened.
    Closed(io::Error),
}

impl FuseDeviceError {
    /// What mends it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Closed(error) if error.raw_os_error() == Some(libc::EACCES) => {
                "as root, `chmod 666 /dev/fuse`, which is what udev's rule has"
            }
            // The driver is not there, or a container's list of devices lacks it (EPERM).
            Self::Missing | Self::Closed(_) => {
                "as root, `modprobe fuse`; in a container, pass the device through"
            }
        }
    }
}

impl fmt::Display for FuseDeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "there is no {PATH} on this machine"),
            Self::Closed(error) => write!(f, "cannot open {PATH}: {error}"),
        }
    }
}

impl std::error::Error for FuseDeviceError {}

/// Opens the device as fusermount3 will, and closes it again.
///
/// # Errors
/// [`FuseDeviceError`], whose [`hint`](FuseDeviceError::hint) says what mends it.
pub fn check() -> Result<(), FuseDeviceError> {
    check_at(Path::new(PATH))
}

fn check_at(path: &Path) -> Result<(), FuseDeviceError> {
    if !fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device()) {
        return Err(FuseDeviceError::Missing);
    }
    File::options().read(true).write(true).open(path).map(drop).map_err(FuseDeviceError::Closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_is_not_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path(), Path::new("/nonexistent")] {
            assert!(matches!(check_at(path), Err(FuseDeviceError::Missing)), "{}", path.display());
        }
        assert!(check_at(Path::new("/dev/null")).is_ok());
    }

    #[test]
    fn a_mode_is_mended_by_a_mode_and_all_else_by_having_the_device() {
        let hint = |errno| FuseDeviceError::Closed(io::Error::from_raw_os_error(errno)).hint();
        assert!(hint(libc::EACCES).contains("`chmod 666 /dev/fuse`"));
        for errno in [libc::EPERM, libc::ENODEV, libc::ENXIO] {
            assert!(hint(errno).contains("`modprobe fuse`"), "{errno}");
        }
    }
}
