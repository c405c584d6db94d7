//! Windows' dynamic disks on a real VM: their volumes by the names that libguestfs gives them, compared
//! file by file, also where a disk is missing.

use std::fs;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{dynamic_disks, sha256, specimen};
use guestmnt_tests::tree::assert_same;
use xtask::disks::dynamic::{GROUP, VOLUMES};
use xtask::disks::filesystems::Kind;

fn device(volume: &str) -> String {
    format!("/dev/mapper/ldm_vol_{GROUP}_{volume}")
}

#[test]
fn volumes_on_one_disk_over_two_in_stripes_and_twice_show_their_files() {
    let Some(disks) = dynamic_disks() else { return };
    let Some((_, entries)) = specimen(Kind::Ntfs) else { return };
    let before = disks.each_ref().map(|disk| sha256(disk));
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let [a, b] = disks.each_ref().map(|disk| text(disk));
    // In which order they are given is of no matter.
    place.mount(&["--format", "raw", "-a", b, "-a", a, "--all", text(&mnt)]);
    let folder = |volume: &str| format!("ldm_vol_{}_{volume}", GROUP.replace('-', "--"));
    for volume in VOLUMES {
        assert_same(&mnt.join(folder(volume)), &entries);
    }
    // The pieces that they are made of are none by themselves.
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), VOLUMES.len());
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
    assert_eq!(disks.each_ref().map(|disk| sha256(disk)), before);
}

#[test]
fn volumes_are_listed_and_their_pieces_as_partitions() {
    let Some([a, b]) = dynamic_disks() else { return };
    let place = Workplace::new();
    let listing = ["filesystems", "--csv", "--no-title", "--long", "--filesystems", "--partitions"];
    let disks = ["--format", "raw", "-a", text(&a), "-a", text(&b)];
    let finished = place.run("guestimg", &[&listing[..], &disks].concat());
    let expected = "\
/dev/mapper/ldm_vol_WORK-PC-Dg0_Mirror1,filesystem,ntfs,ntfs,,33554432,
/dev/mapper/ldm_vol_WORK-PC-Dg0_Simple1,filesystem,ntfs,ntfs,,33554432,
/dev/mapper/ldm_vol_WORK-PC-Dg0_Spanned1,filesystem,ntfs,ntfs,,33554432,
/dev/mapper/ldm_vol_WORK-PC-Dg0_Stripe1,filesystem,ntfs,ntfs,,33554432,
/dev/sda1,partition,,,42,33554432,/dev/sda
/dev/sda2,partition,,,,20971520,/dev/sda
/dev/sda3,partition,,,,16777216,/dev/sda
/dev/sda4,partition,,,,33554432,/dev/sda
/dev/sdb1,partition,,,42,12582912,/dev/sdb
/dev/sdb2,partition,,,,16777216,/dev/sdb
/dev/sdb3,partition,,,,33554432,/dev/sdb
";
    assert_eq!(finished.stdout, expected, "{finished:?}");
    place.assert_clean(&[]);
}

#[test]
fn without_one_disk_a_mirror_is_mounted_and_what_needs_both_says_so() {
    let Some([a, _]) = dynamic_disks() else { return };
    let Some((_, entries)) = specimen(Kind::Ntfs) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = ["--format", "raw", "-a", text(&a)];
    let mount = |volume: &str| {
        let device = device(volume);
        place.run("guestmnt", &[&disk[..], &["-m", &device, text(&mnt)]].concat())
    };
    let finished = mount("Mirror1");
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let remark = "/dev/mapper/ldm_vol_WORK-PC-Dg0_Mirror1 lacks 1 of its 2 disks\n";
    assert!(finished.stderr.ends_with(remark), "{finished:?}");
    assert_same(&mnt, &entries);
    place.unmount(&mnt);

    let finished = mount("Stripe1");
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let reason = "Disk Disk2 required by striped volume Stripe1 is missing";
    assert!(finished.stderr.contains(reason), "{finished:?}");
    place.assert_clean(&["mnt"]);
}
