//! VHD: the footer, which growing disks repeat at their start, their header, and the table of
//! blocks of a differencing disk.
//! Source: Microsoft's Virtual Hard Disk Image Format Specification.

use super::error::Problem;
use super::fields::{be16, be32, be64};
use super::file::ImageFile;
use super::guid::Guid;
use super::missing::Missing;
use super::parent::Named;
use super::patches::{Patches, UNIT};
use super::sector_map::{Granule, SectorMap, check_bitmaps};
use super::{SECTOR_SIZE, hint};

/// A footer's first bytes.
pub const MAGIC: &[u8] = b"conectix";

const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Most bytes of a table of blocks: VHD ends at 2 TiB, and its blocks are of 2 MiB.
const MAX_TABLE: u64 = 64 << 20;

/// Whether `file` ends in a footer, as a disk of fixed size does.
///
/// # Errors
/// [`Problem::Io`].
pub fn has_footer(file: &ImageFile) -> Result<bool, Problem> {
    Ok(footer_at_end(file)?.is_some())
}

/// A footer that was found.
struct Footer {
    bytes: [u8; 512],
    place: Place,
    /// Whether its checksum is right.
    is_whole: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The copy in the first sector.
    Start,
    /// From this byte on.
    End(u64),
}

impl Footer {
    fn of(bytes: [u8; 512], place: Place) -> Option<Self> {
        let is_whole = checksum(&bytes) == be32(&bytes, CHECKSUM_AT);
        bytes.starts_with(MAGIC).then_some(Self { bytes, place, is_whole })
    }

    /// The one that counts: the copy at the start where it is whole, otherwise that at the end,
    /// otherwise the first there is.
    fn find(file: &ImageFile) -> Result<Self, Problem> {
        let start = match file.start(512)?.try_into() {
            Ok(bytes) => Self::of(bytes, Place::Start),
            Err(_) => None,
        };
        match start {
            Some(start) if start.is_whole => Ok(start),
            start => {
                let end = footer_at_end(file)?;
                let end = match (&start, end) {
                    (Some(_), Some(end)) if !end.is_whole => None,
                    (_, end) => end,
                };
                end.or(start).ok_or(Problem::NotInFormat(super::Format::Vpc))
            }
        }
    }

    fn kind(&self) -> u32 {
        be32(&self.bytes, 60)
    }
}

/// The last 512 bytes, or 511 where Virtual PC before 2004 wrote them, if they are a footer.
fn footer_at_end(file: &ImageFile) -> Result<Option<Footer>, Problem> {
    for len in [512, 511] {
        let Some(at) = file.len.checked_sub(len) else { continue };
        let mut bytes = [0; 512];
        let there = usize::try_from(len).expect("it is small");
        bytes[..there].copy_from_slice(&file.bytes(at, there, "VHD footer")?);
        if let Some(footer) = Footer::of(bytes, Place::End(at)) {
            return Ok(Some(footer));
        }
    }
    Ok(None)
}

/// Where a footer has its checksum.
const CHECKSUM_AT: usize = 64;

/// The complement of the sum of all bytes, of which those of the sum itself count as zeros.
fn checksum(footer: &[u8; 512]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    !(sum(footer) - sum(&footer[CHECKSUM_AT..CHECKSUM_AT + 4]))
}

/// `file` with a footer where QEMU looks for one, in memory where the file has none there that is
/// whole; and what the user should know of it.
///
/// # Errors
/// [`Problem::NotInFormat`], [`Problem::Io`], [`Problem::Unsupported`] for a part of a file.
pub fn mended(file: ImageFile) -> Result<(ImageFile, Vec<String>), Problem> {
    let footer = Footer::find(&file)?;
    let wanted = match footer.kind() {
        DYNAMIC | DIFFERENCING => Place::Start,
        _ => Place::End(file.len.saturating_sub(SECTOR_SIZE)),
    };
    if footer.is_whole && footer.place == wanted {
        return Ok((file, Vec::new()));
    }
    let (at, warning) = match (wanted, footer.place) {
        (Place::Start, Place::End(_)) => {
            (0, Some("the copy of its footer at the start is damaged; that at the end is used"))
        }
        (Place::Start, Place::Start) => (0, Some(WRONG_SUM)),
        (Place::End(_), Place::End(at)) => (at, (!footer.is_whole).then_some(WRONG_SUM)),
        // What is wrong with it is said where it is read.
        (Place::End(_), Place::Start) => return Ok((file, Vec::new())),
    };
    if !at.is_multiple_of(UNIT) {
        return Err(Problem::damaged("its footer is not after whole sectors"));
    }
    if file.is_part() {
        return Err(Problem::Unsupported {
            what: "its footer is damaged, in an archive".to_owned(),
            hint: hint::UNPACK,
        });
    }
    let mut bytes = footer.bytes;
    let sum = checksum(&bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
    let mut patches = Patches::new(file.len);
    patches.write(at, &bytes);
    let warnings = warning.map(str::to_owned).into_iter().collect();
    Ok((file.with_patches(patches), warnings))
}

const WRONG_SUM: &str = "its footer has a wrong checksum; compare it with the original";

/// What footer and header of a file say.
pub struct VhdHeader {
    /// Bytes of the virtual disk.
    pub size: u64,
    /// The image's own id.
    pub id: Guid,
    /// What is said of its parent, for a differencing disk.
    pub parent: Option<Named>,
    header: Option<[u8; 1024]>,
}

impl VhdHeader {
    /// Reads footer and header of `file`.
    ///
    /// # Errors
    /// [`Problem::NotInFormat`], or what is wrong with them.
    pub fn read(file: &ImageFile) -> Result<Self, Problem> {
        let footer = Footer::find(file)?;
        let kind = footer.kind();
        let grows = matches!(kind, DYNAMIC | DIFFERENCING);
        let at = match footer.place {
            Place::Start => 0,
            Place::End(at) => at,
        };
        let is_misplaced = !grows && footer.place == Place::Start;
        let footer = footer.bytes;
        let header = match (kind, grows) {
            (DYNAMIC | DIFFERENCING, true) => {
                let header: [u8; 1024] = file.header(be64(&footer, 16), "VHD header")?;
                if !header.starts_with(b"cxsparse") {
                    return Err(Problem::damaged("it has no dynamic disk header"));
                }
                Some(header)
            }
            (FIXED, false) if !is_misplaced => None,
            _ => return Err(Problem::damaged("its VHD footer is of no known type")),
        };
        let size = sectors(&footer) * SECTOR_SIZE;
        if !grows && size > at {
            return Err(Problem::Truncated { what: "last sector of the disk", len: file.len });
        }
        let parent = match header {
            Some(header) if kind == DIFFERENCING => Some(read_parent(file, &header)?),
            _ => None,
        };
        Ok(Self { size, id: guid(&footer, 68), parent, header })
    }

    /// Where a differencing disk has the sectors that are not its parent's, and what of them is past
    /// the end of the file.
    ///
    /// # Errors
    /// What is wrong with its table of blocks.
    pub fn map(&self, file: &ImageFile) -> Result<(SectorMap, Missing), Problem> {
        const UNUSED: u32 = u32::MAX;
        /// Blocks whose bitmaps are fetched while one is looked at. They lie far apart: those of
        /// 100 GiB on a disk took 2.8 s one by one, and 0.8 s so.
        const AHEAD: usize = 256;
        let header = self.header.as_ref().expect("only disks that grow have parents");
        let block_size = u64::from(be32(header, 32));
        let granule = Granule::SECTOR;
        if !block_size.is_power_of_two() || !(granule.least_block()..=1 << 28).contains(&block_size)
        {
            return Err(Problem::damaged("its blocks are of no valid size"));
        }
        let used = self.size.div_ceil(block_size);
        if used > be32(header, 28).into() || used * 4 > MAX_TABLE {
            return Err(Problem::damaged("its table of blocks does not fit its size"));
        }
        let len = usize::try_from(used * 4).expect("at most MAX_TABLE");
        let table = file.bytes(be64(header, 16), len, "table of blocks")?;
        // Before each block a bit for each of its sectors, in whole sectors.
        let bitmap_len = (block_size / SECTOR_SIZE / 8).next_multiple_of(SECTOR_SIZE);
        let stored = table.chunks_exact(4).filter(|entry| be32(entry, 0) != UNUSED).count();
        check_bitmaps(stored as u64, bitmap_len)?;
        let (mut map, mut missing) = (SectorMap::new(granule), Missing::default());
        let fetch = |entry: &[u8]| match be32(entry, 0) {
            UNUSED => {}
            sector => file.will_read(u64::from(sector) * SECTOR_SIZE, bitmap_len),
        };
        let mut ahead = table.chunks_exact(4);
        ahead.by_ref().take(AHEAD).for_each(fetch);
        for (number, entry) in (0..).zip(table.chunks_exact(4)) {
            ahead.next().into_iter().for_each(fetch);
            let entry = be32(entry, 0);
            if entry == UNUSED {
                continue;
            }
            let at = u64::from(entry) * SECTOR_SIZE;
            let start = number * block_size;
            let len = block_size.min(self.size - start);
            let (sector, data) = (start / SECTOR_SIZE, (at + bitmap_len) / SECTOR_SIZE);
            if file.len_inside(at, bitmap_len) < bitmap_len {
                // Which of its sectors are the parent's is not known.
                missing.push(start..start + len);
                continue;
            }
            let bitmap_len_here = usize::try_from(bitmap_len).expect("blocks are at most 256 MiB");
            let bitmap = file.bytes(at, bitmap_len_here, "bitmap of a block")?;
            for (first, count) in
                runs(&bitmap, len / SECTOR_SIZE, |byte, i| byte >> (7 - i) & 1 == 1)
            {
                let (from, run) = ((sector + first) * SECTOR_SIZE, count * SECTOR_SIZE);
                let there = file.len_inside((data + first) * SECTOR_SIZE, run);
                missing.push(from + there..from + run);
                if there > 0 {
                    map.store(sector + first, data + first, count)?;
                }
            }
        }
        Ok((map, missing))
    }
}

/// The runs of ones among the first `count` bits: where each begins and how long it is.
/// `bit` takes the bit `i` of a byte.
pub fn runs(bitmap: &[u8], count: u64, bit: impl Fn(u8, u32) -> bool) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut add = |at: u64, len: u64| match found.last_mut() {
        Some((start, before)) if *start + *before == at => *before += len,
        _ => found.push((at, len)),
    };
    for (at, &byte) in (0..count).step_by(8).zip(bitmap) {
        match byte {
            0 => {}
            0xff if at + 8 <= count => add(at, 8),
            _ => (0u32..8)
                .filter(|&i| bit(byte, i) && at + u64::from(i) < count)
                .for_each(|i| add(at + u64::from(i), 1)),
        }
    }
    found
}

/// The names by which the parent is known, the relative one first, and its id.
fn read_parent(file: &ImageFile, header: &[u8; 1024]) -> Result<Named, Problem> {
    const MAX_NAME: u32 = 4096;
    let mut names = Vec::new();
    for platform in [b"W2ru", b"W2ku"] {
        for locator in header[576..768].chunks_exact(24).filter(|l| l.starts_with(platform)) {
            let len = be32(locator, 8);
            if len > MAX_NAME {
                return Err(Problem::damaged("its parent's name is too long"));
            }
            let len = usize::try_from(len).expect("at most MAX_NAME");
            let bytes = file.bytes(be64(locator, 16), len, "name of the parent")?;
            names.push(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect());
        }
    }
    names.push(header[64..576].chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect());
    Named::new(names, vec![guid(header, 40)])
}

fn guid(bytes: &[u8], at: usize) -> Guid {
    Guid(bytes[at..at + 16].try_into().expect("16 bytes"))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bitmap of two bytes, in both orders of bits, against one bit after the other.
    #[test]
    fn runs_are_the_bits_that_are_set() {
        type Bit = fn(u8, u32) -> bool;
        let orders: [Bit; 2] = [|byte, i| byte >> (7 - i) & 1 == 1, |byte, i| byte >> i & 1 == 1];
        for bit in orders {
            for bits in 0..=u16::MAX {
                let bitmap = bits.to_be_bytes();
                let count = [16, 15, 9, 8, 7, 1, 0][usize::from(bits) % 7];
                let mut seen = [false; 16];
                let mut end = None;
                for (at, len) in runs(&bitmap, count, bit) {
                    assert!(len > 0 && end.is_none_or(|end| end < at), "{bits:04x}");
                    end = Some(at + len);
                    (at..at + len).for_each(|n| seen[usize::try_from(n).unwrap()] = true);
                }
                for (n, seen) in (0u32..).zip(seen) {
                    let set = bit(bitmap[usize::try_from(n / 8).unwrap()], n % 8);
                    assert_eq!(seen, set && u64::from(n) < count, "bit {n} of {bits:04x}");
                }
            }
        }
    }
}
