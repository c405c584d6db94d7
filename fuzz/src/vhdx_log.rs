//! Bytes as the log of a VHDX that was not closed. What it says must be refused or be a disk in
//! bounds, and the file must stay as it is.
//!
//! The checksums of what looks like an entry are put right: hardly a change by the fuzzer would
//! come through otherwise.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::image;
use crate::place::with_folder;
use crate::sealed::seal_crc32c;

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;
const GUID: [u8; 16] = [b'L'; 16];

/// Opens a disk with this log.
///
/// # Panics
/// Where what was opened is not as promised.
pub fn run(bytes: &[u8]) {
    let mut log = bytes[..bytes.len().min(MIB)].to_vec();
    log.resize(log.len().next_multiple_of(SECTOR), 0);
    seal_entries(&mut log);
    with_folder(|folder| {
        let path = folder.join("disk.vhdx");
        write(&path, &log).expect("the folder is ours");
        let before = std::fs::read(&path).expect("it was written");
        image::open(&path);
        assert!(std::fs::read(&path).expect("it is there") == before, "the file was changed");
    });
}

fn seal_entries(log: &mut [u8]) {
    for at in (0..log.len()).step_by(SECTOR) {
        let len = u32::from_le_bytes(log[at + 8..at + 12].try_into().expect("four bytes"));
        let end = at.saturating_add(len as usize);
        if log[at..].starts_with(b"loge") && len >= 64 && end <= log.len() {
            seal_crc32c(&mut log[at..end]);
        }
    }
}

/// Writes a VHDX of 2 MiB without blocks, with `log` in its second MiB.
fn write(path: &Path, log: &[u8]) -> std::io::Result<()> {
    const HEADER: u64 = 64 << 10;
    const REGIONS: u64 = 192 << 10;
    const METADATA: u64 = 256 << 10;
    let file = File::create(path)?;
    file.set_len(3 << 20)?;
    file.write_all_at(b"vhdxfile", 0)?;
    let mut header = vec![0; SECTOR];
    header[..4].copy_from_slice(b"head");
    header[48..64].copy_from_slice(&GUID);
    header[68..72].copy_from_slice(&(1u32 << 20).to_le_bytes());
    header[72..80].copy_from_slice(&(1u64 << 20).to_le_bytes());
    seal_crc32c(&mut header);
    file.write_all_at(&header, HEADER)?;
    let mut regions = b"regi\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    regions.extend(b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e");
    regions.extend(METADATA.to_le_bytes());
    file.write_all_at(&regions, REGIONS)?;
    let items: [(&[u8; 16], u64); 3] = [
        (b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b", 1 << 20),
        (b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8", 2 << 20),
        (b"\x1d\xbf\x41\x81\x6f\xa9\x09\x47\xba\x47\xf2\x33\xa8\xfa\xab\x5f", 512),
    ];
    let mut metadata = b"metadata\0\0\x03\0".to_vec();
    metadata.resize(32, 0);
    for (at, (id, _)) in (1024u32..).step_by(8).zip(&items) {
        metadata.extend(*id);
        metadata.extend(at.to_le_bytes());
        metadata.extend([0; 12]);
    }
    metadata.resize(1024, 0);
    items.iter().for_each(|(_, value)| metadata.extend(value.to_le_bytes()));
    file.write_all_at(&metadata, METADATA)?;
    file.write_all_at(log, 1 << 20)
}
