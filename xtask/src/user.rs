//! The ordinary user that the demo and the tests run as where they are started by root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::unistd::{Gid, Uid, User, geteuid};

use crate::Error;
use crate::process::Tool;

/// Its name.
pub const NAME: &str = "guestmnt-test";

/// Somebody without privileges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordinary {
    /// Effective and real user.
    pub uid: Uid,
    /// The only group.
    pub gid: Gid,
}

impl Ordinary {
    /// [`NAME`] where we are root, otherwise who we are.
    ///
    /// # Errors
    /// [`Error::Unfit`] where root has not made the user yet.
    pub fn find() -> Result<Self, Error> {
        if !geteuid().is_root() {
            return Ok(Self { uid: geteuid(), gid: nix::unistd::getegid() });
        }
        lookup()?
            .ok_or_else(|| Error::unfit(format!("there is no user {NAME}"), "cargo xtask setup"))
    }

    /// Makes `command` run as this user. Supplementary groups are dropped with the user
    /// (std does that when the user changes).
    pub fn run_as(self, command: &mut Command) {
        if geteuid().is_root() {
            command.gid(self.gid.as_raw()).uid(self.uid.as_raw());
        }
    }
}

/// Makes the user, where root runs this and it is missing.
///
/// # Errors
/// [`Error::Program`] with useradd's words.
pub(crate) fn ensure() -> Result<(), Error> {
    if lookup()?.is_some() {
        return Ok(());
    }
    Tool::new("useradd")
        .args(["--system", "--user-group", "--no-create-home"])
        .args(["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", NAME])
        .run()
}

fn lookup() -> Result<Option<Ordinary>, Error> {
    let user =
        User::from_name(NAME).map_err(|errno| Error::file("read", "/etc/passwd")(errno.into()))?;
    Ok(user.map(|user| Ordinary { uid: user.uid, gid: user.gid }))
}
