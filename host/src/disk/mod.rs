//! Reads the sectors of a disk from its chain of images, in this process: plain extents and
//! VMware's sparse ones. Other formats are QEMU's alone to read.
//!
//! The guest says where a file's bytes are, and this reads them there, so that they need not go
//! through the VM. What a hostile image or guest can bring about is that other bytes of the same
//! image are read: everything here stays within the files of the chain, whose tables are
//! untrusted like everything else in them.
//!
//! **Invariant:** knows nothing of guests and filesystems; opens nothing.

mod sparse;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use guestmnt_protocol::message::Extent;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use self::sparse::{Place, SparseExtent};
use crate::image::{Disk, Format, Link, SECTOR_SIZE, Source, Storage};

/// Grains that one search looks at: 16 GiB of usual ones, in some ten milliseconds.
const MOST_GRAINS: u64 = 1 << 18;

/// A disk that this process can read.
pub struct DiskReader {
    /// Bytes of the disk.
    size: u64,
    /// The leaf first.
    links: Vec<Vec<Segment>>,
}

/// Bytes of one link that are stored in one way.
struct Segment {
    /// The first one's place on the disk.
    start: u64,
    length: u64,
    stored: Stored,
}

enum Stored {
    /// In `file`, from `offset` on.
    Flat { file: File, offset: u64 },
    /// In grains, some of which may be the parent's.
    Sparse(SparseExtent),
    /// Nowhere: they are zeros.
    Zero,
}

impl DiskReader {
    /// A reader of `disk`. `None` where one of its images is in a format that only QEMU reads.
    ///
    /// # Errors
    /// Where an image's header cannot be read.
    pub fn of(disk: &Disk) -> io::Result<Option<Self>> {
        let mut links = Vec::with_capacity(disk.chain.len());
        for link in &disk.chain {
            match segments(link)? {
                Some(segments) => links.push(segments),
                None => return Ok(None),
            }
        }
        Ok(Some(Self { size: disk.size, links }))
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from byte `offset` of the disk.
    ///
    /// # Errors
    /// `InvalidInput` for bytes beyond the disk, `InvalidData` for tables that lead out of their
    /// file, `UnexpectedEof` for a file that got shorter; as pread(2).
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|&end| end <= self.size);
        end.ok_or(io::ErrorKind::InvalidInput)?;
        self.read_link(0, buffer, offset)
    }

    /// How far it is from byte `offset` to the first of the next `length` bytes that is stored in
    /// some image, or that is not; `None` where there is none. Holes of the images' own files count
    /// as not stored. What is not stored reads as zeros.
    ///
    /// An image of some kilobytes can have billions of grains without a byte. Behind
    /// [`MOST_GRAINS`] of them the search stops, and what follows counts as stored.
    ///
    /// # Errors
    /// As [`DiskReader::read`]; as lseek(2).
    pub fn find(&self, offset: u64, length: u64, what: Extent) -> io::Result<Option<u64>> {
        let end = offset.checked_add(length).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset;
        let mut grains = MOST_GRAINS;
        while at < end {
            if grains == 0 {
                return Ok((what == Extent::Data).then_some(at - offset));
            }
            let (is_stored, here) = self.stretch(0, at, end - at, &mut grains)?;
            if is_stored == (what == Extent::Data) {
                return Ok(Some(at - offset));
            }
            at += here;
        }
        Ok(None)
    }

    /// Whether the bytes from `offset` on are stored in the link `depth` or below, and for how many
    /// of the next `length`, at least one, that is so, as far as could be seen by looking at one
    /// grain in each link and at others that are taken off `grains`.
    fn stretch(
        &self,
        depth: usize,
        offset: u64,
        length: u64,
        grains: &mut u64,
    ) -> io::Result<(bool, u64)> {
        let Some(segments) = self.links.get(depth) else { return Ok((false, length)) };
        let index = segments.partition_point(|segment| segment.start + segment.length <= offset);
        let Some(segment) = segments.get(index) else { return Ok((false, length)) };
        let within = offset - segment.start;
        let length = length.min(segment.length - within);
        match &segment.stored {
            Stored::Zero => Ok((false, length)),
            Stored::Flat { file, offset } => stretch_of_file(file, offset + within, length),
            Stored::Sparse(sparse) => {
                let most = sparse.grain().saturating_mul((*grains).max(1));
                let (place, length) = sparse.find(within, length.min(most))?;
                *grains = grains.saturating_sub(length.div_ceil(sparse.grain()));
                match place {
                    Place::Stored(_) => Ok((true, length)),
                    Place::Zero => Ok((false, length)),
                    Place::Parent => self.stretch(depth + 1, offset, length, grains),
                }
            }
        }
    }

    /// Fills `buffer` with what the link `depth` and those below it have; zeros beyond the last.
    fn read_link(&self, depth: usize, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let Some(segments) = self.links.get(depth) else {
            buffer.fill(0);
            return Ok(());
        };
        while !buffer.is_empty() {
            let index =
                segments.partition_point(|segment| segment.start + segment.length <= offset);
            // A parent may be smaller than its child.
            let Some(segment) = segments.get(index) else {
                buffer.fill(0);
                return Ok(());
            };
            let within = offset - segment.start;
            let (part, rest) = split(buffer, segment.length - within);
            self.read_segment(depth, segment, part, within)?;
            offset += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    fn read_segment(
        &self,
        depth: usize,
        segment: &Segment,
        mut buffer: &mut [u8],
        mut within: u64,
    ) -> io::Result<()> {
        let sparse = match &segment.stored {
            Stored::Flat { file, offset } => return file.read_exact_at(buffer, offset + within),
            Stored::Zero => {
                buffer.fill(0);
                return Ok(());
            }
            Stored::Sparse(sparse) => sparse,
        };
        while !buffer.is_empty() {
            let (place, length) = sparse.find(within, buffer.len() as u64)?;
            let (part, rest) = split(buffer, length);
            match place {
                Place::Stored(at) => sparse.read(part, at)?,
                Place::Zero => part.fill(0),
                Place::Parent => self.read_link(depth + 1, part, segment.start + within)?,
            }
            within += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }
}

/// Whether the bytes of `file` from `offset` on are stored, and for how many of the next `length`
/// that is so.
fn stretch_of_file(file: &File, offset: u64, length: u64) -> io::Result<(bool, u64)> {
    let start = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let until = |found: i64| u64::try_from(found).unwrap_or(0).saturating_sub(offset).min(length);
    // Nobody uses the position that this moves.
    match lseek(file, start, Whence::SeekData) {
        Ok(found) if found == start => {
            let hole = lseek(file, start, Whence::SeekHole)?;
            Ok((true, until(hole).max(1)))
        }
        Ok(found) => Ok((false, until(found).max(1))),
        // There is nothing but a hole behind, or nothing at all.
        Err(Errno::ENXIO) => Ok((false, length)),
        Err(errno) => Err(errno.into()),
    }
}

/// The first `length` bytes of `buffer`, at most all, and the rest.
fn split(buffer: &mut [u8], length: u64) -> (&mut [u8], &mut [u8]) {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
    buffer.split_at_mut(length)
}

/// How the bytes of a link are stored; `None` where only QEMU can tell.
fn segments(link: &Link) -> io::Result<Option<Vec<Segment>>> {
    let whole = |stored| Some(vec![Segment { start: 0, length: link.size, stored }]);
    match (&link.source, link.format) {
        (Source::File(file), Format::Raw) => {
            Ok(whole(Stored::Flat { file: file.try_clone()?, offset: 0 }))
        }
        (Source::File(file), Format::Vmdk) => {
            Ok(SparseExtent::of(file)?.and_then(|sparse| whole(Stored::Sparse(sparse))))
        }
        (Source::Described { descriptor, extents }, _) => {
            let mut segments = Vec::with_capacity(extents.len());
            let mut start = 0;
            for (extent, file) in descriptor.extents.iter().zip(extents) {
                let stored = match &extent.storage {
                    Storage::Zero => Stored::Zero,
                    Storage::Flat { first_sector, .. } => {
                        Stored::Flat { file: file.try_clone()?, offset: first_sector * SECTOR_SIZE }
                    }
                    Storage::Sparse(_) => match SparseExtent::of(file)? {
                        Some(sparse) => Stored::Sparse(sparse),
                        None => return Ok(None),
                    },
                    Storage::SeSparse(_) => return Ok(None),
                };
                let length = extent.sectors * SECTOR_SIZE;
                segments.push(Segment { start, length, stored });
                start += length;
            }
            Ok(Some(segments))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
