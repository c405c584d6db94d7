//! The header of qcow2. Source: docs/interop/qcow2 of QEMU.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::fields::{be32, be64};
use super::file::ImageFile;

/// The first bytes.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Incompatible features that change nothing for a reader of this file alone: dirty,
/// corrupt (refused for writing only), compression type, extended L2 entries.
const HARMLESS_FEATURES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Checks the header of `file`; returns the virtual disk's bytes.
///
/// # Errors
/// [`Problem::NotInFormat`], or [`Problem::Unsupported`] for all that refers to another file
/// or cannot be read.
pub fn virtual_size(file: &ImageFile) -> Result<u64, Problem> {
    if !file.start(MAGIC.len())?.starts_with(&MAGIC) {
        return Err(Problem::NotInFormat(super::Format::Qcow2));
    }
    let header: [u8; 72] = file.header(0, "qcow2 header")?;
    let features = match be32(&header, 4) {
        2 => 0,
        3 => be64(&file.header::<104>(0, "qcow2 header")?, 72),
        version => return unsupported(format!("it is a qcow2 of version {version}")),
    };
    if be64(&header, 8) != 0 {
        return unsupported("it is a qcow2 over a backing file".to_owned());
    }
    if be32(&header, 32) != 0 {
        return unsupported("it is an encrypted qcow2".to_owned());
    }
    if features & EXTERNAL_DATA != 0 {
        return unsupported("it is a qcow2 with its data in another file".to_owned());
    }
    if features & !HARMLESS_FEATURES != 0 {
        return unsupported("it is a qcow2 with unknown features".to_owned());
    }
    // QEMU leaves the last sector off where it is not whole.
    Ok(be64(&header, 24) / SECTOR_SIZE * SECTOR_SIZE)
}

const CONVERT: &str = "if its source is trusted, qemu-img convert makes a single file of it";

fn unsupported<T>(what: String) -> Result<T, Problem> {
    Err(Problem::Unsupported { what, hint: CONVERT })
}
