//! A process that outlives this one just long enough to unmount, should this one be killed.
//!
//! fusermount3's own `auto_unmount` cannot be used: to see whether the mount is dead it opens
//! it as root, who is refused where the mount is the user's alone, and so it leaves it there.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir, pipe2, setsid};

use super::mountpoint::{Unmount, mounts, unmount};
use crate::sys;

/// The watching process. It ends when this is dropped.
pub struct Watcher {
    pid: Pid,
    /// Open as long as we live. Nobody writes to it.
    alive: Option<OwnedFd>,
}

impl Watcher {
    /// Starts to watch this process. Must be called before there are threads.
    ///
    /// # Errors
    /// Where there can be no pipe or process.
    pub fn start() -> io::Result<Self> {
        let server = std::process::id();
        let (watched, alive) = pipe2(OFlag::O_CLOEXEC)?;
        match sys::fork()? {
            Some(pid) => Ok(Self { pid, alive: Some(alive) }),
            None => {
                drop(alive);
                // Nothing can be told to anybody from here.
                let _ = watch(watched, server);
                sys::exit_now(0)
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = waitpid(self.pid, None);
    }
}

fn watch(watched: OwnedFd, server: u32) -> io::Result<()> {
    setsid()?;
    chdir("/")?;
    prctl::set_name(c"guestmnt-watch")?;
    sys::keep_only(watched.as_fd())?;
    File::from(watched).read_to_end(&mut Vec::new())?;
    let ours = mounts().map_err(io::Error::other)?;
    for mount in ours.iter().rev().filter(|mount| mount.server() == Some(server)) {
        unmount(&mount.mountpoint, Unmount::Lazily).map_err(io::Error::other)?;
    }
    Ok(())
}
