//! What the README promises, on the demo's disks, on a real VM, as an ordinary user.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::tree::assert_same;
use sha2::{Digest, Sha256};
use xtask::disks::manifest::{Entry, scan};
use xtask::disks::{NEWEST, SYSTEM};

/// What a partition of a disk holds.
fn contents(disk: &str, partition: u32) -> BTreeMap<String, Entry> {
    let manifest = disks().manifest().unwrap();
    let partitions = &manifest.disks[disk];
    partitions.iter().find(|p| p.number == partition).unwrap().entries.clone()
}

/// The sha256 of every file of the demo's disks. Other things may lie in their folder.
fn hashes() -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = ["", "Win7", "Win7Test"].map(|name| disks().folder().join(name));
    folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "vmdk"))
        .map(|path| (path.clone(), Sha256::digest(fs::read(&path).unwrap()).to_vec()))
        .collect()
}

#[test]
fn every_file_of_the_newest_snapshot_is_there_and_the_images_are_unchanged() {
    let before = hashes();
    assert_eq!(before.len(), 13, "{:?}", before.keys());
    let place = Workplace::new();
    let mnt3 = place.folder("mnt3");
    let disk = disks().path(NEWEST);
    place.mount(&["-a", text(&disk), "-m", "/dev/sda2", "--ro", text(&mnt3)]);
    assert_eq!(fs::read(mnt3.join("ufos/ufo.txt")).unwrap(), b"Ufos are not real\n");
    assert_eq!(fs::metadata(mnt3.join("ufos/xufos")).unwrap().len(), 0);
    assert_same(&mnt3, &contents(NEWEST, 2));
    place.unmount(&mnt3);
    place.assert_clean(&["mnt3"]);
    assert_eq!(hashes(), before);
}

#[test]
fn a_disk_can_be_mounted_in_a_directory_of_another() {
    let place = Workplace::new();
    let mnt2 = place.folder("mnt2");
    let (system, data) = (disks().path(SYSTEM), disks().path(NEWEST));
    let (system, data) = (text(&system), text(&data));
    // The nested one first: the order on the command line does not matter.
    let nested = "/dev/sdb2:/mounts/mnt2";
    place.mount(&["-a", system, "-a", data, "-m", nested, "-m", "/dev/sda1", "--ro", text(&mnt2)]);
    assert_same(&mnt2.join("mounts/mnt2"), &contents(NEWEST, 2));
    let mut whole = contents(SYSTEM, 1);
    for (name, entry) in contents(NEWEST, 2) {
        whole.insert(format!("mounts/mnt2/{name}"), entry);
    }
    // The directory that is mounted on shows the time of what is mounted on it.
    whole.remove("mounts/mnt2");
    let found = scan(&mnt2).unwrap();
    let names: Vec<&String> = found.keys().filter(|name| *name != "mounts/mnt2").collect();
    assert_eq!(names, whole.keys().collect::<Vec<_>>());
    place.unmount(&mnt2);
    place.assert_clean(&["mnt2"]);
}

#[test]
fn a_mountpoint_that_the_image_does_not_have_fails_with_suggestions() {
    let place = Workplace::new();
    let mnt2 = place.folder("mnt2");
    let (system, data) = (disks().path(SYSTEM), disks().path(NEWEST));
    let arguments = [
        "-a",
        text(&system),
        "-m",
        "/dev/sda1",
        "-a",
        text(&data),
        "-m",
        "/dev/sdb2:/mounts/mnt4",
        "--ro",
        text(&mnt2),
    ];
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1));
    let expected = "\
guestmnt: cannot mount /dev/sdb2 on /mounts/mnt4: no such directory in the image
Did you mean to mount one of these filesystems?
    /dev/sda1 (ntfs)
    /dev/sdb1 (ntfs)
    /dev/sdb2 (ntfs)
";
    assert_eq!(finished.stderr, expected);
    assert_eq!(finished.stdout, "");
    place.assert_clean(&["mnt2"]);
}

#[test]
fn aliases_of_devices_and_a_given_type_work() {
    let place = Workplace::new();
    let disk = disks().path(SYSTEM);
    for (n, mount) in ["/dev/vda1", "/dev/hda1:/", "/dev/sda1:/:ro:ntfs3"].into_iter().enumerate() {
        let mnt = place.folder(&format!("mnt{n}"));
        place.mount(&["-a", text(&disk), "-m", mount, text(&mnt)]);
        assert!(mnt.join("Windows").is_dir(), "{mount}");
        place.unmount(&mnt);
    }
}

#[test]
fn the_four_subformats_of_one_disk_show_one_tree() {
    let Some(folder) = unpacked("vmdk") else { return };
    let place = Workplace::new();
    let mut trees = Vec::new();
    for name in ["monolithicSparse", "streamOptimized", "twoGbMaxExtentSparse", "monolithicFlat"] {
        let mnt = place.folder(name);
        let disk = folder.path().join(format!("vmdk/{name}.vmdk"));
        place.mount(&["-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
        let tree = scan(&mnt).unwrap();
        assert!(!tree.is_empty(), "{name}");
        trees.push(
            tree.into_iter()
                .map(|(name, e)| (name, e.mtime, e.file.map(|f| f.sha256)))
                .collect::<Vec<_>>(),
        );
        place.unmount(&mnt);
    }
    assert!(trees.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn filesystems_that_others_made_hold_the_files_that_they_should() {
    let Some(folder) = unpacked("fs") else { return };
    let place = Workplace::new();
    let expected = [
        ("passwords.txt", "02a2a6af2f1ecf4720d7d49d640f0d0a269a7ec733e41973bdd34f09dad0e252"),
        ("a_directory/a_file", "4a49638d0e1055fd9e4c17fef7fdf4d6ccf892b6d9c2f64164203c4bfb0ec92d"),
        (
            "a_directory/another_file",
            "c7fbc0e821c0871805a99584c6a384533909f68a6bbe9a2a687d28d9f3b10c16",
        ),
    ];
    for name in ["ext4", "ntfs", "fat12", "xfs", "hfsplus"] {
        let mnt = place.folder(name);
        let disk = folder.path().join(format!("fs/{name}.raw"));
        place.mount(&["--format", "raw", "-a", text(&disk), "-m", "/dev/sda", text(&mnt)]);
        for (file, hash) in expected {
            let found = format!("{:x}", Hex(&Sha256::digest(fs::read(mnt.join(file)).unwrap())));
            let only_passwords = matches!(name, "xfs" | "hfsplus") && file != "passwords.txt";
            assert!(only_passwords || found == hash, "{name}: {file}");
        }
        place.unmount(&mnt);
    }
}

/// Bytes in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// An archive of `$GUESTMNT_IMAGES`, unpacked where the user can read it.
fn unpacked(name: &str) -> Option<tempfile::TempDir> {
    let archives = guestmnt_tests::program::given(xtask::test::IMAGES);
    let archive = archives.join(format!("{name}.tar.xz"));
    if !archive.exists() {
        xtask::skips::skip("no images that others made ($GUESTMNT_IMAGES)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.arg("-xJf").arg(archive).arg("-C").arg(folder.path());
    assert!(tar.status().unwrap().success());
    Some(folder)
}
