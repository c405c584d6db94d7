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
    bytes
}

/// Where [`vhdx`] has its tables; all other bytes are zero.
pub const VHDX_TABLES: [std::ops::Range<usize>; 3] =
    [0..16, 192 << 10..(192 << 10) + 48, 256 << 10..(256 << 10) + 128];

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
            (metadata + 10, 2, 2),
            (metadata + 48, 112, 4),
            (metadata + 80, 120, 4),
            (metadata + 120, size, 8),
        ],
    );
    bytes
}
