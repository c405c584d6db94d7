//! `--all` on a real VM: what can be shown is shown, what cannot be is named and leaves nothing behind,
//! and the same disks give the same bytes.

use std::fs;
use std::path::PathBuf;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::tree::assert_same;
use xtask::disks::filesystems::Kind;

/// A VxFS whose blocks are smaller than its driver can do with: Linux 6.12 panics over it, see
/// `vxfs_oblock()` in fs/freevxfs/vxfs_olt.c.
fn deadly() -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    for (at, number) in [(0, 0xa501_fcf5_u32), (4, 4), (32, 512)] {
        image[1024 + at..][..4].copy_from_slice(&number.to_le_bytes());
    }
    image
}

/// What libblkid takes for an ext2 and no driver mounts.
fn broken() -> Vec<u8> {
    let mut image = vec![0; 1 << 20];
    image[1024 + 0x38..][..2].copy_from_slice(&[0x53, 0xef]);
    image[1024 + 0x4c] = 1;
    image[1024 + 0x60] = 2;
    image
}

/// `bytes` as a file in `place`.
fn disk(place: &Workplace, name: &str, bytes: &[u8]) -> PathBuf {
    let path = place.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_filesystem_that_kills_the_guest_does_not_hide_the_others() {
    let Some((image, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let deadly = disk(&place, "deadly", &deadly());
    let mnt = place.folder("mnt");
    let disks = ["--format", "raw", "-a", text(&deadly), "-a", text(&image), "--all"];
    let finished = place.run("guestmnt", &[&disks[..], &[text(&mnt)]].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let said = "guestmnt: cannot mount /dev/sda on /sda: the guest is gone; going on without it\n";
    assert!(finished.stderr.contains(said), "{finished:?}");
    let names: Vec<_> = fs::read_dir(&mnt).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["sdb"]);
    assert_same(&mnt.join("sdb"), &entries);
    place.unmount(&mnt);
    place.assert_clean(&["deadly", "mnt"]);
}

#[test]
fn a_filesystem_that_cannot_be_mounted_leaves_no_folder_and_fails_the_program() {
    let Some((image, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let broken = disk(&place, "broken", &broken());
    let (mnt, out) = (place.folder("mnt"), place.folder("out"));
    let disks = ["--format", "raw", "-a", text(&broken), "-a", text(&image), "--all"];
    let finished = place.run("guestmnt", &[&disks[..], &[text(&mnt)]].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("cannot mount /dev/sda on /sda: "), "{finished:?}");
    let names: Vec<_> = fs::read_dir(&mnt).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["sdb"]);
    assert_same(&mnt.join("sdb"), &entries);
    place.unmount(&mnt);
    place.assert_clean(&["broken", "mnt", "out"]);

    let commands: [&[&str]; 3] = [&["ls"], &["tar", "-o", "tar"], &["cp", "/", text(&out)]];
    for command in commands {
        let (name, rest) = command.split_first().unwrap();
        let finished = place.run("guestimg", &[&[*name], &disks[..], rest].concat());
        assert_eq!(finished.status, Some(1), "{name}: {finished:?}");
        assert!(!finished.stdout.contains("sda"), "{name}: {finished:?}");
    }
    assert!(!out.join("sda").exists());
}

#[test]
fn the_same_disks_give_the_same_stream() {
    let Some((ext4, _)) = specimen(Kind::Ext4) else { return };
    let Some((exfat, _)) = specimen(Kind::Exfat) else { return };
    let place = Workplace::new();
    let disks = ["--format", "raw", "-a", text(&ext4), "-a", text(&exfat), "--all"];
    let stream = |name: &str| {
        let finished = place.run("guestimg", &[&["tar", "-o", name], &disks[..]].concat());
        assert_eq!(finished.status, Some(0), "{finished:?}");
        fs::read(place.path().join(name)).unwrap()
    };
    let (one, other) = (stream("one"), stream("other"));
    assert!(one == other, "{} and {} bytes differ", one.len(), other.len());
    place.assert_clean(&["one", "other"]);
}
