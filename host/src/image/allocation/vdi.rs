//! The blocks of VirtualBox's VDI.

use super::super::error::Problem;
use super::super::fields::le32;
use super::tables::Tables;
use super::{Block, Visitor};

/// Entries that are read at once.
const BATCH: u64 = 64 << 10;

/// Tells of the blocks of a disk of `size` bytes.
///
/// # Errors
/// Those of pread(2), [`Problem::Truncated`].
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    const ZERO: u32 = u32::MAX - 1;
    const UNUSED: u32 = u32::MAX;
    let header: [u8; 512] = tables.header(0, "VDI header")?;
    let (table, data) = (u64::from(le32(&header, 340)), u64::from(le32(&header, 344)));
    let block = u64::from(le32(&header, 376));
    if block == 0 {
        // QEMU refuses it, in its own words.
        return Ok(());
    }
    let count = size.div_ceil(block);
    let file_len = tables.len();
    for first in (0..count).step_by(usize::try_from(BATCH).expect("it is small")) {
        let here = BATCH.min(count - first);
        let len = usize::try_from(here * 4).expect("of a batch");
        let Some(entries) = tables.get(table + first * 4, len)? else { return Ok(()) };
        let mut at = first * block;
        for entry in entries.chunks_exact(4).map(|entry| le32(entry, 0)) {
            let end = (at + block).min(size);
            match entry {
                UNUSED => {}
                ZERO => visitor.tell(at..end, Block::Held),
                stored => {
                    let place = data + u64::from(stored) * block;
                    let there = file_len.saturating_sub(place).min(end - at);
                    visitor.tell(at..at + there, Block::Held);
                    visitor.tell(at + there..end, Block::Missing);
                }
            }
            at = end;
        }
        visitor.tell(at..((first + here) * block).min(size), Block::Missing);
    }
    Ok(())
}
