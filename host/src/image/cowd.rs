//! The header of ESX servers' sparse extents (`COWD`).
//! Source: Virtual Disk Format 5.0, "ESX Server Sparse Extents".

use super::error::Problem;
use super::extent::ExtentSize;
use super::fields::le32;
use super::file::ImageFile;

/// The first bytes.
pub const MAGIC: [u8; 4] = *b"COWD";

/// Entries of a grain table, always.
const TABLE_ENTRIES: u64 = 4096;

/// Sectors of the largest grain that QEMU takes.
const MAX_GRAIN: u32 = 0x20_0000;

/// Reads the header of `file`.
///
/// # Errors
/// What is wrong with it.
pub fn size(file: &ImageFile) -> Result<ExtentSize, Problem> {
    let header: [u8; 512] = file.header(0, "sparse header")?;
    if !header.starts_with(&MAGIC) {
        return Err(Problem::damaged("it has no sparse header"));
    }
    if le32(&header, 4) != 1 {
        return Err(Problem::Unsupported {
            what: format!("its COWD header is of version {}", le32(&header, 4)),
            hint: "convert the disk with VMware's own tools",
        });
    }
    let (sectors, grain) = (u64::from(le32(&header, 12)), le32(&header, 16));
    let (directory, entries) = (u64::from(le32(&header, 20)), u64::from(le32(&header, 24)));
    // QEMU divides by the grain's size without asking.
    if grain == 0 || grain > MAX_GRAIN {
        return Err(Problem::damaged(format!("its grains of {grain} sectors are no valid size")));
    }
    if sectors == 0 || entries < sectors.div_ceil(TABLE_ENTRIES * u64::from(grain)) {
        return Err(Problem::damaged("its grain directory does not cover its sectors"));
    }
    file.check_inside(directory * 512, entries * 4, "grain directory")?;
    Ok(ExtentSize { sectors, grain_sectors: grain.into() })
}
