//! Another VM where one died: restored from the same template over the same open files, with the
//! same mounts, so that what was being read is read on.
//!
//! A hostile image may kill each VM. So it is given up after a few deaths in a row, and the mount
//! fails from then on.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

use super::boot::{self, Awake, Origin};
use super::keys;
use super::launch::LaunchError;
use super::plan::Plan;
use super::timings::Timings;
use crate::guest::{Guest, Unlike};
use crate::vm::Vm;
use crate::vm::confinement::Report;

/// Deaths in a row after which no other VM is started.
const MOST_DEATHS: usize = 3;

/// A VM that lived so long died of something else than the one before it.
const HEALTHY: Duration = Duration::from_secs(60);

/// How long another VM may take until all is mounted in it.
const REVIVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Brings another VM for a mount whose VM died.
pub struct Revival<'p> {
    plan: &'p Plan,
    origin: Origin,
    deaths: Deaths,
    /// When the present VM began to serve.
    since: Instant,
    /// VMs that followed one that died.
    count: u32,
}

/// Why a VM does not go on with the mount.
#[derive(Debug)]
pub enum NotRevived {
    /// It died too often in a row.
    TooOften,
    /// There is none.
    Launch(LaunchError),
    /// It cannot mount what the one before had mounted.
    Mount(String),
    /// It is not like the one before.
    Unlike(Unlike),
    /// The mount ends.
    Interrupted,
}

impl fmt::Display for NotRevived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooOften => write!(f, "it died {MOST_DEATHS} times in a row"),
            Self::Launch(error) => error.fmt(f),
            Self::Mount(reason) => f.write_str(reason),
            Self::Unlike(unlike) => unlike.fmt(f),
            Self::Interrupted => f.write_str("the mount ends"),
        }
    }
}

impl std::error::Error for NotRevived {}

impl<T: Into<LaunchError>> From<T> for NotRevived {
    fn from(error: T) -> Self {
        Self::Launch(error.into())
    }
}

/// Deaths that came soon after each other.
#[derive(Default)]
struct Deaths(usize);

impl Deaths {
    /// Notes the death of a VM that had served for as long as `lived`. False where it is one too
    /// many.
    fn note(&mut self, lived: Duration) -> bool {
        if lived >= HEALTHY {
            self.0 = 0;
        }
        self.0 += 1;
        self.0 < MOST_DEATHS
    }
}

impl<'p> Revival<'p> {
    /// For a mount as `plan` says, whose first VM was launched from `origin` just now.
    #[must_use]
    pub fn new(plan: &'p Plan, origin: Origin) -> Self {
        Self { plan, origin, deaths: Deaths::default(), since: Instant::now(), count: 0 }
    }

    /// VMs that followed one that died.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Has `guest`, whose VM is gone, go on in another one. Gives that up when one of `ends` becomes
    /// readable. Whoever calls this must live as long as the VM: it dies with its thread.
    ///
    /// # Errors
    /// [`NotRevived`]; no VM runs then, and another attempt counts as a further death.
    pub fn revive(
        &mut self,
        guest: &Guest,
        ends: [BorrowedFd; 2],
    ) -> Result<(Vm, Report), NotRevived> {
        let lived = self.since.elapsed();
        self.since = Instant::now();
        if !self.deaths.note(lived) {
            return Err(NotRevived::TooOften);
        }
        let Awake { guest: next, vm, confinement, tables: _ } = self.launch(ends)?;
        guest.go_on_with(next).map_err(NotRevived::Unlike)?;
        self.since = Instant::now();
        self.count += 1;
        Ok((vm, confinement))
    }

    /// Another VM with all mounted. QEMU is this thread's child; what waits for it runs in another
    /// thread, so that an end of the mount need not wait.
    fn launch(&self, ends: [BorrowedFd; 2]) -> Result<Awake, NotRevived> {
        let Self { plan, origin, .. } = self;
        let (config, from) = (origin.config(plan), origin.boot());
        let started = boot::start(&config, &from, plan, &origin.disks, &origin.kept)?;
        let pipe = |error: nix::Error| NotRevived::Mount(format!("no pipe: {error}"));
        let killer = started.vm.killer().map_err(|error| NotRevived::Mount(error.to_string()))?;
        let (done, finishing) = pipe2(OFlag::O_CLOEXEC).map_err(pipe)?;
        thread::scope(|scope| {
            let launch = scope.spawn(|| {
                // Closed when this ends, however it does.
                let _finishing: OwnedFd = finishing;
                let timings = Timings::start();
                let count = origin.disks.len();
                let awake = boot::greet(started, &config, &from, plan, count, &timings)?;
                self.mount(&awake.guest)?;
                timings.done("mounted");
                Ok(awake)
            });
            let interrupted = !is_first(done.as_fd(), ends);
            if interrupted {
                killer.kill();
            }
            let launched = launch.join().expect("a launch does not panic");
            if interrupted { Err(NotRevived::Interrupted) } else { launched }
        })
    }

    /// Mounts what was mounted.
    fn mount(&self, guest: &Guest) -> Result<(), NotRevived> {
        keys::open_volumes(guest, &self.plan.keys)
            .map_err(|error| NotRevived::Mount(error.to_string()))?;
        let mounted = self.origin.mounted.clone().mount(guest, None);
        mounted.map(drop).map_err(|error| NotRevived::Mount(error.to_string()))
    }
}

/// Waits until `done` or one of `ends` is readable, or it takes too long; whether it is `done`.
fn is_first(done: BorrowedFd, ends: [BorrowedFd; 2]) -> bool {
    let deadline = Instant::now() + REVIVAL_TIMEOUT;
    loop {
        let mut events =
            [done, ends[0], ends[1]].map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = poll(&mut events, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        if ready != Err(nix::Error::EINTR) {
            return events[0].any() == Some(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_deaths_in_a_row_are_too_many_and_a_minute_of_health_forgives_them() {
        let (soon, late) = (Duration::from_secs(59), HEALTHY);
        let table: [(&[Duration], bool); 5] = [
            (&[soon], true),
            (&[late, soon], true),
            (&[soon, soon, soon], false),
            (&[late, soon, soon], false),
            (&[soon, soon, late, soon], true),
        ];
        for (lived, expected) in table {
            let mut deaths = Deaths::default();
            let last = lived.iter().map(|lived| deaths.note(*lived)).last();
            assert_eq!(last, Some(expected), "{lived:?}");
        }
    }
}
