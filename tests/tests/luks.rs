//! LUKS volumes with the parameters that distributions use, on a real VM: opened with their key, and a
//! wrong one refused as such.

use std::fs;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::tree::assert_same;
use xtask::disks::filesystems::Kind;
use xtask::disks::{luks, sparse};
use xtask::process::Tool;

const PASSPHRASE: &str = "correct horse";

/// A volume in `place` with the ext4 specimen in it. `None`, and a skip, where there is no specimen.
fn volume(place: &Workplace, options: &[&str]) -> Option<PathBuf> {
    let (filesystem, _) = specimen(Kind::Ext4)?;
    let image = place.path().join("volume");
    luks::make(&image, &fs::read(filesystem).unwrap(), PASSPHRASE, options).unwrap();
    Some(image)
}

/// The arguments to mount the volume `image`.
fn arguments<'a>(image: &'a Path, mnt: &'a Path) -> [&'a str; 7] {
    ["--format", "raw", "-a", text(image), "-m", "/dev/sda", text(mnt)]
}

fn opens(options: &[&str]) {
    let place = Workplace::new();
    let Some(image) = volume(&place, options) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let mnt = place.folder("mnt");
    let key = format!("/dev/sda:key:{PASSPHRASE}");
    place.mount(&[&["--key", &key], &arguments(&image, &mnt)[..]].concat());
    assert_same(&mnt, &entries);
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "volume"]);
}

/// The memory and threads of cryptsetup's default. How often it goes through that memory depends on the
/// machine that makes the volume; the least is enough here, where QEMU emulates the processor.
#[test]
fn the_default_of_installers_opens() {
    opens(&[
        "--type=luks2",
        "--pbkdf=argon2id",
        "--pbkdf-memory=1048576",
        "--pbkdf-parallel=4",
        "--pbkdf-force-iterations=4",
    ]);
}

#[test]
fn argon2_with_one_lane_opens() {
    opens(&[
        "--type=luks2",
        "--pbkdf=argon2id",
        "--pbkdf-memory=65536",
        "--pbkdf-parallel=1",
        "--pbkdf-force-iterations=4",
    ]);
}

#[test]
fn argon2i_with_several_lanes_opens() {
    opens(&[
        "--type=luks2",
        "--pbkdf=argon2i",
        "--pbkdf-memory=65536",
        "--pbkdf-parallel=3",
        "--pbkdf-force-iterations=4",
    ]);
}

#[test]
fn a_hash_that_only_the_legacy_provider_has_opens() {
    opens(&["--type=luks1", "--hash=whirlpool", "--pbkdf-force-iterations=1000"]);
}

#[test]
fn a_wrong_key_is_called_wrong() {
    let place = Workplace::new();
    let options = [
        "--type=luks2",
        "--pbkdf-memory=65536",
        "--pbkdf-parallel=4",
        "--pbkdf-force-iterations=4",
    ];
    let Some(image) = volume(&place, &options) else { return };
    let mnt = place.folder("mnt");
    let key = ["--key", "/dev/sda:key:wrong"];
    let finished = place.run("guestmnt", &[&key, &arguments(&image, &mnt)[..]].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let expected = "guestmnt: cannot open /dev/sda: no key given for it fits\n";
    assert!(finished.stderr.contains(expected), "{finished:?}");
    place.assert_clean(&["mnt", "volume"]);
}

#[test]
fn a_detached_header_is_called_so() {
    let place = Workplace::new();
    let (header, data) = (place.path().join("header"), place.path().join("data"));
    sparse::create(&header, 20 << 20).unwrap();
    sparse::create(&data, 1 << 20).unwrap();
    let passphrase = place.path().join("passphrase");
    fs::write(&passphrase, PASSPHRASE).unwrap();
    Tool::new("cryptsetup")
        .args(["luksFormat", "--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000"])
        .args([Path::new("--header"), &header, &data, &passphrase])
        .run()
        .unwrap();
    let mnt = place.folder("mnt");
    let key = format!("/dev/sda:key:{PASSPHRASE}");
    let finished =
        place.run("guestmnt", &[&["--key", &key], &arguments(&header, &mnt)[..]].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let expected = "cannot open /dev/sda: it is a detached header of LUKS, without the data that it \
                    belongs to";
    assert!(finished.stderr.contains(expected), "{finished:?}");
    place.assert_clean(&["data", "header", "mnt", "passphrase"]);
}
