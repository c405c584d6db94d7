//! The client of the guest: typed calls, each over a free lane, each answer checked before
//! anyone else sees it.
//!
//! **Invariant:** nothing here names FUSE or QEMU. A guest is what answers on some sockets.

pub mod asked;
mod batches;
pub mod bulk;
mod changes;
mod checks;
mod contents;
mod error;
pub mod lane;
mod lanes;
mod launching;
mod owed;
mod pulse;
mod requests;
pub mod room;
mod succession;
mod volumes;

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guestmnt_protocol::attr::{self, Attr, DirEntry, Following};
use guestmnt_protocol::limits::{MAX_LINK, MAX_SAMPLE, MAX_XATTR};
use guestmnt_protocol::message::{Answer, Extent, Layout, Request, StatFs};
use guestmnt_protocol::path::GuestPath;
use nix::errno::Errno;

use self::asked::Asked;
pub use self::batches::Contents;
use self::bulk::SharedMemory;
pub use self::changes::{CopiedRange, SYNC_TIMEOUT, Update};
use self::checks::{is_layout, sane};
use self::contents::slots_in;
pub use self::contents::{Landing, Piece};
pub use self::error::GuestError;
use self::lane::{Lane, LaneError, Wait};
use self::lanes::{Lanes, Link};
use self::pulse::Pulse;
use self::room::Room;
use self::succession::Succession;
pub use self::volumes::Unlike;
use self::volumes::Volumes;
use crate::counts::Counts;

/// The target of the `log` lines that `-x` shows of this side. No module has this path: what one says
/// with it would not be shown either.
pub const TRACE: &str = "guestmnt::trace::guest";

/// A guest that said hello, and those that follow it when its VM dies.
pub struct Guest {
    lanes: Lanes,
    /// Where the guest is asked whether it runs, if it can be.
    pulse: Option<Mutex<Pulse>>,
    succession: Succession,
    volumes: Volumes,
    /// For what it writes.
    room: Room,
    timeout: Duration,
    /// The most for what takes longer than a request on a file may.
    longest: Duration,
    counts: Counts<Asked>,
    landed: Arc<Counts<Landing>>,
    refused_answers: AtomicU64,
    /// How many reasons the guest gave that were told, and the last one.
    explained: Mutex<(u64, String)>,
}

impl Guest {
    /// Says hello, and waits for the answer as `wait` says. One answer speaks for
    /// all lanes, which the same daemon serves. Requests on files may take `timeout` each. Bulk
    /// memory is in `memory`, if there is some and the guest says where.
    ///
    /// # Errors
    /// [`GuestError`], for a daemon of another version among others.
    pub fn connect<'w>(
        sockets: Vec<UnixStream>,
        memory: Option<&SharedMemory>,
        wait: impl Into<Wait<'w>>,
        timeout: Duration,
    ) -> Result<Self, GuestError> {
        let mut lanes: Vec<Lane> = sockets.into_iter().map(Lane::over).collect();
        let first = lanes.first_mut().expect("there is at least one lane");
        let slots = match first.call(&Request::Hello, 0, wait)?.0 {
            Ok(Answer::Hello { version: guestmnt_protocol::VERSION, slots }) => slots,
            Ok(Answer::Hello { version, .. }) => return Err(GuestError::OtherVersion(version)),
            Ok(_) => return Err(GuestError::Unexpected),
            Err(failure) => return Err(GuestError::Failed(failure)),
        };
        let bulk = memory.and_then(|memory| slots_in(memory, &slots));
        let link = |lane| Link::new(lane, bulk.clone(), 0);
        Ok(Self {
            lanes: Lanes::new(lanes.into_iter().map(link)),
            pulse: None,
            succession: Succession::new()
                .map_err(|error| GuestError::Lane(LaneError::Io(error)))?,
            volumes: Volumes::default(),
            room: Room::default(),
            timeout,
            longest: Duration::MAX,
            counts: Counts::default(),
            landed: Arc::default(),
            refused_answers: AtomicU64::new(0),
            explained: Mutex::default(),
        })
    }

    /// The same, with a lane by which it can be told whether the guest runs.
    #[must_use]
    pub fn with_pulse(self, socket: UnixStream) -> Self {
        Self { pulse: Some(Mutex::new(Pulse::on(Lane::over(socket)))), ..self }
    }

    /// The same, which is given no more to write than there is room for.
    #[must_use]
    pub fn with_room(self, room: Room) -> Self {
        Self { room, ..self }
    }

    /// The same, of which no step of a launch and no sync may take longer than this.
    #[must_use]
    pub fn within(self, longest: Duration) -> Self {
        Self { longest, ..self }
    }

    /// The number of lanes.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.lanes.count()
    }

    /// Requests on files so far, and the bytes that came with their answers.
    #[must_use]
    pub fn counts(&self) -> &Counts<Asked> {
        &self.counts
    }

    /// Attributes of a file.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn stat(&self, path: GuestPath) -> Result<Attr, Errno> {
        let request = Request::Stat(path.clone());
        self.call_vm(&request, 0, |vm, answer, _| match answer {
            Answer::Attr(attr) => self.numbered(vm, sane(attr)?, || Some(path)),
            _ => None,
        })
    }

    /// Where a symbolic link leads: 1 to [`MAX_LINK`] bytes without NUL.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read_link(&self, path: GuestPath) -> Result<Vec<u8>, Errno> {
        self.target(&Request::ReadLink(path))
    }

    /// The target of a symbolic link as it is stored, likewise.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn stored_target(&self, path: GuestPath) -> Result<Vec<u8>, Errno> {
        self.target(&Request::StoredTarget(path))
    }

    fn target(&self, request: &Request) -> Result<Vec<u8>, Errno> {
        self.call(request, MAX_LINK, |answer, payload| match answer {
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
        let request = Request::ReadDir { path: path.clone(), from, size };
        self.call_vm(&request, size as usize, |vm, answer, mut page| {
            if answer != Answer::Payload {
                return None;
            }
            let following = Following::pop(&mut page)?;
            let mut entries = Vec::new();
            while !page.is_empty() {
                let mut entry = attr::pop_entry(&mut page).ok()?;
                let file = || path.join(&entry.name).ok();
                entry.attr = entry.attr.and_then(|attr| self.numbered(vm, sane(attr)?, file));
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

    /// As [`Guest::layout`] from the first byte on, with up to [`MAX_SAMPLE`] bytes at `offset`, as the
    /// guest reads them; fewer only at the file's end.
    ///
    /// # Errors
    /// As [`Guest::layout`].
    pub fn sampled_layout(&self, path: GuestPath, offset: u64) -> Result<(Layout, Vec<u8>), Errno> {
        self.call(&Request::SampledLayout { path, offset }, 0, |answer, _| match answer {
            Answer::SampledLayout { layout, sample }
                if is_layout(&layout) && sample.len() <= MAX_SAMPLE =>
            {
                Some((layout, sample))
            }
            _ => None,
        })
    }

    /// The names of a file's extended attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn list_xattr(&self, path: GuestPath) -> Result<Vec<u8>, Errno> {
        self.xattr_names(&Request::ListXattr(path))
    }

    fn xattr_names(&self, request: &Request) -> Result<Vec<u8>, Errno> {
        self.call(request, MAX_XATTR, |answer, names| match answer {
            Answer::Payload if names.last().is_none_or(|&last| last == 0) => Some(names.to_vec()),
            _ => None,
        })
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` where there is none, the guest's error, or `EIO`.
    pub fn get_xattr(&self, path: GuestPath, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.xattr_value(&Request::GetXattr { path, name: name.to_vec() })
    }

    fn xattr_value(&self, request: &Request) -> Result<Vec<u8>, Errno> {
        self.call(request, MAX_XATTR, |answer, value| match answer {
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
            Answer::StatFs(stat) => Some(self.room.limit(stat)),
            _ => None,
        })
    }

    /// `attr` of the file `path`, with our number of the volume that the guest in `vm` named.
    fn numbered(
        &self,
        vm: u64,
        attr: Attr,
        path: impl FnOnce() -> Option<GuestPath>,
    ) -> Option<Attr> {
        Some(Attr { volume: self.volumes.number(vm, attr.volume, path)?, ..attr })
    }
}
