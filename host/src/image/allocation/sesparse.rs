//! The grains of ESXi 6's space-efficient sparse extents, as QEMU's block/vmdk.c finds them.

use super::super::SECTOR_SIZE;
use super::super::error::Problem;
use super::super::fields::le64;
use super::tables::Tables;
use super::{Block, Visitor};

const GRAIN: u64 = 8 * SECTOR_SIZE;
const TABLE: usize = 64 * 512;
const ENTRIES: u64 = TABLE as u64 / 8;
const KIND: u64 = 0xf << 60;

/// Tells of the grains of an extent of `size` bytes.
///
/// # Errors
/// Those of pread(2).
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    let header: [u8; 512] = tables.header(0, "seSparse header")?;
    let bytes = |at| le64(&header, at).saturating_mul(SECTOR_SIZE);
    let (directory, first_table, first_grain) = (bytes(128), bytes(144), bytes(192));
    let covered = GRAIN * ENTRIES;
    for number in 0..size.div_ceil(covered) {
        let start = number * covered;
        let end = (start + covered).min(size);
        let Some(entry) = tables.get(directory.saturating_add(number * 8), 8)? else {
            return Ok(());
        };
        let Ok(entry) = <[u8; 8]>::try_from(entry).map(u64::from_le_bytes) else {
            visitor.tell(start..end, Block::Missing);
            continue;
        };
        if entry == 0 {
            continue;
        }
        let at = first_table.saturating_add((entry & 0xffff_ffff) * TABLE as u64);
        let file_len = tables.len();
        let Some(table) = tables.get(at, TABLE)? else { return Ok(()) };
        let mut at = start;
        for entry in table.chunks_exact(8).map(|entry| le64(entry, 0)) {
            let next = (at + GRAIN).min(end);
            let number = (entry >> 48 & 0xfff) | (entry & 0xffff_ffff_ffff) << 12;
            match entry & KIND {
                0 => {}
                kind if kind == 3 << 60 => {
                    let grain = first_grain.saturating_add(number.saturating_mul(GRAIN));
                    let there = file_len.saturating_sub(grain).min(next - at);
                    visitor.tell(at..at + there, Block::Held);
                    visitor.tell(at + there..next, Block::Missing);
                }
                _ => visitor.tell(at..next, Block::Held),
            }
            at = next;
            if at == end {
                break;
            }
        }
        visitor.tell(at..end, Block::Missing);
    }
    Ok(())
}
