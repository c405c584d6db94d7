//! What a regular file holds, read through the page cache of the guest, or past it: a large piece
//! goes from the disk to where it is wanted without a copy by guest instructions, which are dear
//! in an emulated machine.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};

use guestmnt_protocol::message::Extent;

use crate::resolve;
use crate::valid_length::ValidLength;
use crate::wof::WofFile;

/// Reads from this size on go past the page cache. Below, many small reads of neighbours, the
/// cache's own read-ahead is worth more than the copy costs.
const DIRECT_MIN: usize = 64 << 10;

/// What offsets, lengths and addresses are multiples of, for every filesystem and disk.
const ALIGNMENT: usize = 4096;

/// An open regular file.
pub struct Contents {
    cached: OwnedFd,
    /// The same file for reading past the cache, opened when that is first wanted. `None` where
    /// its filesystem cannot do that.
    direct: OnceLock<Option<Direct>>,
    /// What is read instead, where the file's bytes are compressed.
    packed: Option<WofFile>,
}

/// A file that is open for reading past the cache.
struct Direct {
    file: OwnedFd,
    /// The byte up to which that gives what the file holds.
    end: u64,
}

impl Contents {
    /// Those of `file`, open for reading.
    #[must_use]
    pub fn of(file: OwnedFd) -> Self {
        Self { cached: file, direct: OnceLock::new(), packed: None }
    }

    /// Those of `file` that are `packed`.
    #[must_use]
    pub fn of_packed(file: OwnedFd, packed: WofFile) -> Self {
        Self { packed: Some(packed), ..Self::of(file) }
    }

    /// Whether they are other than where the file is on the disk.
    #[must_use]
    pub fn are_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// Fills `destination` from byte `offset`. Returns how many bytes there were; fewer than it
    /// holds only at the file's end.
    ///
    /// # Errors
    /// As pread(2); `EINVAL` for an offset beyond 2^63, `EIO` for what cannot be decompressed.
    pub fn read(&self, offset: u64, destination: &mut [u8]) -> nix::Result<usize> {
        if let Some(packed) = &self.packed {
            return packed.read(offset, destination);
        }
        let start = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        // The kernel refuses a range that passes 2^63, where it could give the part before.
        let room = usize::try_from(i64::MAX - start).unwrap_or(usize::MAX);
        let length = destination.len().min(room);
        let mut filled = self.read_directly(start, &mut destination[..length]);
        while filled < length {
            let at = start + i64::try_from(filled).expect("filled is at most i64::MAX - start");
            match pread(&self.cached, &mut destination[filled..length], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }

    /// Fills the start of `destination` past the cache, as far as that goes. Where it fails, the
    /// way through the cache will fail for the same reason, or read what this could not.
    fn read_directly(&self, start: i64, destination: &mut [u8]) -> usize {
        let mut whole = destination.len() / ALIGNMENT * ALIGNMENT;
        let aligned = start.cast_unsigned().is_multiple_of(ALIGNMENT as u64)
            && destination.as_ptr().addr().is_multiple_of(ALIGNMENT);
        if whole < DIRECT_MIN || !aligned {
            return 0;
        }
        let Some(direct) = self.direct.get_or_init(|| self.open_direct()) else { return 0 };
        if direct.end != u64::MAX {
            let left = direct.end.saturating_sub(start.cast_unsigned());
            whole = whole.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if whole == 0 {
            return 0;
        }
        pread(&direct.file, &mut destination[..whole], start).unwrap_or(0)
    }

    fn open_direct(&self) -> Option<Direct> {
        if !is_coherent(self.file()) {
            return None;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECT | OFlag::O_CLOEXEC;
        let path = resolve::proc_path(self.cached.as_fd());
        let file = open(path.as_str(), flags, Mode::empty()).ok()?;
        let end = ValidLength::on_filesystem_of(file.as_fd()).direct_end(file.as_fd());
        Some(Direct { file, end })
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.cached.as_fd()
    }

    /// Where the next data or hole is at or behind byte `offset`.
    ///
    /// # Errors
    /// `ENXIO` where there is none; `EINVAL` for an offset beyond 2^63.
    pub fn seek(&self, offset: u64, what: Extent) -> nix::Result<u64> {
        if let Some(packed) = &self.packed {
            return match what {
                _ if offset >= packed.size() => Err(Errno::ENXIO),
                Extent::Data => Ok(offset),
                Extent::Hole => Ok(packed.size()),
            };
        }
        let start = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let whence = match what {
            Extent::Data => Whence::SeekData,
            Extent::Hole => Whence::SeekHole,
        };
        // This moves the descriptor's position under the feet of other lanes, which don't use it.
        let found = lseek(&self.cached, start, whence)?;
        u64::try_from(found).map_err(|_| Errno::EIO)
    }
}

/// Whether what is read past the page cache is what was written through it. Where nobody writes it
/// is; else with those filesystems whose direct reading is iomap's, which writes the pages of a
/// range back before it reads that: ext4, XFS, Btrfs.
/// Source: `__iomap_dio_rw()` in fs/iomap/direct-io.c.
fn is_coherent(file: BorrowedFd) -> bool {
    const IOMAP: [i64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];
    let read_only = fstatvfs(file).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    read_only || fstatfs(file).is_ok_and(|fs| IOMAP.contains(&fs.filesystem_type().0))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    /// Memory that begins at a page, and some bytes more.
    fn aligned(length: usize) -> (Vec<u8>, std::ops::Range<usize>) {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        (memory, start..start + length)
    }

    #[test]
    fn every_offset_and_length_gives_the_same_bytes_on_both_ways() {
        let length = 300_000;
        let bytes: Vec<u8> = (0..length).map(|n: u32| (n / 7 % 251) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let contents = Contents::of(File::open(file.path()).unwrap().into());
        let sizes = [1, 4096, DIRECT_MIN - 1, DIRECT_MIN, DIRECT_MIN + 100, 1 << 20];
        for offset in [0usize, 1, 4096, 65_536, 299_008, 299_999, 300_000, 400_000] {
            for size in sizes {
                let (mut memory, range) = aligned(size);
                let count = contents.read(offset as u64, &mut memory[range.clone()]).unwrap();
                let expected = &bytes[offset.min(bytes.len())..(offset + size).min(bytes.len())];
                assert!(memory[range][..count] == *expected, "{size} bytes at {offset}");
            }
        }
    }
}
