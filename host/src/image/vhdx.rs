//! The tables of VHDX that say how large the disk is and whether it has a parent.
//! Source: \[MS-VHDX\], 2.2 and 2.6.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::fields::{le16, le32, le64};
use super::file::ImageFile;

/// The first bytes.
pub const MAGIC: &[u8] = b"vhdxfile";

const REGION_TABLE_AT: u64 = 192 << 10;

/// Both kinds of table: a header as long as an entry, then the entries.
const ENTRY_LEN: usize = 32;
const MAX_ENTRIES: usize = 2047;

/// GUIDs as they lie in the file.
type Guid = [u8; 16];
const METADATA_REGION: Guid = *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
const FILE_PARAMETERS: Guid = *b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
const VIRTUAL_SIZE: Guid = *b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8";

/// Checks the tables of `file`; returns the virtual disk's bytes.
///
/// # Errors
/// [`Problem::NotInFormat`], or [`Problem::Unsupported`] for a differencing disk.
pub fn virtual_size(file: &ImageFile) -> Result<u64, Problem> {
    const HAS_PARENT: u32 = 2;
    if file.start(MAGIC.len())? != MAGIC {
        return Err(Problem::NotInFormat(super::Format::Vhdx));
    }
    let header: [u8; 16] = file.header(REGION_TABLE_AT, "region table")?;
    if !header.starts_with(b"regi") {
        return Err(Problem::damaged("it has no region table"));
    }
    let count = usize::try_from(le32(&header, 8)).unwrap_or(usize::MAX);
    let entries = table(file, REGION_TABLE_AT + 16, count, "region table")?;
    let region = find(&entries, &METADATA_REGION)
        .map(|entry| le64(entry, 16))
        .ok_or_else(|| Problem::damaged("it has no metadata region"))?;

    let header: [u8; ENTRY_LEN] = file.header(region, "metadata table")?;
    if !header.starts_with(b"metadata") {
        return Err(Problem::damaged("it has no metadata table"));
    }
    // The header was read there, so this does not overflow.
    let entries_at = region + ENTRY_LEN as u64;
    let entries = table(file, entries_at, le16(&header, 10).into(), "metadata table")?;
    let item = |guid, missing| {
        let entry = find(&entries, guid).ok_or_else(|| Problem::damaged(missing))?;
        let at = region.saturating_add(le32(entry, 16).into());
        file.header::<8>(at, "metadata")
    };
    if le32(&item(&FILE_PARAMETERS, "its metadata lacks the file parameters")?, 4) & HAS_PARENT != 0
    {
        return Err(Problem::Unsupported {
            what: "it is a VHDX over a parent, such as a snapshot".to_owned(),
            hint: "Hyper-V's Convert-VHD makes a single file of it",
        });
    }
    let size = le64(&item(&VIRTUAL_SIZE, "its metadata lacks the disk's size")?, 0);
    Ok(size / SECTOR_SIZE * SECTOR_SIZE)
}

fn table(file: &ImageFile, at: u64, count: usize, what: &'static str) -> Result<Vec<u8>, Problem> {
    if count > MAX_ENTRIES {
        return Err(Problem::damaged(format!("its {what} has too many entries")));
    }
    file.bytes(at, count * ENTRY_LEN, what)
}

/// The entry that starts with `guid`.
fn find<'a>(entries: &'a [u8], guid: &Guid) -> Option<&'a [u8]> {
    entries.chunks_exact(ENTRY_LEN).find(|entry| entry.starts_with(guid))
}
