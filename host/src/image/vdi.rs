//! VirtualBox's VDI, version 1.1: its header, and the table of blocks of a snapshot.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::fields::{le32, le64};
use super::file::ImageFile;
use super::guid::{Guid, ImageIds};
use super::missing::Missing;
use super::sector_map::{Granule, SectorMap};

/// Where the magic is; text for people stands before it.
pub const MAGIC_AT: usize = 64;

/// The magic.
pub const MAGIC: [u8; 4] = 0xbeda_107f_u32.to_le_bytes();

const VERSION: u32 = 0x1_0001;

/// Most bytes of a table of blocks that is read here: that of 16 TiB in blocks of 1 MiB.
const MAX_TABLE: u64 = 64 << 20;

/// What the header of a file says.
pub struct VdiHeader {
    /// Bytes of the virtual disk.
    pub size: u64,
    /// The image's own ids.
    pub own: ImageIds,
    /// Those of its parent, for a snapshot.
    pub parent: Option<ImageIds>,
    table: Table,
}

#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    data: u64,
    block_size: u64,
    extra: u32,
    blocks: u64,
}

impl VdiHeader {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`Problem::NotInFormat`], or [`Problem::Unsupported`].
    pub fn read(file: &ImageFile) -> Result<Self, Problem> {
        const DYNAMIC: u32 = 1;
        const FIXED: u32 = 2;
        const DIFFERENCING: u32 = 4;
        if !file.start(MAGIC_AT + MAGIC.len())?.ends_with(&MAGIC) {
            return Err(Problem::NotInFormat(super::Format::Vdi));
        }
        let header: [u8; 512] = file.header(0, "VDI header")?;
        let id = |at: usize| Guid(header[at..at + 16].try_into().expect("16 bytes"));
        let ids = |at| ImageIds { image: id(at), modification: id(at + 16) };
        let (own, parent) = (ids(392), ids(424));
        let parent = match (le32(&header, 76), parent.image.is_nil()) {
            (DYNAMIC | FIXED, true) if parent.modification.is_nil() => None,
            (DIFFERENCING, false) => Some(parent),
            _ => {
                return Err(Problem::Unsupported {
                    what: "it is a VDI of a kind that was never in use".to_owned(),
                    hint: "VBoxManage clonemedium makes a single file of it",
                });
            }
        };
        let size = le64(&header, 368);
        // QEMU fills the last sector where it is not whole.
        let size = size.checked_next_multiple_of(SECTOR_SIZE).ok_or(Problem::TooLarge)?;
        let table = Table {
            offset: le32(&header, 340).into(),
            data: le32(&header, 344).into(),
            block_size: le32(&header, 376).into(),
            extra: le32(&header, 380),
            blocks: le32(&header, 384).into(),
        };
        if parent.is_some() && le32(&header, 68) != VERSION {
            return Err(Problem::damaged("its VDI header is of another version than 1.1"));
        }
        Ok(Self { size, own, parent, table })
    }

    /// Where a snapshot has the sectors that are not its parent's, and what of them is past the end
    /// of the file.
    ///
    /// # Errors
    /// What is wrong with its table of blocks.
    pub fn map(&self, file: &ImageFile) -> Result<(SectorMap, Missing), Problem> {
        const UNUSED: u32 = u32::MAX;
        const ZERO: u32 = u32::MAX - 1;
        let Table { offset, data, block_size, extra, blocks } = self.table;
        let granule = Granule::of_blocks(block_size);
        let is_fit = block_size.is_power_of_two() && block_size >= granule.least_block();
        if !is_fit || extra != 0 || !data.is_multiple_of(SECTOR_SIZE) {
            return Err(Problem::damaged("its blocks are of no valid size"));
        }
        let used = self.size.div_ceil(block_size);
        if used > blocks || used * 4 > MAX_TABLE {
            return Err(Problem::damaged("its table of blocks does not fit its size"));
        }
        let len = usize::try_from(used * 4).expect("at most MAX_TABLE");
        let table = file.bytes(offset, len, "table of blocks")?;
        let (mut map, mut missing) = (SectorMap::new(granule), Missing::default());
        for (number, entry) in (0..).zip(table.chunks_exact(4)) {
            let start = number * block_size;
            let len = block_size.min(self.size - start);
            let (sector, count) = (start / SECTOR_SIZE, len / SECTOR_SIZE);
            match le32(entry, 0) {
                UNUSED => {}
                ZERO => map.zero(sector, count)?,
                stored => {
                    let at = data + u64::from(stored) * block_size;
                    let there = file.len_inside(at, len);
                    missing.push(start + there..start + len);
                    let there = there.next_multiple_of(granule.len()) / SECTOR_SIZE;
                    map.store(sector, at / SECTOR_SIZE, there.min(count))?;
                }
            }
        }
        Ok((map, missing))
    }
}
