//! The grains of ESX servers' sparse extents (`COWD`).

use super::super::SECTOR_SIZE;
use super::super::error::Problem;
use super::super::fields::le32;
use super::Visitor;
use super::sparse::{Grains, Stored};
use super::tables::Tables;

/// Tells of the grains of an extent of `size` bytes.
///
/// # Errors
/// Those of pread(2).
pub fn walk(tables: &mut Tables, size: u64, visitor: &mut Visitor) -> Result<(), Problem> {
    let header: [u8; 512] = tables.header(0, "sparse header")?;
    let grains = Grains {
        grain: u64::from(le32(&header, 16)) * SECTOR_SIZE,
        entries: 4096,
        directory: u64::from(le32(&header, 20)) * SECTOR_SIZE,
        has_zeros: false,
        stored: Stored::Plain,
    };
    grains.walk(tables, size, visitor)
}
