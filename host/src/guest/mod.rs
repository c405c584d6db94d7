//! The client of the guest: typed calls, each over a free lane, each answer checked before
//! anyone else sees it.
//!
//! **Invariant:** nothing here names FUSE or QEMU. A guest is what answers on some sockets.

pub mod asked;
mod batches;
pub mod bulk;
mod contents;
mod error;
pub mod lane;

use std::cell::Cell;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guestmnt_protocol::attr::{self, Attr, DirEntry, Following, Time};
use guestmnt_protocol::limits::{MAX_LINK, MAX_RUNS, MAX_XATTR};
use guestmnt_protocol::message::{
    Answer, Extent, Layout, Listing, MountRequest, Outcome, Request, Run, StatFs, Volume,
};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::volume::VolumeName;
use log::{debug, info, trace, warn};
use nix::errno::Errno;

use self::asked::Asked;
pub use self::batches::Contents;
use self::bulk::{Bulk, SharedMemory};
pub use self::contents::Piece;
use self::contents::slots_in;
pub use self::error::GuestError;
use self::error::errno_of;
use self::lane::Lane;
use crate::counts::{Counts, Kind};

/// The target of the `log` lines that `-x` shows of this side.
pub const TRACE: &str = "guestmnt::guest::requests";

/// How long a launch step may take, mounting among them: a journal may have to be replayed.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(120);

/// A guest that said hello.
pub struct Guest {
    lanes: Box<[Mutex<Lane>]>,
    /// Where contents of files come, unless there is none: then they come by the lanes.
    bulk: Option<Arc<Bulk>>,
    timeout: Duration,
    counts: Counts<Asked>,
    refused_answers: AtomicU64,
}

impl Guest {
    /// Says hello, and waits for the answer until `deadline` has passed. One answer speaks for
    /// all lanes, which the same daemon serves. Requests on files may take `timeout` each. Bulk
    /// memory is in `memory`, if there is some and the guest says where.
    ///
    /// # Errors
    /// [`GuestError`], for a daemon of another version among others.
    pub fn connect(
        sockets: Vec<UnixStream>,
        memory: Option<&SharedMemory>,
        deadline: Duration,
        timeout: Duration,
    ) -> Result<Self, GuestError> {
        let mut lanes: Vec<Lane> = sockets.into_iter().map(Lane::over).collect();
        let first = lanes.first_mut().expect("there is at least one lane");
        let slots = match first.call(&Request::Hello, 0, deadline)?.0 {
            Ok(Answer::Hello { version: guestmnt_protocol::VERSION, slots }) => slots,
            Ok(Answer::Hello { version, .. }) => return Err(GuestError::OtherVersion(version)),
            Ok(_) => return Err(GuestError::Unexpected),
            Err(failure) => return Err(GuestError::Failed(failure)),
        };
        Ok(Self {
            lanes: lanes.into_iter().map(Mutex::new).collect(),
            bulk: memory.and_then(|memory| slots_in(memory, &slots)),
            timeout,
            counts: Counts::default(),
            refused_answers: AtomicU64::new(0),
        })
    }

    /// The number of lanes.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Requests on files so far, and the bytes that came with their answers.
    #[must_use]
    pub fn counts(&self) -> &Counts<Asked> {
        &self.counts
    }

    /// Sets the guest's clock and feeds its random pool with `entropy`.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn wake(&self, entropy: [u8; 32]) -> Result<(), GuestError> {
        let request = Request::Wake { unix_time_ns: unix_time_ns(), entropy };
        match self.lane().call(&request, 0, LAUNCH_TIMEOUT)?.0 {
            Ok(Answer::Awake { unix_time_ns: theirs, random }) => {
                let behind = unix_time_ns().abs_diff(theirs) / 1_000_000;
                info!(
                    "the guest's clock differs by {behind} ms, its random pool gives {random:02x?}"
                );
                Ok(())
            }
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// Has the guest load all that a mount may need.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn prepare(&self) -> Result<(), GuestError> {
        self.launch_step(&Request::Prepare)
    }

    /// Waits until the guest sees `count` disks and their partitions.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn await_disks(&self, count: u8) -> Result<(), GuestError> {
        self.launch_step(&Request::AwaitDisks { count })
    }

    /// Mounts a filesystem.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with the reason.
    pub fn mount(&self, request: MountRequest) -> Result<(), GuestError> {
        self.launch_step(&Request::Mount(request))
    }

    /// Opens an encrypted volume.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with `EACCES` for a key that does not fit, or with the reason.
    pub fn unlock(&self, volume: VolumeName, key: Secret) -> Result<(), GuestError> {
        self.launch_step(&Request::Unlock { volume, key })
    }

    /// Writes everything back and unmounts all.
    ///
    /// # Errors
    /// [`GuestError::Failed`] with what could not be written or unmounted.
    pub fn unmount(&self) -> Result<(), GuestError> {
        self.launch_step(&Request::Unmount)
    }

    /// What is on the disks.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn volumes(&self) -> Result<Vec<Volume>, GuestError> {
        match self.lane().call(&Request::Volumes, 0, LAUNCH_TIMEOUT)?.0 {
            Ok(Answer::Volumes(volumes)) => Ok(volumes),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// What is on the disks, and what it is made of.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn listing(&self) -> Result<Listing, GuestError> {
        match self.lane().call(&Request::Listing, 0, LAUNCH_TIMEOUT)?.0 {
            Ok(Answer::Listing(listing)) => Ok(listing),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    fn launch_step(&self, request: &Request) -> Result<(), GuestError> {
        match self.lane().call(request, 0, LAUNCH_TIMEOUT)?.0 {
            Ok(Answer::Done) => Ok(()),
            Ok(_) => Err(GuestError::Unexpected),
            Err(failure) => Err(GuestError::Failed(failure)),
        }
    }

    /// Attributes of a file.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn stat(&self, path: GuestPath) -> Result<Attr, Errno> {
        self.call(&Request::Stat(path), 0, |answer, _| match answer {
            Answer::Attr(attr) => sane(attr),
            _ => None,
        })
    }

    /// The target of a symbolic link: 1 to [`MAX_LINK`] bytes without NUL.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read_link(&self, path: GuestPath) -> Result<Vec<u8>, Errno> {
        self.call(&Request::ReadLink(path), MAX_LINK, |answer, payload| match answer {
            Answer::Payload if !payload.is_empty() && !payload.contains(&0) => {
                Some(payload.to_vec())
            }
            _ => None,
        })
    }

    /// The entries of a directory behind the position `from`, as many as fit into `size` bytes,
    /// and whether others follow them.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read_dir(
        &self,
        path: GuestPath,
        from: u64,
        size: u32,
    ) -> Result<(Vec<DirEntry>, Following), Errno> {
        let request = Request::ReadDir { path, from, size };
        self.call(&request, size as usize, |answer, mut page| {
            if answer != Answer::Payload {
                return None;
            }
            let following = Following::pop(&mut page)?;
            let mut entries = Vec::new();
            while !page.is_empty() {
                let mut entry = attr::pop_entry(&mut page).ok()?;
                entry.attr = entry.attr.and_then(sane);
                entries.push(entry);
            }
            Some((entries, following))
        })
    }

    /// Where the next data or hole begins, from byte `offset` on.
    ///
    /// # Errors
    /// `ENXIO` behind the last data, the guest's error, or `EIO`.
    pub fn seek(&self, path: GuestPath, offset: u64, what: Extent) -> Result<u64, Errno> {
        self.call(&Request::Seek { path, offset, what }, 0, |answer, _| match answer {
            Answer::Offset(found) if found >= offset && i64::try_from(found).is_ok() => Some(found),
            _ => None,
        })
    }

    /// Where on its disk a file's bytes are, from byte `from` on: runs in the file's order that do
    /// not overlap. Whether they are within the disk is not checked here.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where only the guest can read them, the guest's error, or `EIO`.
    pub fn layout(&self, path: GuestPath, from: u64) -> Result<Layout, Errno> {
        self.call(&Request::Layout { path, from }, 0, |answer, _| match answer {
            Answer::Layout(layout) if is_layout(&layout) => Some(layout),
            _ => None,
        })
    }

    /// The names of a file's extended attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn list_xattr(&self, path: GuestPath) -> Result<Vec<u8>, Errno> {
        self.call(&Request::ListXattr(path), MAX_XATTR, |answer, names| match answer {
            Answer::Payload if names.last().is_none_or(|&last| last == 0) => Some(names.to_vec()),
            _ => None,
        })
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` where there is none, the guest's error, or `EIO`.
    pub fn get_xattr(&self, path: GuestPath, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let request = Request::GetXattr { path, name: name.to_vec() };
        self.call(&request, MAX_XATTR, |answer, value| match answer {
            Answer::Payload => Some(value.to_vec()),
            _ => None,
        })
    }

    /// Size and usage of the filesystem that a file is on.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn stat_fs(&self, path: GuestPath) -> Result<StatFs, Errno> {
        self.call(&Request::StatFs(path), 0, |answer, _| match answer {
            Answer::StatFs(stat) => Some(stat),
            _ => None,
        })
    }

    /// One request on a file. `check` turns a proper answer into the result, or refuses it.
    fn call<T>(
        &self,
        request: &Request,
        payload_limit: usize,
        check: impl FnOnce(Answer, &[u8]) -> Option<T>,
    ) -> Result<T, Errno> {
        self.count(request);
        let mut lane = self.lane();
        let (outcome, payload): (Outcome, &[u8]) =
            lane.call(request, payload_limit, self.timeout).map_err(|error| {
                self.refuse(&error);
                Errno::EIO
            })?;
        self.counts.bytes(payload.len());
        match outcome {
            Ok(answer) => check(answer, payload).ok_or_else(|| {
                self.refuse(&"an answer out of bounds");
                Errno::EIO
            }),
            Err(failure) => Err(errno_of(failure.errno)),
        }
    }

    /// Counts a request, and says for `-x` that it is made.
    fn count(&self, request: &Request) {
        if let Some(asked) = Asked::of(request) {
            self.counts.request(asked);
            trace!(target: TRACE, "-> {}", asked.name());
        }
    }

    /// Counts an answer that cannot be used. The first is a warning; a hostile guest shall not
    /// fill the log.
    fn refuse(&self, why: &dyn fmt::Display) {
        if self.refused_answers.fetch_add(1, Ordering::Relaxed) == 0 {
            warn!("{why}; such requests fail with EIO");
        } else {
            debug!("{why}");
        }
    }

    /// This thread's own lane, or a free one, or else its own once it is free.
    fn lane(&self) -> MutexGuard<'_, Lane> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        let own = OWN.get();
        let count = self.lanes.len();
        let free = (own..own + count).find_map(|n| self.lanes[n % count].try_lock().ok());
        free.unwrap_or_else(|| {
            self.lanes[own % count].lock().unwrap_or_else(PoisonError::into_inner)
        })
    }
}

fn unix_time_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// `attr`, unless something in it could not be passed on to the kernel.
fn sane(attr: Attr) -> Option<Attr> {
    let kinds = [
        libc::S_IFREG,
        libc::S_IFDIR,
        libc::S_IFLNK,
        libc::S_IFIFO,
        libc::S_IFSOCK,
        libc::S_IFCHR,
        libc::S_IFBLK,
    ];
    let times = [attr.accessed, attr.modified, attr.changed];
    let good = kinds.contains(&(attr.mode & libc::S_IFMT))
        && attr.mode <= 0o177_777
        && i64::try_from(attr.size).is_ok()
        && times.iter().all(is_time);
    good.then_some(attr)
}

/// Whether a layout's runs are in order, and its numbers can be reckoned with.
fn is_layout(layout: &Layout) -> bool {
    let fits = |run: &Run| {
        run.length > 0
            && [run.at, run.stored].iter().all(|start| {
                start.checked_add(run.length).is_some_and(|end| i64::try_from(end).is_ok())
            })
    };
    i64::try_from(layout.size).is_ok()
        && layout.runs.len() <= MAX_RUNS
        && layout.runs.iter().all(fits)
        && layout.runs.is_sorted_by(|one, next| one.at + one.length <= next.at)
}

fn is_time(time: &Time) -> bool {
    time.nanos < 1_000_000_000 && time.secs.unsigned_abs() < 1 << 60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_that_cannot_be_reckoned_with_are_refused() {
        let run = |at, length, stored| Run { at, length, stored };
        let layout = |runs: &[Run]| Layout { disk: 0, size: 9, end: 9, runs: runs.to_vec() };
        assert!(is_layout(&layout(&[])));
        assert!(is_layout(&layout(&[run(0, 4, 100), run(4, 4, 0), run(9, 1, 50)])));
        let max = u64::MAX >> 1;
        let table: [&[Run]; 6] = [
            &[run(0, 0, 0)],
            &[run(0, 4, 0), run(3, 4, 8)],
            &[run(4, 4, 0), run(0, 4, 8)],
            &[run(max, 1, 0)],
            &[run(0, 1, u64::MAX)],
            &[run(0, 1, 0); MAX_RUNS + 1],
        ];
        for runs in table {
            assert!(!is_layout(&layout(runs)), "{runs:?}");
        }
        assert!(!is_layout(&Layout { size: u64::MAX, ..layout(&[]) }));
    }

    #[test]
    fn attributes_that_the_kernel_would_choke_on_are_refused() {
        let good = Attr { mode: libc::S_IFREG | 0o644, ..Attr::default() };
        assert!(sane(good).is_some());
        let table = [
            ("no type", Attr { mode: 0o644, ..good }),
            ("an unknown type", Attr { mode: 0o050_644, ..good }),
            ("bits beyond the mode", Attr { mode: good.mode | 1 << 20, ..good }),
            ("a size of -1", Attr { size: u64::MAX, ..good }),
            ("a size of 2^63", Attr { size: 1 << 63, ..good }),
            ("nanoseconds", Attr { modified: Time { secs: 0, nanos: 1_000_000_000 }, ..good }),
            (
                "a time at the end of time",
                Attr { accessed: Time { secs: i64::MIN, nanos: 0 }, ..good },
            ),
        ];
        for (what, attr) in table {
            assert!(sane(attr).is_none(), "{what}");
        }
    }
}
