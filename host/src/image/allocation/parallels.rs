//! The clusters of Parallels' growing disks. Source: docs/interop/parallels of QEMU.

use super::super::error::Problem;
use super::super::fields::le32;
use super::super::parallels::{ParallelsHeader, TABLE_AT};
use super::tables::Tables;
use super::{Block, Visitor};

/// Entries that are read at once.
const BATCH: u64 = 64 << 10;

/// Tells of the clusters of a disk of `size` bytes.
///
/// # Errors
/// Those of pread(2), [`Problem::Truncated`].
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    let header: [u8; 64] = tables.header(0, "Parallels header")?;
    let ParallelsHeader { cluster, unit, .. } = ParallelsHeader::parse(&header)?;
    let count = size.div_ceil(cluster);
    let file_len = tables.len();
    let mut last = 0;
    for first in (0..count).step_by(usize::try_from(BATCH).expect("it is small")) {
        let len = usize::try_from(BATCH.min(count - first) * 4).expect("of a batch");
        let Some(entries) = tables.get(TABLE_AT + first * 4, len)? else { return Ok(()) };
        let mut at = first * cluster;
        for entry in entries.chunks_exact(4).map(|entry| le32(entry, 0)) {
            let end = (at + cluster).min(size);
            if entry != 0 {
                let place = u64::from(entry).saturating_mul(unit);
                let there = file_len.saturating_sub(place).min(end - at);
                visitor.tell(at..at + there, Block::Held);
                visitor.tell(at + there..end, Block::Missing);
                last = last.max(place.saturating_add(cluster));
            }
            at = end;
        }
        // The header was read with its table there; the file may be shorter since.
        visitor.tell(at..((first + BATCH) * cluster).min(size), Block::Missing);
    }
    tables.note_end(last);
    Ok(())
}
