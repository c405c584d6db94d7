//! The client's calls of a writable mount: changes, and files that the guest holds open.

use std::time::{Duration, Instant};

use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::change::{
    Access, Afterwards, Change, EntryPath, Existing, FileAt, HeldFile, HeldRequest, NewAttributes,
    NewNode, Owner, Removed, Renaming, Synced, XattrMode,
};
use guestmnt_protocol::limits::{MAX_BODY, MAX_PAYLOAD, MAX_XATTR};
use guestmnt_protocol::message::{Answer, Extent, Outcome, Request};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::xattr::XattrName;
use log::warn;
use nix::errno::Errno;

use super::Guest;
use super::bulk::Bulk;
use super::checks::sane;
use super::lane::{Given, LaneError};
use super::room::Space;

/// How long the guest may take to bring to the disk what it has in memory. A disk that is slow
/// is no reason to say that data are lost.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(600);

/// Bytes that a name and what it stands for take of a disk, at most.
const MAX_METADATA: u64 = 256 << 10;

/// Bytes of two paths that are sent in one request.
const MAX_PATHS: usize = MAX_BODY - 4096;

/// A piece of a file, by its place in the file that is read and in the one that is written.
#[derive(Clone, Copy, Debug)]
pub struct CopiedRange {
    /// The file that is read, and where.
    pub from: (HeldFile, u64),
    /// The file that is written, and where.
    pub to: (HeldFile, u64),
    /// Bytes, at most.
    pub length: u64,
}

/// Attributes that change, and the moment of the file's last change, which is noted by whoever caches
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The attributes.
    pub attributes: NewAttributes,
    /// The moment; without one, it is when the guest changes them.
    pub changed: Option<Time>,
}

impl From<NewAttributes> for Update {
    fn from(attributes: NewAttributes) -> Self {
        Self { attributes, changed: None }
    }
}

impl Guest {
    /// Makes a regular file, or takes the one that is there, and holds it for writing.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn create(
        &self,
        entry: EntryPath,
        mode: u32,
        owner: Owner,
        existing: Existing,
    ) -> Result<(HeldFile, Attr), Errno> {
        let _taken = self.room.take(MAX_METADATA)?;
        let path = entry.folder.join(&entry.name).ok();
        let request = Request::Change(Change::Create { entry, mode, owner, existing });
        self.call_vm(&request, 0, |vm, answer, _| match answer {
            Answer::Created(file, attr) => Some((file, self.numbered(vm, sane(attr)?, || path)?)),
            _ => None,
        })
    }

    /// Holds a regular file.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn hold(&self, file: FileAt, access: Access) -> Result<HeldFile, Errno> {
        self.change(Change::Hold { file, access }, |answer| match answer {
            Answer::Held(file) => Some(file),
            _ => None,
        })
    }

    /// Lets a file go that is held.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn release(&self, file: HeldFile) -> Result<(), Errno> {
        self.call(&Request::Held(file, HeldRequest::Release), 0, |answer, _| is_done(&answer))
    }

    /// Attributes of a file that is held.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn stat_held(&self, file: HeldFile) -> Result<Attr, Errno> {
        self.attr(&Request::Held(file, HeldRequest::Stat), None)
    }

    /// As [`Guest::read`], of a file that is held.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read_held<T>(
        &self,
        file: HeldFile,
        offset: u64,
        size: u32,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Errno> {
        let size = size.min(u32::try_from(MAX_PAYLOAD).expect("a payload fits 32 bits"));
        let request = Request::Held(file, HeldRequest::Read { offset, size });
        self.read_request(&request, size, take)
    }

    /// As [`Guest::seek`], of a file that is held.
    ///
    /// # Errors
    /// `ENXIO` behind the last data, the guest's error, or `EIO`.
    pub fn seek_held(&self, file: HeldFile, offset: u64, what: Extent) -> Result<u64, Errno> {
        let request = Request::Held(file, HeldRequest::Seek { offset, what });
        self.call(&request, 0, |answer, _| match answer {
            Answer::Offset(found) if found >= offset && i64::try_from(found).is_ok() => Some(found),
            _ => None,
        })
    }

    /// As [`Guest::list_xattr`], of a file that is held.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn list_xattr_held(&self, file: HeldFile) -> Result<Vec<u8>, Errno> {
        self.xattr_names(&Request::Held(file, HeldRequest::ListXattr))
    }

    /// As [`Guest::get_xattr`], of a file that is held.
    ///
    /// # Errors
    /// `ENODATA` where there is none, the guest's error, or `EIO`.
    pub fn get_xattr_held(&self, file: HeldFile, name: XattrName) -> Result<Vec<u8>, Errno> {
        self.xattr_value(&Request::Held(file, HeldRequest::GetXattr { name }))
    }

    /// Writes all of `bytes` at byte `offset` of a file that is held for writing.
    ///
    /// # Errors
    /// `ENOSPC` where the host has no room for them; the guest's error, or `EIO`. Some of them may
    /// have been written then.
    pub fn write(&self, file: HeldFile, mut offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        for piece in bytes.chunks(MAX_PAYLOAD) {
            let taken = self.room.take(piece.len() as u64)?;
            let change = Change::Write { file, offset };
            let written = self.change_with(change, piece, |_, answer| is_done(&answer));
            written.map_err(|errno| self.room.meaning(errno))?;
            if taken.space == Space::Little {
                self.sync(FileAt::Held(file), Synced::Data)?;
            }
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Changes attributes, and gives them all.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn set_attr(&self, file: FileAt, update: impl Into<Update>) -> Result<Attr, Errno> {
        let path = match &file {
            FileAt::Path(path) => Some(path.clone()),
            FileAt::Held(_) => None,
        };
        let change = match update.into() {
            Update { attributes, changed: None } => Change::SetAttr { file, attributes },
            Update { attributes, changed: Some(changed) } => {
                Change::SetAttrAt { file, attributes, changed }
            }
        };
        self.attr(&Request::Change(change), path)
    }

    /// Writes `bytes` at the start of a file that is held for writing, then changes attributes, and
    /// gives them all; in one request.
    ///
    /// # Errors
    /// As [`Guest::write`] and [`Guest::set_attr`].
    pub fn write_and_set(
        &self,
        file: HeldFile,
        bytes: &[u8],
        update: impl Into<Update>,
    ) -> Result<Attr, Errno> {
        let taken = self.room.take(bytes.len() as u64)?;
        let change = finish(file, update.into(), Afterwards::Held);
        let changed = self.change_with(change, bytes, |vm, answer| match answer {
            Answer::Attr(attr) => self.numbered(vm, sane(attr)?, || None),
            _ => None,
        });
        let attr = changed.map_err(|errno| self.room.meaning(errno))?;
        if taken.space == Space::Little {
            self.sync(FileAt::Held(file), Synced::Data)?;
        }
        Ok(attr)
    }

    /// As [`Guest::write_and_set`], and lets the file go, also where that fails.
    ///
    /// # Errors
    /// As [`Guest::write_and_set`].
    pub fn finish(
        &self,
        file: HeldFile,
        bytes: &[u8],
        update: impl Into<Update>,
    ) -> Result<(), Errno> {
        let update = update.into();
        if !self.room.is_plenty_for(bytes.len() as u64) {
            // It has to be on the disk before it is let go.
            let written = self.write_and_set(file, bytes, update).map(drop);
            return written.and(self.release(file));
        }
        let change = finish(file, update, Afterwards::Released);
        let finished = self.change_with(change, bytes, |_, answer| is_done(&answer));
        finished.map_err(|errno| self.room.meaning(errno))
    }

    /// Allocates or frees space, as fallocate(2).
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn allocate(
        &self,
        file: HeldFile,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), Errno> {
        self.change(Change::Allocate { file, offset, length, mode }, |answer| is_done(&answer))
    }

    /// Copies a piece of a file within the guest; tells how many bytes.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn copy_range(&self, piece: CopiedRange) -> Result<u64, Errno> {
        let CopiedRange { from: (from, from_offset), to: (to, to_offset), length } = piece;
        // Less is asked for where there is little room, and the caller goes on with the rest.
        let fits = self.room.is_plenty_for(length);
        let length = if fits { length } else { length.min(MAX_PAYLOAD as u64) };
        let taken = self.room.take(length)?;
        let change = Change::CopyRange { from, from_offset, to, to_offset, length };
        let copied = self.change(change, |answer| match answer {
            Answer::Offset(copied) if copied <= length => Some(copied),
            _ => None,
        })?;
        if taken.space == Space::Little {
            self.sync(FileAt::Held(to), Synced::Data)?;
        }
        Ok(copied)
    }

    /// Makes a directory, link or special file.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn make(&self, entry: EntryPath, node: NewNode, owner: Owner) -> Result<Attr, Errno> {
        let _taken = self.room.take(MAX_METADATA)?;
        let path = entry.folder.join(&entry.name).ok();
        self.attr(&Request::Change(Change::Make { entry, node, owner }), path)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// The guest's error, `ENAMETOOLONG`, or `EIO`.
    pub fn hard_link(&self, file: GuestPath, entry: EntryPath) -> Result<Attr, Errno> {
        check_paths(&file, &entry.folder)?;
        let path = Some(file.clone());
        self.attr(&Request::Change(Change::Link { file, entry }), path)
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn remove(&self, entry: EntryPath, kind: Removed) -> Result<(), Errno> {
        self.change(Change::Remove { entry, kind }, |answer| is_done(&answer))
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// The guest's error, `ENAMETOOLONG`, or `EIO`.
    pub fn rename(&self, from: EntryPath, to: EntryPath, how: Renaming) -> Result<(), Errno> {
        check_paths(&from.folder, &to.folder)?;
        self.change(Change::Rename { from, to, how }, |answer| is_done(&answer))
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// The guest's error, `E2BIG`, or `EIO`.
    pub fn set_xattr(
        &self,
        file: FileAt,
        name: XattrName,
        value: &[u8],
        how: XattrMode,
    ) -> Result<(), Errno> {
        if value.len() > MAX_XATTR {
            return Err(Errno::E2BIG);
        }
        let change = Change::SetXattr { file, name, how };
        self.change_with(change, value, |_, answer| is_done(&answer))
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn remove_xattr(&self, file: FileAt, name: XattrName) -> Result<(), Errno> {
        self.change(Change::RemoveXattr { file, name }, |answer| is_done(&answer))
    }

    /// Returns when a file or directory is on the disk.
    ///
    /// # Errors
    /// The guest's error, that of an earlier write too; or `EIO`.
    pub fn sync(&self, file: FileAt, what: Synced) -> Result<(), Errno> {
        let synced = self.call_within(SYNC_TIMEOUT.min(self.longest), Change::Sync { file, what });
        synced.map_err(|errno| self.room.meaning(errno))
    }

    fn change<T>(
        &self,
        change: Change,
        check: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, Errno> {
        self.call(&Request::Change(change), 0, |answer, _| check(answer))
    }

    /// A request that is answered by the attributes of a file, which is at `path` if that is known.
    fn attr(&self, request: &Request, path: Option<GuestPath>) -> Result<Attr, Errno> {
        self.call_vm(request, 0, |vm, answer, _| match answer {
            Answer::Attr(attr) => self.numbered(vm, sane(attr)?, || path),
            _ => None,
        })
    }

    fn call_within(&self, timeout: Duration, change: Change) -> Result<(), Errno> {
        let request = Request::Change(change);
        self.count(&request);
        let deadline = Instant::now() + timeout;
        let outcome = self
            .link(deadline)
            .and_then(|mut link| link.lane.call(&request, 0, deadline).map(|(outcome, _)| outcome));
        self.checked(outcome, |answer| is_done(&answer))
    }

    /// Makes a change that takes these bytes, by a slot of bulk memory or else by the lane.
    /// `check` gets the VM's number and the answer, or refuses it.
    fn change_with<T>(
        &self,
        change: Change,
        bytes: &[u8],
        check: impl FnOnce(u64, Answer) -> Option<T>,
    ) -> Result<T, Errno> {
        let request = Request::Change(change);
        self.count(&request);
        self.counts.bytes(bytes.len());
        let deadline = Instant::now() + self.timeout;
        let mut link = match self.link(deadline) {
            Ok(link) => link,
            Err(error) => return self.checked(Err(error), |_| None),
        };
        let vm = link.vm;
        let bulk = link.bulk.as_ref().filter(|_| !bytes.is_empty());
        let mut slot = bulk.and_then(Bulk::take);
        let given = match &mut slot {
            Some(slot) => {
                slot.fill(bytes);
                Given::Slot(slot.number(), bytes.len())
            }
            None => Given::Port(bytes),
        };
        let outcome = link.lane.call_with(&request, given, deadline);
        if outcome.is_err() {
            // The guest may still read it, and would write what it is filled with next.
            link.take_back(slot);
        }
        drop(link);
        self.checked(outcome, |answer| check(vm, answer))
    }

    fn checked<T>(
        &self,
        outcome: Result<Outcome, LaneError>,
        check: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, Errno> {
        match outcome {
            Ok(outcome) => self.taken(outcome, check),
            Err(error) => {
                if matches!(error, LaneError::Late) {
                    warn!("the guest takes too long to write; what it was given may be lost");
                }
                self.refuse(&error);
                Err(Errno::EIO)
            }
        }
    }
}

/// The change that writes what comes with it at the start of a file, and updates the file.
fn finish(file: HeldFile, update: Update, afterwards: Afterwards) -> Change {
    let Update { attributes, changed } = update;
    match changed {
        None => Change::Finish { file, offset: 0, attributes, afterwards },
        Some(changed) => Change::FinishAt { file, offset: 0, attributes, afterwards, changed },
    }
}

fn is_done(answer: &Answer) -> Option<()> {
    (*answer == Answer::Done).then_some(())
}

/// Checks that two paths fit into a request.
fn check_paths(one: &GuestPath, other: &GuestPath) -> Result<(), Errno> {
    let fits = one.as_bytes().len() + other.as_bytes().len() <= MAX_PATHS;
    if fits { Ok(()) } else { Err(Errno::ENAMETOOLONG) }
}
