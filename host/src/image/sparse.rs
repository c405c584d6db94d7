//! The header of VMware's hosted sparse extents (`KDMV`), which may hold a descriptor.
//!
//! Checked is what QEMU's driver relies on without a check of its own, and what it would
//! complain of in words that help nobody. Source: Virtual Disk Format 5.0, "Hosted Sparse
//! Extent Header".

use super::error::Problem;
use super::extent::ExtentSize;
use super::fields::{le16, le32, le64};
use super::file::ImageFile;
use super::{MAX_DISK_SIZE, SECTOR_SIZE};

/// The first bytes.
pub const MAGIC: [u8; 4] = *b"KDMV";

const HEADER_LEN: usize = 512;

/// In place of the grain directory's sector: see the footer, which is the same header again.
const AT_END: u64 = u64::MAX;

/// The flag that says that [`LINE_ENDS`] can be checked.
const HAS_LINE_ENDS: u32 = 1;

/// Bytes 73 to 76, which a copy in text mode changes.
const LINE_ENDS: &[u8] = b"\n \r\n";

/// The most sectors of a grain and entries of a grain table that QEMU takes.
const MAX_GRAIN: u64 = 0x20_0000;
const MAX_TABLE_ENTRIES: u64 = 512;
const MAX_DIRECTORY_ENTRIES: u64 = 32 << 20;

/// A sparse extent's header, checked against its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseHeader {
    /// Its sectors and grains.
    pub size: ExtentSize,
    /// Sectors from the second one on that hold a descriptor; 0 where there is none.
    pub descriptor_sectors: u64,
    /// Whether the grain directory is found by the footer.
    pub has_footer: bool,
    /// Whether grains are compressed, which takes a writer that writes each once.
    pub is_compressed: bool,
}

impl SparseHeader {
    /// Reads the header of `file` and, where it refers to it, the footer.
    ///
    /// # Errors
    /// [`Problem::NotInFormat`] without the magic; otherwise what is wrong with it.
    pub fn read(file: &ImageFile) -> Result<Self, Problem> {
        let header: [u8; HEADER_LEN] = file.header(0, "sparse header")?;
        check_magic(&header)?;
        let (at, sectors) = (le64(&header, 28), le64(&header, 36));
        let descriptor_sectors = match (at, sectors) {
            (0, _) | (_, 0) => 0,
            (1, _) => sectors,
            // QEMU looks for the content ids there and nowhere else.
            _ => return Err(Problem::damaged("its descriptor is not in the second sector")),
        };
        let has_footer = le64(&header, 56) == AT_END;
        let size = if has_footer {
            // With capacity 0, QEMU takes the whole disk from the embedded descriptor and
            // opens what that names, and it looks at this header's capacity, not the footer's.
            check_capacity(le64(&header, 12))?;
            check_tables(file, &read_footer(file)?)?
        } else {
            check_tables(file, &header)?
        };
        let is_compressed = le16(&header, 77) != 0;
        Ok(Self { size, descriptor_sectors, has_footer, is_compressed })
    }
}

/// Magic, version and the marks of a text-mode copy.
fn check_magic(header: &[u8; HEADER_LEN]) -> Result<(), Problem> {
    if !header.starts_with(&MAGIC) {
        return Err(Problem::damaged("it has no sparse header"));
    }
    if le32(header, 8) & HAS_LINE_ENDS != 0 && header[73..77] != *LINE_ENDS {
        return Err(Problem::TextModeCopy);
    }
    match le32(header, 4) {
        1..=3 => Ok(()),
        version => Err(Problem::Unsupported {
            what: format!("its sparse header is of version {version}"),
            hint: "convert the disk with VMware's own tools",
        }),
    }
}

/// The footer's header: between a marker sector and the end-of-stream marker, which is last.
fn read_footer(file: &ImageFile) -> Result<[u8; HEADER_LEN], Problem> {
    const FOOTER_MARKER: u32 = 3;
    const END_MARKER: u32 = 0;
    let truncated = || Problem::Truncated { what: "footer", len: file.len };
    if !file.len.is_multiple_of(SECTOR_SIZE) {
        return Err(truncated());
    }
    let at = file.len.checked_sub(3 * SECTOR_SIZE).ok_or_else(truncated)?;
    let marker: [u8; HEADER_LEN] = file.header(at, "footer")?;
    let footer: [u8; HEADER_LEN] = file.header(at + SECTOR_SIZE, "footer")?;
    let end: [u8; HEADER_LEN] = file.header(at + 2 * SECTOR_SIZE, "footer")?;
    let marked = le32(&marker, 8) == 0 && le32(&marker, 12) == FOOTER_MARKER;
    let ended = le64(&end, 0) == 0 && le32(&end, 8) == 0 && le32(&end, 12) == END_MARKER;
    if !marked || !ended || !footer.starts_with(&MAGIC) {
        return Err(truncated());
    }
    check_magic(&footer)?;
    Ok(footer)
}

fn check_capacity(capacity: u64) -> Result<u64, Problem> {
    match capacity {
        0 => Err(Problem::damaged("its sparse header says that it holds no sectors")),
        _ if capacity > MAX_DISK_SIZE / SECTOR_SIZE => Err(Problem::TooLarge),
        _ => Ok(capacity),
    }
}

/// Checks grains and their directory.
fn check_tables(file: &ImageFile, header: &[u8; HEADER_LEN]) -> Result<ExtentSize, Problem> {
    let capacity = check_capacity(le64(header, 12))?;
    let grain = le64(header, 20);
    if !grain.is_power_of_two() || grain > MAX_GRAIN {
        return Err(Problem::damaged(format!("its grains of {grain} sectors are no valid size")));
    }
    let entries = u64::from(le32(header, 44));
    if entries == 0 || entries > MAX_TABLE_ENTRIES {
        return Err(Problem::damaged(format!(
            "its grain tables of {entries} entries are no valid size"
        )));
    }
    let directory_entries = capacity.div_ceil(grain * entries);
    if directory_entries > MAX_DIRECTORY_ENTRIES {
        return Err(Problem::damaged("its grain directory is too large"));
    }
    let directory = le64(header, 56).saturating_mul(SECTOR_SIZE);
    file.check_inside(directory, directory_entries * 4, "grain directory")?;
    if le64(header, 64) > file.len.div_ceil(SECTOR_SIZE) {
        return Err(Problem::Truncated { what: "first grain", len: file.len });
    }
    match le16(header, 77) {
        0 | 1 => Ok(ExtentSize { sectors: capacity, grain_sectors: grain }),
        algorithm => Err(Problem::Unsupported {
            what: format!("its grains are compressed in way {algorithm}"),
            hint: "convert the disk with VMware's own tools",
        }),
    }
}
