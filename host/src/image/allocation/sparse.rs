//! The grains of VMware's hosted sparse extents (`KDMV`), and of those of ESX servers.
//! Source: Virtual Disk Format 5.0, "Hosted Sparse Extents" and "Grain Marker".

use super::super::SECTOR_SIZE;
use super::super::error::Problem;
use super::super::fields::{le16, le32, le64};
use super::super::sparse::MAGIC;
use super::tables::Tables;
use super::{Block, Visitor, cowd};

const HAS_ZERO_GRAINS: u32 = 1 << 2;
const HAS_MARKERS: u32 = 1 << 17;

/// In place of the directory's sector: see the footer.
const AT_END: u64 = u64::MAX;

/// Bytes before a compressed grain: its sector, and its length at byte 8.
const MARKER: u64 = 12;

/// Tells of the grains of an extent of `size` bytes.
///
/// # Errors
/// Those of pread(2), [`Problem::Truncated`].
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    let mut header: [u8; 512] = tables.header(0, "sparse header")?;
    if !header.starts_with(&MAGIC) {
        return cowd::walk(tables, size, visitor);
    }
    if le64(&header, 56) == AT_END {
        // Between a marker and the end of the stream, both a sector long.
        header = tables.header(tables.len().saturating_sub(2 * SECTOR_SIZE), "footer")?;
    }
    let grains = Grains {
        grain: le64(&header, 20).saturating_mul(SECTOR_SIZE),
        entries: le32(&header, 44).into(),
        directory: le64(&header, 56).saturating_mul(SECTOR_SIZE),
        has_zeros: le32(&header, 8) & HAS_ZERO_GRAINS != 0,
        stored: match (le16(&header, 77), le32(&header, 8) & HAS_MARKERS) {
            (0, _) => Stored::Plain,
            (_, 0) => Stored::Compressed,
            _ => Stored::Marked,
        },
    };
    grains.walk(tables, size, visitor)
}

/// Grains that are found through a directory of tables, both of sectors in 32 bits.
pub struct Grains {
    /// Bytes of a grain, not 0.
    pub grain: u64,
    /// Entries of a table, not 0.
    pub entries: u64,
    /// Where the directory is.
    pub directory: u64,
    /// Whether 1 is a grain of zeros.
    pub has_zeros: bool,
    /// How each is stored.
    pub stored: Stored,
}

/// How grains are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As they are.
    Plain,
    /// Compressed; only who decompresses one sees where it ends, and that it was cut short.
    Compressed,
    /// Compressed, with a marker before each that says its length.
    Marked,
}

impl Grains {
    /// Tells of them.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn walk(
        &self,
        tables: &mut Tables,
        size: u64,
        visitor: &mut Visitor,
    ) -> Result<(), Problem> {
        /// Entries of the directory that are read at once.
        const BATCH: u64 = 4096;
        let covered = self.grain.saturating_mul(self.entries);
        if covered == 0 {
            return Err(Problem::damaged("its grains are of no valid size"));
        }
        let count = size.div_ceil(covered);
        for first in (0..count).step_by(usize::try_from(BATCH).expect("it is small")) {
            let here = BATCH.min(count - first);
            let len = usize::try_from(here * 4).expect("of a batch");
            let at = self.directory.saturating_add(first * 4);
            let Some(bytes) = tables.get(at, len)? else { return Ok(()) };
            // An empty part of the directory, such as a hole, names nothing.
            let directory: Vec<u32> = bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect();
            for (number, &sector) in (first..).zip(&directory).filter(|(_, sector)| **sector != 0) {
                if !self.walk_table(tables, number * covered, sector, size, visitor)? {
                    return Ok(());
                }
            }
            let end = (first + directory.len() as u64) * covered;
            visitor.tell(end.min(size)..((first + here) * covered).min(size), Block::Missing);
        }
        Ok(())
    }

    /// Tells of the grains in one table, whose first is at `start` of the disk. Returns whether there
    /// may be more tables.
    fn walk_table(
        &self,
        tables: &mut Tables,
        start: u64,
        sector: u32,
        size: u64,
        visitor: &mut Visitor,
    ) -> Result<bool, Problem> {
        let file_len = tables.len();
        let count = self.entries.min((size - start).div_ceil(self.grain));
        let len =
            usize::try_from(count * 4).map_err(|_| Problem::damaged("its tables are large"))?;
        let Some(bytes) = tables.get(u64::from(sector) * SECTOR_SIZE, len)? else {
            return Ok(false);
        };
        // Most images are whole: what ends before this needs no further look.
        let limit = file_len.saturating_sub(self.safe_len()) / SECTOR_SIZE;
        let highest = bytes.chunks_exact(4).map(|entry| le32(entry, 0)).max().unwrap_or(0);
        let is_whole = u64::from(highest) <= limit && file_len >= self.safe_len();
        if bytes.len() == len && is_whole && !visitor.wants_held {
            return Ok(true);
        }
        let table: Vec<u32> = bytes.chunks_exact(4).map(|entry| le32(entry, 0)).collect();
        let mut at = start;
        for &entry in &table {
            let end = at.saturating_add(self.grain).min(size);
            match entry {
                0 => {}
                1 if self.has_zeros => visitor.tell(at..end, Block::Held),
                _ => {
                    let there = self.held(tables, entry.into(), end - at)?;
                    visitor.tell(at..at + there, Block::Held);
                    visitor.tell(at + there..end, Block::Missing);
                }
            }
            at = end;
        }
        // What the rest of the table would say is not known.
        visitor.tell(at..start.saturating_add(count * self.grain).min(size), Block::Missing);
        Ok(true)
    }

    /// Bytes of the file that no grain needs more of.
    fn safe_len(&self) -> u64 {
        match self.stored {
            Stored::Plain => self.grain,
            Stored::Compressed => 1,
            // What does not become smaller is stored as it is, or a little larger.
            Stored::Marked => self.grain.saturating_mul(2) + MARKER,
        }
    }

    /// How many of the `len` bytes of the grain at `sector` the file has.
    fn held(&self, tables: &mut Tables, sector: u64, len: u64) -> Result<u64, Problem> {
        let (at, file_len) = (sector * SECTOR_SIZE, tables.len());
        if at.saturating_add(self.safe_len()) <= file_len {
            return Ok(len);
        }
        match self.stored {
            Stored::Plain => return Ok(file_len.saturating_sub(at).min(len)),
            Stored::Compressed => return Ok(0),
            Stored::Marked => {}
        }
        let marker = tables.get(at, usize::try_from(MARKER).expect("it is small"))?;
        let whole = marker.is_some_and(|marker| {
            let data = marker.len() as u64 == MARKER;
            data && at + MARKER + u64::from(le32(marker, 8)) <= file_len
        });
        Ok(if whole { len } else { 0 })
    }
}
