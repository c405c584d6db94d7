//! A master boot record, where the kernel leaves it for a GPT.
//!
//! Follows block/partitions/msdos.c of Linux 6.12: primary partitions by their place in the table,
//! logical ones from 5 on.

use std::fs::File;

use super::{Partition, read};
use crate::little_endian::u32_at;

/// Bytes of the sectors that it counts in.
const SECTOR: u64 = 512;

/// The type that announces a GPT.
const PROTECTIVE: u8 = 0xee;

/// Types of partitions that hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Logical partitions that are looked for, at most.
const MAX_LOGICAL: u16 = 128;

/// One row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    status: u8,
    kind: u8,
    start: u64,
    count: u64,
}

impl Row {
    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    fn is_used(self) -> bool {
        self.kind != 0 && self.count != 0 && self.kind != PROTECTIVE
    }

    /// The partition that it describes, as far as a disk of `size` bytes has it.
    fn partition(self, number: u16, base: u64, size: u64) -> Option<Partition> {
        let start = (base + self.start) * SECTOR;
        let length = (self.count * SECTOR).min(size.checked_sub(start)?);
        (length > 0).then_some(Partition { number, start, length })
    }
}

/// A master boot record.
#[derive(Debug, PartialEq, Eq)]
pub struct Mbr([Row; 4]);

impl Mbr {
    /// The one in a disk's first sector; `None` without its signature.
    pub fn parse(sector: &[u8]) -> Option<Self> {
        const TABLE: usize = 446;
        (sector.get(510..512)? == [0x55, 0xaa]).then_some(())?;
        let row = |n: usize| {
            let row = &sector[TABLE + 16 * n..][..16];
            let number = |at| u64::from(u32_at(row, at).unwrap_or(0));
            Row { status: row[0], kind: row[4], start: number(8), count: number(12) }
        };
        Some(Self([0, 1, 2, 3].map(row)))
    }

    /// Whether it announces a GPT.
    pub fn is_protective(&self) -> bool {
        self.0.iter().any(|row| row.kind == PROTECTIVE)
    }

    /// Whether it is the one of a disk that is BSD's alone: its only partition begins where it does.
    pub fn is_dedicated(&self) -> bool {
        /// Those of FreeBSD, OpenBSD and NetBSD.
        const BSD: [u8; 3] = [0xa5, 0xa6, 0xa9];
        let mut used = self.0.iter().filter(|row| row.kind != 0);
        used.next().is_some_and(|row| BSD.contains(&row.kind) && row.start == 0)
            && used.next().is_none()
    }

    /// Whether it has no partition.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|row| row.kind == 0)
    }

    /// The numbers of the primary partitions that a disk of `size` bytes has only a part of, and of those
    /// that it has nothing of. None where this may be a boot sector of something else.
    pub fn misfits(&self, size: u64) -> (Vec<u16>, Vec<u16>) {
        let (mut cut, mut beyond) = (Vec::new(), Vec::new());
        if self.0.iter().any(|row| !matches!(row.status, 0 | 0x80)) {
            return (cut, beyond);
        }
        for (number, row) in (1..).zip(self.0).filter(|(_, row)| row.is_used()) {
            if row.start * SECTOR >= size {
                beyond.push(number);
            } else if (row.start + row.count) * SECTOR > size {
                cut.push(number);
            }
        }
        (cut, beyond)
    }

    /// The first sector after what it protects, where that is told: at 2 TiB it is not.
    pub fn protective_end(&self) -> Option<u64> {
        let row = self.0.iter().find(|row| row.kind == PROTECTIVE)?;
        (row.count < u64::from(u32::MAX)).then_some(row.start + row.count)
    }

    /// Its partitions but for the protective one, with logical ones.
    pub fn partitions(&self, disk: &File, size: u64) -> Vec<Partition> {
        let mut found = Vec::new();
        for (number, row) in (1..).zip(self.0).filter(|(_, row)| row.is_used()) {
            found.extend(row.partition(number, 0, size));
        }
        let extended = self.0.iter().find(|row| row.is_extended() && row.is_used());
        found.extend(extended.into_iter().flat_map(|row| logical(disk, size, row.start)));
        found
    }
}

/// The logical partitions of the extended one that begins at sector `first`.
fn logical(disk: &File, size: u64, first: u64) -> Vec<Partition> {
    let mut found = Vec::new();
    let (mut at, mut number) = (first, 5);
    while number < 5 + MAX_LOGICAL {
        let Some(record) = read(disk, at * SECTOR, 512) else { break };
        let Some(Mbr(rows)) = Mbr::parse(&record) else { break };
        if let Some(row) = rows[..2].iter().find(|row| row.is_used() && !row.is_extended()) {
            found.extend(row.partition(number, at, size));
            number += 1;
        }
        let Some(next) = rows[..2].iter().find(|row| row.is_extended() && row.count != 0) else {
            break;
        };
        // Each is after the one before, or a loop would have no end.
        let next = first + next.start;
        if next <= at {
            break;
        }
        at = next;
    }
    found
}
