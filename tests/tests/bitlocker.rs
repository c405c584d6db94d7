//! BitLocker volumes on a real VM: opened by password and recovery password, listed, and taken for the
//! drives that they are.

use std::fs;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{
    bitlocker_disks, bitlocker_disks_of_other_ciphers, bitlocker_disks_with_a_startup_key, sha256,
    specimen, windows_disks,
};
use guestmnt_tests::tree::assert_same;
use xtask::disks::bitlocker::{PASSWORD, RECOVERY, startup_key};
use xtask::disks::filesystems::Kind;

fn for_all(key: &str) -> String {
    format!("all:key:{key}")
}

#[test]
fn a_volume_of_windows_7_shows_its_files() {
    let Some([_, disk]) = bitlocker_disks() else { return };
    let Some((_, entries)) = specimen(Kind::Ntfs) else { return };
    let before = sha256(&disk);
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let key = for_all(PASSWORD);
    place.mount(&["--key", &key, "--format", "raw", "-a", text(&disk), "--all", text(&mnt)]);
    assert_same(&mnt.join("cryptsda"), &entries);
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
    assert_eq!(sha256(&disk), before);
}

#[test]
fn volumes_of_windows_8_and_with_longer_keys_show_their_files() {
    let Some([cbc, xts]) = bitlocker_disks_of_other_ciphers() else { return };
    let Some((_, entries)) = specimen(Kind::Ntfs) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let key = for_all(PASSWORD);
    let disks = ["--format", "raw", "-a", text(&cbc), "-a", text(&xts)];
    place.mount(&[&["--key", &key], &disks[..], &["--all", text(&mnt)]].concat());
    for disk in ["cryptsda", "cryptsdb"] {
        assert_same(&mnt.join(disk), &entries);
    }
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_startup_key_opens_the_volumes_that_it_was_made_for() {
    let Some([cbc, elephant]) = bitlocker_disks_with_a_startup_key() else { return };
    let Some((_, entries)) = specimen(Kind::Ntfs) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let file = place.path().join("startup.BEK");
    fs::write(&file, startup_key()).unwrap();
    let key = format!("all:file:{}", file.display());
    let disks = ["--format", "raw", "-a", text(&cbc), "-a", text(&elephant)];
    place.mount(&[&["--key", &key], &disks[..], &["--all", text(&mnt)]].concat());
    for disk in ["cryptsda", "cryptsdb"] {
        assert_same(&mnt.join(disk), &entries);
    }
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "startup.BEK"]);
}

#[test]
fn a_recovery_password_opens_what_is_listed_as_bitlocker() {
    let Some([disk, _]) = bitlocker_disks() else { return };
    let place = Workplace::new();
    let listing = ["filesystems", "--csv", "--no-title", "--long", "-a", text(&disk)];
    let finished = place.run("guestimg", &listing);
    assert_eq!(finished.stdout, "/dev/sda1,filesystem,BitLocker,,34603008,\n", "{finished:?}");
    let finished = place.run("guestimg", &[&listing[..], &["--key", &for_all(RECOVERY)]].concat());
    let expected = "\
/dev/sda1,filesystem,BitLocker,,34603008,
/dev/mapper/cryptsda1,filesystem,ntfs,system,34603008,
";
    assert_eq!(finished.stdout, expected, "{finished:?}");
    place.assert_clean(&[]);
}

#[test]
fn a_windows_on_bitlocker_is_mounted_as_its_owner_sees_it() {
    let Some([system, _]) = bitlocker_disks() else { return };
    let Some([_, data]) = windows_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = ["--format", "raw", "-a", text(&system), "-a", text(&data)];
    let key = format!("/dev/sda1:key:{PASSWORD}");
    let arguments = [&disks[..], &["--key", &key, "-i", text(&mnt)]].concat();
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    // Nothing of a drive that would be missing: C: is the open volume.
    let told =
        "guestmnt: /mounts/gone: Volume{4c1b02ff-d990-11dc-99ae-806e6f6e6963} is not there\n";
    assert_eq!(finished.stderr.lines().last(), Some(told.trim_end()), "{finished:?}");
    let letter = fs::read_to_string(mnt.join("Users/ann/letter.txt")).unwrap();
    assert_eq!(letter, "Dear reader\r\n");
    assert_eq!(fs::read_to_string(mnt.join("mounts/mnt4/data.txt")).unwrap(), "data\n");
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_wrong_password_is_refused_with_what_may_be_the_matter() {
    let Some([_, disk]) = bitlocker_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = ["--format", "raw", "-a", text(&disk), "-m", "/dev/sda", text(&mnt)];
    let keys = ["--key", "/dev/sda:key:wrong", "--key", "/dev/sda:key:Sesam, öffne dich"];
    let finished = place.run("guestmnt", &[&keys[..], &disk].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let expected = "\
guestmnt: cannot open /dev/sda: no key given for it fits
  hint: a password of BitLocker with letters beyond ASCII takes cryptsetup 2.8.1 in the appliance; \
the recovery password opens the volume with any
";
    assert!(finished.stderr.ends_with(expected), "{finished:?}");
    place.assert_clean(&["mnt"]);
}
