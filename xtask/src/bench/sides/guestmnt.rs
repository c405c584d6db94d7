//! Our side, as the ordinary user.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use super::Side;
use crate::Error;
use crate::bench::disk::{Access, Image};
use crate::bench::ground::{Ground, Spot};

/// How the VM comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As it does when nothing is said.
    Normal,
    /// Booted, whatever there is to restore.
    Cold,
    /// With a home folder where nothing has been kept from earlier mounts.
    NewUser,
}

/// Mounts by `guestmnt`.
pub struct Guestmnt(pub Start);

impl Side for Guestmnt {
    fn name(&self) -> &'static str {
        "guestmnt"
    }

    fn mount_words(
        &self,
        ground: &Ground,
        image: &Image,
        spot: &Spot,
    ) -> Result<Vec<OsString>, Error> {
        // The same accelerator as on guestmount's side, and no time for finding out which.
        let mut words: Vec<OsString> =
            vec![ground.program("guestmnt").into(), "--accel".into(), "tcg".into()];
        if self.0 == Start::Cold && ground.offers.has("--no-template") {
            words.push("--no-template".into());
        }
        words.extend(["-a".into(), image.disk.as_os_str().into()]);
        match image.access {
            Access::Read => words.push("--ro".into()),
            Access::Write => {
                words.extend(["--overlay".into(), spot.scratch.join("changes.qcow2").into()]);
            }
        }
        words.extend(["-m".into(), image.device.into(), spot.mountpoint.as_os_str().into()]);
        Ok(words)
    }

    fn unmount_words(&self, ground: &Ground, spot: &Spot) -> Vec<OsString> {
        vec![ground.program("guestunmnt").into(), spot.mountpoint.as_os_str().into()]
    }

    fn command(&self, ground: &Ground, program: &Path, spot: &Spot) -> Command {
        let mut command = ground.as_user(program);
        command.env("TMPDIR", &spot.scratch);
        if self.0 == Start::NewUser {
            command.env("HOME", &spot.scratch);
        }
        command
    }
}
