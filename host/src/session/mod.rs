//! One mount from its launch to its end: assembles image, VM, guest and FUSE, announces that
//! the mount answers, waits, and takes everything apart in order.

pub mod arrangement;
pub mod boot;
mod disks;
pub mod end;
pub mod foreign;
pub mod fuse_device;
pub mod fuse_options;
pub mod keys;
pub mod launch;
pub mod mountpoint;
pub mod plan;
mod prompt;
pub mod record;
pub mod revival;
pub mod selection;
pub mod serving;
pub mod templates;
pub mod timings;
pub mod watcher;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use log::{error, info, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use self::launch::{LaunchError, Launched, cache_folder};
use self::mountpoint::{Mountpoint, MountpointError};
use self::plan::Plan;
use self::record::{End, Record};
use self::revival::{NotRevived, Revival};
use self::selection::Selection;
use self::serving::{Files, Serving};
use self::timings::Timings;
use self::watcher::Watcher;
use crate::ending::take_signals;
use crate::fs::Shows;
use crate::guest::Guest;
use crate::vm::Vm;
use crate::vm::confinement::Report;

/// Why a session failed.
#[derive(Debug)]
pub enum SessionError {
    /// There is no guest with the filesystems mounted.
    Launch(LaunchError),
    /// The folder cannot be mounted on.
    Mountpoint(MountpointError),
    /// FUSE or signals failed.
    Io(&'static str, io::Error),
    /// Not everything that was written is kept.
    Lost(String),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch(error) => error.fmt(f),
            Self::Mountpoint(error) => error.fmt(f),
            Self::Io(what, error) => write!(f, "cannot {what}: {error}"),
            Self::Lost(reason) => write!(f, "not everything that was written is kept: {reason}"),
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
pub struct Session<'p> {
    serving: Serving,
    guest: Arc<Guest>,
    /// `None` after it died and none could follow it.
    vm: Option<Vm>,
    revival: Revival<'p>,
    record: Record,
    /// The record as it is shown.
    shown: File,
    tell_stats: bool,
    complete: bool,
    /// Where templates are kept.
    cache: Option<PathBuf>,
    /// Those that end the mount.
    signals: SignalFd,
    _watcher: Watcher,
}

impl<'p> Session<'p> {
    /// Launches the guest and mounts its files. When this returns, the mount answers, and
    /// `watcher` will unmount it should this process be killed. Each step is noted in `timings`.
    /// Keys that are missing are asked for on the terminal, and kept in `plan`. The VM dies with the thread that calls this.
    ///
    /// # Errors
    /// [`SessionError`]; nothing is mounted and nothing runs then.
    pub fn start(
        plan: &'p mut Plan,
        timings: &Timings,
        watcher: Watcher,
    ) -> Result<Self, SessionError> {
        let mountpoint = Mountpoint::check(&plan.mountpoint)?;
        let launched = prompt::launch_asking(plan, timings)?;
        let Launched { guest, vm, disks, names, complete, origin, confinement, tables: _ } =
            launched;
        let plan = &*plan;
        let images = plan
            .disks
            .iter()
            .map(|disk| fs::canonicalize(&disk.path).unwrap_or_else(|_| disk.path.clone()))
            .collect();
        let (accelerator, qemu) = (origin.accelerator, vm.process_id());
        let overlays = origin.kept.iter().map(|overlay| overlay.path().to_owned()).collect();
        let (revivals, end) = (0, End::Open);
        let writable = plan.is_writable();
        // A clock that is before 1970 is wrong anyway.
        let since = UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs());
        let record = Record {
            images,
            since,
            accelerator,
            qemu,
            revivals,
            confinement,
            overlays,
            writable,
            end,
        };
        let shown =
            record.publish().map_err(|error| SessionError::Io("say what is mounted", error))?;
        // What a VM has not yet written when it dies, no other one knows.
        if !plan.is_writable() {
            guest.expect_another();
        }
        let guest = Arc::new(guest);
        let signals = take_signals().map_err(failed("wait for signals"))?;
        let files = if plan.is_writable() {
            Files::Writable(names)
        } else {
            let blocks = plan.selection == Selection::Blocks;
            let shows = if blocks { Shows::Devices } else { Shows::Files };
            Files::ReadOnly { disks, shows }
        };
        let serving = Serving::start(Arc::clone(&guest), files, &mountpoint, &plan.fuse_options)?;
        timings.done("FUSE ready");
        Ok(Self {
            serving,
            guest,
            vm: Some(vm),
            revival: Revival::new(plan, origin),
            record,
            shown,
            tell_stats: plan.stats,
            complete,
            cache: cache_folder(),
            signals,
            _watcher: watcher,
        })
    }

    /// Whether nothing is missing of what the user asked for: `--all` shows what it can.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Serves until the folder is unmounted or a signal says to end, then takes everything
    /// apart. When this returns, QEMU is gone and the images are free. A VM that dies meanwhile is
    /// followed by another.
    ///
    /// # Errors
    /// [`SessionError::Lost`], or where the waiting itself failed; everything is taken apart all the
    /// same.
    pub fn wait(mut self) -> Result<(), SessionError> {
        let waited = self.wait_for_end();
        let cache = self.cache.take();
        let ended = self.end();
        // Here it costs no mount anything.
        if let Some(cache) = cache {
            templates::remove_unused(&cache);
        }
        waited.and(ended)
    }

    /// Unmounts and takes everything apart, what was written being brought to the disk before.
    ///
    /// # Errors
    /// [`SessionError::Lost`]; everything is taken apart all the same.
    pub fn end(mut self) -> Result<(), SessionError> {
        let stats = Arc::clone(self.serving.stats());
        // Nobody is to wait for a VM any more.
        self.guest.expect_none();
        let changes = self.serving.changes().cloned();
        let taken = changes.as_ref().map(|_| self.serving.take_from_kernel());
        drop(self.serving);
        if self.tell_stats {
            eprintln!("guestmnt: {stats}");
            eprintln!("guestmnt: guest: {}", self.guest.counts());
        }
        let Some(changes) = changes else {
            // Nothing is written back that anybody could see: QEMU is killed, running or frozen.
            drop(self.vm);
            return Ok(());
        };
        let unmounted = self.guest.unmount();
        if let Err(error) = &unmounted {
            info!("the guest did not unmount: {error}");
        }
        if let Some(vm) = self.vm {
            vm.quit();
        }
        let reason = match (changes.lost(), taken, unmounted) {
            (Some(lost), _, _) => Some(format!("{}: {}", lost.path, lost.errno.desc())),
            (None, Some(Err(error)), _) => Some(error.to_string()),
            (None, _, Err(error)) => Some(error.to_string()),
            (None, _, Ok(())) => None,
        };
        let end = reason.clone().map_or(End::Kept, End::Lost);
        self.record.end = end;
        if let Err(error) = self.record.update(&self.shown) {
            info!("how it ended cannot be told: {error}");
        }
        reason.map_or(Ok(()), |reason| Err(SessionError::Lost(reason)))
    }

    fn wait_for_end(&mut self) -> Result<(), SessionError> {
        loop {
            let mut events = vec![
                PollFd::new(self.serving.ended(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            if let Some(vm) = &self.vm {
                events.push(PollFd::new(vm.pidfd(), PollFlags::POLLIN));
                events.push(PollFd::new(self.guest.given_up(), PollFlags::POLLIN));
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
            if happened(2) || happened(3) {
                self.vm = self.follow();
            }
        }
    }

    /// The VM that follows the present one, which has ended or is given up. `None` where there
    /// is none, or where the mount ends first.
    fn follow(&mut self) -> Option<Vm> {
        let mut dead = self.vm.take()?;
        if self.serving.changes().is_some() {
            let ending = dead.kill();
            error!("the VM died (QEMU {ending}); the mount fails with EIO until it is unmounted");
            return None;
        }
        let began = Instant::now();
        let ending = dead.kill();
        let why = self.guest.why_given_up().unwrap_or_else(|| format!("QEMU {ending}"));
        for line in dead.last_words() {
            info!("the VM printed last: {line}");
        }
        loop {
            let ends = [self.serving.ended(), self.signals.as_fd()];
            match self.revival.revive(&self.guest, ends) {
                Ok((vm, confinement)) => {
                    let took = began.elapsed().as_millis();
                    warn!(
                        "the VM died ({why}); another one goes on with the mount after {took} ms"
                    );
                    self.say(vm.process_id(), confinement);
                    return Some(vm);
                }
                Err(NotRevived::Interrupted) => return None,
                Err(error @ NotRevived::TooOften) => {
                    self.guest.expect_none();
                    error!(
                        "the VM died ({why}), and {error}; the mount fails with EIO until it is unmounted"
                    );
                    return None;
                }
                Err(error) => warn!("the VM died ({why}), and no other could go on: {error}"),
            }
        }
    }

    /// Shows what has changed with another VM.
    fn say(&mut self, qemu: u32, confinement: Report) {
        let revivals = self.revival.count();
        self.record = Record { qemu, revivals, confinement, ..self.record.clone() };
        match self.record.publish() {
            Ok(shown) => self.shown = shown,
            Err(error) => info!("`guestimg status` will not know of the other VM: {error}"),
        }
    }
}

fn failed(what: &'static str) -> impl Fn(nix::Error) -> SessionError {
    move |error| SessionError::Io(what, error.into())
}
