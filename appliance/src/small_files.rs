//! Reading the contents of several small files of one directory at once.
//!
//! What such files cost is the disk: one read for each, wherever it lies. So all of them are under
//! way together, in the order of their inodes, which mostly is the order on the disk.
//!
//! **Invariant:** nothing is opened but regular files, and nothing for writing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, PosixFadviseAdvice, fcntl, openat, posix_fadvise};
use nix::sys::stat::{Mode, fstatat};
use nix::sys::uio::pread;

use guestmnt_protocol::batch::{ALIGNMENT, Layout, Wanted, set_outcome};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::path::GuestPath;

use crate::aio::{Queue, Read};
use crate::failure;
use crate::payload::Payload;
use crate::resolve;
use crate::tree::Tree;

/// Files that are open and reads that are under way at once. A process may have 1024 files open.
const AT_ONCE: usize = 128;

impl Tree {
    /// Puts the first bytes of the files `wanted` of one directory into `payload`, as
    /// [`Layout`] says.
    ///
    /// # Errors
    /// As [`resolve::open_directory`]; `EINVAL` for more than fits into a payload. That a file
    /// cannot be read is part of the answer.
    pub fn read_files(
        &self,
        folder: &GuestPath,
        wanted: &[Wanted],
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let sizes: Vec<u32> = wanted.iter().map(|wanted| wanted.size).collect();
        let layout = Layout::of(&sizes).ok_or(Errno::EINVAL)?;
        let directory = self.directory(folder)?;
        let mut space = self.spaces.take();
        let outcomes = space.fill(payload.space(layout.len()), |queue, destination| {
            read_all(directory.as_fd(), wanted, &layout, queue, destination)
        });
        self.spaces.give_back(space);
        let answer = payload.space(layout.len());
        answer[..layout.contents_start()].fill(0);
        for (index, outcome) in outcomes.into_iter().enumerate() {
            let outcome = outcome.map(|length| {
                u32::try_from(length).expect("no more was read than 32 bits of bytes")
            });
            set_outcome(answer, index, outcome.map_err(failure::number));
        }
        Ok(())
    }
}

/// What reading several files at once takes; kept, since making it costs more than using it.
#[derive(Default)]
pub struct Spaces(Mutex<Vec<Space>>);

impl Spaces {
    fn take(&self) -> Space {
        // A push or a pop is all or nothing.
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Space { queue: Queue::new(AT_ONCE).ok(), aligned: Vec::new() })
    }

    fn give_back(&self, space: Space) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(space);
    }
}

struct Space {
    /// `None` where the kernel has none.
    queue: Option<Queue>,
    /// Where the disk writes to if the destination is not aligned.
    aligned: Vec<u8>,
}

impl Space {
    /// Has `read` fill `destination`, or aligned memory that is copied there.
    fn fill<T>(
        &mut self,
        destination: &mut [u8],
        read: impl FnOnce(Option<&mut Queue>, &mut [u8]) -> T,
    ) -> T {
        let queue = self.queue.as_mut();
        if destination.as_ptr().align_offset(ALIGNMENT) == 0 {
            return read(queue, destination);
        }
        self.aligned.resize(MAX_PAYLOAD + ALIGNMENT, 0);
        let start = self.aligned.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut self.aligned[start..start + destination.len()];
        let result = read(queue, aligned);
        destination.copy_from_slice(aligned);
        result
    }
}

/// Reads each file to its room in `destination`; returns how many bytes there were.
fn read_all(
    folder: BorrowedFd,
    wanted: &[Wanted],
    layout: &Layout,
    mut queue: Option<&mut Queue>,
    destination: &mut [u8],
) -> Vec<nix::Result<usize>> {
    let mut outcomes = vec![Err(Errno::EIO); wanted.len()];
    let mut rest = &mut destination[layout.contents_start()..];
    for start in (0..wanted.len()).step_by(AT_ONCE) {
        let mut group = Vec::new();
        let end = wanted.len().min(start + AT_ONCE);
        for index in start..end {
            let room = layout.rooms()[index].len();
            let (place, behind) = rest.split_at_mut(room.next_multiple_of(ALIGNMENT));
            rest = behind;
            match Opened::open(folder, &wanted[index]) {
                Ok(Some(opened)) => group.push((index, opened, place)),
                Ok(None) => outcomes[index] = Ok(0),
                Err(errno) => outcomes[index] = Err(errno),
            }
        }
        group.sort_by_key(|(_, opened, _)| opened.inode);
        read_group(group, queue.as_deref_mut(), &mut outcomes);
    }
    outcomes
}

/// Reads some files that are open, all at once as far as that goes.
fn read_group(
    mut group: Vec<(usize, Opened, &mut [u8])>,
    queue: Option<&mut Queue>,
    outcomes: &mut [nix::Result<usize>],
) {
    for (_, opened, _) in group.iter().filter(|(_, opened, _)| !opened.direct) {
        // Where this is not possible, reading only takes longer.
        let _ = posix_fadvise(&opened.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
    if let Some(queue) = queue {
        let direct = group.iter_mut().filter(|(_, opened, _)| opened.direct);
        let (indices, mut reads): (Vec<usize>, Vec<Read>) = direct
            .map(|(index, opened, place)| {
                let file = opened.file.as_fd();
                (*index, Read { file, buffer: place, outcome: Err(Errno::EIO) })
            })
            .unzip();
        queue.read(&mut reads);
        for (index, read) in indices.into_iter().zip(reads) {
            outcomes[index] = read.outcome;
        }
    }
    for (index, opened, place) in group {
        let length = opened.length;
        outcomes[index] = match outcomes[index] {
            // Direct reading is not for all files: compressed ones among others.
            Ok(count) if count >= length => Ok(length),
            _ => opened.read_plainly(&mut place[..length]),
        };
    }
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
    fn open(folder: BorrowedFd, wanted: &Wanted) -> nix::Result<Option<Self>> {
        let name = wanted.name.as_bytes();
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
        let (file, direct) = match open(OFlag::O_DIRECT) {
            Ok(file) => (file, true),
            // The filesystem has no direct reading.
            Err(Errno::EINVAL) => (open(OFlag::empty())?, false),
            Err(errno) => return Err(errno),
        };
        Ok(Some(Self { file, direct, inode: stat.st_ino, length }))
    }

    fn read_plainly(self, place: &mut [u8]) -> nix::Result<usize> {
        if self.direct {
            fcntl(&self.file, FcntlArg::F_SETFL(OFlag::empty()))?;
        }
        let mut filled = 0;
        while filled < place.len() {
            let offset = i64::try_from(filled).expect("a payload is shorter");
            match pread(&self.file, &mut place[filled..], offset) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }
}
