//! A disklabel of BSD on a whole disk, without an MBR around it. Within a partition of an MBR the kernel
//! reads it.
//!
//! Follows sys/disklabel.h of FreeBSD. Partition `a` gets the number 1, `b` 2, and so on.

use super::Partition;
use crate::little_endian::{u16_at, u32_at};

/// Bytes of the sectors that a label counts in, unless it says otherwise.
const SECTOR: u64 = 512;

const MAGIC: u32 = 0x8256_4557;

/// Where it may be: in the second sector on a PC, in the first one elsewhere.
const PLACES: [usize; 2] = [512, 64];

/// Bytes before its partitions.
const HEADER: usize = 148;

/// Bytes of a partition.
const ROW: usize = 16;

/// Partitions of the label with the most: OpenBSD's of all versions have 16, NetBSD's up to 22.
const MAX_PARTITIONS: usize = 22;

/// A disklabel whose checksum is right.
#[derive(Debug, PartialEq, Eq)]
pub struct Label {
    sector: u64,
    /// First sector, sectors, by letter; those that are in use.
    rows: Vec<(u16, u64, u64)>,
}

impl Label {
    /// The one in the first sectors of a disk.
    pub fn parse(head: &[u8]) -> Option<Self> {
        PLACES.into_iter().find_map(|at| Self::at(head.get(at..)?))
    }

    fn at(label: &[u8]) -> Option<Self> {
        if u32_at(label, 0)? != MAGIC || u32_at(label, 132)? != MAGIC {
            return None;
        }
        let count = usize::from(u16_at(label, 138)?);
        let length = HEADER + ROW * count;
        let all = label.get(..length).filter(|_| count <= MAX_PARTITIONS)?;
        let words = all.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
        if words.fold(0, |sum, word| sum ^ word) != 0 {
            return None;
        }
        let sector = match u64::from(u32_at(label, 40)?) {
            0 => SECTOR,
            sector => sector,
        };
        let row = |(number, row): (u16, &[u8])| {
            let (count, start) = (u64::from(u32_at(row, 0)?), u64::from(u32_at(row, 4)?));
            let is_used = row[12] != 0 && count != 0;
            is_used.then_some((number, start, count))
        };
        let rows = (1..).zip(all[HEADER..].chunks_exact(ROW)).filter_map(row).collect();
        Some(Self { sector, rows })
    }

    /// Its partitions on a disk of `size` bytes, but for one that is the whole disk.
    pub fn partitions(&self, size: u64) -> Vec<Partition> {
        let partition = |&(number, start, count): &(u16, u64, u64)| {
            let (start, length) =
                (start.checked_mul(self.sector)?, count.checked_mul(self.sector)?);
            let length = length.min(size.checked_sub(start)?);
            let is_part = length > 0 && (start > 0 || length < size);
            is_part.then_some(Partition { number, start, length })
        };
        self.rows.iter().filter_map(partition).collect()
    }
}
