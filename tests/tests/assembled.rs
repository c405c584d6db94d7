//! Filesystems on what has to be assembled first, on a real VM: named as people name them, compared
//! file by file, and the images unchanged.

use std::fs;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Finished, Workplace, text};
use guestmnt_tests::specimens::{assembled, sha256, specimen};
use guestmnt_tests::tree::{assert_same, assert_same_but_times};
use xtask::disks::filesystems::Kind;
use xtask::disks::specimens::MOUNTPOINTS;

/// Arguments for `disks` and what is mounted where.
fn arguments<'a>(disks: &'a [PathBuf], mounts: &[&'a str], mnt: &'a Path) -> Vec<&'a str> {
    let mut arguments = vec!["--format", "raw"];
    for disk in disks {
        arguments.extend(["-a", text(disk)]);
    }
    for mount in mounts {
        arguments.extend(["-m", mount]);
    }
    arguments.push(text(mnt));
    arguments
}

/// Mounts each of `volumes`, which hold the ext4 specimen, and compares.
fn holds_the_specimen(disks: &[PathBuf], volumes: &[&str]) {
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let before: Vec<String> = disks.iter().map(|disk| sha256(disk)).collect();
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    for volume in volumes {
        place.mount(&arguments(disks, &[volume], &mnt));
        assert_same(&mnt, &entries);
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
    assert_eq!(disks.iter().map(|disk| sha256(disk)).collect::<Vec<_>>(), before);
}

/// What `guestmnt` says where it cannot mount.
fn refusal(disks: &[PathBuf], volume: &str) -> Finished {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let finished = place.run("guestmnt", &arguments(disks, &[volume], &mnt));
    assert_eq!(finished.status, Some(1), "{finished:?}");
    place.assert_clean(&["mnt"]);
    finished
}

#[test]
fn logical_volumes_over_two_disks_are_mounted_thin_ones_too() {
    let Some(disks) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    holds_the_specimen(&disks, &["/dev/my-vg/root", "/dev/mapper/my--vg-root", "/dev/my-vg/thin"]);
}

#[test]
fn the_order_of_the_disks_is_of_no_matter() {
    let Some([a, b]) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    holds_the_specimen(&[b, a], &["/dev/my-vg/root"]);
}

#[test]
fn a_logical_volume_that_is_not_there_is_answered_with_those_that_are() {
    let Some(disks) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    let expected = "\
guestmnt: there is no /dev/my-vg/swap in the image
Did you mean to mount one of these filesystems?
    /dev/my-vg/root (ext4)
    /dev/my-vg/thin (ext4)
";
    let finished = refusal(&disks, "/dev/my-vg/swap");
    assert!(finished.stderr.ends_with(expected), "{finished:?}");
}

#[test]
fn half_a_volume_group_says_that_the_other_half_is_missing() {
    let Some([a]) = assembled(["lvm-a.img"]) else { return };
    let finished = refusal(&[a], "/dev/my-vg/root");
    let reason = "guestmnt: cannot mount /dev/my-vg/root on /: lvm cannot activate it\n";
    assert!(finished.stderr.contains(reason), "{finished:?}");
    assert!(finished.stderr.contains("missing PV"), "{finished:?}");
}

#[test]
fn copies_of_a_physical_volume_are_named() {
    let Some([a, b]) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    let place = Workplace::new();
    let copy = place.path().join("copy");
    fs::copy(&b, &copy).unwrap();
    let finished = refusal(&[a, b, copy], "/dev/my-vg/root");
    let reason = "guestmnt: cannot mount /dev/my-vg/root on /: \
                  /dev/sdb and /dev/sdc are copies of one physical volume; mount one disk at a time\n";
    assert!(finished.stderr.contains(reason), "{finished:?}");
}

#[test]
fn an_array_is_mounted_whole_and_degraded() {
    let Some([a, b]) = assembled(["raid-a.img", "raid-b.img"]) else { return };
    holds_the_specimen(&[a.clone(), b.clone()], &["/dev/md0", "/dev/md/0"]);
    holds_the_specimen(&[b], &["/dev/md0"]);
    holds_the_specimen(&[a], &["/dev/md0"]);
}

#[test]
fn a_volume_group_on_an_array_is_found() {
    let Some(disks) = assembled(["raid-lvm.img"]) else { return };
    holds_the_specimen(&disks, &["/dev/array/root"]);
    let finished = refusal(&disks, "/dev/md/data");
    let reason = "cannot mount /dev/md/data on /: is part of a volume group (LVM2_member)";
    assert!(finished.stderr.contains(reason), "{finished:?}");
}

#[test]
fn subvolumes_on_two_devices_are_mounted_where_they_belong() {
    let Some(disks) = assembled(["btrfs-a.img", "btrfs-b.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let home = place.folder("home");
    place.mount(&arguments(&disks, &["btrfsvol:/dev/sdb/@home"], &home));
    assert_same_but_times(&home, &entries);
    place.unmount(&home);

    let expected = "\
Did you mean to mount one of these filesystems?
    /dev/sda (btrfs)
    btrfsvol:/dev/sda/@ (btrfs)
    btrfsvol:/dev/sda/@home (btrfs)
    /dev/sdb (btrfs)
";
    let finished = refusal(&disks, "btrfsvol:/dev/sda/@nix");
    let reason = "cannot mount btrfsvol:/dev/sda/@nix on /: there is no such subvolume";
    assert!(finished.stderr.contains(reason), "{finished:?}");
    assert!(finished.stderr.ends_with(expected), "{finished:?}");

    place.mount(&arguments(&disks, &["/dev/sda"], &mnt));
    assert_eq!(fs::read_to_string(mnt.join("@/name")).unwrap(), "root\n");
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "home"]);
}

#[test]
fn a_btrfs_clone_is_mounted_beside_its_original() {
    let Some((image, entries)) = specimen(Kind::Btrfs) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let copy = place.path().join("copy");
    fs::copy(&image, &copy).unwrap();
    let inner = format!("/dev/sdb:/{}", MOUNTPOINTS[0]);
    place.mount(&arguments(&[image, copy], &["/dev/sda", &inner], &mnt));
    assert_same_but_times(&mnt.join(MOUNTPOINTS[0]), &entries);
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "copy"]);
}
