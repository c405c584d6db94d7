//! Where on its disk a file's bytes are, so that the host can read them itself.
//!
//! Only where they are there as they are: on a partition or a whole disk, in a filesystem whose
//! extents mean that, and on a disk that nothing has been written to, since the host knows the
//! image and not what the guest changed.
//!
//! Follows Documentation/filesystems/fiemap.rst.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;

use guestmnt_protocol::limits::MAX_RUNS;
use guestmnt_protocol::message::{Layout, Run};

use crate::ntfs;
use crate::sys::{self, FiemapExtent};

/// Filesystems whose extents lie on the one device that is mounted: ext4, XFS, ntfs3.
const TRUSTED: [i64; 3] = [0xef53, 0x5846_5342, ntfs::MAGIC.0];

/// Nothing is stored there, or nothing that counts: `FIEMAP_EXTENT_UNWRITTEN`.
pub(crate) const UNWRITTEN: u32 = 0x800;

/// What leaves the bytes as they are: `FIEMAP_EXTENT_LAST`, `_MERGED`, `_SHARED`. Whatever else
/// there may be, compressed, encrypted, packed with others, is for the guest to read.
pub(crate) const HARMLESS: u32 = 0x1 | 0x1000 | 0x2000 | UNWRITTEN;

/// The disk and the place on it that a mounted filesystem is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The disk's number.
    pub disk: u8,
    /// Where on the disk the filesystem begins, in bytes.
    pub start: u64,
}

/// Where the bytes of an open file are from byte `from` on, given the place of its filesystem,
/// which [`is_trusted`].
///
/// # Errors
/// `EOPNOTSUPP` where the host cannot read them itself; as ioctl(2) with `FS_IOC_FIEMAP`.
pub fn layout(file: BorrowedFd, from: u64, place: Place) -> nix::Result<Layout> {
    let size = u64::try_from(fstat(file)?.st_size).map_err(|_| Errno::EIO)?;
    let mut extents = [FiemapExtent::default(); MAX_RUNS];
    let found = sys::fiemap(file, from, &mut extents)?;
    runs(&extents[..found], from, size, place)
}

/// Whether the extents of files on the filesystem of `file` tell where their bytes are.
///
/// # Errors
/// As fstatfs(2).
pub fn is_trusted(file: BorrowedFd) -> nix::Result<bool> {
    Ok(TRUSTED.contains(&fstatfs(file)?.filesystem_type().0))
}

/// The place on its disk of the first `length` bytes of an open file, if they are in one piece;
/// given the place of its filesystem, which [`is_trusted`].
pub fn in_one_piece(file: BorrowedFd, length: u64, place: Place) -> Option<u64> {
    // With a second one it would not be in one piece.
    let mut extents = [FiemapExtent::default(); 1];
    let found = sys::fiemap(file, 0, &mut extents).ok()?;
    match runs(&extents[..found], 0, length, place).ok()?.runs.as_slice() {
        [Run { at: 0, length: stored, stored: start }] if *stored >= length => Some(*start),
        _ => None,
    }
}

fn runs(extents: &[FiemapExtent], from: u64, size: u64, place: Place) -> nix::Result<Layout> {
    let mut runs = Vec::with_capacity(extents.len());
    for extent in extents {
        if extent.flags & !HARMLESS != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if extent.flags & UNWRITTEN == 0 {
            let stored = extent.physical.checked_add(place.start).ok_or(Errno::EIO)?;
            runs.push(Run { at: extent.logical, length: extent.length, stored });
        }
    }
    // More extents than there was room for: the last one tells how far this one goes.
    let end = match extents.last() {
        Some(last) if extents.len() == MAX_RUNS => last.logical.saturating_add(last.length),
        _ => size,
    };
    Ok(Layout { disk: place.disk, size, end: end.max(from), runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { disk: 1, start: 1 << 20 };

    fn extent(logical: u64, physical: u64, length: u64, flags: u32) -> FiemapExtent {
        let mut extent = FiemapExtent::default();
        (extent.logical, extent.physical, extent.length) = (logical, physical, length);
        extent.flags = flags;
        extent
    }

    #[test]
    fn runs_are_on_the_disk_and_holes_are_between_them() {
        let extents = [
            extent(0, 8192, 4096, 0),
            extent(8192, 4096, 4096, UNWRITTEN),
            extent(12288, 0, 4096, 1),
        ];
        let layout = runs(&extents, 0, 14000, PLACE).unwrap();
        let expected = [
            Run { at: 0, length: 4096, stored: (1 << 20) + 8192 },
            Run { at: 12288, length: 4096, stored: 1 << 20 },
        ];
        assert_eq!(layout, Layout { disk: 1, size: 14000, end: 14000, runs: expected.to_vec() });
    }

    #[test]
    fn bytes_that_are_stored_otherwise_are_for_the_guest() {
        // Unknown, delayed, encoded, encrypted, unaligned, inline, in a tail.
        for flag in [2, 4, 8, 0x80, 0x100, 0x200, 0x400] {
            let extents = [extent(0, 8192, 4096, 0), extent(4096, 0, 4096, flag | 1)];
            assert_eq!(runs(&extents, 0, 8192, PLACE), Err(Errno::EOPNOTSUPP), "{flag:#x}");
        }
    }

    #[test]
    fn a_layout_says_how_far_it_goes() {
        let extents = vec![extent(4096, 0, 4096, 0); MAX_RUNS];
        assert_eq!(runs(&extents, 4096, 1 << 30, PLACE).unwrap().end, 8192);
        assert_eq!(runs(&[], 0, 5000, PLACE).unwrap().end, 5000);
    }
}
