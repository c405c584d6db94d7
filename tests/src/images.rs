//! Images in formats that no tool at hand writes, made from a raw disk by the published
//! layouts. Only pieces that hold something are stored.

use std::ops::Range;

const SECTOR: usize = 512;

/// The pieces of `disk` of `size` bytes that are not all zeros, by number.
fn pieces(disk: &[u8], size: usize) -> impl Iterator<Item = (usize, &[u8])> {
    disk.chunks(size).enumerate().filter(|(_, piece)| piece.iter().any(|&byte| byte != 0))
}

/// Writes `value` little-endian over the `width` bytes at `at`.
pub fn put(bytes: &mut [u8], at: usize, value: u64, width: usize) {
    bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
}

fn sectors(bytes: usize) -> u64 {
    (bytes / SECTOR) as u64
}

/// Bytes up to the next whole sector.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
}

/// An extent of an ESX snapshot. Source: Virtual Disk Format 5.0, "ESX Server Sparse Extents".
#[must_use]
pub fn cowd(disk: &[u8]) -> Vec<u8> {
    const GRAIN: usize = 8 * SECTOR;
    const TABLE_ENTRIES: usize = 4096;
    const DIRECTORY: usize = 4 * SECTOR;
    let tables = disk.len().div_ceil(GRAIN * TABLE_ENTRIES);
    let first_table = DIRECTORY + (4 * tables).next_multiple_of(SECTOR);
    let mut bytes = vec![0; first_table + tables * TABLE_ENTRIES * 4];
    bytes[..4].copy_from_slice(b"COWD");
    let header = [(4, 1), (8, 3), (12, sectors(disk.len())), (16, 8), (20, 4), (24, tables as u64)];
    for (at, value) in header {
        put(&mut bytes, at, value, 4);
    }
    for table in 0..tables {
        let at = first_table + table * TABLE_ENTRIES * 4;
        put(&mut bytes, DIRECTORY + 4 * table, sectors(at), 4);
    }
    for (number, grain) in pieces(disk, GRAIN) {
        let at = sectors(bytes.len());
        put(&mut bytes, first_table + 4 * number, at, 4);
        bytes.extend(grain);
    }
    bytes
}

/// An extent of an ESXi 6 snapshot, in the layout that QEMU's block/vmdk.c reads.
#[must_use]
pub fn sesparse(disk: &[u8]) -> Vec<u8> {
    const GRAIN: usize = 8 * SECTOR;
    const TABLE: usize = 64 * SECTOR;
    const VOLATILE: usize = SECTOR;
    const DIRECTORY: usize = 2 * SECTOR;
    let grains_of_table = TABLE / 8;
    let tables = disk.len().div_ceil(GRAIN * grains_of_table);
    let directory_len = (8 * tables).next_multiple_of(SECTOR);
    let first_table = DIRECTORY + directory_len;
    let grains = first_table + tables * TABLE;
    let mut bytes = vec![0; grains];
    let header = [
        (0, 0xcafe_babe),
        (8, 0x2_0000_0001),
        (16, sectors(disk.len())),
        (24, 8),
        (32, 64),
        (80, sectors(VOLATILE)),
        (88, 1),
        (128, sectors(DIRECTORY)),
        (136, sectors(directory_len)),
        (144, sectors(first_table)),
        (152, sectors(tables * TABLE)),
        (192, sectors(grains)),
        (VOLATILE, 0xcafe_cafe),
    ];
    for (at, value) in header {
        put(&mut bytes, at, value, 8);
    }
    for table in 0..tables {
        put(&mut bytes, DIRECTORY + 8 * table, 0x1000_0000_0000_0000 | table as u64, 8);
    }
    for (stored, (number, grain)) in (0u64..).zip(pieces(disk, GRAIN)) {
        // The lower twelve bits of a grain's number stand above the others.
        let entry = 0x3000_0000_0000_0000 | (stored & 0xfff) << 48 | stored >> 12;
        put(&mut bytes, first_table + 8 * number, entry, 8);
        bytes.extend(grain);
    }
    bytes
}

/// Where a stream keeps its directory, and whether markers tell its parts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Grains follow each other bare; the directory is found by the header. QEMU reads only
    /// those that are smaller than what they hold, so that noise cannot be stored.
    Bare,
    /// As VMware writes it: each part behind a marker, the directory found by a footer.
    Marked,
}

/// A hosted sparse extent, whose grains of 4 KiB lie from the last to the first, and none in whole
/// pages. Source: Virtual Disk Format 5.0, "Hosted Sparse Extents".
#[must_use]
pub fn backwards(disk: &[u8]) -> Vec<u8> {
    const GRAIN: usize = 8 * SECTOR;
    const TABLE_ENTRIES: usize = 512;
    let grains = disk.len().div_ceil(GRAIN);
    let tables = grains.div_ceil(TABLE_ENTRIES);
    let first_table = 1 + (4 * tables).div_ceil(SECTOR);
    let first_grain = (first_table + 4 * tables) | 1;
    let mut bytes = vec![0; first_grain * SECTOR];
    bytes[..4].copy_from_slice(b"KDMV");
    let capacity = sectors(grains * GRAIN);
    let fields = [(4, 1, 4), (8, 1, 4), (12, capacity, 8), (20, 8, 8), (44, 512, 4), (56, 1, 8)];
    for (at, value, width) in fields.into_iter().chain([(64, first_grain as u64, 8)]) {
        put(&mut bytes, at, value, width);
    }
    bytes[73..77].copy_from_slice(b"\n \r\n");
    for table in 0..tables {
        put(&mut bytes, SECTOR + 4 * table, (first_table + 4 * table) as u64, 4);
    }
    for grain in 0..grains {
        let sector = first_grain + (grains - 1 - grain) * (GRAIN / SECTOR);
        put(&mut bytes, first_table * SECTOR + 4 * grain, sector as u64, 4);
    }
    for grain in disk.chunks(GRAIN).rev() {
        bytes.extend_from_slice(grain);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    }
    bytes
}

/// A streamOptimized disk. Source: Virtual Disk Format 5.0, "Stream-Optimized Compressed
/// Sparse Extents".
#[must_use]
pub fn stream(disk: &[u8], kind: Stream) -> Vec<u8> {
    const GRAIN: usize = 128 * SECTOR;
    const TABLE_ENTRIES: usize = 512;
    const COMPRESSED: u64 = 1 << 16;
    const MARKERS: u64 = 1 << 17;
    const DESCRIPTOR_SECTORS: usize = 2;
    let marked = kind == Stream::Marked;
    let capacity = sectors(disk.len());
    let mut header = vec![0; SECTOR];
    header[..4].copy_from_slice(b"KDMV");
    let flags = 1 | COMPRESSED | if marked { MARKERS } else { 0 };
    let fields = [
        (4, 3, 4),
        (8, flags, 4),
        (12, capacity, 8),
        (20, 128, 8),
        (28, 1, 8),
        (36, DESCRIPTOR_SECTORS as u64, 8),
        (44, TABLE_ENTRIES as u64, 4),
        (64, 1 + DESCRIPTOR_SECTORS as u64, 8),
        (77, 1, 2),
    ];
    for (at, value, width) in fields {
        put(&mut header, at, value, width);
    }
    header[73..77].copy_from_slice(b"\n \r\n");
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"streamOptimized\"\nRW {capacity} SPARSE \"disk.vmdk\"\n"
    );
    let mut bytes = header.clone();
    bytes.extend(text.as_bytes());
    bytes.resize((1 + DESCRIPTOR_SECTORS) * SECTOR, 0);

    let tables = disk.len().div_ceil(GRAIN * TABLE_ENTRIES);
    let mut entries = vec![0u32; tables * TABLE_ENTRIES];
    for (number, grain) in pieces(disk, GRAIN) {
        entries[number] = u32::try_from(sectors(bytes.len())).expect("small disks");
        let data = if marked { stored(grain) } else { runs(grain) };
        if marked {
            bytes.extend((number as u64 * sectors(GRAIN)).to_le_bytes());
            bytes.extend(u32::try_from(data.len()).expect("a grain").to_le_bytes());
        }
        bytes.extend(data);
        pad(&mut bytes);
    }
    let mut directory = Vec::new();
    for table in entries.chunks(TABLE_ENTRIES) {
        let table: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        if marked {
            bytes.extend(marker(sectors(table.len()), 1));
        }
        directory.extend(u32::try_from(sectors(bytes.len())).expect("small disks").to_le_bytes());
        bytes.extend(table);
    }
    let directory_len = directory.len().next_multiple_of(SECTOR);
    if marked {
        bytes.extend(marker(sectors(directory_len), 2));
    }
    let directory_at = sectors(bytes.len());
    bytes.extend(directory);
    pad(&mut bytes);
    if marked {
        put(&mut bytes, 56, u64::MAX, 8);
        put(&mut header, 56, directory_at, 8);
        bytes.extend(marker(1, 3));
        bytes.extend(header);
        bytes.extend(marker(0, 0));
    } else {
        put(&mut bytes, 56, directory_at, 8);
    }
    bytes
}

/// A sector that says what follows it.
fn marker(sectors: u64, kind: u64) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    put(&mut bytes, 0, sectors, 8);
    put(&mut bytes, 12, kind, 4);
    bytes
}

/// `data` as zlib has it without compressing. Source: RFC 1950; RFC 1951, 3.2.4.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x78, 0x01];
    let blocks = data.chunks(0xffff);
    let last = blocks.len() - 1;
    for (i, block) in blocks.enumerate() {
        let len = u16::try_from(block.len()).expect("at most 0xffff");
        bytes.push(u8::from(i == last));
        bytes.extend(len.to_le_bytes());
        bytes.extend((!len).to_le_bytes());
        bytes.extend(block);
    }
    bytes.extend(adler32(data).to_be_bytes());
    bytes
}

/// `data` compressed by zlib's rules as far as bytes repeat. Source: RFC 1951, 3.2.6.
fn runs(data: &[u8]) -> Vec<u8> {
    /// The longest repetition, its code, and the code of distance 1.
    const LONGEST: usize = 258;
    const CODES: [(u32, u32); 2] = [(0xc5, 8), (0, 5)];
    let mut bits = Bits::default();
    bits.low_first(0b011, 3);
    for run in data.chunk_by(|a, b| a == b) {
        let literal = u32::from(run[0]);
        let (code, len) = if literal < 144 { (0x30 + literal, 8) } else { (0x100 + literal, 9) };
        let repeated = (run.len() - 1) / LONGEST;
        bits.high_first(code, len);
        (0..repeated).flat_map(|_| CODES).for_each(|(code, len)| bits.high_first(code, len));
        (1..run.len() - repeated * LONGEST).for_each(|_| bits.high_first(code, len));
    }
    bits.high_first(0, 7);
    [&[0x78, 0x01], bits.bytes.as_slice(), &adler32(data).to_be_bytes()].concat()
}

/// Bits packed into bytes, the lowest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn low_first(&mut self, value: u32, count: u32) {
        for i in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let bit = u8::from(value >> i & 1 == 1);
            *self.bytes.last_mut().expect("pushed above") |= bit << (self.used % 8);
            self.used += 1;
        }
    }

    fn high_first(&mut self, code: u32, count: u32) {
        self.low_first(code.reverse_bits() >> (32 - count), count);
    }
}

/// Source: RFC 1950, 2.2.
fn adler32(data: &[u8]) -> u32 {
    let (a, b) = data.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

/// A qcow2 of 1 MiB with a backing file.
#[must_use]
pub fn qcow2_over(name: &[u8], format: &str) -> Vec<u8> {
    const NAME_AT: u64 = 512;
    let mut bytes = vec![0; 512];
    let mut put = |at: usize, value: u64, width: usize| {
        bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    };
    put(0, 0x5146_49fb, 4);
    put(4, 3, 4);
    put(8, NAME_AT, 8);
    put(16, name.len() as u64, 4);
    put(20, 16, 4);
    put(24, 1 << 20, 8);
    put(100, 104, 4);
    put(104, 0xe279_2aca, 4);
    put(108, format.len() as u64, 4);
    bytes[112..112 + format.len()].copy_from_slice(format.as_bytes());
    bytes.extend(name);
    bytes
}

/// The text of a VMDK with the given extent lines, without a parent.
#[must_use]
pub fn descriptor(create_type: &str, lines: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
         createType=\"{create_type}\"\n{lines}\n"
    )
}

/// The text of a snapshot over a parent made by [`descriptor`].
#[must_use]
pub fn snapshot(create_type: &str, hint: &str, lines: &str) -> String {
    descriptor(create_type, lines).replace(
        "parentCID=ffffffff",
        &format!("parentCID=12345678\nparentFileNameHint=\"{hint}\""),
    )
}

/// `count` ranges that make up `len` bytes, of about one size, in whole pieces of 4 KiB.
#[must_use]
pub fn shares(len: usize, count: usize) -> Vec<Range<usize>> {
    const PIECE: usize = 4096;
    let end = |i: usize| len / PIECE * i / count * PIECE;
    (0..count).map(|i| end(i)..if i + 1 == count { len } else { end(i + 1) }).collect()
}
