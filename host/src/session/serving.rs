//! A guest's files on a folder: the mount and the threads that answer for it, whatever the
//! guest is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use fuser::Session as FuseSession;
use log::{error, info};
use nix::sys::signal::SigSet;

use super::SessionError;
use super::fuse_options::FuseOptions;
use super::mountpoint::{FuseMount, Mountpoint};
use crate::disk::DiskReader;
use crate::fs::stats::Stats;
use crate::fs::{GuestFs, Shows};
use crate::guest::Guest;
use crate::vm::confinement::confine_thread;

/// A folder that shows a guest's files. Dropping it unmounts.
pub struct Serving {
    _mount: FuseMount,
    ended: OwnedFd,
    stats: Arc<Stats>,
}

impl Serving {
    /// Mounts. When this returns, the folder answers. Files on those of `disks` that can be read
    /// here need not go through the guest.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is mounted then.
    pub fn start(
        guest: Arc<Guest>,
        disks: Vec<Option<DiskReader>>,
        shows: Shows,
        mountpoint: &Mountpoint,
        options: &FuseOptions,
    ) -> Result<Self, SessionError> {
        let (device, mount) = mountpoint.mount(&options.for_fusermount())?;
        let mut config = fuser::Config::default();
        config.acl = options.others.acl();
        config.n_threads = Some(guest.lanes());
        let fs = GuestFs::new(guest, disks, shows, options.view);
        let stats = Arc::clone(fs.stats());
        let fuse = FuseSession::from_fd(fs, device, config.acl, config)
            .map_err(|error| SessionError::Io("open a FUSE session", error))?;
        let ended = run(fuse).map_err(|error| SessionError::Io("start the FUSE threads", error))?;
        Ok(Self { _mount: mount, ended, stats })
    }

    /// What is counted.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Readable when the folder was unmounted.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Runs the FUSE threads. The descriptor's other end closes when the last of them has ended.
fn run(fuse: FuseSession<GuestFs>) -> io::Result<OwnedFd> {
    let (ended, running) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        // Signals are the main thread's. Blocking them cannot fail with a valid set.
        let _ = SigSet::all().thread_block();
        // The threads that fuser starts take the guest's answers.
        if let Err(error) = confine_thread() {
            info!("the FUSE threads are not confined: {error}");
        }
        if let Err(error) = fuse.run() {
            error!("FUSE ended: {error}");
        }
        drop(running);
    })?;
    Ok(ended)
}
