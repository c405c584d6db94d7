//! `guestmnt --blocks`: disks, partitions and volumes as files, byte for byte, with their holes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use guestmnt::disk::DiskReader;
use guestmnt::image::{Disk, OpenOptions};
use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::specimens::{assembled, sha256, specimen};
use nix::unistd::{Whence, lseek};
use xtask::disks::assembled::PASSPHRASE;
use xtask::disks::filesystems::Kind;
use xtask::disks::{NEWEST, SYSTEM};
use xtask::process::Tool;

/// Names and sizes of the files in a folder.
fn files(folder: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let described = entries.map(|entry| {
        let metadata = entry.metadata().unwrap();
        assert_eq!(metadata.mode(), 0o100_444);
        (entry.file_name().into_string().unwrap(), metadata.size())
    });
    described.collect()
}

fn names(folder: &Path) -> Vec<String> {
    files(folder).into_keys().collect()
}

fn reader(image: &Path) -> DiskReader {
    let disk = Disk::open(image, &OpenOptions::default()).unwrap();
    DiskReader::of(&disk).unwrap().unwrap()
}

/// The stored stretches of a file.
fn stored(file: &File) -> Vec<(i64, i64)> {
    let mut stretches = Vec::new();
    let mut at = 0;
    while let Ok(start) = lseek(file, at, Whence::SeekData) {
        at = lseek(file, start, Whence::SeekHole).unwrap();
        stretches.push((start, at));
    }
    stretches
}

#[test]
fn a_snapshots_disk_and_partitions_are_its_sectors_and_its_holes() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let newest = disks().path(NEWEST);
    place.mount(&["--blocks", "-a", text(&newest), text(&mnt)]);
    let (sda1, sda2) = (2_718_957_568, 1_572_864_000);
    let sizes = [("sda", 4 << 30), ("sda1", sda1), ("sda2", sda2)];
    assert_eq!(files(&mnt), sizes.map(|(name, size)| (name.to_owned(), size)).into());

    let disk = reader(&newest);
    let start = 2048 * 512;
    let table = [("sda", 0, 4 << 30), ("sda1", start, sda1), ("sda2", start + sda1, sda2)];
    let (mut theirs, mut ours) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for (name, start, size) in table {
        let file = File::open(mnt.join(name)).unwrap();
        for offset in [0, 1, size / 3 + 7, size / 2, size - (1 << 20)] {
            file.read_exact_at(&mut theirs, offset).unwrap();
            disk.read(&mut ours, start + offset).unwrap();
            assert!(theirs == ours, "{name} at {offset}");
        }
        assert_eq!(file.read_at(&mut theirs, size).unwrap(), 0);
        let stretches = stored(&file);
        let sum: i64 = stretches.iter().map(|(start, end)| end - start).sum();
        assert!(sum > 0 && sum < i64::try_from(size).unwrap(), "{name}: {stretches:?}");
        // What is said to be no data is zeros.
        let hole = stretches.windows(2).map(|two| (two[0].1, two[1].0)).next().unwrap();
        let length = usize::try_from(hole.1 - hole.0).unwrap().min(1 << 20);
        file.read_exact_at(&mut theirs[..length], hole.0.unsigned_abs()).unwrap();
        assert!(theirs[..length].iter().all(|&byte| byte == 0), "{name} at {hole:?}");
    }
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_copy_of_a_whole_disk_is_that_disk_and_as_sparse() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let image = disks().path(SYSTEM);
    place.mount(&["--blocks", "-a", text(&image), text(&mnt)]);
    let copy = place.path().join("copy");
    Tool::new("cp").arg(mnt.join("sda")).arg(&copy).run().unwrap();
    place.unmount(&mnt);
    let disk = reader(&image);
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read(&mut bytes, 0).unwrap();
    assert!(fs::read(&copy).unwrap() == bytes);
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < disk.size() / 2);
    place.assert_clean(&["mnt", "copy"]);
}

#[test]
fn what_only_qemu_reads_comes_through_the_guest() {
    let Some((raw, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let image = place.path().join("disk.qcow2");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "-c"];
    Tool::new("qemu-img").args(convert).arg(&raw).arg(&image).run().unwrap();
    place.mount(&["--blocks", "-a", text(&image), text(&mnt)]);
    assert_eq!(sha256(&mnt.join("sda")), sha256(&raw));
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "disk.qcow2"]);
}

#[test]
fn volumes_are_assembled_and_encrypted_ones_opened() {
    let Some(lvm) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    let Some(luks) = assembled(["luks1.img"]) else { return };
    let Some((plain, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let images: Vec<&str> = lvm.iter().chain(&luks).flat_map(|disk| ["-a", text(disk)]).collect();
    let key = format!("/dev/sdc:key:{PASSPHRASE}");
    let options = ["--blocks", "--format", "raw", "--key", &key];
    place.mount(&[&options, &images[..], &[text(&mnt)]].concat());
    let shown = names(&mnt);
    for name in ["cryptsdc", "sda", "sdb", "sdc"] {
        assert!(shown.iter().any(|shown| shown == name), "{name}: {shown:?}");
    }
    assert!(shown.iter().any(|name| name.contains('-')), "a logical volume: {shown:?}");
    // What is in the encrypted volume begins with the filesystem that was put there.
    let length = fs::metadata(&plain).unwrap().len().min(1 << 20);
    let start = |path: &Path| {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let (inside, expected) = (start(&mnt.join("cryptsdc")), start(&plain));
    // Mounting it once may have changed its superblock, and the superblock alone.
    assert!(inside[4096..] == expected[4096..]);
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

/// 5,000,001 bytes, none of them zero: the first copy reads past the VM, and asks for the holes of the
/// last sector.
#[test]
fn a_disk_whose_last_sector_is_not_whole_is_copied() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let image = place.path().join("odd.raw");
    let mut bytes: Vec<u8> =
        (0..5_000_001u32).map(|n| (n / 3 % 251 + 1).to_le_bytes()[0]).collect();
    fs::write(&image, &bytes).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    place.mount(&["--blocks", "--format", "raw", "-a", text(&image), text(&mnt)]);
    for copy in ["first", "second"] {
        let copy = place.path().join(copy);
        Tool::new("cp").arg(mnt.join("sda")).arg(&copy).run().unwrap();
        assert!(fs::read(&copy).unwrap() == bytes, "{copy:?}");
    }
    place.unmount(&mnt);
    let arguments = ["export", "--check", "--format", "raw", "odd.raw", "out"];
    let exported = place.run("guestimg", &arguments);
    assert!(exported.stdout.contains(&sha256(&image)), "{exported:?}");
    assert_eq!(sha256(&place.path().join("out")), sha256(&image));
}
