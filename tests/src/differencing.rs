//! Differencing disks over a parent, in formats that no tool at hand writes, by the published
//! layouts.

use crate::images::put;

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;

/// What a differencing disk holds: the bytes of a whole disk, of which some sectors count.
#[derive(Clone, Copy)]
pub struct Changes<'d> {
    /// The disk.
    pub disk: &'d [u8],
    /// Whether the image has the sector of a number; all others are its parent's.
    pub has: &'d dyn Fn(usize) -> bool,
}

impl Changes<'_> {
    fn has_any(&self, block: usize, size: usize) -> bool {
        self.sectors(block, size).any(self.has)
    }

    fn sectors(&self, block: usize, size: usize) -> std::ops::Range<usize> {
        block * size / SECTOR..((block + 1) * size).min(self.disk.len()) / SECTOR
    }

    /// The bytes of a block: those of sectors that are the parent's are nonsense.
    fn block(&self, block: usize, size: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; size];
        for (i, sector) in self.sectors(block, size).enumerate().filter(|&(_, s)| (self.has)(s)) {
            bytes[i * SECTOR..][..SECTOR].copy_from_slice(&self.disk[sector * SECTOR..][..SECTOR]);
        }
        bytes
    }

    /// Bits of a block's sectors, each put into its byte by `bit`.
    fn bitmap(&self, block: usize, size: usize, bit: impl Fn(usize) -> u8) -> Vec<u8> {
        let mut bytes = vec![0; size / SECTOR / 8];
        for (i, _) in self.sectors(block, size).enumerate().filter(|&(_, s)| (self.has)(s)) {
            bytes[i / 8] |= bit(i % 8);
        }
        bytes
    }
}

/// A VirtualBox snapshot with the ids `own` over one with the ids `parent`: each is an image's
/// and a state's. Blocks of a MiB are there as a whole or not at all; one of zeros is only said
/// to be that.
#[must_use]
pub fn vdi(changes: Changes, own: [u8; 32], parent: [u8; 32]) -> Vec<u8> {
    const DATA: usize = MIB;
    let blocks = changes.disk.len().div_ceil(MIB);
    let mut bytes = vec![0; DATA];
    let fields = [
        (64, 0xbeda_107f, 4),
        (68, 0x1_0001, 4),
        (72, 400, 4),
        (76, 4, 4),
        (340, SECTOR as u64, 4),
        (344, DATA as u64, 4),
        (360, SECTOR as u64, 4),
        (368, changes.disk.len() as u64, 8),
        (376, MIB as u64, 4),
        (384, blocks as u64, 4),
    ];
    for (at, value, width) in fields {
        put(&mut bytes, at, value, width);
    }
    bytes[392..424].copy_from_slice(&own);
    bytes[424..456].copy_from_slice(&parent);
    for block in 0..blocks {
        let data = &changes.disk[block * MIB..][..MIB];
        let entry = if !changes.has_any(block, MIB) {
            u64::from(u32::MAX)
        } else if data.iter().all(|&byte| byte == 0) {
            u64::from(u32::MAX - 1)
        } else {
            bytes.extend(data);
            ((bytes.len() - DATA) / MIB - 1) as u64
        };
        put(&mut bytes, SECTOR + 4 * block, entry, 4);
    }
    bytes
}

/// The ids of a VDI.
#[must_use]
pub fn vdi_ids(image: &[u8]) -> [u8; 32] {
    image[392..424].try_into().expect("32 bytes")
}

/// A differencing VHD with the id `own` over the one with the id `parent`, which is the file
/// `name` beside it. Source: Virtual Hard Disk Image Format Specification.
#[must_use]
pub fn vhd(changes: Changes, own: [u8; 16], parent: [u8; 16], name: &str) -> Vec<u8> {
    const BLOCK: usize = 2 * MIB;
    const TABLE: usize = 3 * SECTOR;
    let blocks = changes.disk.len().div_ceil(BLOCK);
    let mut footer = vec![0; SECTOR];
    footer[..8].copy_from_slice(b"conectix");
    put_be(&mut footer, 12, 0x1_0000, 4);
    put_be(&mut footer, 16, SECTOR as u64, 8);
    footer[28..32].copy_from_slice(b"win ");
    put_be(&mut footer, 40, changes.disk.len() as u64, 8);
    put_be(&mut footer, 48, changes.disk.len() as u64, 8);
    put_be(&mut footer, 60, 4, 4);
    footer[68..84].copy_from_slice(&own);
    let sum = footer.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    put_be(&mut footer, 64, 0xffff_ffff - sum, 4);
    let mut bytes = footer.clone();
    bytes.extend(b"cxsparse");
    bytes.resize(TABLE, 0);
    put_be(&mut bytes, SECTOR + 8, u64::MAX, 8);
    put_be(&mut bytes, SECTOR + 16, TABLE as u64, 8);
    put_be(&mut bytes, SECTOR + 24, 0x1_0000, 4);
    put_be(&mut bytes, SECTOR + 28, blocks as u64, 4);
    put_be(&mut bytes, SECTOR + 32, BLOCK as u64, 4);
    bytes[SECTOR + 40..SECTOR + 56].copy_from_slice(&parent);
    let table_len = (4 * blocks).next_multiple_of(SECTOR);
    bytes.resize(TABLE + table_len, 0xff);
    let name: Vec<u8> = format!(".\\{name}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let locator = SECTOR + 576;
    bytes[locator..locator + 4].copy_from_slice(b"W2ru");
    put_be(&mut bytes, locator + 4, SECTOR as u64, 4);
    put_be(&mut bytes, locator + 8, name.len() as u64, 4);
    let at = bytes.len() as u64;
    put_be(&mut bytes, locator + 16, at, 8);
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    for block in (0..blocks).filter(|&block| changes.has_any(block, BLOCK)) {
        let at = (bytes.len() / SECTOR) as u64;
        put_be(&mut bytes, TABLE + 4 * block, at, 4);
        bytes.extend(changes.bitmap(block, BLOCK, |i| 0x80 >> i));
        bytes.extend(changes.block(block, BLOCK));
    }
    bytes.extend(footer);
    bytes
}

/// The id of a VHD that grows.
#[must_use]
pub fn vhd_id(image: &[u8]) -> [u8; 16] {
    image[68..84].try_into().expect("16 bytes")
}

fn put_be(bytes: &mut [u8], at: usize, value: u64, width: usize) {
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

const FIRST_HEADER: usize = 64 << 10;
const SECOND_HEADER: usize = 128 << 10;

/// A differencing VHDX with the id `own` over the one with the id `parent`, which is the file
/// `name` beside it. Source: \[MS-VHDX\].
#[must_use]
pub fn vhdx(changes: Changes, own: [u8; 16], parent: [u8; 16], name: &str) -> Vec<u8> {
    const REGIONS: usize = 192 << 10;
    const METADATA: usize = 2 * MIB;
    const TABLE: usize = 3 * MIB;
    const BITMAPS: usize = 4 * MIB;
    const BLOCKS_OF_BITMAP: usize = 4096;
    let blocks = changes.disk.len().div_ceil(MIB);
    let mut bytes = vec![0; BITMAPS + MIB];
    bytes[..8].copy_from_slice(b"vhdxfile");
    bytes[FIRST_HEADER..][..4].copy_from_slice(b"head");
    bytes[FIRST_HEADER + 32..][..16].copy_from_slice(&own);
    put(&mut bytes, FIRST_HEADER + 8, 1, 8);
    put(&mut bytes, FIRST_HEADER + 66, 1, 2);
    let sum = crc32c(&bytes[FIRST_HEADER..FIRST_HEADER + 4096]);
    put(&mut bytes, FIRST_HEADER + 4, sum.into(), 4);

    bytes[REGIONS..][..4].copy_from_slice(b"regi");
    put(&mut bytes, REGIONS + 8, 2, 4);
    let regions = [
        ("2dc27766-f623-4200-9d64-115e9bfd4a08", TABLE),
        ("8b7ca206-4790-4b9a-b8fe-575f050f886e", METADATA),
    ];
    for (i, (id, at)) in regions.into_iter().enumerate() {
        let entry = REGIONS + 16 + 32 * i;
        bytes[entry..entry + 16].copy_from_slice(&guid(id));
        put(&mut bytes, entry + 16, at as u64, 8);
        put(&mut bytes, entry + 24, MIB as u64, 4);
    }

    let locator =
        locator(&[("parent_linkage", &braced(parent)), ("relative_path", &format!(".\\{name}"))]);
    let parameters = [(MIB as u64).to_le_bytes()[..4].to_vec(), vec![2, 0, 0, 0]].concat();
    let items: [(&str, Vec<u8>); 5] = [
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", parameters),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", (changes.disk.len() as u64).to_le_bytes().into()),
        ("8141bf1d-a96f-4709-ba47-f233a8faab5f", 512u32.to_le_bytes().into()),
        ("cda348c7-445d-4471-9cc9-e9885251c556", 4096u32.to_le_bytes().into()),
        ("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", locator),
    ];
    bytes[METADATA..][..8].copy_from_slice(b"metadata");
    put(&mut bytes, METADATA + 10, items.len() as u64, 2);
    let mut at = 64 << 10;
    for (i, (id, item)) in items.iter().enumerate() {
        let entry = METADATA + 32 + 32 * i;
        bytes[entry..entry + 16].copy_from_slice(&guid(id));
        put(&mut bytes, entry + 16, at as u64, 4);
        put(&mut bytes, entry + 20, item.len() as u64, 4);
        bytes[METADATA + at..][..item.len()].copy_from_slice(item);
        at += item.len().next_multiple_of(8);
    }

    put(&mut bytes, TABLE + 8 * BLOCKS_OF_BITMAP, BITMAPS as u64 | 6, 8);
    for block in (0..blocks).filter(|&block| changes.has_any(block, MIB)) {
        let data = changes.block(block, MIB);
        let state = if data.iter().all(|&byte| byte == 0) {
            2
        } else if changes.sectors(block, MIB).all(changes.has) {
            6
        } else {
            let bitmap = changes.bitmap(block, MIB, |i| 1 << i);
            bytes[BITMAPS + block * bitmap.len()..][..bitmap.len()].copy_from_slice(&bitmap);
            7
        };
        let at = bytes.len() as u64;
        put(&mut bytes, TABLE + 8 * block, if state == 2 { 2 } else { at | state }, 8);
        if state != 2 {
            bytes.extend(data);
        }
    }
    bytes
}

/// The id of the state of a VHDX.
#[must_use]
pub fn vhdx_id(image: &[u8]) -> [u8; 16] {
    let sequence = |at: usize| u64::from_le_bytes(image[at + 8..at + 16].try_into().expect("8"));
    let later = sequence(SECOND_HEADER) > sequence(FIRST_HEADER);
    let at = if later { SECOND_HEADER } else { FIRST_HEADER };
    image[at + 32..at + 48].try_into().expect("16 bytes")
}

fn locator(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = guid("b04aefb7-d19e-4a81-b789-25b8e9445913").to_vec();
    bytes.resize(20 + 12 * pairs.len(), 0);
    put(&mut bytes, 18, pairs.len() as u64, 2);
    for (i, (key, value)) in pairs.iter().enumerate() {
        for (k, text) in [key, value].into_iter().enumerate() {
            let at = bytes.len() as u64;
            bytes.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
            let len = bytes.len() as u64 - at;
            put(&mut bytes, 20 + 12 * i + 4 * k, at, 4);
            put(&mut bytes, 28 + 12 * i + 2 * k, len, 2);
        }
    }
    bytes
}

/// The bytes of an id as Windows writes it.
fn guid(text: &str) -> [u8; 16] {
    let digits = text.replace('-', "");
    let mut bytes = [0; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).expect("digits");
    }
    windows_order(bytes)
}

fn braced(id: [u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let id = windows_order(id);
    let groups = [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]];
    format!("{{{}}}", groups.map(hex).join("-"))
}

fn windows_order(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// Source: RFC 3720, appendix B.4.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ ((sum & 1) * 0x82f6_3b78))
    })
}
