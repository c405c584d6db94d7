//! The tables of VHDX that say how large the disk is, what its parent is, and where a
//! differencing disk has its blocks. Source: \[MS-VHDX\], 2.2 to 2.6.

use super::crc32c::crc32c_without;
use super::error::Problem;
use super::fields::{le16, le32, le64};
use super::file::ImageFile;
use super::guid::Guid;
use super::missing::Missing;
use super::parent::Named;
use super::sector_map::{Granule, SectorMap, check_bitmaps};
use super::vhd::runs;
use super::vhdx_log::Log;
use super::{BlockSize, SECTOR_SIZE, hint};

/// The first bytes.
pub const MAGIC: &[u8] = b"vhdxfile";

pub const REGION_TABLE_AT: u64 = 192 << 10;

/// Both kinds of table: a header as long as an entry, then the entries.
pub const ENTRY_LEN: usize = 32;
pub const MAX_ENTRIES: usize = 2047;

/// Most bytes of the table of blocks that is read here, and of the parent locator.
const MAX_TABLE: u64 = 64 << 20;
const MAX_LOCATOR: u32 = 64 << 10;

pub const METADATA_REGION: Guid =
    Guid(*b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e");
pub const BLOCKS_REGION: Guid =
    Guid(*b"\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08");
pub const FILE_PARAMETERS: Guid =
    Guid(*b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b");
const VIRTUAL_SIZE: Guid =
    Guid(*b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8");
pub const LOGICAL_SECTOR_SIZE: Guid =
    Guid(*b"\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f");
const PARENT_LOCATOR: Guid =
    Guid(*b"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c");

/// What the tables of a file say.
pub struct VhdxHeader {
    /// Bytes of the virtual disk, a multiple of [`SECTOR_SIZE`].
    pub size: u64,
    /// What is said of its parent, for a differencing disk.
    pub parent: Option<Named>,
    regions: Vec<u8>,
    block_size: u64,
    logical_sector: u64,
}

impl VhdxHeader {
    /// Reads the tables of `file`.
    ///
    /// # Errors
    /// [`Problem::NotInFormat`], or what is wrong with them.
    pub fn read(file: &ImageFile) -> Result<Self, Problem> {
        const HAS_PARENT: u32 = 2;
        if file.start(MAGIC.len())? != MAGIC {
            return Err(Problem::NotInFormat(super::Format::Vhdx));
        }
        let header: [u8; 16] = file.header(REGION_TABLE_AT, "region table")?;
        if !header.starts_with(b"regi") {
            return Err(Problem::damaged("it has no region table"));
        }
        let count = usize::try_from(le32(&header, 8)).unwrap_or(usize::MAX);
        let regions = table(file, REGION_TABLE_AT + 16, count, "region table")?;
        let metadata = Metadata::read(file, &regions)?;
        let parameters: [u8; 8] = metadata.item(&FILE_PARAMETERS, "the file parameters")?;
        let size: [u8; 8] = metadata.item(&VIRTUAL_SIZE, "the disk's size")?;
        let sector: [u8; 4] = metadata.item(&LOGICAL_SECTOR_SIZE, "the size of sectors")?;
        let mut parent = None;
        if le32(&parameters, 4) & HAS_PARENT != 0 {
            parent = Some(read_parent(&metadata.bytes(&PARENT_LOCATOR, "the parent")?)?);
        }
        Ok(Self {
            size: le64(&size, 0) / SECTOR_SIZE * SECTOR_SIZE,
            parent,
            regions,
            block_size: le32(&parameters, 0).into(),
            logical_sector: le32(&sector, 0).into(),
        })
    }

    /// How large sectors are for the guest that the disk was made for.
    pub fn sector_size(&self) -> BlockSize {
        match self.logical_sector {
            4096 => BlockSize::Bytes4096,
            _ => BlockSize::Bytes512,
        }
    }

    /// Whether QEMU's driver would show other sectors than it holds: it knows no parents, and
    /// counts in sectors of 512 bytes whatever their size is.
    pub fn needs_map(&self) -> bool {
        self.parent.is_some() || self.logical_sector != SECTOR_SIZE
    }

    /// Where it has its sectors, and what of them is past the end of the file; those that it lacks
    /// are its parent's, or zeros without one.
    ///
    /// # Errors
    /// What is wrong with its table of blocks.
    pub fn map(&self, file: &ImageFile) -> Result<(SectorMap, Missing), Problem> {
        const MIB: u64 = 1 << 20;
        /// Sectors that one block of bitmaps has bits for.
        const BITS: u64 = 1 << 23;
        let Self { block_size, logical_sector, .. } = *self;
        let is_fit = block_size.is_power_of_two() && (MIB..=256 * MIB).contains(&block_size);
        if !is_fit || !matches!(logical_sector, 512 | 4096) {
            return Err(Problem::damaged("its blocks or sectors are of no valid size"));
        }
        active_header(file)?;
        // Behind each so many entries of blocks stands one of their bitmaps.
        let ratio = BITS * logical_sector / block_size;
        let blocks = self.size.div_ceil(block_size);
        let entries = match self.parent {
            Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
            // Without bitmaps the table ends with the last block.
            None => blocks + blocks.saturating_sub(1) / ratio,
        };
        let region = find(&self.regions, &BLOCKS_REGION)
            .ok_or_else(|| Problem::damaged("it has no table of blocks"))?;
        if entries * 8 > le32(region, 24).into() || entries * 8 > MAX_TABLE {
            return Err(Problem::damaged("its table of blocks does not fit its size"));
        }
        let len = usize::try_from(entries * 8).expect("at most MAX_TABLE");
        let table = file.bytes(le64(region, 16), len, "table of blocks")?;
        let entry = |number: u64| {
            let at = usize::try_from(number * 8).expect("below the table's length");
            let entry = le64(&table, at);
            (entry & 7, entry & !(MIB - 1))
        };
        let in_parts =
            table.chunks_exact(8).filter(|entry| le64(entry, 0) & 7 == PARTIALLY_PRESENT);
        check_bitmaps(in_parts.count() as u64, block_size / logical_sector / 8)?;
        let granule = match self.parent {
            Some(_) => Granule::of_sectors(logical_sector),
            None => Granule::of_blocks(block_size),
        };
        let mut map = SectorMap::new(granule);
        let mut missing = Missing::default();
        for number in 0..blocks {
            let start = number * block_size;
            let len = block_size.min(self.size - start);
            let (sector, count) = (start / SECTOR_SIZE, len / SECTOR_SIZE);
            let (chunk, in_chunk) = (number / ratio, number % ratio);
            match entry(number + chunk) {
                (NOT_PRESENT, _) => {}
                (UNDEFINED | ZERO | UNMAPPED, _) => map.zero(sector, count)?,
                (FULLY_PRESENT, at) => {
                    let there = file.len_inside(at, len);
                    missing.push(start + there..start + len);
                    if there > 0 {
                        map.store(sector, at / SECTOR_SIZE, count)?;
                    }
                }
                (PARTIALLY_PRESENT, at) if self.parent.is_some() => {
                    let (state, bitmaps) = entry(chunk * (ratio + 1) + ratio);
                    if state != FULLY_PRESENT {
                        return Err(Problem::damaged("a block in parts has no bitmap"));
                    }
                    let bytes = block_size / logical_sector / 8;
                    let bitmap_at = bitmaps.saturating_add(in_chunk * bytes);
                    if file.len_inside(bitmap_at, bytes) < bytes {
                        // Which of its sectors are the parent's is not known.
                        missing.push(start..start + len);
                        continue;
                    }
                    let bytes = usize::try_from(bytes).expect("blocks are at most 256 MiB");
                    let bitmap = file.bytes(bitmap_at, bytes, "bitmap of a block")?;
                    let scale = logical_sector / SECTOR_SIZE;
                    for (first, run) in
                        runs(&bitmap, count.div_ceil(scale), |byte, i| byte >> i & 1 == 1)
                    {
                        let first = first * scale;
                        let run = (run * scale).min(count - first);
                        let (from, len) = (start + first * SECTOR_SIZE, run * SECTOR_SIZE);
                        let place = at.saturating_add(first * SECTOR_SIZE);
                        let there = file.len_inside(place, len);
                        missing.push(from + there..from + len);
                        if there > 0 {
                            map.store(sector + first, place / SECTOR_SIZE, run)?;
                        }
                    }
                }
                _ => return Err(Problem::damaged("a block is in a state that is none")),
            }
        }
        Ok((map, missing))
    }
}

/// States of a block.
pub const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
pub const FULLY_PRESENT: u64 = 6;
pub const PARTIALLY_PRESENT: u64 = 7;

/// The id that changes whenever the disk is written to, by which its children know it.
///
/// # Errors
/// [`Problem::NotInFormat`], or what is wrong with the headers.
pub fn write_id(file: &ImageFile) -> Result<Guid, Problem> {
    if file.start(MAGIC.len())? != MAGIC {
        return Err(Problem::NotInFormat(super::Format::Vhdx));
    }
    Ok(active_header(file)?.write_id)
}

/// Puts what the log of `file` holds over it in memory, where it was not closed; otherwise it is
/// the same file.
///
/// # Errors
/// What is wrong with the headers or the log, and [`Problem::Unsupported`] for a part of a file.
pub fn replayed(file: ImageFile) -> Result<ImageFile, Problem> {
    if file.start(MAGIC.len())? != MAGIC {
        return Ok(file);
    }
    // Without a header there is no log either; what is wrong is found out where it is read.
    let Ok(mut header) = active_header(&file) else { return Ok(file) };
    if header.log.guid.is_nil() {
        return Ok(file);
    }
    if file.is_part() {
        return Err(Problem::Unsupported {
            what: "it was not closed and has a log to replay, in an archive".to_owned(),
            hint: hint::UNPACK,
        });
    }
    let mut patches = header.log.replay(&file)?;
    header.close();
    patches.write(header.at, &header.bytes);
    Ok(file.with_patches(patches))
}

struct ActiveHeader {
    at: u64,
    bytes: [u8; 4096],
    write_id: Guid,
    log: Log,
}

impl ActiveHeader {
    /// Makes it that of a file without a log.
    fn close(&mut self) {
        self.bytes[48..64].fill(0);
        let sum = crc32c_without(&self.bytes, 4);
        self.bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The later one of the two headers that are whole.
fn active_header(file: &ImageFile) -> Result<ActiveHeader, Problem> {
    const PLACES: [u64; 2] = [64 << 10, 128 << 10];
    let mut latest = None;
    for at in PLACES {
        let bytes: [u8; 4096] = file.header(at, "header")?;
        let sequence = le64(&bytes, 8);
        if bytes.starts_with(b"head")
            && crc32c_without(&bytes, 4) == le32(&bytes, 4)
            && latest.as_ref().is_none_or(|&(before, _)| before < sequence)
        {
            let guid = |at: usize| Guid(bytes[at..at + 16].try_into().expect("16 bytes"));
            let log = Log {
                guid: guid(48),
                version: le16(&bytes, 64),
                len: le32(&bytes, 68),
                offset: le64(&bytes, 72),
            };
            latest = Some((sequence, ActiveHeader { at, bytes, write_id: guid(32), log }));
        }
    }
    latest
        .map(|(_, header)| header)
        .ok_or_else(|| Problem::damaged("neither of its headers is whole"))
}

/// The metadata table and where its items are.
struct Metadata<'f> {
    file: &'f ImageFile,
    at: u64,
    entries: Vec<u8>,
}

impl<'f> Metadata<'f> {
    fn read(file: &'f ImageFile, regions: &[u8]) -> Result<Self, Problem> {
        let at = find(regions, &METADATA_REGION)
            .map(|entry| le64(entry, 16))
            .ok_or_else(|| Problem::damaged("it has no metadata region"))?;
        let header: [u8; ENTRY_LEN] = file.header(at, "metadata table")?;
        if !header.starts_with(b"metadata") {
            return Err(Problem::damaged("it has no metadata table"));
        }
        // The header was read there, so this does not overflow.
        let entries_at = at + ENTRY_LEN as u64;
        let entries = table(file, entries_at, le16(&header, 10).into(), "metadata table")?;
        Ok(Self { file, at, entries })
    }

    fn find(&self, guid: &Guid, what: &'static str) -> Result<(u64, u32), Problem> {
        let entry = find(&self.entries, guid)
            .ok_or_else(|| Problem::damaged(format!("its metadata lacks {what}")))?;
        Ok((self.at.saturating_add(le32(entry, 16).into()), le32(entry, 20)))
    }

    fn item<const N: usize>(&self, guid: &Guid, what: &'static str) -> Result<[u8; N], Problem> {
        self.file.header(self.find(guid, what)?.0, "metadata")
    }

    fn bytes(&self, guid: &Guid, what: &'static str) -> Result<Vec<u8>, Problem> {
        let (at, len) = self.find(guid, what)?;
        if len > MAX_LOCATOR {
            return Err(Problem::damaged("its metadata has too long an item"));
        }
        self.file.bytes(at, usize::try_from(len).expect("at most MAX_LOCATOR"), "metadata")
    }
}

/// Reads the keys and values of a parent locator, of which names and ids matter.
fn read_parent(locator: &[u8]) -> Result<Named, Problem> {
    const HEADER_LEN: usize = 20;
    const ENTRY_LEN: usize = 12;
    let damaged = || Problem::damaged("its parent locator is none");
    let header = locator.get(..HEADER_LEN).ok_or_else(damaged)?;
    let count = usize::from(le16(header, 18));
    let entries = locator[HEADER_LEN..].get(..count * ENTRY_LEN).ok_or_else(damaged)?;
    let text = |at: u32, len: u16| -> Option<Vec<u16>> {
        let bytes = locator.get(usize::try_from(at).ok()?..)?.get(..len.into())?;
        Some(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
    };
    let mut pairs = Vec::with_capacity(count);
    for entry in entries.chunks_exact(ENTRY_LEN) {
        let key = text(le32(entry, 0), le16(entry, 8)).ok_or_else(damaged)?;
        let value = text(le32(entry, 4), le16(entry, 10)).ok_or_else(damaged)?;
        pairs.push((String::from_utf16_lossy(&key), value));
    }
    let values = |wanted: &'static str| {
        pairs.iter().filter(move |(key, _)| key == wanted).map(|(_, value)| value.clone())
    };
    let names = ["relative_path", "volume_path", "absolute_win32_path"];
    let ids = ["parent_linkage", "parent_linkage2"].into_iter().flat_map(values);
    let ids = ids.filter_map(|id| {
        let text = String::from_utf16_lossy(&id);
        Guid::parse(text.strip_prefix('{')?.strip_suffix('}')?)
    });
    let ids = ids.collect();
    Named::new(names.into_iter().flat_map(values).collect(), ids)
}

fn table(file: &ImageFile, at: u64, count: usize, what: &'static str) -> Result<Vec<u8>, Problem> {
    if count > MAX_ENTRIES {
        return Err(Problem::damaged(format!("its {what} has too many entries")));
    }
    file.bytes(at, count * ENTRY_LEN, what)
}

/// The entry that starts with `guid`.
pub fn find<'a>(entries: &'a [u8], guid: &Guid) -> Option<&'a [u8]> {
    entries.chunks_exact(ENTRY_LEN).find(|entry| entry.starts_with(&guid.0))
}
