//! The partition mounted on the host by ntfs-3g, as root: nothing stands between the image and
//! the machine. It is here for what it costs to isolate, not as a thing to do.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use super::Side;
use crate::Error;
use crate::bench::disk::Image;
use crate::bench::ground::{Ground, Spot};

/// Mounts by `ntfs-3g`. Only to be used in a mount namespace of one's own.
pub struct Native;

impl Side for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn mount_words(&self, _: &Ground, image: &Image, spot: &Spot) -> Result<Vec<OsString>, Error> {
        let raw = image.raw.as_ref().ok_or_else(|| {
            Error::unfit(format!("{} is no raw file", image.disk.display()), "make one")
        })?;
        Ok(vec![
            "ntfs-3g".into(),
            "-o".into(),
            "ro".into(),
            raw.into(),
            spot.mountpoint.as_os_str().into(),
        ])
    }

    fn unmount_words(&self, _: &Ground, spot: &Spot) -> Vec<OsString> {
        vec!["umount".into(), spot.mountpoint.as_os_str().into()]
    }

    fn command(&self, ground: &Ground, program: &Path, spot: &Spot) -> Command {
        let mut command = ground.as_root(program);
        command.env("TMPDIR", &spot.scratch);
        command
    }
}
