//! The blocks of growing VHDs without a parent.

use super::super::SECTOR_SIZE;
use super::super::error::Problem;
use super::super::fields::{be32, be64};
use super::super::vhd::MAGIC;
use super::tables::Tables;
use super::{Block, Visitor};

/// Entries that are read at once.
const BATCH: u64 = 64 << 10;

/// Tells of the blocks of a disk of `size` bytes.
///
/// # Errors
/// Those of pread(2), [`Problem::Truncated`].
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    const UNUSED: u32 = u32::MAX;
    let footer: [u8; 512] = tables.header(0, "VHD footer")?;
    if !footer.starts_with(MAGIC) {
        // Of fixed size: its length was checked.
        visitor.tell(0..size, Block::Held);
        return Ok(());
    }
    let header: [u8; 1024] = tables.header(be64(&footer, 16), "VHD header")?;
    let (table, block) = (be64(&header, 16), u64::from(be32(&header, 32)));
    if block < SECTOR_SIZE {
        // QEMU refuses it, in its own words.
        return Ok(());
    }
    let bitmap = (block / SECTOR_SIZE).div_ceil(8).next_multiple_of(SECTOR_SIZE);
    let count = size.div_ceil(block);
    let file_len = tables.len();
    for first in (0..count).step_by(usize::try_from(BATCH).expect("it is small")) {
        let here = BATCH.min(count - first);
        let len = usize::try_from(here * 4).expect("of a batch");
        let Some(entries) = tables.get(table.saturating_add(first * 4), len)? else {
            return Ok(());
        };
        let mut at = first * block;
        let mut last = 0;
        for entry in entries.chunks_exact(4).map(|entry| be32(entry, 0)) {
            let end = (at + block).min(size);
            if entry != UNUSED {
                let place = u64::from(entry) * SECTOR_SIZE + bitmap;
                let there = file_len.saturating_sub(place).min(end - at);
                visitor.tell(at..at + there, Block::Held);
                visitor.tell(at + there..end, Block::Missing);
                last = last.max(place + block);
            }
            at = end;
        }
        visitor.tell(at..((first + here) * block).min(size), Block::Missing);
        tables.note_end(last);
    }
    Ok(())
}
