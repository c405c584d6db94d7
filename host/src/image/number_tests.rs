//! Numbers of headers and tables at the edges of what they can be, each with each, judged against
//! reckoning in 128 bits, where nothing overflows.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::file::ImageFile;
use super::fixtures::*;
use super::sector_map::SectorMap;
use super::*;

const MIB: u64 = 1 << 20;

/// Those of 64 bits: times 512, some come out as others do.
const WIDE: [u64; 14] = [
    0,
    1,
    2,
    16,
    17,
    2048,
    1 << 37,
    (1 << 37) + 1,
    1 << 54,
    1 << 55,
    (1 << 55) + 1,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// An image in a file, of which numbers are overwritten.
struct Patched {
    bytes: Vec<u8>,
    written: File,
    file: ImageFile,
    _folder: Folder,
}

impl Patched {
    fn new(bytes: Vec<u8>) -> Self {
        let folder = Folder::new();
        let path = folder.write("image", &bytes);
        let written = File::options().write(true).open(&path).unwrap();
        Self { bytes, written, file: ImageFile::open(&path).unwrap(), _folder: folder }
    }

    fn put(&mut self, at: usize, number: &[u8]) {
        self.bytes[at..at + number.len()].copy_from_slice(number);
        self.written.write_all_at(number, at as u64).unwrap();
    }

    fn len(&self) -> u128 {
        self.bytes.len() as u128
    }

    /// `len` bytes at `at`, where all of them are there.
    fn bytes(&self, at: u128, len: u128) -> Option<&[u8]> {
        let (at, end) = (usize::try_from(at).ok()?, usize::try_from(at + len).ok()?);
        self.bytes.get(at..end)
    }
}

fn is_within(at: u128, len: u128, file: u128) -> Option<()> {
    (at + len <= file).then_some(())
}

/// What a table of blocks makes of the disk's first sector: where it is, whether it is zero, and
/// whether it is missing.
type First = (Option<u64>, bool, bool);

/// The parent's.
const NOT_THERE: First = (None, false, false);
/// Past the end of the file.
const MISSING: First = (None, false, true);

/// At byte `at` of a file of `file` bytes.
fn stored(at: u128, file: u128) -> First {
    match u64::try_from(at / 512) {
        Ok(sector) if at < file => (Some(sector), false, false),
        _ => MISSING,
    }
}

/// Compares a map with what it should be; `None` where it should be refused.
fn compare(
    found: Result<(SectorMap, Missing), Problem>,
    expected: Option<First>,
    what: &dyn std::fmt::Debug,
) {
    // Some of these need more memory for what is there.
    if matches!(&found, Err(Problem::Unsupported { what, .. }) if what.contains("too many places"))
    {
        return;
    }
    let found = found.ok().map(|(map, missing)| {
        let (stored, is_zero) = map.look_up(0);
        (stored, is_zero, missing.first_in(0..1).is_some())
    });
    assert_eq!(found, expected, "{what:?}");
}

#[test]
fn grain_directories_of_vmdk_are_within_their_file_or_refused() {
    let mut image = Patched::new(sparse(2048, None));
    for capacity in WIDE {
        image.put(12, &capacity.to_le_bytes());
        for grain in [0, 1, 3, 1 << 21, 1 << 22, 1 << 63] {
            image.put(20, &u64::to_le_bytes(grain));
            for entries in [0, 1, 512, 513, u32::MAX] {
                image.put(44, &entries.to_le_bytes());
                for directory in WIDE {
                    image.put(56, &directory.to_le_bytes());
                    let good = || {
                        let (grain, entries) = (u128::from(grain), u128::from(entries));
                        let sizes = (1..=1 << 37).contains(&capacity)
                            && [1, 1 << 21].contains(&grain)
                            && (1..=512).contains(&entries);
                        let needed = sizes.then(|| u128::from(capacity).div_ceil(grain * entries));
                        let needed = needed.filter(|&needed| needed <= 32 << 20)?;
                        is_within(u128::from(directory) * 512, needed * 4, image.len())
                    };
                    let found = sparse::SparseHeader::read(&image.file).is_ok();
                    assert_eq!(found, good().is_some(), "{capacity} {grain} {entries} {directory}");
                }
            }
        }
    }
}

#[test]
fn grain_directories_of_esx_are_within_their_file_or_refused() {
    const NUMBERS: [u32; 8] = [0, 1, 2, 7, 8, 1 << 21, 1 << 31, u32::MAX];
    let mut image = Patched::new(cowd(2048));
    for sectors in NUMBERS {
        image.put(12, &sectors.to_le_bytes());
        for grain in NUMBERS {
            image.put(16, &grain.to_le_bytes());
            for directory in NUMBERS {
                image.put(20, &directory.to_le_bytes());
                for entries in NUMBERS {
                    image.put(24, &entries.to_le_bytes());
                    let [sectors, grain, directory, entries] =
                        [sectors, grain, directory, entries].map(u128::from);
                    let good = sectors > 0
                        && (1..=1 << 21).contains(&grain)
                        && entries * 4096 * grain >= sectors
                        && directory * 512 + entries * 4 <= image.len();
                    let found = cowd::size(&image.file).is_ok();
                    assert_eq!(found, good, "{sectors} {grain} {directory} {entries}");
                }
            }
        }
    }
    let mut image = Patched::new(sesparse(2048));
    for capacity in WIDE {
        image.put(16, &capacity.to_le_bytes());
        for directory in WIDE {
            image.put(128, &directory.to_le_bytes());
            for directory_len in WIDE {
                image.put(136, &directory_len.to_le_bytes());
                // Where the other header is: in the second sector alone.
                for volatile in [0, 1, 2, (1 << 55) + 1] {
                    image.put(80, &u64::to_le_bytes(volatile));
                    let [start, len] = [directory, directory_len].map(|n| u128::from(n) * 512);
                    let good = (1..=1 << 37).contains(&capacity)
                        && start + len <= image.len()
                        && len / 8 >= u128::from(capacity).div_ceil(4096 * 8)
                        && volatile == 1;
                    let found = sesparse::size(&image.file).is_ok();
                    assert_eq!(found, good, "{capacity} {directory} {directory_len} {volatile}");
                }
            }
        }
    }
}

/// What the map of a VDI should say. Source: VirtualBox' VDICore.h, by way of QEMU's block/vdi.c.
fn of_vdi(image: &Patched, size: u64, block: u32, data: u32, blocks: u32) -> Option<First> {
    let size = u128::from(size).next_multiple_of(512);
    let (block, data) = (u128::from(block), u128::from(data));
    let fits = block.is_power_of_two() && block >= 16 << 10 && data.is_multiple_of(512);
    let used = fits.then(|| size.div_ceil(block)).filter(|&used| used <= u128::from(blocks))?;
    let table = image.bytes(512, used * 4).filter(|table| table.len() <= 64 << 20)?;
    let mut first = NOT_THERE;
    for (number, entry) in (0..).zip(table.chunks_exact(4)) {
        let here = match fields::le32(entry, 0) {
            u32::MAX => NOT_THERE,
            0xffff_fffe => (None, true, false),
            entry => stored(data + u128::from(entry) * block, image.len()),
        };
        first = if number == 0 { here } else { first };
    }
    Some(first)
}

#[test]
fn blocks_of_vdi_are_within_their_file_or_refused() {
    let ids = [[5; 16], [6; 16], [1; 16], [2; 16]];
    let mut bytes = vdi_over(MIB, ids, &[0, u32::MAX]);
    bytes.resize(4096 + (1 << 20), 0xdd);
    let mut image = Patched::new(bytes);
    let sizes = [1, 512, MIB, MIB + 1, 2 * MIB, 1 << 46, u64::MAX - 511, u64::MAX];
    for size in sizes {
        image.put(368, &size.to_le_bytes());
        for block in [0, 512, 16 << 10, 1 << 20, (1 << 20) + 512, 1 << 31] {
            image.put(376, &u32::to_le_bytes(block));
            for data in [0, 1, 512, 4096, u32::MAX - 511] {
                image.put(344, &u32::to_le_bytes(data));
                for blocks in [0, 1, 2, u32::MAX] {
                    image.put(384, &u32::to_le_bytes(blocks));
                    for entry in [0, 1, 2, 0x7fff_ffff, u32::MAX - 2, u32::MAX - 1, u32::MAX] {
                        image.put(512, &u32::to_le_bytes(entry));
                        let map = vdi::VdiHeader::read(&image.file)
                            .and_then(|header| header.map(&image.file));
                        let expected = of_vdi(&image, size, block, data, blocks);
                        compare(map, expected, &(size, block, data, blocks, entry));
                    }
                }
            }
        }
    }
}

/// What the map of a VHD should say.
fn of_vhd(image: &Patched, size: u64, block: u32, table: u64, blocks: u32) -> Option<First> {
    let (size, block) = (u128::from(size / 512 * 512), u128::from(block));
    let fits = block.is_power_of_two() && (16 << 10..=1 << 28).contains(&block);
    let used = fits.then(|| size.div_ceil(block)).filter(|&used| used <= u128::from(blocks))?;
    let table = image.bytes(table.into(), used * 4).filter(|table| table.len() <= 64 << 20)?;
    let bitmap = (block / 512 / 8).next_multiple_of(512);
    let mut first = NOT_THERE;
    for (number, entry) in (0..).zip(table.chunks_exact(4)) {
        let entry = fields::be32(entry, 0);
        if entry == u32::MAX {
            continue;
        }
        let at = u128::from(entry) * 512;
        let here = match image.bytes(at, bitmap) {
            None => MISSING,
            Some(bits) if bits[0] & 0x80 != 0 => stored(at + bitmap, image.len()),
            Some(_) => NOT_THERE,
        };
        first = if number == 0 { here } else { first };
    }
    Some(first)
}

#[test]
fn blocks_of_vhd_are_within_their_file_or_refused() {
    let mut bytes = vhd_over([1; 16], ["base.vhd", "", ""], [0xff; 8]);
    let end = bytes.len() as u64;
    // The footer at the start is changed, and the one at the end would be taken instead.
    let footer = bytes.len() - 512;
    bytes[footer..].fill(0);
    let mut image = Patched::new(bytes);
    for size in [512, 32 << 10, (32 << 10) + 512, 64 << 10, 1 << 41, u64::MAX] {
        image.put(48, &u64::to_be_bytes(size));
        for block in [0, 512, 16 << 10, 32 << 10, 48 << 10, 1 << 28, 1 << 31] {
            image.put(512 + 32, &u32::to_be_bytes(block));
            for blocks in [0, 1, 2, u32::MAX] {
                image.put(512 + 28, &u32::to_be_bytes(blocks));
                for table in [1536, end - 4, end - 3, u64::MAX - 3, u64::MAX] {
                    image.put(512 + 16, &table.to_be_bytes());
                    for entry in [0, 1, 6, 7, 8, 1 << 23, u32::MAX - 1, u32::MAX] {
                        image.put(1536, &u32::to_be_bytes(entry));
                        let map = vhd::VhdHeader::read(&image.file)
                            .and_then(|header| header.map(&image.file));
                        let expected = of_vhd(&image, size, block, table, blocks);
                        compare(map, expected, &(size, block, blocks, table, entry));
                    }
                }
            }
        }
    }
}

const REGIONS: usize = 192 << 10;
const METADATA: usize = 256 << 10;
const TABLE: usize = 320 << 10;

/// What the map of a VHDX with sectors of 512 bytes should say.
fn of_vhdx(image: &Patched, size: u64, block: u32, table: u64) -> Option<First> {
    let (size, block) = (u128::from(size / 512 * 512), u128::from(block));
    let fits = block.is_power_of_two() && (1 << 20..=256 << 20).contains(&block);
    let ratio = fits.then(|| (1u128 << 23) * 512 / block)?;
    let blocks = size.div_ceil(block);
    let entries = blocks.div_ceil(ratio) * (ratio + 1);
    let table = image.bytes(table.into(), entries * 8).filter(|table| table.len() <= 64 << 10)?;
    let entry = |number: u128| {
        let entry = fields::le64(table, usize::try_from(number * 8).unwrap());
        (entry & 7, u128::from(entry) >> 20 << 20)
    };
    let mut first = NOT_THERE;
    for number in 0..blocks {
        let chunk = number / ratio;
        let (state, at) = entry(number + chunk);
        let here = match state {
            0 => NOT_THERE,
            1..=3 => (None, true, false),
            6 => stored(at, image.len()),
            7 => {
                let (6, bitmaps) = entry((chunk + 1) * (ratio + 1) - 1) else { return None };
                let bytes = block / 512 / 8;
                match image.bytes(bitmaps + number % ratio * bytes, bytes) {
                    None => MISSING,
                    Some(bits) if bits[0] & 1 == 1 => stored(at, image.len()),
                    Some(_) => NOT_THERE,
                }
            }
            _ => return None,
        };
        first = if number == 0 { here } else { first };
    }
    Some(first)
}

#[test]
fn blocks_of_vhdx_are_within_their_file_or_refused() {
    const LAST: u64 = u64::MAX << 20;
    let id = "{33333333-3333-3333-3333-333333333333}";
    let pairs = [("parent_linkage", id), ("relative_path", "base.vhdx")];
    let mut image = Patched::new(vhdx_over(&pairs, [0, 0], 0x0f));
    let tables = [TABLE as u64, (4 << 20) - 8, u64::MAX - 7];
    for size in [MIB, 2 * MIB, 1 << 46, u64::MAX] {
        image.put(METADATA + 192, &size.to_le_bytes());
        for (block, table) in [(0, 0), (1 << 20, 0), (1 << 20, 1), (1 << 20, 2), (256 << 20, 0)] {
            image.put(METADATA + 176, &u32::to_le_bytes(block));
            let table = tables[table];
            image.put(REGIONS + 64, &table.to_le_bytes());
            for place in [0, 2 * MIB, 3 * MIB, 4 * MIB, LAST] {
                for state in 0..8 {
                    image.put(TABLE, &(place | state).to_le_bytes());
                    let bitmaps = [MIB | 6, (4 * MIB) | 6, LAST | 6, MIB | 7];
                    for bitmaps in bitmaps.iter().take(if state == 7 { 4 } else { 1 }) {
                        image.put(TABLE + 8 * 4096, &bitmaps.to_le_bytes());
                        let map = vhdx::VhdxHeader::read(&image.file)
                            .and_then(|header| header.map(&image.file));
                        let expected = of_vhdx(&image, size, block, table);
                        compare(map, expected, &(size, block, table, place, state, bitmaps));
                    }
                }
            }
        }
    }
}

#[test]
fn what_qcow2_says_of_its_backing_file_is_in_the_first_cluster_or_refused() {
    let mut bytes = qcow2(MIB);
    bytes.resize(70 << 10, b'a');
    bytes[104..512].fill(b'a');
    let mut image = Patched::new(bytes);
    let places = [104, 105, 111, 112, 200, 64 << 10, u64::from(u32::MAX), 1 << 63, u64::MAX];
    for at in places {
        image.put(8, &at.to_be_bytes());
        for len in [0, 1, 1023, 1024, (64 << 10) - 104, u32::MAX] {
            image.put(16, &u32::to_be_bytes(len));
            for header_len in [104, 64 << 10, u32::MAX] {
                image.put(100, &u32::to_be_bytes(header_len));
                let end = u128::from(at) + u128::from(len);
                // No extension makes sense here, so that there must be no room for one.
                let has_none = u128::from(header_len) + 8 > u128::from(at);
                let good = end <= 64 << 10 && (1..=1023).contains(&len) && has_none;
                let found = qcow2::Qcow2Header::read(&image.file);
                assert_eq!(found.is_ok(), good, "{at} {len} {header_len}");
            }
        }
    }
    image.put(8, &200u64.to_be_bytes());
    image.put(16, &1u32.to_be_bytes());
    image.put(100, &104u32.to_be_bytes());
    image.put(104, &[0; 96]);
    image.put(104, &1u32.to_be_bytes());
    for len in [0, 1, 87, 88, 89, 1 << 31, u32::MAX - 7, u32::MAX] {
        image.put(108, &u32::to_be_bytes(len));
        let found = qcow2::Qcow2Header::read(&image.file);
        assert_eq!(found.is_ok(), 112 + u128::from(len) <= 200, "{len}");
    }
}
