//! Ends a mount from outside: unmounts, and waits until the processes behind it are gone.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guestmnt_protocol::path::Printable;

use super::mountpoint::{MountEntry, MountpointError, Unmount, mounts, unmount};
use super::record::{End, Record, Shown};
use crate::guest::SYNC_TIMEOUT;
use crate::sys;

/// How long the serving process may take to write everything back and end.
const END_TIMEOUT: Duration = SYNC_TIMEOUT.saturating_add(Duration::from_secs(60));

/// Why a mount was not ended.
#[derive(Debug)]
pub enum EndError {
    /// There is no mount of ours.
    NotOurs(PathBuf),
    /// It is in use, by these processes as far as we can see.
    Busy(PathBuf, Vec<Holder>),
    /// It is unmounted, but the process that served it does not end.
    Lingers(u32),
    /// It is unmounted, and not everything that was written to it is kept.
    Lost(PathBuf, String),
    /// The mount table, or fusermount3.
    Mountpoint(MountpointError),
}

impl fmt::Display for EndError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs(path) => {
                write!(f, "{} is not a mount of guestmnt", path.display())?;
                f.write_str("\n  hint: `findmnt -t fuse.guestmnt` lists those that are")
            }
            Self::Busy(path, holders) => {
                write!(f, "{} is in use", path.display())?;
                holders.iter().try_for_each(|holder| write!(f, "\n    {holder}"))
            }
            Self::Lingers(pid) => {
                write!(f, "unmounted, but process {pid} that served the mount has not ended")
            }
            Self::Lost(path, reason) => write!(
                f,
                "{} is unmounted, but not everything that was written to it is kept: {reason}",
                path.display()
            ),
            Self::Mountpoint(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EndError {}

impl From<MountpointError> for EndError {
    fn from(error: MountpointError) -> Self {
        Self::Mountpoint(error)
    }
}

/// A process that keeps a mount in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its name, made printable.
    pub name: String,
    /// What it has open or is in.
    pub what: PathBuf,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}) uses {}", self.pid, self.name, self.what.display())
    }
}

/// Unmounts `path`. When this returns, the guest has written everything back, QEMU is gone
/// and the images are free.
///
/// # Errors
/// [`EndError`].
pub fn end(path: &Path) -> Result<(), EndError> {
    let mount = find(path)?;
    let processes = mount.server().map_or_else(Vec::new, processes_of);
    let record = mount.server().and_then(Shown::by);
    if let Err(error) = unmount(path, Unmount::Now) {
        match find(path) {
            Err(_) => {}
            Ok(_) if is_busy(&error) => {
                return Err(EndError::Busy(path.to_owned(), holders(path)));
            }
            Ok(_) => return Err(error.into()),
        }
    }
    wait_for(processes)?;
    match record.and_then(|record| record.read()) {
        Some(Record { writable: true, end, .. }) => match end {
            End::Kept => Ok(()),
            End::Lost(reason) => Err(EndError::Lost(path.to_owned(), reason)),
            End::Open => {
                let reason = "the process that served it was killed".to_owned();
                Err(EndError::Lost(path.to_owned(), reason))
            }
        },
        _ => Ok(()),
    }
}

/// The newest mount on `path`, if it is ours.
fn find(path: &Path) -> Result<MountEntry, EndError> {
    let newest = mounts()?.into_iter().rfind(|mount| mount.mountpoint == path);
    newest.filter(MountEntry::is_ours).ok_or_else(|| EndError::NotOurs(path.to_owned()))
}

/// Whether fusermount3 failed because of `EBUSY`. It has no status of its own for that.
fn is_busy(error: &MountpointError) -> bool {
    matches!(error, MountpointError::Refused(reason) if reason.is_empty() || reason.contains("busy"))
}

/// The serving process and its children, held so that their numbers cannot be another's when
/// we wait for them.
fn processes_of(server: u32) -> Vec<(u32, OwnedFd)> {
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"));
    let children = children.unwrap_or_default();
    let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(server)
        .chain(pids)
        .filter_map(|pid| Some((pid, sys::pidfd_open(pid).ok()?)))
        .collect()
}

fn wait_for(processes: Vec<(u32, OwnedFd)>) -> Result<(), EndError> {
    for (pid, process) in processes {
        if !sys::ended_within(process.as_fd(), END_TIMEOUT) {
            return Err(EndError::Lingers(pid));
        }
    }
    Ok(())
}

/// The processes that use `path`, among those that we may look into.
fn holders(path: &Path) -> Vec<Holder> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let what = used_below(&entry.path(), path)?;
        let name = fs::read(entry.path().join("comm")).unwrap_or_default();
        Some(Holder { pid, name: Printable(name.trim_ascii_end()).to_string(), what })
    })
    .collect()
}

fn used_below(process: &Path, path: &Path) -> Option<PathBuf> {
    let folders = ["cwd", "root", "exe"].map(|link| process.join(link));
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let maps = fs::read_dir(process.join("map_files")).into_iter().flatten().flatten();
    folders
        .into_iter()
        .chain(files.chain(maps).map(|entry| entry.path()))
        .filter_map(|link| fs::read_link(link).ok())
        .find(|used| used.starts_with(path))
}
