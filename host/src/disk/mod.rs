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
use std::mem;
use std::os::unix::fs::FileExt;

use guestmnt_protocol::message::Extent;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use self::sparse::{Place, SparseExtent};
use crate::image::{Disk, Format, Link, Missing, OnMissing, SECTOR_SIZE, Source, Storage};

/// Grains that one search looks at: 16 GiB of usual ones, in some ten milliseconds.
const MOST_GRAINS: u64 = 1 << 18;

/// A disk that this process can read.
pub struct DiskReader {
    /// Bytes of the disk.
    size: u64,
    /// The leaf first.
    links: Vec<Vec<Segment>>,
    /// What of the disk is past the end of its files, and what reads of it yield.
    missing: Missing,
    on_missing: OnMissing,
}

/// Bytes of a disk that lie one behind the other.
pub enum Piece<'a> {
    /// Stored in a file.
    Stored {
        /// The file.
        file: &'a File,
        /// The first one's place in it.
        offset: u64,
        /// How many they are.
        length: usize,
    },
    /// Stored nowhere: so many zeros.
    Zeros(usize),
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
        let (missing, on_missing) = (disk.missing.clone(), disk.on_missing);
        Ok(Some(Self { size: disk.size, links, missing, on_missing }))
    }

    /// Bytes of the disk, a multiple of [`SECTOR_SIZE`].
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the disk that its files hold: of a raw one, the last sector need not be whole.
    #[must_use]
    pub fn exact_size(&self) -> u64 {
        let end = |segment: &Segment| segment.start + segment.length;
        self.links.first().and_then(|leaf| leaf.last()).map_or(self.size, end)
    }

    /// Fills `buffer` from byte `offset` of the disk.
    ///
    /// # Errors
    /// `InvalidInput` for bytes beyond the disk, `InvalidData` for tables that lead out of their
    /// file, `UnexpectedEof` for a file that got shorter; as pread(2).
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.pieces(offset, buffer.len(), &mut gather(buffer))
    }

    /// Gives `length` bytes from byte `offset` of the disk to `take`, piece by piece, one behind the
    /// other.
    ///
    /// # Errors
    /// `InvalidInput` for bytes beyond the disk, `InvalidData` for tables that lead out of their
    /// file; those of `take`, and as pread(2).
    pub fn pieces<'a>(
        &'a self,
        offset: u64,
        length: usize,
        take: &mut dyn FnMut(Piece<'a>) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.checked_add(length as u64).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = offset;
        while let Some(missing) = self.missing.first_in(at..end) {
            self.pieces_of_link(0, at, at_most(missing.start - at, length), take)?;
            match self.on_missing {
                OnMissing::Fail => return Err(Errno::EIO.into()),
                OnMissing::Zeros => {
                    take(Piece::Zeros(at_most(missing.end - missing.start, length)))?;
                }
            }
            at = missing.end;
        }
        self.pieces_of_link(0, at, at_most(end - at, length), take)
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
            let (is_stored, here) = match self.missing.first_in(at..end) {
                // Not known, which is not a hole.
                Some(missing) if missing.start == at => (true, missing.end - at),
                Some(missing) => self.stretch(0, at, missing.start - at, &mut grains)?,
                None => self.stretch(0, at, end - at, &mut grains)?,
            };
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

    /// Gives the pieces of what the link `depth` and those below it have; zeros beyond the last.
    fn pieces_of_link<'a>(
        &'a self,
        depth: usize,
        mut offset: u64,
        mut length: usize,
        take: &mut dyn FnMut(Piece<'a>) -> io::Result<()>,
    ) -> io::Result<()> {
        while length > 0 {
            let segments = self.links.get(depth).map_or(&[][..], Vec::as_slice);
            let index =
                segments.partition_point(|segment| segment.start + segment.length <= offset);
            // A parent may be smaller than its child.
            let Some(segment) = segments.get(index) else { return take(Piece::Zeros(length)) };
            let within = offset - segment.start;
            let part = at_most(segment.length - within, length);
            self.pieces_of_segment(depth, segment, within, part, take)?;
            offset += part as u64;
            length -= part;
        }
        Ok(())
    }

    fn pieces_of_segment<'a>(
        &'a self,
        depth: usize,
        segment: &'a Segment,
        mut within: u64,
        mut length: usize,
        take: &mut dyn FnMut(Piece<'a>) -> io::Result<()>,
    ) -> io::Result<()> {
        let sparse = match &segment.stored {
            Stored::Flat { file, offset } => {
                return take(Piece::Stored { file, offset: offset + within, length });
            }
            Stored::Zero => return take(Piece::Zeros(length)),
            Stored::Sparse(sparse) => sparse,
        };
        while length > 0 {
            let (place, found) = sparse.find(within, length as u64)?;
            let part = at_most(found, length);
            match place {
                Place::Stored(at) => sparse.pieces(at, part, take)?,
                Place::Zero => take(Piece::Zeros(part))?,
                Place::Parent => {
                    self.pieces_of_link(depth + 1, segment.start + within, part, take)?;
                }
            }
            within += part as u64;
            length -= part;
        }
        Ok(())
    }
}

impl Piece<'_> {
    fn length(&self) -> usize {
        match *self {
            Self::Stored { length, .. } | Self::Zeros(length) => length,
        }
    }
}

/// Reads the pieces that it is given into `buffer`, one behind the other; there is room for all.
///
/// # Errors
/// `UnexpectedEof` for a file that got shorter; as pread(2).
pub fn gather(buffer: &mut [u8]) -> impl FnMut(Piece) -> io::Result<()> {
    let mut rest = buffer;
    move |piece| {
        let (part, behind) = mem::take(&mut rest).split_at_mut(piece.length());
        rest = behind;
        match piece {
            Piece::Stored { file, offset, .. } => file.read_exact_at(part, offset),
            Piece::Zeros(_) => {
                part.fill(0);
                Ok(())
            }
        }
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

/// `there`, but no more than `length`.
fn at_most(there: u64, length: usize) -> usize {
    usize::try_from(there).unwrap_or(usize::MAX).min(length)
}

/// How the bytes of a link are stored; `None` where only QEMU can tell.
fn segments(link: &Link) -> io::Result<Option<Vec<Segment>>> {
    let whole = |stored| Some(vec![Segment { start: 0, length: link.size, stored }]);
    match (&link.source, link.format) {
        (Source::File(file), Format::Raw) => {
            // The last sector need not be whole; what it lacks is zeros.
            let length = file.metadata()?.len().min(link.size);
            let stored = Stored::Flat { file: file.try_clone()?, offset: 0 };
            Ok(Some(vec![Segment { start: 0, length, stored }]))
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
                let sectors = extent.sectors * SECTOR_SIZE;
                // So it is with the last piece of a raw disk.
                let length = match link.format {
                    Format::Raw => file.metadata()?.len().min(sectors),
                    _ => sectors,
                };
                segments.push(Segment { start, length, stored });
                start += sectors;
            }
            Ok(Some(segments))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
