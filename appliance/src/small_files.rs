//! Contents of several small files of one directory at once.
//!
//! What such files cost is the disk: one read for each, wherever it lies. Where the host can read
//! the disk itself, it is told the places. Otherwise all reads are under way together, in the order
//! of the inodes, which mostly is the order on the disk.
//!
//! **Invariant:** nothing is opened but regular files, and nothing for writing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, PosixFadviseAdvice, fcntl, openat, posix_fadvise};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::uio::pread;

use guestmnt_protocol::batch::{Outcome, Planned, Stored, Wanted, push_outcome};
use guestmnt_protocol::path::GuestPath;

use crate::aio::{Queue, Read};
use crate::directories::Directory;
use crate::failure;
use crate::inodes::{Inodes, Volume};
use crate::layouts::{self, Place};
use crate::ordinary::{Held, Ordinary};
use crate::payload::Payload;
use crate::placeholders;
use crate::resolve;
use crate::tree::Tree;
use crate::valid_length::ValidLength;

/// Files that are open and reads that are under way at once. A process may have 1024 files open.
const AT_ONCE: usize = 128;

/// Bytes of a disk's sector: what direct reading wants its memory aligned to.
const SECTOR: usize = 512;

impl Tree {
    /// Puts the contents of the files `wanted` of one directory into `payload`, or their places
    /// on the disk where `place` says where their filesystem is.
    ///
    /// # Errors
    /// As [`resolve::open_directory`]; `EINVAL` for more than fits into a payload. That a file
    /// cannot be read is part of the answer.
    pub fn read_files(
        &self,
        folder: &GuestPath,
        wanted: &[Wanted],
        place: impl FnOnce(BorrowedFd) -> Option<Place>,
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let mut planned = Planned::default();
        if !wanted.iter().all(|wanted| planned.add(wanted.size)) {
            return Err(Errno::EINVAL);
        }
        let directory = self.directory(folder)?;
        let ways = Ways {
            place: place(directory.as_fd()),
            valid: ValidLength::on_filesystem_of(directory.as_fd()),
            volume: directory.inodes().map(Inodes::volume),
        };
        let mut space = self.spaces.take();
        let mut contents = Vec::new();
        payload.append_with(|page| {
            for wanted in wanted.chunks(AT_ONCE) {
                let told = told(&directory, wanted, ways);
                for file in space.read(directory.as_fd(), wanted, told, ways) {
                    let outcome = match file {
                        Ok(File::Stored(stored)) => Outcome::Stored(stored),
                        Ok(File::Told(bytes)) => {
                            contents.extend_from_slice(&bytes);
                            Outcome::Here(length(bytes.len()))
                        }
                        Ok(File::Read(bytes)) => {
                            contents.extend_from_slice(bytes);
                            Outcome::Here(length(bytes.len()))
                        }
                        Err(errno) => Outcome::Failed(failure::number(errno)),
                    };
                    push_outcome(page, &outcome);
                }
            }
            page.extend_from_slice(&contents);
        });
        self.spaces.give_back(space);
        Ok(())
    }
}

/// How files of one directory may be read.
#[derive(Clone, Copy)]
struct Ways<'a> {
    /// Where their filesystem is, if the host can read it.
    place: Option<Place>,
    valid: ValidLength,
    /// Their volume, if it is an NTFS.
    volume: Option<&'a Arc<Volume>>,
}

/// The files that can be had without opening them, by what their records say: some of `wanted`.
fn told(directory: &Directory, wanted: &[Wanted], ways: Ways) -> Vec<Option<File<'static>>> {
    let mut told: Vec<_> = wanted.iter().map(|_| None).collect();
    if let Some(inodes) = directory.inodes() {
        let named = wanted.iter().map(|wanted| (wanted.file.number, wanted.file.name.as_bytes()));
        inodes.each(&named.collect::<Vec<_>>(), |index, ordinary| {
            let wanted = &wanted[index];
            let file = told_by(&ordinary, wanted.size, ways.place);
            told[index] = file.filter(|file| {
                let is_same = || file.is_as_driver_says(directory.as_fd(), wanted, ways);
                inodes.has_contents(&ordinary.facts, is_same)
            });
        });
    }
    told
}

/// What a record says of the first `size` bytes of its file.
fn told_by(ordinary: &Ordinary, size: u32, place: Option<Place>) -> Option<File<'static>> {
    let size = ordinary.facts.size().min(size.into());
    match ordinary.held {
        Held::Here(bytes) => Some(File::Told(bytes[..usize::try_from(size).ok()?].into())),
        Held::Stored { .. } if size == 0 => Some(File::Told(Vec::new())),
        Held::Stored { start, length } => {
            let Place { disk, start: begin } = place.filter(|_| length >= size)?;
            let length = u32::try_from(size).ok()?;
            Some(File::Stored(Stored { disk, place: begin.checked_add(start)?, length }))
        }
    }
}

/// A length that was checked against the protocol's limits.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("no more than a payload")
}

/// What reading several files at once takes; kept, since making it costs more than using it.
#[derive(Default)]
pub struct Spaces(Mutex<Vec<Space>>);

impl Spaces {
    fn take(&self) -> Space {
        // A push or a pop is all or nothing.
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Space { queue: Queue::new(AT_ONCE).ok(), memory: Vec::new() })
    }

    fn give_back(&self, space: Space) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(space);
    }
}

struct Space {
    /// `None` where the kernel has none.
    queue: Option<Queue>,
    /// Where the disk writes to.
    memory: Vec<u8>,
}

/// A file whose contents are to be had.
enum File<'a> {
    Stored(Stored),
    Read(&'a [u8]),
    /// By its record.
    Told(Vec<u8>),
}

impl File<'_> {
    /// Whether the driver gives this for the file `wanted`; `None` where it gives nothing.
    fn is_as_driver_says(&self, folder: BorrowedFd, wanted: &Wanted, ways: Ways) -> Option<bool> {
        let opened = Opened::open(folder, wanted, ways.valid).ok()?;
        Some(match (self, opened) {
            (Self::Told(bytes), None) => bytes.is_empty(),
            (Self::Told(bytes), Some(opened)) => {
                let mut room = vec![0; opened.length];
                let count = opened.read_plainly(&mut room).ok()?;
                room[..count] == bytes[..]
            }
            (Self::Stored(stored), Some(opened)) => opened.stored(ways.place?) == Some(*stored),
            (Self::Stored(_), None) | (Self::Read(_), _) => false,
        })
    }
}

impl Space {
    /// The contents or places of some files, at most [`AT_ONCE`], but for those that are `told`.
    fn read(
        &mut self,
        folder: BorrowedFd,
        wanted: &[Wanted],
        told: Vec<Option<File<'static>>>,
        ways: Ways,
    ) -> impl Iterator<Item = nix::Result<File<'_>>> {
        let mut files = Vec::with_capacity(wanted.len());
        let mut to_read = Vec::new();
        for (index, (wanted, told)) in wanted.iter().zip(told).enumerate() {
            if let Some(told) = told {
                files.push(Ok(told));
                continue;
            }
            files.push(match Opened::open(folder, wanted, ways.valid) {
                Ok(None) => Ok(File::Read(&[])),
                Ok(Some(opened)) => match opened.begin(ways) {
                    Ok(Begun::Have(file)) => Ok(file),
                    Ok(Begun::Read(opened)) => {
                        to_read.push((index, opened));
                        // Until it was read.
                        Err(Errno::EIO)
                    }
                    Err(errno) => Err(errno),
                },
                Err(errno) => Err(errno),
            });
        }
        to_read.sort_by_key(|(_, opened)| opened.inode);
        let needed = to_read.iter().map(|(_, opened)| opened.room()).sum::<usize>() + SECTOR;
        if self.memory.len() < needed {
            self.memory.resize(needed, 0);
        }
        let start = self.memory.as_ptr().align_offset(SECTOR);
        let mut rest = &mut self.memory[start..];
        let mut group = Vec::with_capacity(to_read.len());
        for (index, opened) in to_read {
            let (room, behind) = rest.split_at_mut(opened.room());
            rest = behind;
            group.push((index, opened, room));
        }
        for (index, bytes) in read_group(group, self.queue.as_mut()) {
            files[index] = bytes.map(File::Read);
        }
        files.into_iter()
    }
}

/// Reads some files that are open, all at once as far as that goes, each to its room.
fn read_group<'a>(
    mut group: Vec<(usize, Opened, &'a mut [u8])>,
    queue: Option<&mut Queue>,
) -> Vec<(usize, nix::Result<&'a [u8]>)> {
    for (_, opened, _) in group.iter().filter(|(_, opened, _)| !opened.direct) {
        // Where this is not possible, reading only takes longer.
        let _ = posix_fadvise(&opened.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
    let reads = group.iter_mut().map(|(_, opened, room)| Read {
        file: opened.file.as_fd(),
        buffer: room,
        outcome: Err(Errno::EIO),
    });
    let mut reads: Vec<Read> = reads.collect();
    if let Some(queue) = queue {
        queue.read(&mut reads);
    }
    let counts: Vec<usize> = reads.iter().map(|read| read.outcome.unwrap_or(0)).collect();
    let whole = |((index, opened, room), count): ((usize, Opened, &'a mut [u8]), usize)| {
        let length = opened.length;
        // Direct reading is not for all files: compressed ones among others.
        let count =
            if count >= length { Ok(length) } else { opened.read_plainly(&mut room[..length]) };
        (index, count.map(|count| &room[..count]))
    };
    group.into_iter().zip(counts).map(whole).collect()
}

/// What is to be done with a file that is open.
enum Begun {
    /// Nothing more.
    Have(File<'static>),
    /// It is to be read.
    Read(Opened),
}

/// A regular file that is open.
struct Opened {
    file: OwnedFd,
    /// With `O_DIRECT`.
    direct: bool,
    inode: u64,
    /// Bytes to be read.
    length: usize,
}

impl Opened {
    /// Opens a regular file, unless it is empty.
    fn open(folder: BorrowedFd, wanted: &Wanted, valid: ValidLength) -> nix::Result<Option<Self>> {
        let name = wanted.file.name.as_bytes();
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
        let stat = fstatat(folder, name, flags)?;
        if resolve::file_type(&stat) != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let size = u64::try_from(stat.st_size).map_err(|_| Errno::EIO)?;
        let length = usize::try_from(size.min(wanted.size.into())).expect("at most 32 bits");
        if length == 0 {
            return Ok(None);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = |more| openat(folder, name, flags | more, Mode::empty());
        // The last block would have to be read through the cache anyway, and is most of a small file.
        let first = if valid == ValidLength::Blocks { OFlag::empty() } else { OFlag::O_DIRECT };
        let (file, direct) = match open(first) {
            Ok(file) => (file, first == OFlag::O_DIRECT),
            // The filesystem has no direct reading.
            Err(Errno::EINVAL) => (open(OFlag::empty())?, false),
            Err(errno) => return Err(errno),
        };
        Ok(Some(Self { file, direct, inode: stat.st_ino, length }))
    }

    /// Finds out how it is read.
    fn begin(mut self, ways: Ways) -> nix::Result<Begun> {
        if let Some(volume) = ways.volume
            && let Some(packed) = placeholders::behind(volume, self.file.as_fd())?
        {
            let mut bytes = vec![0; self.length];
            let count = packed.read(0, &mut bytes)?;
            bytes.truncate(count);
            return Ok(Begun::Have(File::Told(bytes)));
        }
        if let Some(stored) = ways.place.and_then(|place| self.stored(place)) {
            return Ok(Begun::Have(File::Stored(stored)));
        }
        self.avoid_stale_bytes(ways.valid)?;
        Ok(Begun::Read(self))
    }

    /// Bytes that direct reading wants to write to.
    fn room(&self) -> usize {
        self.length.next_multiple_of(SECTOR)
    }

    /// Where its bytes are on the disk, if they are there as they are.
    fn stored(&self, place: Place) -> Option<Stored> {
        let start = layouts::in_one_piece(self.file.as_fd(), self.length as u64, place)?;
        Some(Stored { disk: place.disk, place: start, length: length(self.length) })
    }

    /// Has it read through the page cache, where a direct read would give other bytes than it holds.
    fn avoid_stale_bytes(&mut self, valid: ValidLength) -> nix::Result<()> {
        let is_right = valid.direct_end(self.file.as_fd()) >= self.length as u64;
        if is_right { Ok(()) } else { self.read_through_cache() }
    }

    fn read_through_cache(&mut self) -> nix::Result<()> {
        if self.direct {
            fcntl(&self.file, FcntlArg::F_SETFL(OFlag::empty()))?;
            self.direct = false;
        }
        Ok(())
    }

    fn read_plainly(mut self, room: &mut [u8]) -> nix::Result<usize> {
        self.read_through_cache()?;
        let mut filled = 0;
        while filled < room.len() {
            let offset = i64::try_from(filled).expect("a payload is shorter");
            match pread(&self.file, &mut room[filled..], offset) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }
}
