//! The header of VirtualBox's VDI, version 1.1.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::fields::{le32, le64};
use super::file::ImageFile;

/// Where the magic is; text for people stands before it.
pub const MAGIC_AT: usize = 64;

/// The magic.
pub const MAGIC: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();

/// Checks the header of `file`; returns the virtual disk's bytes.
///
/// # Errors
/// [`Problem::NotInFormat`], or [`Problem::Unsupported`] for a differencing disk.
pub fn virtual_size(file: &ImageFile) -> Result<u64, Problem> {
    if !file.start(MAGIC_AT + MAGIC.len())?.ends_with(&MAGIC) {
        return Err(Problem::NotInFormat(super::Format::Vdi));
    }
    let header: [u8; 512] = file.header(0, "VDI header")?;
    const DYNAMIC: u32 = 1;
    const FIXED: u32 = 2;
    let (uuid_link, uuid_parent) = (&header[424..440], &header[440..456]);
    let is_child = uuid_link.iter().chain(uuid_parent).any(|&b| b != 0);
    if is_child || !matches!(le32(&header, 76), DYNAMIC | FIXED) {
        return Err(Problem::Unsupported {
            what: "it is a VDI over a parent, such as a snapshot".to_owned(),
            hint: "VBoxManage clonemedium makes a single file of it",
        });
    }
    let size = le64(&header, 368);
    // QEMU fills the last sector where it is not whole.
    size.checked_next_multiple_of(SECTOR_SIZE).ok_or(Problem::TooLarge)
}
