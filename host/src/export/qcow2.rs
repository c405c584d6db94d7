//! A qcow2 that is written from its start to its end and then never changed: clusters of data in
//! the disk's order, each table behind the data that it is of, and counts of references at the end,
//! all of which are one.
//!
//! Source: docs/interop/qcow2 of QEMU, version 3.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::raw::is_zeros;
use super::{Target, zeros};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_LEN: usize = 1 << CLUSTER_BITS;

/// Entries of a table of the second level, 8 bytes each.
const ENTRIES: u64 = CLUSTER / 8;

/// Counts in a block of them, 16 bits each.
const COUNTS: u64 = CLUSTER / 2;

/// In an entry: the cluster's count is one.
const COPIED: u64 = 1 << 63;

/// Where in an entry the offset is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// A qcow2.
pub struct Qcow2<'f> {
    file: &'f File,
    size: u64,
    /// The table of the first level: where those of the second are.
    first: Vec<u64>,
    /// The table of the second level that is being filled, and its number.
    second: Option<(usize, Vec<u64>)>,
    /// Clusters so far.
    clusters: u64,
}

impl<'f> Qcow2<'f> {
    /// One for a disk of `size` bytes in `file`, which is empty.
    pub fn new(file: &'f File, size: u64) -> Self {
        let tables = usize::try_from(size.div_ceil(CLUSTER * ENTRIES)).expect("of 64 TiB at most");
        let first = vec![0; tables.max(1)];
        // The header is in the first one, the table of the first level behind it.
        let clusters = 1 + (first.len() as u64 * 8).div_ceil(CLUSTER);
        Self { file, size, first, second: None, clusters }
    }

    /// Writes a cluster at the end; returns its entry in a table.
    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.clusters * CLUSTER;
        self.file.write_all_at(bytes, at)?;
        self.clusters += 1;
        Ok(at | COPIED)
    }

    /// Writes the table that was being filled.
    fn end_table(&mut self) -> io::Result<()> {
        if let Some((number, table)) = self.second.take() {
            self.first[number] = self.append(&big_endian(&table))?;
        }
        Ok(())
    }

    /// Writes the counts of references, and the table of their blocks. Returns where that is and
    /// how many clusters it has.
    fn count_references(&mut self) -> io::Result<(u64, u64)> {
        // What they count includes themselves.
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let all = self.clusters + blocks + tables;
            let needed = (all.div_ceil(COUNTS), (blocks * 8).div_ceil(CLUSTER).max(1));
            if needed == (blocks, tables) {
                break;
            }
            (blocks, tables) = needed;
        }
        let all = self.clusters + blocks + tables;
        let mut table = Vec::new();
        for block in 0..blocks {
            let count = usize::try_from((all - block * COUNTS).min(COUNTS)).expect("of a block");
            let mut counts = [0, 1].repeat(count);
            counts.resize(CLUSTER_LEN, 0);
            table.push(self.append(&counts)? & OFFSET);
        }
        let at = self.clusters * CLUSTER;
        self.file.write_all_at(&big_endian(&table), at)?;
        self.clusters += tables;
        // The last cluster is whole, whatever of it is used.
        self.file.set_len(self.clusters * CLUSTER)?;
        Ok((at, tables))
    }
}

impl Target for Qcow2<'_> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (cluster, at) in bytes.chunks(CLUSTER_LEN).zip((offset / CLUSTER)..) {
            if is_zeros(cluster) {
                continue;
            }
            let number = usize::try_from(at / ENTRIES).expect("a table's number");
            if self.second.as_ref().is_none_or(|(current, _)| *current != number) {
                self.end_table()?;
                self.second = Some((number, vec![0; CLUSTER_LEN / 8]));
            }
            let entry = self.append(cluster)?;
            if let Some((_, table)) = &mut self.second {
                table[usize::try_from(at % ENTRIES).expect("within a table")] = entry;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.end_table()?;
        let (counts_at, count_tables) = self.count_references()?;
        self.file.write_all_at(&big_endian(&self.first), CLUSTER)?;
        let first_len = u32::try_from(self.first.len()).expect("of 64 TiB at most");
        let count_tables = u32::try_from(count_tables).expect("of 64 TiB at most");
        let mut header = Vec::with_capacity(112);
        header.extend(b"QFI\xfb");
        header.extend(3u32.to_be_bytes());
        header.extend([0; 12]); // no backing file
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        header.extend(0u32.to_be_bytes()); // not encrypted
        header.extend(first_len.to_be_bytes());
        header.extend(CLUSTER.to_be_bytes());
        header.extend(counts_at.to_be_bytes());
        header.extend(count_tables.to_be_bytes());
        header.extend([0; 12]); // no snapshots
        header.extend([0; 24]); // no features
        header.extend(4u32.to_be_bytes()); // counts of 16 bits
        header.extend(104u32.to_be_bytes());
        header.extend([0; 8]); // no extensions
        self.file.write_all_at(&header, 0)
    }

    fn read_back(&self, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut left = self.size;
        let mut cluster = vec![0; CLUSTER_LEN];
        for &table in &self.read_table(CLUSTER, self.first.len())? {
            let table = match table & OFFSET {
                0 => vec![0; CLUSTER_LEN / 8],
                at => self.read_table(at, CLUSTER_LEN / 8)?,
            };
            for entry in table {
                let here = left.min(CLUSTER);
                match entry & OFFSET {
                    0 => zeros(here, take),
                    at => {
                        let part = &mut cluster[..usize::try_from(here).expect("a cluster")];
                        self.file.read_exact_at(part, at)?;
                        take(part);
                    }
                }
                left -= here;
            }
        }
        Ok(())
    }
}

impl Qcow2<'_> {
    fn read_table(&self, at: u64, entries: usize) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; entries * 8];
        self.file.read_exact_at(&mut bytes, at)?;
        let entries = bytes.chunks_exact(8);
        Ok(entries.map(|entry| u64::from_be_bytes(entry.try_into().expect("8 bytes"))).collect())
    }
}

fn big_endian(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}
