//! VHD: the footer, which growing disks repeat at their start, their header, and the table of
//! blocks of a differencing disk.
//! Source: Microsoft's Virtual Hard Disk Image Format Specification.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::fields::{be16, be32, be64};
use super::file::ImageFile;
use super::guid::Guid;
use super::parent::Named;
use super::sector_map::{Granule, SectorMap, check_bitmaps};

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
    match file.len.checked_sub(SECTOR_SIZE) {
        Some(at) => Ok(file.header::<512>(at, "VHD footer")?.starts_with(MAGIC)),
        None => Ok(false),
    }
}

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
        let grows = file.start(MAGIC.len())? == MAGIC;
        if !grows && !has_footer(file)? {
            return Err(Problem::NotInFormat(super::Format::Vpc));
        }
        let at = if grows { 0 } else { file.len - SECTOR_SIZE };
        let footer: [u8; 512] = file.header(at, "VHD footer")?;
        let kind = be32(&footer, 60);
        let header = match (kind, grows) {
            (DYNAMIC | DIFFERENCING, true) => {
                let header: [u8; 1024] = file.header(be64(&footer, 16), "VHD header")?;
                if !header.starts_with(b"cxsparse") {
                    return Err(Problem::damaged("it has no dynamic disk header"));
                }
                Some(header)
            }
            (FIXED, false) => None,
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

    /// Where a differencing disk has the sectors that are not its parent's.
    ///
    /// # Errors
    /// What is wrong with its table of blocks.
    pub fn map(&self, file: &ImageFile) -> Result<SectorMap, Problem> {
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
        let mut map = SectorMap::new(granule);
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
            file.check_inside(at + bitmap_len, len, "end of a block")?;
            let bitmap_len_here = usize::try_from(bitmap_len).expect("blocks are at most 256 MiB");
            let bitmap = file.bytes(at, bitmap_len_here, "bitmap of a block")?;
            let (sector, data) = (start / SECTOR_SIZE, (at + bitmap_len) / SECTOR_SIZE);
            for (first, count) in
                runs(&bitmap, len / SECTOR_SIZE, |byte, i| byte >> (7 - i) & 1 == 1)
            {
                map.store(sector + first, data + first, count)?;
            }
        }
        Ok(map)
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
