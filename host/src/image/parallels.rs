//! The header of Parallels' growing disks (`.hds`, `.hdd`). Source: docs/interop/parallels of QEMU.
//!
//! A disk with snapshots is a directory of several such files, of which only an XML file tells the
//! order: these are refused, as one of them alone would show zeros for what the others hold.

use super::error::Problem;
use super::fields::{le32, le64};
use super::file::ImageFile;
use super::{Format, MAX_DESCRIPTOR, SECTOR_SIZE};

/// The first bytes; in the older kind, sizes are of 32 bits and places in sectors.
pub const MAGIC: &[u8; 16] = b"WithouFreSpacExt";
pub const OLD_MAGIC: &[u8; 16] = b"WithoutFreeSpace";

/// Where the table of clusters begins.
pub const TABLE_AT: u64 = 64;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParallelsHeader {
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Bytes that the entries of the table count.
    pub unit: u64,
}

impl ParallelsHeader {
    /// Reads it from the first bytes of a file.
    ///
    /// # Errors
    /// [`Problem::NotInFormat`], [`Problem::Unsupported`], or what is wrong with it.
    pub fn parse(header: &[u8; 64]) -> Result<Self, Problem> {
        let is_old = header.starts_with(OLD_MAGIC);
        if !is_old && !header.starts_with(MAGIC) {
            return Err(Problem::NotInFormat(Format::Parallels));
        }
        if le32(header, 16) != 2 {
            return Err(Problem::Unsupported {
                what: format!("it is a Parallels disk of version {}", le32(header, 16)),
                hint: "convert it with Parallels' own tools",
            });
        }
        let (cluster, entries) = (u64::from(le32(header, 28)) * SECTOR_SIZE, le32(header, 32));
        let sectors = le64(header, 36) & if is_old { u64::from(u32::MAX) } else { u64::MAX };
        let size = sectors.checked_mul(SECTOR_SIZE).ok_or(Problem::TooLarge)?;
        if cluster == 0 || size.div_ceil(cluster) > entries.into() {
            return Err(Problem::damaged("its table of clusters does not fit its size"));
        }
        Ok(Self { size, cluster, unit: if is_old { SECTOR_SIZE } else { cluster } })
    }

    /// Reads that of `file`, and refuses one that is not the whole of its disk.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(file: &ImageFile) -> Result<Self, Problem> {
        if file.start(MAGIC.len())?.len() < MAGIC.len() {
            return Err(Problem::NotInFormat(Format::Parallels));
        }
        let header = Self::parse(&file.header(0, "Parallels header")?)?;
        let table_len = header.size.div_ceil(header.cluster) * 4;
        file.check_inside(TABLE_AT, table_len, "table of clusters")?;
        if !file.is_part() && names_snapshots(file)? {
            return Err(Problem::Unsupported {
                what: "it is one of several images of a Parallels disk with snapshots".to_owned(),
                hint: "delete the snapshots in Parallels, or prl_disk_tool merge --hdd DIR",
            });
        }
        Ok(header)
    }
}

/// Whether the description beside `file` tells of more images than one.
fn names_snapshots(file: &ImageFile) -> Result<bool, Problem> {
    const IMAGE: &[u8] = b"<Image>";
    let description = match ImageFile::open(&file.folder().join("DiskDescriptor.xml")) {
        Err(problem) if problem.is_missing() => return Ok(false),
        opened => opened?,
    };
    let text = description.start(MAX_DESCRIPTOR)?;
    Ok(text.windows(IMAGE.len()).filter(|part| *part == IMAGE).count() > 1)
}
