//! Bytes as an image in one file, of whatever format they look like. A disk that opens must be in
//! bounds, made of no file outside of the image's folder, and readable without a panic.
//!
//! The first byte chooses the file's name, which matters to some formats; the others are a file as
//! in [`crate::place`].

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use guestmnt::disk::DiskReader;
use guestmnt::image::{Disk, MAX_DISK_SIZE, MAX_LINKS, OpenOptions, SECTOR_SIZE, Source};
use guestmnt_protocol::message::Extent;

use crate::place::{with_folder, write_sparse};
use crate::sealed::seal;

const NAMES: [&str; 10] = [
    "disk.img",
    "disk.vmdk",
    "disk.qcow2",
    "disk.vdi",
    "disk.vhd",
    "disk.vhdx",
    "disk.ova",
    "disk.001",
    "disk.qed",
    "disk.hds",
];

/// Opens them, archives with the sums of their headers put right as well.
///
/// # Panics
/// Where what was opened is not as promised.
pub fn run(bytes: &[u8]) {
    let Some((&name, bytes)) = bytes.split_first() else { return };
    with_folder(|folder| {
        let path = folder.join(NAMES[usize::from(name) % NAMES.len()]);
        write_sparse(&path, bytes);
        open(&path);
        if path.extension().is_some_and(|extension| extension == "ova") {
            let mut archive = std::fs::read(&path).expect("it was written");
            seal(&mut archive);
            std::fs::write(&path, archive).expect("the folder is ours");
            open(&path);
        }
    });
}

/// Opens the disk at `path`, and reads it where this process can. An error must have words.
pub(crate) fn open(path: &Path) {
    let disk = match Disk::open(path, &OpenOptions::default()) {
        Ok(disk) => disk,
        Err(error) => {
            let said = error.to_string();
            assert!(!said.is_empty() && !said.chars().any(|c| c.is_control() && c != '\n'));
            return;
        }
    };
    assert!((1..=MAX_DISK_SIZE).contains(&disk.size) && disk.size.is_multiple_of(SECTOR_SIZE));
    assert!((1..=MAX_LINKS).contains(&disk.chain.len()));
    let folder = path.parent().expect("it is in a folder");
    for link in &disk.chain {
        match &link.source {
            Source::File(file) | Source::Part { file, .. } => assert_within(folder, file),
            Source::Described { descriptor, extents }
            | Source::Patched { descriptor, extents }
            | Source::Mapped { descriptor, extents } => {
                assert_eq!(descriptor.extents.len(), extents.len());
                extents.iter().for_each(|file| assert_within(folder, file));
            }
        }
    }
    read(&disk);
}

/// Whether a file is in the image's folder, or in memory.
fn assert_within(folder: &Path, file: &File) {
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let real = real.expect("it is open");
    assert!(real.starts_with(folder) || real.starts_with("/memfd:image (deleted)"), "{real:?}");
}

/// Reads the disk's beginning, its middle and its end. That there are errors is no finding.
fn read(disk: &Disk) {
    let Ok(Some(reader)) = DiskReader::of(disk) else { return };
    let mut buffer = vec![0; 128 << 10];
    let length = buffer.len() as u64;
    for at in [0, disk.size / 2, disk.size.saturating_sub(length), disk.size] {
        let _ = reader.read(&mut buffer, at);
    }
    assert!(reader.read(&mut buffer[..1], disk.size).is_err(), "beyond the end");
    for what in [Extent::Data, Extent::Hole] {
        if let Ok(Some(distance)) = reader.find(0, disk.size, what) {
            assert!(distance < disk.size);
        }
    }
}
