//! Exports of disks whose bytes are known, read as they are and as QEMU reads them.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use super::*;
use crate::image::{Disk, Format, OpenOptions};

/// Pieces of bytes at their places.
struct Pieces {
    size: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Source for Pieces {
    fn size(&self) -> u64 {
        self.size
    }

    fn stretches(&self) -> Result<Vec<Stretch>, Trouble> {
        let stretch =
            |(at, bytes): &(u64, Vec<u8>)| Stretch { at: *at, length: bytes.len() as u64 };
        Ok(self.pieces.iter().map(stretch).collect())
    }

    fn read(
        &self,
        stretch: Stretch,
        take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        let (at, bytes) = self.pieces.iter().find(|(at, _)| *at == stretch.at).unwrap();
        for (n, part) in bytes.chunks(100_000).enumerate() {
            take(at + n as u64 * 100_000, part)?;
        }
        Ok(())
    }
}

fn disks() -> Vec<Pieces> {
    let bytes = |length: usize, seed: usize| -> Vec<u8> {
        (0..length).map(|n| u8::try_from((n / 3 + seed) % 251).unwrap()).collect()
    };
    let mut spread: Vec<(u64, Vec<u8>)> =
        (0..13).map(|n| (n * (40 << 20) + 512 * n, bytes(70_000, 5))).collect();
    spread.push(((520 << 20) - 512, bytes(512, 9)));
    vec![
        Pieces { size: 0, pieces: vec![] },
        Pieces { size: 512, pieces: vec![(0, bytes(512, 1))] },
        Pieces { size: 64 << 20, pieces: vec![] },
        Pieces { size: 3 << 20, pieces: vec![(512, bytes((3 << 20) - 1024, 3))] },
        Pieces { size: (1 << 20) + 1536, pieces: vec![(0, vec![0; (1 << 20) + 1536])] },
        Pieces { size: 520 << 20, pieces: spread },
    ]
}

#[test]
fn plain_sectors_are_where_they_were_and_zeros_are_holes() {
    for disk in disks() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = 0;
        let done = export(&disk, &file, Form::Raw, Check::No, &mut |count| bytes += count).unwrap();
        assert_eq!(done, None);
        assert_eq!((file.metadata().unwrap().len(), bytes), (disk.size, disk.size));
        for (at, expected) in &disk.pieces {
            let mut found = vec![0; expected.len()];
            file.read_exact_at(&mut found, *at).unwrap();
            assert!(found == *expected);
        }
        let data: usize = disk.pieces.iter().map(|(_, bytes)| bytes.len() + (128 << 10)).sum();
        assert!(file.metadata().unwrap().blocks() * 512 <= data as u64);
    }
}

#[test]
fn qemu_reads_the_same_from_qcow2_as_from_raw_and_finds_it_sound() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("SKIP: qemu-img is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for disk in disks() {
        let hash = |name: &str, form| {
            let mut options = File::options();
            let file =
                options.read(true).write(true).create_new(true).open(folder.path().join(name));
            export(&disk, &file.unwrap(), form, Check::Yes, &mut |_| ()).unwrap().unwrap()
        };
        assert_eq!(hash("raw", Form::Raw), hash("qcow2", Form::Qcow2));
        let qemu_img = |arguments: &[&str]| {
            let output = Command::new("qemu-img")
                .args(arguments)
                .current_dir(folder.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{} bytes: {output:?}", disk.size);
        };
        qemu_img(&["check", "-q", "-f", "qcow2", "qcow2"]);
        qemu_img(&["compare", "-q", "-f", "raw", "-F", "qcow2", "raw", "qcow2"]);
        for name in ["raw", "qcow2"] {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
    }
}

/// A disk whose copy is damaged while the last of its pieces is being read.
struct Spoiling<'f> {
    disk: Pieces,
    copy: &'f File,
}

impl Source for Spoiling<'_> {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn stretches(&self) -> Result<Vec<Stretch>, Trouble> {
        self.disk.stretches()
    }

    fn read(
        &self,
        stretch: Stretch,
        take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        if stretch.at == 4 << 20 {
            self.copy.write_all_at(b"damage", 100)?;
        }
        self.disk.read(stretch, take)
    }
}

#[test]
fn storage_that_changes_what_was_written_is_noticed() {
    for (check, noticed) in [(Check::Yes, true), (Check::No, false)] {
        let copy = &tempfile::tempfile().unwrap();
        let pieces = [0, 2 << 20, 4 << 20].map(|at| (at, vec![7; 4096])).into();
        let source = Spoiling { disk: Pieces { size: 8 << 20, pieces }, copy };
        let done = export(&source, copy, Form::Raw, check, &mut |_| ());
        assert_eq!(matches!(done, Err(ExportError::Differs)), noticed, "{done:?}");
    }
}

#[test]
fn a_full_filesystem_is_called_that() {
    let Ok(full) = File::options().read(true).write(true).open("/dev/full") else {
        println!("SKIP: there is no /dev/full");
        return;
    };
    let disk = Pieces { size: 4096, pieces: vec![(0, vec![7; 4096])] };
    let error = export(&disk, &full, Form::Raw, Check::No, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("no space left on the host's filesystem"), "{error}");
}

#[test]
fn bytes_beyond_the_disk_are_refused() {
    let disk = Pieces { size: 1024, pieces: vec![(512, vec![7; 1024])] };
    let file = tempfile::tempfile().unwrap();
    assert!(export(&disk, &file, Form::Raw, Check::No, &mut |_| ()).is_err());
}

#[test]
fn a_raw_disk_keeps_its_length_and_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.img");
    let bytes: Vec<u8> = (0..5_000_001).map(|n| u8::try_from(n / 3 % 251).unwrap()).collect();
    std::fs::write(&path, &bytes).unwrap();
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let disk = DiskReader::of(&Disk::open(&path, &options).unwrap()).unwrap().unwrap();
    let hash = |bytes: &[u8]| {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let padded = [bytes.clone(), vec![0; 191]].concat();
    for (form, expected) in [(Form::Raw, &bytes), (Form::Qcow2, &padded)] {
        let file = tempfile::tempfile().unwrap();
        let found = export(&disk, &file, form, Check::Yes, &mut |_| ()).unwrap();
        assert_eq!(found, Some(hash(expected)), "{form:?}");
    }
}
