//! One mount from its launch to its end: assembles image, VM, guest and FUSE, announces that
//! the mount answers, waits, and takes everything apart in order.

pub mod arrangement;
pub mod end;
pub mod fuse_options;
pub mod keys;
pub mod launch;
pub mod mountpoint;
pub mod plan;
pub mod record;
pub mod serving;
pub mod templates;
pub mod timings;
pub mod watcher;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use log::{error, info};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::arrangement::Selection;
use self::launch::{LaunchError, Launched};
use self::mountpoint::{Mountpoint, MountpointError};
use self::plan::Plan;
use self::record::Record;
use self::serving::Serving;
use self::timings::Timings;
use self::watcher::Watcher;
use crate::fs::Shows;
use crate::guest::Guest;
use crate::vm::Vm;

/// Why a session failed.
#[derive(Debug)]
pub enum SessionError {
    /// There is no guest with the filesystems mounted.
    Launch(LaunchError),
    /// The folder cannot be mounted on.
    Mountpoint(MountpointError),
    /// FUSE or signals failed.
    Io(&'static str, io::Error),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(error) => error.fmt(f),
            Self::Mountpoint(error) => error.fmt(f),
            Self::Io(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for SessionError {}

impl From<LaunchError> for SessionError {
    fn from(error: LaunchError) -> Self {
        Self::Launch(error)
    }
}

impl From<MountpointError> for SessionError {
    fn from(error: MountpointError) -> Self {
        Self::Mountpoint(error)
    }
}

/// A mount that answers.
pub struct Session {
    serving: Serving,
    guest: Arc<Guest>,
    vm: Vm,
    _record: File,
    tell_stats: bool,
    _watcher: Watcher,
}

impl Session {
    /// Launches the guest and mounts its files. When this returns, the mount answers, and
    /// `watcher` will unmount it should this process be killed. Each step is noted in `timings`.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is mounted and nothing runs then.
    pub fn start(plan: &Plan, timings: &Timings, watcher: Watcher) -> Result<Self, SessionError> {
        let mountpoint = Mountpoint::check(&plan.mountpoint)?;
        let Launched { guest, vm, disks, accelerator, confinement } =
            launch::launch(plan, timings)?;
        let images = plan
            .disks
            .iter()
            .map(|disk| fs::canonicalize(&disk.path).unwrap_or_else(|_| disk.path.clone()))
            .collect();
        let qemu = vm.process_id();
        let record = Record { images, accelerator, qemu, confinement }
            .publish()
            .map_err(|error| SessionError::Io("say what is mounted", error))?;
        let guest = Arc::new(guest);
        let serving = Serving::start(
            Arc::clone(&guest),
            disks,
            if plan.selection == Selection::Blocks { Shows::Devices } else { Shows::Files },
            &mountpoint,
            &plan.fuse_options,
        )?;
        timings.done("FUSE ready");
        let tell_stats = plan.stats;
        Ok(Self { serving, guest, vm, _record: record, tell_stats, _watcher: watcher })
    }

    /// Serves until the folder is unmounted or a signal says to end, then takes everything
    /// apart. When this returns, QEMU is gone and the images are free.
    ///
    /// # Errors
    /// [`SessionError`] where the waiting itself failed; everything is taken apart all the same.
    pub fn wait(self) -> Result<(), SessionError> {
        let waited = self.wait_for_end();
        self.end();
        waited
    }

    /// Unmounts and takes everything apart.
    pub fn end(self) {
        let stats = Arc::clone(self.serving.stats());
        drop(self.serving);
        if self.tell_stats {
            eprintln!("guestmnt: {stats}");
            eprintln!("guestmnt: guest: {}", self.guest.counts());
        }
        if let Err(error) = self.guest.unmount() {
            info!("the guest did not unmount: {error}");
        }
        self.vm.quit();
    }

    fn wait_for_end(&self) -> Result<(), SessionError> {
        let failed = |what| move |error: nix::Error| SessionError::Io(what, error.into());
        let signals: SigSet =
            [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().map_err(failed("block signals"))?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
            .map_err(failed("wait for signals"))?;
        let mut vm_runs = true;
        loop {
            let mut events = vec![
                PollFd::new(self.serving.ended(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            if vm_runs {
                events.push(PollFd::new(self.vm.pidfd(), PollFlags::POLLIN));
            }
            match poll(&mut events, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(failed("wait for the mount's end")(error)),
            }
            let happened = |n: usize| events.get(n).is_some_and(|event| event.any() == Some(true));
            if happened(0) {
                info!("the folder was unmounted");
                return Ok(());
            }
            if happened(1) {
                info!("a signal ends the mount");
                return Ok(());
            }
            if happened(2) {
                vm_runs = false;
                error!("the VM ended; the mount fails with EIO until it is unmounted");
            }
        }
    }
}
