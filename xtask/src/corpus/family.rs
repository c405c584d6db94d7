//! The processes that a trial starts, and those that they leave behind.
//!
//! This process takes the place of init for all that it starts (`PR_SET_CHILD_SUBREAPER`): whoever
//! loses its parent becomes its child. So a child that nobody here started was left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How often is looked.
const TICK: Duration = Duration::from_millis(5);

/// The children that were started here and not waited for.
pub struct Family {
    ours: Mutex<BTreeSet<u32>>,
    grace: Duration,
}

impl Family {
    /// None yet. From now on this process gets all orphans, which have the time `grace` to end.
    ///
    /// # Errors
    /// As prctl(2).
    pub fn new(grace: Duration) -> io::Result<Self> {
        nix::sys::prctl::set_child_subreaper(true)?;
        Ok(Self { ours: Mutex::default(), grace })
    }

    /// Starts a child.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn start(&self, command: &mut Command) -> io::Result<Child> {
        // Nobody may see the child before it is noted.
        let mut ours = self.lock();
        let child = command.spawn()?;
        ours.insert(child.id());
        Ok(child)
    }

    /// Waits for a child of [`Self::start`]; `None` where it takes longer than `most`.
    ///
    /// # Errors
    /// As waitpid(2).
    pub fn wait(
        &self,
        child: &mut Child,
        most: Duration,
    ) -> io::Result<Option<std::process::ExitStatus>> {
        let end = Instant::now() + most;
        loop {
            if let Some(status) = child.try_wait()? {
                self.lock().remove(&child.id());
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(TICK);
        }
    }

    /// The processes that were left behind and do not end: their ids and names.
    ///
    /// # Errors
    /// Where /proc cannot be read.
    pub fn orphans(&self) -> io::Result<Vec<(u32, String)>> {
        let end = Instant::now() + self.grace;
        loop {
            let orphans = self.living_orphans()?;
            if orphans.is_empty() || Instant::now() >= end {
                let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm"));
                let named = |pid| (pid, name(&pid).unwrap_or_default().trim_end().to_owned());
                return Ok(orphans.into_iter().map(named).collect());
            }
            std::thread::sleep(TICK);
        }
    }

    fn living_orphans(&self) -> io::Result<Vec<u32>> {
        let ours = self.lock();
        let mut orphans = Vec::new();
        for pid in children()? {
            if !ours.contains(&pid) {
                let id = Pid::from_raw(pid.try_into().expect("the kernel's pids fit"));
                let ended = waitpid(id, Some(WaitPidFlag::WNOHANG));
                orphans
                    .extend((ended == Ok(nix::sys::wait::WaitStatus::StillAlive)).then_some(pid));
            }
        }
        Ok(orphans)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The children of this process, whichever of its threads they belong to.
fn children() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread may have ended meanwhile; its children are another's then.
        let list = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        pids.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(pids)
}
