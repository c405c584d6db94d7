//! How far a file may be read past the page cache.
//!
//! NTFS and exFAT keep a valid data length for each file. Behind it the clusters hold whatever was
//! there before, and the file reads as zeros. Their drivers see to that in the page cache, but not
//! in a direct read, of which the block with the end of the valid data comes as it is on the disk:
//! nothing of it is cleared where the read is asynchronous, and the wrong part of it where the read
//! ends behind the file's end.
//!
//! Source: `ntfs_direct_IO()` and `ni_fiemap()` in fs/ntfs3, `exfat_direct_IO()` and
//! `exfat_get_block()` in fs/exfat, `dio_complete()` in fs/direct-io.c of Linux.

use std::os::fd::BorrowedFd;

use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};

use guestmnt_protocol::limits::MAX_RUNS;

use crate::layouts::{HARMLESS, UNWRITTEN};
use crate::ntfs;
use crate::sys::{self, FiemapExtent};

/// What statfs(2) calls exFAT.
const EXFAT: FsType = FsType(0x2011_bab0);

/// The end of what may be read directly is a multiple of this: the largest block of the drivers.
const BLOCK: u64 = 4096;

/// Times that the driver is asked for extents of one file. Of a file in more pieces only these
/// are read directly.
const MAX_QUESTIONS: usize = 256;

/// How a filesystem reports the valid data length of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValidLength {
    /// Its files have none: what is not written has no place, or an extent that is marked so.
    None,
    /// The extents behind it are unwritten: ntfs3.
    Extents,
    /// The blocks behind it have no place: exFAT. The last block that has one may be valid in part.
    Blocks,
}

impl ValidLength {
    /// That of the filesystem that `file` is on. One that cannot be asked counts as exFAT, of which
    /// the least is read directly.
    #[must_use]
    pub fn on_filesystem_of(file: BorrowedFd) -> Self {
        match fstatfs(file).map(|stat| stat.filesystem_type()) {
            Ok(ntfs::MAGIC) => Self::Extents,
            Ok(EXFAT) | Err(_) => Self::Blocks,
            Ok(_) => Self::None,
        }
    }

    /// The byte of the open file `file` up to which direct reads give what the file holds;
    /// [`u64::MAX`] where all of them do.
    #[must_use]
    pub fn direct_end(self, file: BorrowedFd) -> u64 {
        if self == Self::None {
            return u64::MAX;
        }
        let size = fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        let Some(last) = size.and_then(|size| size.checked_sub(1)) else { return 0 };
        let end = match self {
            Self::None => None,
            Self::Extents => end_of_extents(file, last),
            Self::Blocks => Some(end_of_blocks(file, last)),
        };
        end.map_or(u64::MAX, |end| end / BLOCK * BLOCK)
    }
}

/// Where the valid data of a file on ntfs3 ends whose last byte is `last`; `None` where all that has
/// a place is valid.
fn end_of_extents(file: BorrowedFd, last: u64) -> Option<u64> {
    // Nearly all files are valid to their last byte, which takes one question.
    let mut extents = [FiemapExtent::default(); 2];
    match sys::fiemap(file, last, &mut extents) {
        Ok(found) if is_written_at(&extents[..found], last) => None,
        Ok(_) => first_unwritten(|from, extents| sys::fiemap(file, from, extents)),
        Err(_) => Some(0),
    }
}

fn is_written(extent: &FiemapExtent) -> bool {
    extent.flags & !HARMLESS == 0 && extent.flags & UNWRITTEN == 0
}

fn is_written_at(extents: &[FiemapExtent], byte: u64) -> bool {
    let holds = |extent: &FiemapExtent| extent.logical <= byte && byte < extent.end();
    extents.iter().any(|extent| is_written(extent) && holds(extent))
}

/// Where the first extent begins that is not written, of those that `ask` gives from a byte on.
/// `None` where all are.
fn first_unwritten(
    mut ask: impl FnMut(u64, &mut [FiemapExtent; MAX_RUNS]) -> nix::Result<usize>,
) -> Option<u64> {
    let mut extents = [FiemapExtent::default(); MAX_RUNS];
    let mut from = 0;
    for _ in 0..MAX_QUESTIONS {
        let Ok(found) = ask(from, &mut extents) else { return Some(from) };
        let found = &extents[..found];
        if let Some(extent) = found.iter().find(|extent| !is_written(extent)) {
            return Some(extent.logical);
        }
        match found.last() {
            Some(extent) if found.len() == MAX_RUNS => from = extent.end(),
            _ => return None,
        }
    }
    Some(from)
}

/// Where the last block begins that has valid data, of a file on exFAT whose last byte is `last`.
fn end_of_blocks(file: BorrowedFd, last: u64) -> u64 {
    let Ok(size) = sys::block_size(file).map(u64::from) else { return 0 };
    let has_place = |block| sys::block_place(file, block).is_ok_and(|place| place != 0);
    last.checked_div(size).map_or(0, |block| last_with_place(block, has_place) * size)
}

/// The last block up to `last` that has a place, as all before it have; 0 where none has.
fn last_with_place(last: u64, has_place: impl Fn(u64) -> bool) -> u64 {
    // Of nearly all files it is the last one, which takes one question.
    if has_place(last) {
        return last;
    }
    let (mut with, mut without) = (0, last);
    while without - with > 1 {
        let middle = with + (without - with) / 2;
        if has_place(middle) { with = middle } else { without = middle }
    }
    with
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, length: u64, flags: u32) -> FiemapExtent {
        let mut extent = FiemapExtent::default();
        (extent.logical, extent.length, extent.flags) = (logical, length, flags);
        extent
    }

    #[test]
    fn a_byte_is_valid_only_in_an_extent_that_is_written() {
        let extents = [extent(0, 5005, 0), extent(5005, 4995, UNWRITTEN)];
        for (byte, expected) in [(0, true), (5004, true), (5005, false), (9999, false)] {
            assert_eq!(is_written_at(&extents, byte), expected, "{byte}");
        }
        // In a hole, and encrypted.
        assert!(!is_written_at(&extents, 20_000));
        assert!(!is_written_at(&[extent(0, 5005, 0x80)], 0));
    }

    #[test]
    fn valid_data_ends_where_the_first_extent_is_unwritten() {
        let all: Vec<_> = (0..600).map(|n| extent(n * 8192, 4096, 0x1000)).collect();
        let end = |all: &[FiemapExtent]| {
            first_unwritten(|from, extents| {
                let behind = all.iter().filter(|extent| extent.end() > from);
                let some: Vec<_> = behind.take(MAX_RUNS).copied().collect();
                extents[..some.len()].copy_from_slice(&some);
                Ok(some.len())
            })
        };
        assert_eq!(end(&all), None);
        assert_eq!(end(&[]), None);
        for first in [0, 1, 255, 256, 599] {
            let mut all = all.clone();
            all[first..].iter_mut().for_each(|extent| extent.flags |= UNWRITTEN);
            assert_eq!(end(&all), Some(first as u64 * 8192), "{first}");
        }
    }

    #[test]
    fn what_cannot_be_learnt_is_not_read_directly() {
        assert_eq!(first_unwritten(|_, _| Err(nix::errno::Errno::EOPNOTSUPP)), Some(0));
        // A driver that says the same again and again.
        let again = |_, extents: &mut [FiemapExtent; MAX_RUNS]| {
            *extents = [extent(0, 4096, 0); MAX_RUNS];
            Ok(MAX_RUNS)
        };
        assert_eq!(first_unwritten(again), Some(4096));
    }

    #[test]
    fn the_last_block_with_a_place_is_found() {
        for last in [0u64, 1, 2, 1000] {
            for valid in 0..=last + 1 {
                let found = last_with_place(last, |block| block < valid);
                assert_eq!(found, valid.saturating_sub(1), "{valid} of {last}");
            }
        }
    }

    #[test]
    fn other_filesystems_are_read_directly_to_their_end() {
        let file = tempfile::tempfile().unwrap();
        let valid = ValidLength::on_filesystem_of(std::os::fd::AsFd::as_fd(&file));
        assert_eq!(valid, ValidLength::None);
        assert_eq!(valid.direct_end(std::os::fd::AsFd::as_fd(&file)), u64::MAX);
    }
}
