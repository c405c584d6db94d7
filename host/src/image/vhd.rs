//! The footer of VHD, which growing disks repeat at their start.
//! Source: Microsoft's Virtual Hard Disk Image Format Specification.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::fields::{be16, be32, be64};
use super::file::ImageFile;

/// A footer's first bytes.
pub const MAGIC: &[u8] = b"conectix";

const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Whether `file` ends in a footer, as a disk of fixed size does.
///
/// # Errors
/// [`Problem::Io`].
pub fn has_footer(file: &ImageFile) -> Result<bool, Problem> {
    match file.len.checked_sub(SECTOR_SIZE) {
        Some(at) => Ok(file.header::<512>(at, "VHD footer")?.starts_with(MAGIC)),
        None => Ok(false),
    }
}

/// Checks the footer of `file`; returns the virtual disk's bytes.
///
/// # Errors
/// [`Problem::NotInFormat`], or [`Problem::Unsupported`] for a differencing disk.
pub fn virtual_size(file: &ImageFile) -> Result<u64, Problem> {
    let grows = file.start(MAGIC.len())? == MAGIC;
    if !grows && !has_footer(file)? {
        return Err(Problem::NotInFormat(super::Format::Vpc));
    }
    let at = if grows { 0 } else { file.len - SECTOR_SIZE };
    let footer: [u8; 512] = file.header(at, "VHD footer")?;
    match (be32(&footer, 60), grows) {
        (DYNAMIC, true) => {
            let header: [u8; 1024] = file.header(be64(&footer, 16), "VHD header")?;
            if !header.starts_with(b"cxsparse") {
                return Err(Problem::damaged("it has no dynamic disk header"));
            }
        }
        (FIXED, false) => {}
        (DIFFERENCING, _) => {
            return Err(Problem::Unsupported {
                what: "it is a VHD over a parent, such as a snapshot".to_owned(),
                hint: "Hyper-V's Convert-VHD makes a single file of it",
            });
        }
        _ => return Err(Problem::damaged("its VHD footer is of no known type")),
    }
    let size = sectors(&footer) * SECTOR_SIZE;
    if !grows && size > at {
        return Err(Problem::Truncated { what: "last sector of the disk", len: file.len });
    }
    Ok(size)
}

/// Sectors of the virtual disk, as QEMU counts them: Virtual PC and old QEMU went by the
/// geometry, all others by the size; and the largest geometry means more than itself.
fn sectors(footer: &[u8; 512]) -> u64 {
    const LARGEST: u64 = 65535 * 16 * 255;
    let geometry = u64::from(be16(footer, 56)) * u64::from(footer[58]) * u64::from(footer[59]);
    let creator = &footer[28..32];
    if matches!(creator, b"vpc " | b"qemu") && geometry != LARGEST {
        geometry
    } else {
        be64(footer, 48) / SECTOR_SIZE
    }
}
