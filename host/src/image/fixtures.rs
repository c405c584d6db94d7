//! Small images that tests put together byte by byte.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Disk, ImageError, OpenOptions};

/// A folder with an image in it, gone when dropped.
pub struct Folder {
    dir: TempDir,
    pub path: PathBuf,
}

impl Folder {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        Self { dir, path }
    }

    /// Writes a file, in a subfolder where the name says so.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn open(&self, name: &str) -> Result<Disk, ImageError> {
        Disk::open(&self.path.join(name), &OpenOptions::default())
    }

    pub fn open_allowing(&self, name: &str, allow: &Path) -> Result<Disk, ImageError> {
        let options = OpenOptions { allow_paths: vec![allow.to_owned()], ..OpenOptions::default() };
        Disk::open(&self.path.join(name), &options)
    }
}

/// A base's descriptor with content id `cid` and the given extent lines.
pub fn base(cid: u32, extents: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n{extents}\n"
    )
}

/// A snapshot's descriptor over the parent with id `parent_cid`.
pub fn child(cid: u32, parent_cid: u32, hint: &str, extents: &str) -> String {
    base(cid, extents).replace(
        "parentCID=ffffffff",
        &format!("parentCID={parent_cid:08x}\nparentFileNameHint=\"{hint}\""),
    )
}

/// Writes numbers over `bytes`, little-endian, at their places.
fn put(bytes: &mut [u8], numbers: &[(usize, u64, usize)]) {
    for &(at, value, len) in numbers {
        bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
}

/// An empty sparse extent of `capacity` sectors; with a descriptor, a whole disk.
pub fn sparse(capacity: u64, descriptor: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[..4].copy_from_slice(b"KDMV");
    let at = u64::from(descriptor.is_some());
    put(
        &mut bytes,
        &[
            (4, 1, 4),
            (8, 1, 4),
            (12, capacity, 8),
            (20, 128, 8),
            (28, at, 8),
            (36, 4 * at, 8),
            (44, 512, 4),
            (56, 8, 8),
            (64, 16, 8),
        ],
    );
    bytes[73..77].copy_from_slice(b"\n \r\n");
    if let Some(text) = descriptor {
        bytes[512..512 + text.len()].copy_from_slice(text.as_bytes());
    }
    bytes
}

/// A disk of one file.
pub fn monolithic_sparse(cid: u32, capacity: u64) -> Vec<u8> {
    let text = base(cid, &format!("RW {capacity} SPARSE \"a.vmdk\""));
    sparse(capacity, Some(&text.replace("twoGbMaxExtentFlat", "monolithicSparse")))
}

/// The same with its grain directory behind it.
pub fn with_footer(mut bytes: Vec<u8>) -> Vec<u8> {
    let header = bytes[..512].to_vec();
    put(&mut bytes, &[(56, u64::MAX, 8)]);
    let mut marker = vec![0; 512];
    put(&mut marker, &[(0, 1, 8), (12, 3, 4)]);
    bytes.extend(marker);
    bytes.extend(header);
    bytes.extend([0; 512]);
    bytes
}

/// An empty extent of an ESX snapshot.
pub fn cowd(capacity: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"COWD");
    put(&mut bytes, &[(4, 1, 4), (8, 3, 4), (12, capacity, 4), (16, 1, 4), (20, 4, 4), (24, 2, 4)]);
    bytes
}

/// An empty extent of an ESXi 6 snapshot.
pub fn sesparse(capacity: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    put(
        &mut bytes,
        &[
            (0, 0xcafe_babe, 8),
            (8, 0x2_0000_0001, 8),
            (16, capacity, 8),
            (24, 8, 8),
            (32, 64, 8),
            (80, 1, 8),
            (88, 1, 8),
            (128, 2, 8),
            (136, 1, 8),
            (144, 3, 8),
            (512, 0xcafe_cafe, 8),
        ],
    );
    bytes
}

/// A qcow2 header for a disk of `size` bytes.
pub fn qcow2(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[103] = 104;
    bytes[24..32].copy_from_slice(&size.to_be_bytes());
    bytes
}

/// The same over a backing file, which is named with its format where that is not empty.
pub fn qcow2_over(size: u64, name: &[u8], format: &str) -> Vec<u8> {
    let mut bytes = qcow2(size);
    bytes.truncate(104);
    if !format.is_empty() {
        bytes.extend(0xe279_2aca_u32.to_be_bytes());
        bytes.extend(u32::try_from(format.len()).unwrap().to_be_bytes());
        bytes.extend(format.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend([0; 8]);
    let at = u64::try_from(bytes.len()).unwrap();
    bytes[8..16].copy_from_slice(&at.to_be_bytes());
    bytes[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
    bytes.extend(name);
    bytes
}

/// A QED header, with its first table.
pub fn qed(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    bytes[..4].copy_from_slice(b"QED\0");
    put(&mut bytes, &[(4, 4096, 4), (8, 1, 4), (12, 1, 4), (40, 4096, 8), (48, size, 8)]);
    bytes
}

/// The same over a backing file, which is raw or to be told.
pub fn qed_over(size: u64, name: &[u8], is_raw: bool) -> Vec<u8> {
    let mut bytes = qed(size);
    put(
        &mut bytes,
        &[(16, if is_raw { 5 } else { 1 }, 8), (56, 64, 4), (60, name.len() as u64, 4)],
    );
    bytes[64..64 + name.len()].copy_from_slice(name);
    bytes
}

/// A Parallels header, with its table of one entry.
pub fn parallels(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 68];
    bytes[..16].copy_from_slice(b"WithouFreSpacExt");
    let sectors = size / 512;
    put(&mut bytes, &[(16, 2, 4), (28, 2048, 4), (32, 1, 4), (36, sectors, 8), (48, 2048, 4)]);
    bytes
}

/// A VDI header.
pub fn vdi(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    put(&mut bytes, &[(64, 0xbeda_107f, 4), (68, 0x1_0001, 4), (76, 1, 4), (368, size, 8)]);
    bytes
}

/// A growing VHD: footer, then dynamic disk header.
pub fn vhd(size: u64) -> Vec<u8> {
    let mut bytes = vhd_footer(size, 3);
    bytes.extend(b"cxsparse");
    bytes.resize(2048, 0);
    bytes
}

/// A VHD footer of a type.
pub fn vhd_footer(size: u64, kind: u8) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..8].copy_from_slice(b"conectix");
    bytes[16..24].copy_from_slice(&512u64.to_be_bytes());
    bytes[28..32].copy_from_slice(b"win ");
    bytes[48..56].copy_from_slice(&size.to_be_bytes());
    bytes[63] = kind;
    seal_vhd(&mut bytes);
    bytes
}

/// Puts the checksum of a VHD footer, which begins here, into its place.
pub fn seal_vhd(footer: &mut [u8]) {
    footer[64..68].fill(0);
    let sum = !footer[..512].iter().map(|&byte| u32::from(byte)).sum::<u32>();
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
}

/// Where [`vhdx`] has its tables; all other bytes are zero.
pub const VHDX_TABLES: [std::ops::Range<usize>; 3] =
    [0..16, 192 << 10..(192 << 10) + 48, 256 << 10..(256 << 10) + 148];

/// A VHDX with nothing but the tables that are read here.
pub fn vhdx(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; 260 << 10];
    let (regions, metadata) = (192 << 10, 256 << 10);
    bytes[..8].copy_from_slice(b"vhdxfile");
    bytes[regions..regions + 4].copy_from_slice(b"regi");
    let guid = |text: &str| -> Vec<u8> {
        (0..16).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let entries = [
        (regions + 16, guid("06a27c8b90479a4bb8fe575f050f886e")),
        (metadata + 32, guid("3767a1ca36fa434db3b633f0aa44e76b")),
        (metadata + 64, guid("2442a52f1bcd7648b2115dbed83bf4b8")),
        (metadata + 96, guid("1dbf41816fa90947ba47f233a8faab5f")),
    ];
    for (at, guid) in entries {
        bytes[at..at + 16].copy_from_slice(&guid);
    }
    bytes[metadata..metadata + 8].copy_from_slice(b"metadata");
    put(
        &mut bytes,
        &[
            (regions + 8, 1, 4),
            (regions + 32, 256 << 10, 8),
            (metadata + 10, 3, 2),
            (metadata + 48, 128, 4),
            (metadata + 80, 136, 4),
            (metadata + 112, 144, 4),
            (metadata + 136, size, 8),
            (metadata + 144, 512, 4),
        ],
    );
    bytes
}

/// A VDI snapshot of `size` bytes over the image with the id `parent`: blocks of 1 MiB, of
/// which `entries` says where they are.
pub fn vdi_over(size: u64, ids: [[u8; 16]; 4], entries: &[u32]) -> Vec<u8> {
    let mut bytes = vdi(size);
    let blocks = entries.len() as u64;
    put(
        &mut bytes,
        &[(76, 4, 4), (340, 512, 4), (344, 4096, 4), (376, 1 << 20, 4), (384, blocks, 4)],
    );
    bytes[392..456].copy_from_slice(&ids.concat());
    bytes.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
    bytes.resize(4096, 0);
    bytes
}

/// A differencing VHD of one block of 32 KiB, with a bitmap, over the image with the id
/// `parent`, which is called `names`: relative, absolute and in the header.
pub fn vhd_over(parent: [u8; 16], names: [&str; 3], bitmap: [u8; 8]) -> Vec<u8> {
    let mut bytes = vhd_footer(32 << 10, 4);
    bytes[68..84].fill(9);
    seal_vhd(&mut bytes);
    bytes.extend(b"cxsparse");
    bytes.resize(512 + 1024, 0);
    let header = &mut bytes[512..];
    header[16..24].copy_from_slice(&1536u64.to_be_bytes());
    header[28..32].copy_from_slice(&1u32.to_be_bytes());
    header[32..36].copy_from_slice(&(32u32 << 10).to_be_bytes());
    header[40..56].copy_from_slice(&parent);
    for (place, unit) in header[64..576].chunks_exact_mut(2).zip(names[2].encode_utf16()) {
        place.copy_from_slice(&unit.to_be_bytes());
    }
    let locators = [(b"W2ru", names[0], 2048u64), (b"W2ku", names[1], 2560)];
    for (i, (platform, name, at)) in locators.into_iter().enumerate() {
        let locator = &mut header[576 + 24 * i..];
        locator[..4].copy_from_slice(platform);
        let len = u32::try_from(2 * name.encode_utf16().count()).unwrap();
        locator[8..12].copy_from_slice(&len.to_be_bytes());
        locator[16..24].copy_from_slice(&at.to_be_bytes());
    }
    bytes.extend(6u32.to_be_bytes());
    for (name, at) in names.into_iter().zip([2048, 2560]) {
        bytes.resize(at, 0);
        bytes.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    }
    bytes.resize(6 * 512, 0);
    bytes.extend(bitmap);
    bytes.resize(7 * 512, 0);
    bytes.resize(bytes.len() + (32 << 10), 0xdd);
    bytes.extend(vhd_footer(32 << 10, 4));
    bytes
}

/// A base of the same size, with an id.
pub fn vhd_base(id: [u8; 16]) -> Vec<u8> {
    let mut footer = vhd_footer(32 << 10, 2);
    footer[68..84].copy_from_slice(&id);
    seal_vhd(&mut footer);
    [vec![0; 32 << 10], footer].concat()
}

/// A header of VHDX with its checksum.
pub fn vhdx_header(sequence: u64, write_id: [u8; 16], log: [u8; 16]) -> Vec<u8> {
    let mut header = vec![0; 4096];
    header[..4].copy_from_slice(b"head");
    put(&mut header, &[(8, sequence, 8)]);
    header[32..48].copy_from_slice(&write_id);
    header[48..64].copy_from_slice(&log);
    seal(&mut header);
    header
}

/// Puts the checksum of VHDX into its place.
pub fn seal(bytes: &mut [u8]) {
    put(bytes, &[(4, 0, 4)]);
    let sum = !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ ((sum & 1) * 0x82f6_3b78))
    });
    put(bytes, &[(4, sum.into(), 4)]);
}

/// An entry of the log with the id `log`, whose oldest companion begins at `tail`: for each place
/// of the file a sector of that byte there, or with `None` two sectors of zeros.
pub fn vhdx_log_entry(
    log: [u8; 16],
    sequence: u64,
    tail: u64,
    writes: &[(u64, Option<u8>)],
) -> Vec<u8> {
    let mut entry = vec![0; 4096];
    entry[..4].copy_from_slice(b"loge");
    entry[32..48].copy_from_slice(&log);
    put(&mut entry, &[(12, tail, 4), (16, sequence, 8), (24, writes.len() as u64, 4)]);
    for (i, &(place, byte)) in writes.iter().enumerate() {
        let at = 64 + 32 * i;
        put(&mut entry, &[(at + 16, place, 8), (at + 24, sequence, 8)]);
        let Some(byte) = byte else {
            entry[at..at + 4].copy_from_slice(b"zero");
            put(&mut entry, &[(at + 8, 8192, 8)]);
            continue;
        };
        entry[at..at + 4].copy_from_slice(b"desc");
        entry[at + 4..at + 16].fill(byte);
        let start = entry.len();
        entry.resize(start + 4096, byte);
        entry[start..start + 4].copy_from_slice(b"data");
        put(&mut entry, &[(start + 4, sequence >> 32, 4), (start + 4092, sequence, 4)]);
    }
    let len = entry.len() as u64;
    put(&mut entry, &[(8, len, 4)]);
    seal(&mut entry);
    entry
}

/// A differencing VHDX of 2 MiB in blocks of one, with the given locator entries and states of
/// its blocks: the first in parts, as the bitmap says.
pub fn vhdx_over(pairs: &[(&str, &str)], blocks: [u64; 2], bitmap: u8) -> Vec<u8> {
    const CHUNK: usize = 4096;
    let mut bytes = vhdx(2 << 20);
    bytes.resize(1 << 20, 0);
    let header = vhdx_header(1, [1; 16], [0; 16]);
    bytes[64 << 10..][..4096].copy_from_slice(&header);
    let guid = |text: &str| -> Vec<u8> {
        (0..16).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
    };
    let (regions, metadata) = (192 << 10, 256 << 10);
    bytes[regions + 48..regions + 64].copy_from_slice(&guid("6677c22d23f600429d64115e9bfd4a08"));
    let entries =
        [(96, "1dbf41816fa90947ba47f233a8faab5f"), (128, "2d5fd3a80bb34d45abf7d3d84834ab0c")];
    for (at, text) in entries {
        bytes[metadata + at..metadata + at + 16].copy_from_slice(&guid(text));
    }
    let mut locator = vec![0; 20 + 12 * pairs.len()];
    put(&mut locator, &[(18, pairs.len() as u64, 2)]);
    for (i, (key, value)) in pairs.iter().enumerate() {
        for (k, text) in [key, value].into_iter().enumerate() {
            let at = locator.len() as u64;
            locator.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
            let len = locator.len() as u64 - at;
            put(&mut locator, &[(20 + 12 * i + 4 * k, at, 4), (28 + 12 * i + 2 * k, len, 2)]);
        }
    }
    let len = locator.len() as u64;
    put(
        &mut bytes,
        &[
            (regions + 8, 2, 4),
            (regions + 64, 320 << 10, 8),
            (regions + 72, 64 << 10, 4),
            (metadata + 10, 4, 2),
            (metadata + 48, 176, 4),
            (metadata + 80, 192, 4),
            (metadata + 112, 200, 4),
            (metadata + 144, 256, 4),
            (metadata + 148, len, 4),
            (metadata + 176, 1 << 20, 4),
            (metadata + 180, 2, 4),
            (metadata + 192, 2 << 20, 8),
            (metadata + 200, 512, 4),
        ],
    );
    bytes[metadata + 256..metadata + 256 + locator.len()].copy_from_slice(&locator);
    let table = 320 << 10;
    put(
        &mut bytes,
        &[(table, blocks[0], 8), (table + 8, blocks[1], 8), (table + 8 * CHUNK, 1 << 20 | 6, 8)],
    );
    bytes.resize(2 << 20, bitmap);
    bytes.resize(4 << 20, 0xdd);
    bytes
}
