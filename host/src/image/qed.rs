//! The header of QED, QEMU's enhanced disk. Source: docs/interop/qed_spec of QEMU.
//!
//! **Invariant:** opens no file.

use super::error::Problem;
use super::fields::{le32, le64};
use super::file::ImageFile;
use super::name::FileName;
use super::qcow2::Backing;
use super::{Format, SECTOR_SIZE};

/// The first bytes.
pub const MAGIC: [u8; 4] = *b"QED\0";

/// Features: a backing file; tables that may be wrong; a backing file that is raw.
const BACKING_FILE: u64 = 1;
const NEEDS_CHECK: u64 = 1 << 1;
const BACKING_IS_RAW: u64 = 1 << 2;

/// Bytes of a cluster, and clusters of a table.
const CLUSTERS: std::ops::RangeInclusive<u32> = 4096..=64 << 20;
const TABLES: std::ops::RangeInclusive<u32> = 1..=16;

/// Most bytes of a backing file's name.
const MAX_NAME: u32 = 1023;

/// What the header of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QedHeader {
    /// Bytes of the virtual disk, a multiple of [`SECTOR_SIZE`].
    pub size: u64,
    /// What is read where the file itself has nothing.
    pub backing: Option<Backing>,
}

impl QedHeader {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`Problem::NotInFormat`], [`Problem::Unsupported`], [`Problem::Name`], or what is wrong with it.
    pub fn read(file: &ImageFile) -> Result<Self, Problem> {
        if !file.start(MAGIC.len())?.starts_with(&MAGIC) {
            return Err(Problem::NotInFormat(Format::Qed));
        }
        let header: [u8; 64] = file.header(0, "QED header")?;
        let (cluster, table, header_clusters) =
            (le32(&header, 4), le32(&header, 8), le32(&header, 12));
        let features = le64(&header, 16);
        if features & !(BACKING_FILE | NEEDS_CHECK | BACKING_IS_RAW) != 0 {
            return Err(Problem::Unsupported {
                what: "it is a QED with unknown features".to_owned(),
                hint: "if its source is trusted, qemu-img convert makes another image of it",
            });
        }
        let is_fit = cluster.is_power_of_two() && CLUSTERS.contains(&cluster);
        if !is_fit || !table.is_power_of_two() || !TABLES.contains(&table) || header_clusters == 0 {
            return Err(Problem::damaged("its clusters or tables are of no valid size"));
        }
        // QEMU zero-fills what it cannot read of this table.
        let table_len = u64::from(cluster) * u64::from(table);
        file.check_inside(le64(&header, 40), table_len, "first table")?;
        let backing = match features & BACKING_FILE {
            0 => None,
            _ => Some(read_backing(file, &header, features)?),
        };
        Ok(Self { size: le64(&header, 48) / SECTOR_SIZE * SECTOR_SIZE, backing })
    }
}

fn read_backing(file: &ImageFile, header: &[u8; 64], features: u64) -> Result<Backing, Problem> {
    let (at, len) = (le32(header, 56), le32(header, 60));
    if !(1..=MAX_NAME).contains(&len) {
        return Err(Problem::damaged("its backing file's name is of no valid length"));
    }
    let len = usize::try_from(len).expect("at most MAX_NAME");
    let name = file.bytes(at.into(), len, "name of the backing file")?;
    let name = FileName::new(&name).map_err(Problem::Name)?;
    let format = (features & BACKING_IS_RAW != 0).then_some(Format::Raw);
    Ok(Backing { name, format })
}
