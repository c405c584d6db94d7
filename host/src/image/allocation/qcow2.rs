//! The clusters of qcow2. Source: docs/interop/qcow2 of QEMU.

use super::super::SECTOR_SIZE;
use super::super::error::Problem;
use super::super::fields::{be32, be64};
use super::tables::Tables;
use super::{Block, Visitor};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Incompatible features: counts of references may be wrong; entries have bits for subclusters.
const DIRTY_OR_CORRUPT: u64 = 1 | 1 << 1;
const EXTENDED_ENTRIES: u64 = 1 << 4;

/// Parts of a cluster that an extended entry has bits for.
const PARTS: u32 = 32;

/// Most bytes of the table of reference counts that are read: those of 2 PiB in usual clusters.
const MAX_COUNT_TABLE: u64 = 8 << 20;

/// What the header says of the tables.
struct Header {
    cluster_bits: u32,
    first_table: u64,
    first_entries: u64,
    count_table: u64,
    count_clusters: u64,
    count_bits: u64,
    features: u64,
}

impl Header {
    fn read(tables: &mut Tables) -> Result<Self, Problem> {
        let old: [u8; 72] = tables.header(0, "qcow2 header")?;
        let (features, order) = if be32(&old, 4) < 3 {
            (0, 4)
        } else {
            let header: [u8; 104] = tables.header(0, "qcow2 header")?;
            (be64(&header, 72), be32(&header, 96))
        };
        let cluster_bits = be32(&old, 20);
        if !(9..=21).contains(&cluster_bits) || order > 6 {
            return Err(Problem::damaged("its clusters are of no valid size"));
        }
        Ok(Self {
            cluster_bits,
            first_table: be64(&old, 40),
            first_entries: be32(&old, 36).into(),
            count_table: be64(&old, 48),
            count_clusters: be32(&old, 56).into(),
            count_bits: 1 << order,
            features,
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// Tells of the clusters of a disk of `size` bytes.
///
/// # Errors
/// Those of pread(2), [`Problem::Truncated`].
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    let header = Header::read(tables)?;
    // The tables of a large disk take long to read.
    if !visitor.wants_held && is_whole_by_counts(&header, tables)? {
        return Ok(());
    }
    let cluster = header.cluster();
    let entry_len = if header.features & EXTENDED_ENTRIES == 0 { 8 } else { 16 };
    let covered = cluster / entry_len * cluster;
    let count = size.div_ceil(covered).min(header.first_entries);
    let cluster_len = usize::try_from(cluster).expect("at most 2 MiB");
    for number in 0..count {
        let Some(entry) = tables.get(header.first_table.saturating_add(number * 8), 8)? else {
            return Ok(());
        };
        let (start, end) = (number * covered, ((number + 1) * covered).min(size));
        let Ok(entry) = <[u8; 8]>::try_from(entry).map(u64::from_be_bytes) else {
            visitor.tell(start..size, Block::Missing);
            return Ok(());
        };
        if entry & OFFSET == 0 {
            continue;
        }
        let file_len = tables.len();
        let Some(table) = tables.get(entry & OFFSET, cluster_len)? else { return Ok(()) };
        let mut at = start;
        for entry in table.chunks_exact(usize::try_from(entry_len).expect("8 or 16")) {
            let next = (at + cluster).min(end);
            let bits = if entry_len == 16 { Some(be64(entry, 8)) } else { None };
            let clusters = Cluster { at, next, header: &header, file_len };
            clusters.tell(be64(entry, 0), bits, visitor);
            at = next;
            if at == end {
                break;
            }
        }
        visitor.tell(at..end, Block::Missing);
    }
    Ok(())
}

/// One cluster of the disk.
struct Cluster<'h> {
    at: u64,
    next: u64,
    header: &'h Header,
    file_len: u64,
}

impl Cluster<'_> {
    fn tell(&self, entry: u64, bits: Option<u64>, visitor: &mut Visitor) {
        let Self { at, next, file_len, .. } = *self;
        if entry & COMPRESSED != 0 {
            let end = self.compressed_end(entry);
            // The last sector of the last one need not be whole.
            let is_there = end <= file_len.saturating_add(SECTOR_SIZE - 1) & !(SECTOR_SIZE - 1);
            visitor.tell(at..next, if is_there { Block::Held } else { Block::Missing });
            return;
        }
        let place = entry & OFFSET;
        let Some(bits) = bits else {
            if entry & ZERO != 0 {
                visitor.tell(at..next, Block::Held);
            } else if place != 0 {
                let there = file_len.saturating_sub(place).min(next - at);
                visitor.tell(at..at + there, Block::Held);
                visitor.tell(at + there..next, Block::Missing);
            }
            return;
        };
        let part = self.header.cluster() / u64::from(PARTS);
        for n in 0..PARTS {
            let from = (at + u64::from(n) * part).min(next);
            let to = (from + part).min(next);
            let is_stored = bits >> n & 1 != 0;
            if is_stored {
                let within = place.saturating_add(from - at);
                let there = file_len.saturating_sub(within).min(to - from);
                visitor.tell(from..from + there, Block::Held);
                visitor.tell(from + there..to, Block::Missing);
            } else if bits >> (n + PARTS) & 1 != 0 {
                visitor.tell(from..to, Block::Held);
            }
        }
    }

    /// Where a compressed cluster ends in the file: it has a number of sectors, the first of which
    /// may begin before it.
    fn compressed_end(&self, entry: u64) -> u64 {
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let further = (entry & (COMPRESSED - 1)) >> offset_bits;
        (offset & !(SECTOR_SIZE - 1)) + (further + 1) * SECTOR_SIZE
    }
}

/// Whether the counts of references say that no cluster is in use past the end of the file. They
/// are two short reads, and what a copy lacks at its end they still count.
fn is_whole_by_counts(header: &Header, tables: &mut Tables) -> Result<bool, Problem> {
    let cluster = header.cluster();
    let table_len = header.count_clusters * cluster;
    if header.features & DIRTY_OR_CORRUPT != 0 || table_len > MAX_COUNT_TABLE {
        return Ok(false);
    }
    let len = usize::try_from(table_len).expect("at most MAX_COUNT_TABLE");
    let Some(table) = tables.get(header.count_table, len)? else { return Ok(false) };
    if table.len() < len {
        return Ok(false);
    }
    let blocks = table.chunks_exact(8).map(|entry| be64(entry, 0) & OFFSET);
    let Some((number, at)) = (0u64..).zip(blocks).filter(|(_, at)| *at != 0).last() else {
        return Ok(false);
    };
    let cluster_len = usize::try_from(cluster).expect("at most 2 MiB");
    let file_len = tables.len();
    let Some(block) = tables.get(at, cluster_len)? else { return Ok(false) };
    // Counts of less than a byte are taken together. Where that is too far, all is looked at.
    let Some(last) = block.iter().rposition(|&byte| byte != 0) else { return Ok(false) };
    let counts = cluster * 8 / header.count_bits;
    let in_block = ((last as u64 + 1) * 8).div_ceil(header.count_bits).min(counts);
    let end = number.saturating_mul(counts).saturating_add(in_block).saturating_mul(cluster);
    Ok(block.len() == cluster_len && end <= file_len)
}
