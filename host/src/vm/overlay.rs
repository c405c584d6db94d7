//! An empty qcow2 image, as the overlay of a mount begins. Written here, since neither a
//! process nor a round trip to QEMU is worth 20 numbers.
//!
//! Source: docs/interop/qcow2.txt of QEMU, version 3.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bits of a cluster's size: 64 KiB, QEMU's default.
pub(super) const CLUSTER_BITS: u32 = 16;
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Bytes of one entry of the tables.
const ENTRY: u64 = 8;

/// Bytes of the header, up to the compression type, which is zlib.
pub(super) const HEADER_LEN: u32 = 104;

/// Bits of a reference count, as a power of two.
const REFCOUNT_ORDER: u32 = 4;

/// An empty image of at least `size` bytes, in an unnamed file of `folder`, which is gone when
/// nobody has it open.
///
/// # Errors
/// Where it cannot be written, or `size` is too large for one table of reference counts.
pub fn create(folder: &Path, size: u64) -> io::Result<File> {
    let file = tempfile::tempfile_in(folder)?;
    format(&file, size, &[])?;
    Ok(file)
}

/// Makes the empty file `file` an image of at least `size` bytes, with `extensions` of the header,
/// each padded to a multiple of eight bytes.
///
/// # Errors
/// As [`create`].
pub fn format(file: &File, size: u64, extensions: &[u8]) -> io::Result<()> {
    let size = size.next_multiple_of(512);
    // The first table has an entry for each table that maps a cluster's worth of clusters.
    let l1_entries = size.div_ceil(CLUSTER * (CLUSTER / ENTRY)).max(1);
    let l1_clusters = (l1_entries * ENTRY).div_ceil(CLUSTER);
    // The header, the table of reference counts, one block of them, the first table.
    let clusters = 3 + l1_clusters;
    let counts_per_block = (CLUSTER * 8) >> REFCOUNT_ORDER;
    let entries = u32::try_from(l1_entries).ok().filter(|_| clusters <= counts_per_block);
    let entries = entries.ok_or(io::ErrorKind::InvalidInput)?;

    let mut header = Vec::with_capacity(HEADER_LEN as usize);
    header.extend_from_slice(b"QFI\xfb");
    header.extend_from_slice(&3u32.to_be_bytes());
    header.extend_from_slice(&[0; 12]); // no backing file is named: QEMU is told the node
    header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    header.extend_from_slice(&size.to_be_bytes());
    header.extend_from_slice(&0u32.to_be_bytes()); // not encrypted
    header.extend_from_slice(&entries.to_be_bytes());
    header.extend_from_slice(&(3 * CLUSTER).to_be_bytes());
    header.extend_from_slice(&CLUSTER.to_be_bytes());
    header.extend_from_slice(&1u32.to_be_bytes()); // clusters of the table of reference counts
    header.extend_from_slice(&[0; 12]); // no snapshots
    header.extend_from_slice(&[0; 24]); // no features
    header.extend_from_slice(&REFCOUNT_ORDER.to_be_bytes());
    header.extend_from_slice(&HEADER_LEN.to_be_bytes());
    header.extend_from_slice(extensions);
    header.extend_from_slice(&[0; 8]); // no further ones

    file.write_all_at(&header, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let ones: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.write_all_at(&ones, 2 * CLUSTER)?;
    file.set_len(clusters * CLUSTER)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn qemu_img_finds_the_image_sound_and_of_the_right_size() {
        for size in [512, 513, 4 << 30, (62 << 40) + 512, 64 << 40] {
            let file = create(&std::env::temp_dir(), size).unwrap();
            let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            let run = |arguments: &[&str]| {
                let output = Command::new("qemu-img").args(arguments).arg(&path).output();
                let Ok(output) = output else { return None };
                assert!(output.status.success(), "{size}: {output:?}");
                Some(String::from_utf8(output.stdout).unwrap())
            };
            let Some(info) = run(&["info", "-f", "qcow2", "--output=json"]) else {
                println!("SKIP: qemu-img is not installed");
                return;
            };
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["virtual-size"], size.next_multiple_of(512));
            run(&["check", "-f", "qcow2"]);
        }
    }
}
