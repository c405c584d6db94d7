//! Partition tables that are damaged, or unlike those of a PC of today, and UFS, which is found by some
//! of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guestmnt_tests::images::put;
use guestmnt_tests::program::{Finished, Workplace, text};
use guestmnt_tests::specimens::specimen;
use xtask::disks::filesystems::Kind;
use xtask::disks::partitions::{SECTOR, gpt};
use xtask::process::{Tool, find_program};
use xtask::skips::skip;

/// A disk with a GPT of one ext4 in partition 1.
fn disk_with_gpt(place: &Workplace) -> Option<PathBuf> {
    let (ext4, _) = specimen(Kind::Ext4)?;
    let disk = place.path().join("disk");
    gpt(&disk, &[&ext4]).unwrap();
    Some(disk)
}

fn opened(disk: &Path) -> File {
    File::options().read(true).write(true).open(disk).unwrap()
}

fn listed(place: &Workplace, disk: &Path) -> Finished {
    place.run("guestimg", &["filesystems", "--format=raw", "-a", text(disk)])
}

/// Checks that partition 1 is listed and read, and gives what was said of the table.
fn read(place: &Workplace, disk: &Path) -> String {
    let finished = listed(place, disk);
    assert_eq!(
        (finished.status, finished.stdout.as_str()),
        (Some(0), "/dev/sda1\n"),
        "{finished:?}"
    );
    let arguments = ["ls", "--format=raw", "-a", text(disk), "-m", "/dev/sda1", "/"];
    let files = place.run("guestimg", &arguments);
    assert_eq!(files.status, Some(0), "{files:?}");
    assert!(files.stdout.contains("131073-bytes"), "{files:?}");
    finished.stderr
}

/// Type, first sector and sectors of each partition of an MBR, in the first sector.
fn write_mbr(disk: &File, rows: &[(u8, u64, u64)]) {
    let mut record = [0; 512];
    for (row, &(kind, start, count)) in record[446..].chunks_exact_mut(16).zip(rows) {
        row[4] = kind;
        put(row, 8, start, 4);
        put(row, 12, count, 4);
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&record, 0).unwrap();
}

#[test]
fn an_image_that_lacks_its_end_has_its_partitions() {
    let place = Workplace::new();
    let Some(disk) = disk_with_gpt(&place) else { return };
    let file = opened(&disk);
    file.set_len(file.metadata().unwrap().len() - 100 * SECTOR).unwrap();
    let said = read(&place, &disk);
    assert!(
        said.contains("/dev/sda: its GPT is of a larger disk; 51200 bytes are missing"),
        "{said}"
    );
    place.assert_clean(&["disk"]);
}

#[test]
fn the_copy_of_a_gpt_is_used_unless_it_is_damaged_as_well() {
    let place = Workplace::new();
    let Some(disk) = disk_with_gpt(&place) else { return };
    let file = opened(&disk);
    file.write_all_at(&[0; 4], SECTOR + 16).unwrap();
    let said = read(&place, &disk);
    assert!(said.contains("its copy at the end is used"), "{said}");

    file.write_all_at(&[0; 512], file.metadata().unwrap().len() - SECTOR).unwrap();
    let finished = listed(&place, &disk);
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    let said = &finished.stderr;
    assert!(
        said.contains("/dev/sda: its GPT is damaged (the header has a wrong checksum)"),
        "{said}"
    );
    assert!(said.contains("hint: ") && said.contains("no partition of /dev/sda"), "{said}");
    place.assert_clean(&["disk"]);
}

#[test]
fn partitions_of_an_mbr_beside_an_empty_gpt_are_found() {
    let place = Workplace::new();
    let Some((ext4, _)) = specimen(Kind::Ext4) else { return };
    let disk = place.path().join("disk");
    gpt(&disk, &[]).unwrap();
    let image = fs::read(&ext4).unwrap();
    let file = opened(&disk);
    let (start, count) = (4096, image.len() as u64 / SECTOR);
    file.write_all_at(&image, start * SECTOR).unwrap();
    // The GPT's own copy stays where it was, as after a disk was made larger.
    write_mbr(&file, &[(0x83, start, count), (0, 0, 0), (0xee, 1, 2047)]);
    read(&place, &disk);
    place.assert_clean(&["disk"]);
}

#[test]
fn an_mbr_without_a_partition_in_the_image_is_no_empty_list() {
    let place = Workplace::new();
    let disk = place.path().join("disk");
    let file = File::create_new(&disk).unwrap();
    file.set_len(1 << 20).unwrap();
    write_mbr(&file, &[(0x83, 2048, 2048)]);
    let finished = listed(&place, &disk);
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    assert!(finished.stderr.contains("partition 1 is not in the image"), "{finished:?}");
    // A table that is as empty as its disk is none of this.
    write_mbr(&file, &[]);
    let finished = listed(&place, &disk);
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(0), ""), "{finished:?}");
    place.assert_clean(&["disk"]);
}

/// CRC-32 as a GPT has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

#[test]
fn sectors_of_4096_bytes_are_recognized() {
    const LARGE: u64 = 4096;
    let place = Workplace::new();
    let Some((ext4, _)) = specimen(Kind::Ext4) else { return };
    let disk = place.path().join("disk");
    let image = fs::read(&ext4).unwrap();
    let file = File::options().read(true).write(true).create_new(true).open(&disk).unwrap();
    let (start, count) = (256, (image.len() as u64).div_ceil(LARGE));
    let last = start + count + 256;
    file.set_len((last + 1) * LARGE).unwrap();
    write_mbr(&file, &[(0xee, 1, last)]);
    let mut entries = vec![0; 128 * 128];
    entries[..32].fill(7);
    put(&mut entries, 32, start, 8);
    put(&mut entries, 40, start + count - 1, 8);
    let mut header = vec![0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    let fields = [(8, 0x1_0000, 4), (12, 92, 4), (24, 1, 8), (32, last, 8), (40, 6, 8)];
    let more = [(48, last - 5, 8), (72, 2, 8), (80, 128, 4), (84, 128, 4)];
    for (at, value, width) in fields.into_iter().chain(more) {
        put(&mut header, at, value, width);
    }
    put(&mut header, 88, crc32(&entries).into(), 4);
    let checksum = crc32(&header);
    put(&mut header, 16, checksum.into(), 4);
    file.write_all_at(&header, LARGE).unwrap();
    file.write_all_at(&entries, 2 * LARGE).unwrap();
    file.write_all_at(&image, start * LARGE).unwrap();
    read(&place, &disk);
    place.assert_clean(&["disk"]);
}

/// An image of UFS1 as FreeBSD makes it, of 4 MiB, with a file.
fn ufs(place: &Workplace) -> Option<Vec<u8>> {
    if find_program("makefs").is_none() {
        skip("there is no makefs");
        return None;
    }
    let folder = place.folder("tree");
    fs::write(folder.join("hello.txt"), "hello\n").unwrap();
    let image = place.path().join("ufs");
    let options = ["-t", "ffs", "-o", "version=1", "-s", "4m"];
    Tool::new("makefs").args(options).arg(&image).arg(&folder).run().unwrap();
    fs::remove_dir_all(folder).unwrap();
    let bytes = fs::read(&image).unwrap();
    fs::remove_file(image).unwrap();
    Some(bytes)
}

/// A disklabel of BSD with these partitions: sectors, first sector, type.
fn disklabel(rows: &[(u64, u64, u64)]) -> Vec<u8> {
    let mut label = vec![0; 148 + 16 * rows.len()];
    for (at, value, width) in
        [(0, 0x8256_4557, 4), (132, 0x8256_4557, 4), (40, SECTOR, 4), (138, rows.len() as u64, 2)]
    {
        put(&mut label, at, value, width);
    }
    for (row, (count, start, kind)) in label[148..].chunks_exact_mut(16).zip(rows) {
        put(row, 0, *count, 4);
        put(row, 4, *start, 4);
        put(row, 12, *kind, 1);
    }
    let words = label.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    let checksum = words.fold(0, |sum, word| sum ^ word);
    put(&mut label, 136, checksum.into(), 2);
    label
}

/// What is read of the file on the filesystem `device`, and the list of filesystems.
fn hello(place: &Workplace, disk: &Path, device: &str) -> (String, String) {
    let listing = listed(place, disk);
    assert_eq!(listing.status, Some(0), "{listing:?}");
    let arguments = ["cat", "--format=raw", "-a", text(disk), "-m", device, "/hello.txt"];
    let file = place.run("guestimg", &arguments);
    assert_eq!(file.status, Some(0), "{file:?}");
    (file.stdout, listing.stdout)
}

fn both(file: &str, listing: &str) -> (String, String) {
    (file.to_owned(), listing.to_owned())
}

#[test]
fn ufs_is_read_without_a_word_on_its_variant_alone_and_by_disklabels() {
    let place = Workplace::new();
    let Some(image) = ufs(&place) else { return };
    let sectors = image.len() as u64 / SECTOR;
    let disk = place.path().join("disk");
    fs::write(&disk, &image).unwrap();
    assert_eq!(hello(&place, &disk, "/dev/sda"), both("hello\n", "/dev/sda\n"));

    // On the whole disk: the first partition begins with the label.
    let file = opened(&disk);
    file.set_len((sectors + 2048) * SECTOR).unwrap();
    let rows = [(sectors, 0, 7), (2048, sectors, 1), (sectors + 2048, 0, 0)];
    file.write_all_at(&disklabel(&rows), SECTOR).unwrap();
    assert_eq!(hello(&place, &disk, "/dev/sda1"), both("hello\n", "/dev/sda1\n"));

    // The same with the MBR that FreeBSD gives such a disk, whose partition is smaller than the disk.
    write_mbr(&file, &[(0, 0, 0), (0, 0, 0), (0, 0, 0), (0xa5, 0, 5000)]);
    assert_eq!(hello(&place, &disk, "/dev/sda1"), both("hello\n", "/dev/sda1\n"));

    // In a partition of an MBR.
    let file = File::create(&disk).unwrap();
    file.set_len((63 + sectors + 2048) * SECTOR).unwrap();
    write_mbr(&file, &[(0xa5, 63, sectors + 2048)]);
    file.write_all_at(&image, 63 * SECTOR).unwrap();
    file.write_all_at(&disklabel(&rows), 64 * SECTOR).unwrap();
    assert_eq!(hello(&place, &disk, "/dev/sda5"), both("hello\n", "/dev/sda5\n"));
    let arguments = ["filesystems", "-a", text(&disk), "--partitions", "-l", "--csv", "--no-title"];
    let table = place.run("guestimg", &[&arguments[..], &["--format=raw"]].concat());
    assert!(table.stdout.starts_with("/dev/sda1,partition,a5,"), "{table:?}");
    assert!(table.stdout.contains("/dev/sda5,partition,,"), "{table:?}");
    place.assert_clean(&["disk"]);
}

#[test]
fn a_ufs2_where_linux_does_not_look_is_explained() {
    let place = Workplace::new();
    let disk = place.path().join("disk");
    let file = File::create_new(&disk).unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&0x1954_0119_u32.to_le_bytes(), 8192 + 1372).unwrap();
    let arguments = ["ls", "--format=raw", "-a", text(&disk), "-m", "/dev/sda:/::ufs", "/"];
    let finished = place.run("guestimg", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let said = &finished.stderr;
    assert!(said.contains("a UFS2 with its superblock at byte 8192"), "{said}");
    place.assert_clean(&["disk"]);
}
