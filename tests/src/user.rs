//! The ordinary user that the program is run as: oneself, or, when the tests run as root, the
//! one that the set-up made.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User, chown, geteuid};

/// The name of the user that the set-up makes.
pub const NAME: &str = "guestmnt-test";

/// Who runs the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestUser {
    uid: Uid,
    gid: Gid,
}

impl TestUser {
    /// Oneself, or the set-up's user where oneself is root.
    ///
    /// # Panics
    /// Where root's set-up did not run.
    #[must_use]
    pub fn ordinary() -> Self {
        let me = geteuid();
        if !me.is_root() {
            return Self { uid: me, gid: nix::unistd::getegid() };
        }
        let user = User::from_name(NAME).ok().flatten();
        let user =
            user.unwrap_or_else(|| panic!("there is no user {NAME}: `cargo xtask setup` makes it"));
        Self { uid: user.uid, gid: user.gid }
    }

    /// Root, where the tests run as root.
    #[must_use]
    pub fn root() -> Option<Self> {
        geteuid().is_root().then(|| Self { uid: Uid::from_raw(0), gid: Gid::from_raw(0) })
    }

    /// Makes `command` run as this user.
    pub fn run_as(self, command: &mut Command) {
        if geteuid().is_root() && !self.uid.is_root() {
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
    }

    /// Gives a file to this user.
    ///
    /// # Panics
    /// Where it cannot be given.
    pub fn own(self, path: &Path) {
        if geteuid().is_root() {
            chown(path, Some(self.uid), Some(self.gid)).expect("root may give files away");
        }
    }
}
