//! The headers of ESXi 6's space-efficient sparse extents. The format is not published;
//! what is required here is what QEMU's driver requires.

use super::error::Problem;
use super::extent::ExtentSize;
use super::fields::le64;
use super::file::ImageFile;
use super::{MAX_DISK_SIZE, SECTOR_SIZE};

/// The first bytes: a 64-bit number of which the upper half is zero.
pub const MAGIC: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();

const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const VERSION: u64 = 0x2_0000_0001;
const GRAIN_SECTORS: u64 = 8;
const TABLE_SECTORS: u64 = 64;

/// Sectors that one grain table maps.
const TABLE_COVERS: u64 = TABLE_SECTORS * SECTOR_SIZE / 8 * GRAIN_SECTORS;

/// Reads the headers of `file`.
///
/// # Errors
/// What is wrong with them.
pub fn size(file: &ImageFile) -> Result<ExtentSize, Problem> {
    let header: [u8; 512] = file.header(0, "seSparse header")?;
    if !header.starts_with(&MAGIC) {
        return Err(Problem::damaged("it has no seSparse header"));
    }
    let fixed = [(8, VERSION), (24, GRAIN_SECTORS), (32, TABLE_SECTORS), (40, 0)];
    if fixed.iter().any(|&(at, value)| le64(&header, at) != value) {
        return Err(Problem::Unsupported {
            what: "its seSparse header has unknown properties".to_owned(),
            hint: "convert the disk with VMware's own tools",
        });
    }
    let capacity = le64(&header, 16);
    if capacity == 0 {
        return Err(Problem::damaged("its seSparse header says that it holds no sectors"));
    }
    if capacity > MAX_DISK_SIZE / SECTOR_SIZE {
        return Err(Problem::TooLarge);
    }
    let bytes = |at| le64(&header, at).saturating_mul(SECTOR_SIZE);
    let (directory, directory_len) = (bytes(128), bytes(136));
    file.check_inside(directory, directory_len, "grain directory")?;
    if directory_len / 8 < capacity.div_ceil(TABLE_COVERS) {
        return Err(Problem::damaged("its grain directory does not cover its sectors"));
    }
    let volatile: [u8; 512] = file.header(bytes(80), "volatile header")?;
    if le64(&volatile, 0) != VOLATILE_MAGIC {
        return Err(Problem::damaged("it has no volatile header"));
    }
    if le64(&volatile, 24) != 0 {
        return Err(Problem::Unsupported {
            what: "it was not closed and has a journal to replay".to_owned(),
            hint: "open and close it once on the ESXi server, or copy it with vmkfstools",
        });
    }
    Ok(ExtentSize { sectors: capacity, grain_sectors: GRAIN_SECTORS })
}
