//! What is mounted on a real VM although something is amiss, and says so: disks that are missing, an
//! NTFS that the kernel's driver refuses.

use std::fs;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{assembled, specimen};
use guestmnt_tests::tree::{assert_same, assert_same_but_times};
use xtask::disks::filesystems::Kind;
use xtask::process::Tool;

/// Mounts `volume` of `disks`, calls `look`, and checks the last line that was said.
fn mounted_with_a_remark(disks: &[&Path], volume: &str, remark: &str, look: impl FnOnce(&Path)) {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = disks.iter().flat_map(|disk| ["-a", text(disk)]);
    let arguments: Vec<&str> =
        ["--format", "raw"].into_iter().chain(disks).chain(["-m", volume, text(&mnt)]).collect();
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert_eq!(finished.stderr.lines().last(), Some(remark), "{finished:?}");
    look(&mnt);
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_raid_5_that_lacks_a_member() {
    let Some([a, _, c]) = assembled(["raid5-a.img", "raid5-b.img", "raid5-c.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let remark = "guestmnt: /dev/md3 lacks 1 of its 3 members";
    mounted_with_a_remark(&[&a, &c], "/dev/md3", remark, |mnt| assert_same(mnt, &entries));
}

#[test]
fn a_mirrored_btrfs_that_lacks_a_device() {
    let Some([_, b]) = assembled(["btrfs-mirror-a.img", "btrfs-mirror-b.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let remark = "guestmnt: /dev/sda lacks 1 of its 2 devices";
    mounted_with_a_remark(&[&b], "/dev/sda", remark, |mnt| assert_same_but_times(mnt, &entries));
}

#[test]
fn an_ext4_whose_journal_cannot_be_replayed() {
    let Some((image, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let copy = place.path().join("image");
    fs::copy(image, &copy).unwrap();
    // Of the journal's superblock nothing is left.
    Tool::new("debugfs").args(["-w", "-R", "zap_block -f <8> 0"]).arg(&copy).run().unwrap();
    let remark = "guestmnt: /dev/sda: its journal cannot be replayed; it is shown as it was left";
    mounted_with_a_remark(&[&copy], "/dev/sda", remark, |mnt| assert_same(mnt, &entries));
}

/// A copy of `image` whose index of access rights does not say how it is sorted. ntfs3 looks at that
/// when it mounts, ntfs-3g when it needs the index.
fn with_damaged_index(image: &Path, place: &Workplace) -> PathBuf {
    let copy = place.path().join("damaged");
    let mut bytes = fs::read(image).unwrap();
    let name: Vec<u8> = "$SDH".encode_utf16().flat_map(u16::to_le_bytes).collect();
    // Name of the index, type of what is indexed, order.
    let root = [&name[..], &[0; 4], &0x12_u32.to_le_bytes()].concat();
    let at = bytes.windows(root.len()).position(|window| window == root).unwrap();
    bytes[at + root.len() - 4] = 0x77;
    fs::write(&copy, bytes).unwrap();
    copy
}

#[test]
fn an_ntfs_that_ntfs3_refuses_is_shown_by_ntfs_3g() {
    let Some((image, entries)) = specimen(Kind::Ntfs) else { return };
    let place = Workplace::new();
    let damaged = with_damaged_index(&image, &place);
    let remark = "guestmnt: /dev/sda: ntfs3 refuses it ($Secure::$SDH is corrupted); ntfs-3g shows \
                  it, which is slower";
    // It is a second off for times before 1970.
    mounted_with_a_remark(&[&damaged], "/dev/sda", remark, |mnt| {
        assert_same_but_times(mnt, &entries);
    });

    // Who names the driver means that one.
    let mnt = place.folder("mnt");
    let disk = ["--format", "raw", "-a", text(&damaged)];
    let named = ["-m", "/dev/sda:/::ntfs3", text(&mnt)];
    let finished = place.run("guestmnt", &[&disk[..], &named].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("$Secure::$SDH is corrupted"), "{finished:?}");
    place.assert_clean(&["mnt", "damaged"]);
}
