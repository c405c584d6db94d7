//! A guest's files on a folder: the mount and the threads that answer for it, whatever the
//! guest is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use fuser::{Filesystem, Session as FuseSession};
use guestmnt_protocol::message::NameMatching;
use log::{error, info};
use nix::sys::signal::SigSet;

use super::SessionError;
use super::fuse_options::FuseOptions;
use super::mountpoint::{FuseMount, MountAccess, Mountpoint};
use crate::disk::DiskReader;
use crate::fs::changes::Changes;
use crate::fs::invalidation::Invalidations;
use crate::fs::splice::Splice;
use crate::fs::stats::Stats;
use crate::fs::writable::WritableFs;
use crate::fs::{GuestFs, PageCache, Shows};
use crate::guest::Guest;
use crate::vm::confinement::confine_thread;

/// A folder that shows a guest's files. Dropping it unmounts.
pub struct Serving {
    mount: FuseMount,
    ended: OwnedFd,
    stats: Arc<Stats>,
    changes: Option<Arc<Changes>>,
}

/// What can be done with the files.
pub enum Files {
    /// They can be read; those on the disks that this process can read as well need not go
    /// through the guest.
    ReadOnly {
        /// The disks, by number.
        disks: Vec<Option<DiskReader>>,
        /// What the files are.
        shows: Shows,
    },
    /// They can be written. So the guest's filesystems compare names.
    Writable(NameMatching),
}

impl Serving {
    /// Mounts. When this returns, the folder answers.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is mounted then.
    pub fn start(
        guest: Arc<Guest>,
        files: Files,
        mountpoint: &Mountpoint,
        options: &FuseOptions,
    ) -> Result<Self, SessionError> {
        let access = match files {
            Files::ReadOnly { .. } => MountAccess::ReadOnly,
            Files::Writable(_) => MountAccess::Writable,
        };
        let (device, mount) = mountpoint.mount(access, &options.for_fusermount())?;
        let mut config = fuser::Config::default();
        config.acl = options.others.acl();
        config.n_threads = Some(guest.lanes());
        let (stats, changes, ended) = match files {
            Files::ReadOnly { disks, shows } => {
                let fs = GuestFs::new(guest, disks, shows, options.view);
                let page_cache = Arc::clone(fs.page_cache());
                (Arc::clone(fs.stats()), None, run(fs, device, config, Caches::Filled(page_cache))?)
            }
            Files::Writable(names) => {
                let fs = WritableFs::new(guest, options.view, names);
                let changes = Arc::clone(fs.changes());
                let caches = Caches::Invalidated(Arc::clone(changes.invalidations()));
                (Arc::clone(fs.stats()), Some(changes), run(fs, device, config, caches)?)
            }
        };
        Ok(Self { mount, ended, stats, changes })
    }

    /// Has the kernel hand over what it has of what was written, as long as the folder is mounted.
    ///
    /// # Errors
    /// As syncfs(2) and fsync(2).
    pub fn take_from_kernel(&self) -> io::Result<()> {
        let open = self.changes.as_ref().map_or_else(Vec::new, |changes| changes.being_written());
        self.mount.sync(&open)
    }

    /// What changes the files, where they can be written.
    #[must_use]
    pub fn changes(&self) -> Option<&Arc<Changes>> {
        self.changes.as_ref()
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

/// What is done with the kernel's caches.
enum Caches {
    /// The page cache is filled ahead of readers.
    Filled(Arc<PageCache>),
    /// What the guest does not have is taken out of them.
    Invalidated(Arc<Invalidations>),
}

/// Runs the FUSE threads. The descriptor's other end closes when the last of them has ended.
fn run<F: Filesystem + 'static>(
    fs: F,
    device: OwnedFd,
    config: fuser::Config,
    caches: Caches,
) -> Result<OwnedFd, SessionError> {
    let failed = |error| SessionError::Io("open a FUSE session", error);
    let splice = Splice::to(device.try_clone().map_err(failed)?);
    let fuse = FuseSession::from_fd(fs, device, config.acl, config).map_err(failed)?;
    let not_started = |error| SessionError::Io("start the FUSE threads", error);
    match caches {
        Caches::Filled(page_cache) => page_cache.connect(fuse.notifier(), splice),
        Caches::Invalidated(invalidations) => {
            invalidations.connect(fuse.notifier());
            start_confined("fuse-invalidate", move || invalidations.run()).map_err(not_started)?;
        }
    }
    let (ended, running) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|error| not_started(error.into()))?;
    start_confined("fuse", move || {
        if let Err(error) = fuse.run() {
            error!("FUSE ended: {error}");
        }
        drop(running);
    })
    .map_err(not_started)?;
    Ok(ended)
}

/// Starts a thread that gives up what it does not need, as do those that it starts.
fn start_confined(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let confined = move || {
        // Signals are the main thread's. Blocking them cannot fail with a valid set.
        let _ = SigSet::all().thread_block();
        // The threads that fuser starts take the guest's answers.
        if let Err(error) = confine_thread() {
            info!("the FUSE threads are not confined: {error}");
        }
        work();
    };
    thread::Builder::new().name(name.to_owned()).spawn(confined).map(drop)
}
