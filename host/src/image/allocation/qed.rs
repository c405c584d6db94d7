//! The clusters of QED. Source: docs/interop/qed_spec of QEMU.

use super::super::error::Problem;
use super::super::fields::{le32, le64};
use super::tables::Tables;
use super::{Block, Visitor};

/// Bytes of a table that are read at once.
const BATCH: u64 = 64 << 10;

/// Tells of the clusters of a disk of `size` bytes.
///
/// # Errors
/// Those of pread(2), [`Problem::Truncated`].
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    let header: [u8; 64] = tables.header(0, "QED header")?;
    // Checked when the file was opened: both are powers of two, and at least 4096 and 1.
    let cluster = u64::from(le32(&header, 4));
    let table_len = cluster * u64::from(le32(&header, 8));
    let first = le64(&header, 40);
    let covered = table_len / 8 * cluster;
    for number in 0..size.div_ceil(covered) {
        let Some(entry) = tables.get(first.saturating_add(number * 8), 8)? else { return Ok(()) };
        let (start, end) = (number * covered, ((number + 1) * covered).min(size));
        let Ok(entry) = <[u8; 8]>::try_from(entry).map(u64::from_le_bytes) else {
            visitor.tell(start..size, Block::Missing);
            return Ok(());
        };
        if entry == 0 {
            continue;
        }
        let used = (end - start).div_ceil(cluster) * 8;
        let mut at = start;
        for batch in (0..used).step_by(usize::try_from(BATCH).expect("it is small")) {
            let len = usize::try_from(BATCH.min(used - batch)).expect("of a batch");
            let file_len = tables.len();
            let Some(table) = tables.get(entry.saturating_add(batch), len)? else { return Ok(()) };
            for entry in table.chunks_exact(8).map(|entry| le64(entry, 0)) {
                let next = (at + cluster).min(end);
                match entry {
                    0 => {}
                    1 => visitor.tell(at..next, Block::Held),
                    place => {
                        let there = file_len.saturating_sub(place).min(next - at);
                        visitor.tell(at..at + there, Block::Held);
                        visitor.tell(at + there..next, Block::Missing);
                    }
                }
                at = next;
            }
        }
        visitor.tell(at..end, Block::Missing);
    }
    Ok(())
}
