//! BitLocker volumes on a real VM: opened by password and recovery password, listed, and taken for the
//! drives that they are.

use std::fs;
use std::path::PathBuf;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{
    bitlocker_disks, bitlocker_disks_of_other_ciphers, bitlocker_disks_with_a_startup_key, sha256,
    specimen, specimens, windows_disks,
};
use guestmnt_tests::tree::assert_same;
use xtask::disks::bitlocker::{
    Condition, PASSWORD, RECOVERY, size_of_filesystem, startup_key, volume_in,
};
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

/// A volume in `condition` in `place`, and the mount point. `None`, and a skip, where there is no NTFS.
fn volume(place: &Workplace, condition: Condition) -> Option<PathBuf> {
    specimen(Kind::Ntfs)?;
    let image = place.path().join("volume");
    fs::write(&image, volume_in(condition, &specimens()).unwrap()).unwrap();
    Some(image)
}

/// The volume in `condition` shows its files, opened with `keys`.
fn shows_its_files(condition: Condition, keys: &[&str]) {
    let place = Workplace::new();
    let Some(image) = volume(&place, condition) else { return };
    let Some((_, entries)) = specimen(Kind::Ntfs) else { return };
    let mnt = place.folder("mnt");
    for device in ["/dev/sda", "/dev/mapper/cryptsda"] {
        let disk = ["--format", "raw", "-a", text(&image), "-m", device, text(&mnt)];
        place.mount(&[keys, &disk].concat());
        assert_same(&mnt, &entries);
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt", "volume"]);
}

#[test]
fn a_volume_whose_protection_is_suspended_opens_without_a_key() {
    shows_its_files(Condition::Suspended, &[]);
}

#[test]
fn a_volume_whose_encryption_was_interrupted_is_clear_behind_that() {
    let Some((image, _)) = specimen(Kind::Ntfs) else { return };
    let middle = fs::metadata(image).unwrap().len() / 2 + 512;
    shows_its_files(Condition::UpTo(middle), &["--key", &for_all(PASSWORD)]);
    shows_its_files(Condition::UpTo(5 << 20), &["--key", &for_all(RECOVERY)]);
}

#[test]
fn a_volume_that_is_encrypted_as_it_is_written_is_read_by_its_bitmap() {
    shows_its_files(Condition::OnWrite, &["--key", &for_all(PASSWORD)]);
}

#[test]
fn a_volume_that_its_image_cuts_short_is_called_so() {
    let place = Workplace::new();
    let Some(image) = volume(&place, Condition::Encrypted) else { return };
    let end = size_of_filesystem(&specimens()).unwrap();
    let mnt = place.folder("mnt");
    let key = for_all(PASSWORD);
    // Within BitLocker's own data, and behind it.
    for (behind, what) in
        [(75 << 10, "some of its own data is beyond"), (900 << 10, "it has 34603008 bytes")]
    {
        fs::File::options().write(true).open(&image).unwrap().set_len(end + behind).unwrap();
        let disk = ["--format", "raw", "-a", text(&image), "-m", "/dev/sda", text(&mnt)];
        let finished = place.run("guestmnt", &[&["--key", &key], &disk[..]].concat());
        assert_eq!(finished.status, Some(1), "{finished:?}");
        let said = format!("cannot open /dev/sda: BitLocker's volume is cut short: {what}");
        assert!(finished.stderr.contains(&said), "{finished:?}");
        fs::write(&image, volume_in(Condition::Encrypted, &specimens()).unwrap()).unwrap();
    }
    place.assert_clean(&["mnt", "volume"]);
}
