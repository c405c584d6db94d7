//! The blocks of VHDX disks without a parent. Source: \[MS-VHDX\], 2.2.3, 2.5, 2.6.

use super::super::error::Problem;
use super::super::fields::{le16, le32, le64};
use super::super::vhdx::{
    BLOCKS_REGION, ENTRY_LEN, FILE_PARAMETERS, FULLY_PRESENT, LOGICAL_SECTOR_SIZE, MAX_ENTRIES,
    METADATA_REGION, NOT_PRESENT, PARTIALLY_PRESENT, REGION_TABLE_AT, find,
};
use super::tables::Tables;
use super::{Block, Visitor};

/// Entries that are read at once.
const BATCH: u64 = 32 << 10;

/// Tells of the blocks of a disk of `size` bytes.
///
/// # Errors
/// Those of pread(2), [`Problem::Truncated`].
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    const MIB: u64 = 1 << 20;
    let regions: [u8; 16] = tables.header(REGION_TABLE_AT, "region table")?;
    let regions = entries(tables, REGION_TABLE_AT + 16, le32(&regions, 8))?;
    let region = |guid| find(&regions, guid).map(|entry| le64(entry, 16));
    let (Some(table), Some(metadata)) = (region(&BLOCKS_REGION), region(&METADATA_REGION)) else {
        // QEMU refuses it, in its own words.
        return Ok(());
    };
    let header: [u8; ENTRY_LEN] = tables.header(metadata, "metadata table")?;
    let items = metadata.saturating_add(ENTRY_LEN as u64);
    let items = entries(tables, items, le16(&header, 10).into())?;
    let item =
        |guid| find(&items, guid).map(|entry| metadata.saturating_add(le32(entry, 16).into()));
    let (Some(parameters), Some(sector)) = (item(&FILE_PARAMETERS), item(&LOGICAL_SECTOR_SIZE))
    else {
        return Ok(());
    };
    let parameters: [u8; 4] = tables.header(parameters, "metadata")?;
    let sector: [u8; 4] = tables.header(sector, "metadata")?;
    let (block, sector) = (u64::from(le32(&parameters, 0)), u64::from(le32(&sector, 0)));
    if block == 0 || sector << 23 < block {
        // QEMU refuses it, in its own words.
        return Ok(());
    }
    // Behind each so many entries of blocks stands one of a bitmap.
    let ratio = (sector << 23) / block;
    let file_len = tables.len();
    let blocks = size.div_ceil(block);
    let mut number = 0;
    let mut last = 0;
    while number < blocks {
        let here = BATCH.min(blocks - number).min(ratio - number % ratio);
        let len = usize::try_from(here * 8).expect("of a batch");
        let at = table.saturating_add((number + number / ratio) * 8);
        let Some(entries) = tables.get(at, len)? else { break };
        let mut at = number * block;
        for entry in entries.chunks_exact(8).map(|entry| le64(entry, 0)) {
            let end = at.saturating_add(block).min(size);
            let place = entry & !(MIB - 1);
            match entry & 7 {
                NOT_PRESENT => {}
                FULLY_PRESENT | PARTIALLY_PRESENT => {
                    let there = file_len.saturating_sub(place).min(end - at);
                    visitor.tell(at..at + there, Block::Held);
                    visitor.tell(at + there..end, Block::Missing);
                    last = last.max(place.saturating_add(block));
                }
                _ => visitor.tell(at..end, Block::Held),
            }
            at = end;
        }
        number += here;
        visitor.tell(at..number.saturating_mul(block).min(size), Block::Missing);
    }
    tables.note_end(last);
    Ok(())
}

fn entries(tables: &mut Tables, at: u64, count: u32) -> Result<Vec<u8>, Problem> {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(MAX_ENTRIES);
    Ok(tables.get(at, count * ENTRY_LEN)?.unwrap_or_default().to_vec())
}
