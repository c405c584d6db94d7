//! Installed systems that take assembling, on a real VM: mounted as they mount themselves.

use std::fs;
use std::path::PathBuf;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::linux_disks;
use xtask::disks::assembled::PASSPHRASE;

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_linux_on_subvolumes_is_described_and_mounted() {
    let Some([disk, _]) = linux_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = ["--format", "raw", "-a", text(&disk)];
    let finished = place.run("guestimg", &[&["inspect"], &disk[..]].concat());
    let expected = "\
btrfsvol:/dev/sda2/root: Some Linux 2
  host name    laptop
  users        ann  /home/ann
  mounts       /      btrfsvol:/dev/sda2/root
               /boot  /dev/sda1
               /home  btrfsvol:/dev/sda2/home
               /opt   btrfsvol:/dev/sda2/root/opt
";
    assert_eq!(finished.stdout, expected, "{finished:?}");
    place.mount(&[&disk[..], &["-i", text(&mnt)]].concat());
    assert_eq!(read(mnt.join("etc/hostname")), "laptop\n");
    assert_eq!(read(mnt.join("boot/vmlinuz")), "kernel\n");
    assert_eq!(read(mnt.join("home/ann/name")), "ann\n");
    assert_eq!(read(mnt.join("opt/name")), "opt\n");
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_linux_on_lvm_in_luks_is_mounted_with_what_its_crypttab_names() {
    let Some([_, disk]) = linux_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let key = format!("all:key:{PASSPHRASE}");
    let disk = ["--format", "raw", "-a", text(&disk)];
    place.mount(&[&disk[..], &["--key", &key, "-i", text(&mnt)]].concat());
    assert_eq!(read(mnt.join("etc/hostname")), "laptop\n");
    assert_eq!(read(mnt.join("boot/vmlinuz")), "kernel\n");
    for folder in ["home", "data"] {
        assert_eq!(read(mnt.join(folder).join("ann/name")), "ann\n");
    }
    place.unmount(&mnt);

    // With the key of one volume, what is in the other one is said to be missing.
    let key = format!("/dev/sda2:key:{PASSPHRASE}");
    let finished = place.run("guestmnt", &[&disk[..], &["--key", &key, "-i", text(&mnt)]].concat());
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("/data: "), "{finished:?}");
    assert_eq!(read(mnt.join("home/ann/name")), "ann\n");
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}
