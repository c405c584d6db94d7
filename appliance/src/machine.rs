//! What only a guest in a virtual machine has: a clock and a random pool of its own, disks,
//! modules, mounts.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::message::{Failure, MountRequest, Volume};

use crate::devices::Disks;
use crate::failure::{errno_of, explained};
use crate::modules::Modules;
use crate::mounts::Mounts;
use crate::sys;
use crate::volumes;

/// How long a disk may take to appear. Emulated machines on a busy host are slow; the usual is
/// a tenth of a second.
const DISKS_TIMEOUT: Duration = Duration::from_secs(30);

/// The virtual machine around the daemon.
pub struct Machine {
    /// The disks that are there.
    pub disks: Disks,
    /// The kernel's modules.
    pub modules: Modules,
    mounts: Mutex<Mounts>,
}

impl Machine {
    /// A machine that has its modules in the folder `modules`.
    #[must_use]
    pub fn new(modules: PathBuf) -> Self {
        Self { disks: Disks::default(), modules: Modules::new(modules), mounts: Mutex::default() }
    }

    /// Sets the clock, and gives the random pool what the host's pool gave: a guest that was
    /// restored has the pool of all others that were.
    ///
    /// # Errors
    /// As clock_settime(2) and random(4), with what failed.
    pub fn wake(&self, unix_time_ns: u64, entropy: &[u8; 32]) -> Result<(), Failure> {
        let time = TimeSpec::from_duration(Duration::from_nanos(unix_time_ns));
        clock_settime(ClockId::CLOCK_REALTIME, time)
            .map_err(|errno| failed("set the guest's clock", errno))?;
        let random = OpenOptions::new().write(true).open("/dev/random");
        random
            .map_err(|error| errno_of(&error))
            .and_then(|random| sys::add_entropy(random.as_fd(), entropy))
            .map_err(|errno| failed("seed the guest's random pool", errno))
    }

    /// Waits for the disks with LUN 0 to `count - 1`, with their partitions.
    ///
    /// # Errors
    /// `ETIMEDOUT`, with the names of those that did not come.
    pub fn await_disks(&self, count: u8) -> Result<(), Failure> {
        self.disks.wait_for(count, DISKS_TIMEOUT).map_err(|missing| {
            let names: Vec<_> = missing.iter().map(DeviceName::to_string).collect();
            let seconds = DISKS_TIMEOUT.as_secs();
            let detail = format!("not there after {seconds} seconds: {}", names.join(", "));
            explained(Errno::ETIMEDOUT, detail)
        })
    }

    /// Probes all disks and partitions.
    #[must_use]
    pub fn volumes(&self) -> Vec<Volume> {
        volumes::list(&self.disks)
    }

    /// Mounts a filesystem; `root` is what is mounted on `/`.
    ///
    /// # Errors
    /// As [`Mounts::mount`].
    pub fn mount(&self, request: &MountRequest, root: Option<BorrowedFd>) -> Result<(), Failure> {
        self.mounts().mount(request, root, &self.disks, &self.modules)
    }

    /// Unmounts everything.
    ///
    /// # Errors
    /// As [`Mounts::unmount_all`].
    pub fn unmount_all(&self) -> Result<(), Failure> {
        self.mounts().unmount_all()
    }

    fn mounts(&self) -> MutexGuard<'_, Mounts> {
        // After a panic the list has at worst one mount less than there are.
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(what: &str, errno: Errno) -> Failure {
    explained(errno, format!("cannot {what}: {}", errno.desc()))
}
