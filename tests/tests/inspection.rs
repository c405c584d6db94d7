//! Operating systems on a real VM: found by their own files, and mounted as they mount themselves.

use std::fs;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{assembled, windows_disks};
use xtask::Error;
use xtask::disks::filesystems::Kind;
use xtask::disks::ntfs::{Edit, Volume};
use xtask::disks::{mkfs, partitions};
use xtask::process::Tool;
use xtask::skips::skip;

/// An ext4 image `name` in `place` with these files, and this UUID.
fn ext4(place: &Workplace, name: &str, uuid: &str, files: &[(&str, &str)]) -> PathBuf {
    let tree = place.path().join("tree");
    for (path, content) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let image = place.path().join(name);
    mkfs::make(Kind::Ext4, &tree, &image).unwrap();
    Tool::new("tune2fs").args(["-U", uuid]).arg(&image).run().unwrap();
    fs::remove_dir_all(&tree).unwrap();
    image
}

const ROOT: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const HOME: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const SRV: &str = "aaaaaaaa-0000-4000-8000-000000000003";
const PARTITION: &str = "aaaaaaaa-0000-4000-8000-00000000000f";

/// A disk with a Linux over three partitions that misses a fourth one.
fn linux(place: &Workplace, name: &str, host_name: &str) -> PathBuf {
    let fstab = format!(
        "UUID={ROOT} / ext4 errors=remount-ro 0 1\n\
         PARTUUID={PARTITION} /home/ann/srv ext4 defaults 0 2\n\
         UUID={HOME} /home ext4 defaults 0 2\n\
         UUID=aaaaaaaa-0000-4000-8000-000000000004 /data ext4 defaults 0 2\n\
         #UUID=aaaaaaaa-0000-4000-8000-000000000005 /old ext4 defaults 0 2\n\
         LABEL=swap none swap sw 0 0\n"
    );
    let release = "PRETTY_NAME=\"Some Linux 1\"\nVERSION_ID=1\n";
    let root = ext4(
        place,
        "root",
        ROOT,
        &[
            ("etc/os-release", release),
            ("etc/hostname", host_name),
            ("etc/fstab", &fstab),
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n"),
            ("home/hidden", ""),
            ("data/here", "root\n"),
        ],
    );
    let home = ext4(place, "home", HOME, &[("ann/srv/hidden", ""), ("ann/name", "home\n")]);
    let srv = ext4(place, "srv", SRV, &[("name", "srv\n")]);
    let disk = place.path().join(name);
    partitions::gpt(&disk, &[&root, &home, &srv]).unwrap();
    Tool::new("sfdisk")
        .args(["-q", "--part-uuid"])
        .arg(&disk)
        .args(["3", PARTITION])
        .run()
        .unwrap();
    for image in [root, home, srv] {
        fs::remove_file(image).unwrap();
    }
    disk
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_linux_is_mounted_as_its_fstab_says() {
    let place = Workplace::new();
    let disk = linux(&place, "disk", "work\n");
    let mnt = place.folder("mnt");
    let finished = place.run("guestmnt", &["--format", "raw", "-a", text(&disk), "-i", text(&mnt)]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let expected = "guestmnt: /data: UUID=aaaaaaaa-0000-4000-8000-000000000004 is not there\n";
    assert!(finished.stderr.ends_with(expected), "{finished:?}");
    assert_eq!(read(mnt.join("etc/hostname")), "work\n");
    assert_eq!(read(mnt.join("home/ann/name")), "home\n");
    assert_eq!(read(mnt.join("home/ann/srv/name")), "srv\n");
    assert_eq!(read(mnt.join("data/here")), "root\n");
    assert!(!mnt.join("home/hidden").exists());
    place.unmount(&mnt);
    place.assert_clean(&["disk", "mnt"]);
}

#[test]
fn a_linux_is_described() {
    let place = Workplace::new();
    let disk = linux(&place, "disk", "work\n");
    let finished = place.run("guestimg", &["inspect", "--format", "raw", "-a", text(&disk)]);
    let expected = "\
/dev/sda1: Some Linux 1
  version      1
  host name    work
  users        root  /root
               ann   /home/ann
  mounts       /              /dev/sda1
               /home          /dev/sda2
               /home/ann/srv  /dev/sda3
  missing      /data: UUID=aaaaaaaa-0000-4000-8000-000000000004 is not there
";
    assert_eq!(finished.stdout, expected, "{finished:?}");
    place.assert_clean(&["disk"]);
}

#[test]
fn of_two_copies_of_a_system_each_is_mounted_from_its_own_disk() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = [linux(&place, "one", "one\n"), linux(&place, "two", "two\n")];
    let disks = ["--format", "raw", "-a", text(&disks[0]), "-a", text(&disks[1])];
    let finished = place.run("guestmnt", &[&disks[..], &["-i", text(&mnt)]].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let expected = "\
guestmnt: there are several operating systems
Which one is meant? --root names it:
    /dev/sda1 (Some Linux 1, one)
    /dev/sdb1 (Some Linux 1, two)
";
    assert!(finished.stderr.ends_with(expected), "{finished:?}");

    place.mount(&[&disks[..], &["-i", "--root", "/dev/sdb1", "-v", text(&mnt)]].concat());
    assert_eq!(read(mnt.join("etc/hostname")), "two\n");
    assert_eq!(read(mnt.join("home/ann/name")), "home\n");
    place.unmount(&mnt);

    let no_system = ["-i", "--root", "/dev/sda2", text(&mnt)];
    let finished = place.run("guestmnt", &[&disks[..], &no_system].concat());
    let expected = "guestmnt: there is no operating system on /dev/sda2\n";
    assert!(finished.stderr.contains(expected), "{finished:?}");
    place.assert_clean(&["one", "two", "mnt"]);
}

#[test]
fn all_filesystems_are_shown_and_what_cannot_be_is_told() {
    let Some([secret]) = assembled(["luks1.img"]) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = linux(&place, "disk", "work\n");
    let broken = place.path().join("broken");
    // An ext4 with blocks of a size that there cannot be.
    let mut image = vec![0; 1 << 20];
    image[1024 + 0x18] = 77;
    image[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
    image[1024 + 0x4c] = 1;
    image[1024 + 0x60] = 2;
    fs::write(&broken, image).unwrap();
    let disks = ["-a", text(&disk), "-a", text(&broken), "-a", text(&secret)];
    let arguments = [&["--format", "raw"], &disks[..], &["--all", text(&mnt)]].concat();
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let told = "guestmnt: /dev/sdc is encrypted; --key /dev/sdc:file:PATH opens it\n";
    assert!(finished.stderr.contains(told), "{finished:?}");
    assert!(finished.stderr.contains("guestmnt: cannot mount /dev/sdb on /sdb: "), "{finished:?}");
    assert_eq!(names(&mnt), ["sda1", "sda2", "sda3"]);
    assert_eq!(read(mnt.join("sda2/ann/name")), "home\n");
    place.unmount(&mnt);

    let arguments = ["--format", "raw", "-a", text(&broken), "-i", text(&mnt)];
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("no operating system on the disks"), "{finished:?}");
    place.assert_clean(&["broken", "disk", "mnt"]);
}

#[test]
fn a_windows_is_described_with_its_drives_and_mount_points() {
    let Some([system, data]) = windows_disks() else { return };
    let place = Workplace::new();
    let disks = ["--format", "raw", "-a", text(&system), "-a", text(&data)];
    let finished = place.run("guestimg", &[&["inspect"], &disks[..]].concat());
    let expected = "\
/dev/sda1: Windows 7 Professional
  version      6.1.7601
  host name    WORK-PC
  users        ann  C:\\Users\\ann
  drives       C:  /dev/sda1
               D:  /dev/sdb1
  mounts       /                    /dev/sda1
               /mounts/mnt4         /dev/sdb2
               /mounts/mnt4/deeper  /dev/sdb1
  missing      /mounts/gone: Volume{4c1b02ff-d990-11dc-99ae-806e6f6e6963} is not there
";
    assert_eq!(finished.stdout, expected, "{finished:?}");
    place.assert_clean(&[]);
}

/// Makes more junctions than anybody makes by hand, and has the volume that is mounted on
/// `mounts/mnt4` mounted on a directory that comes after these.
const MANY_JUNCTIONS: &str = r#"
    reparse=system.ntfs_reparse_data
    point=$(getfattr -h -n $reparse -e hex mounts/mnt4 2> /dev/null | sed -n "s/^$reparse=//p")
    junction=$(getfattr -h -n $reparse -e hex links/junction 2> /dev/null | sed -n "s/^$reparse=//p")
    mkdir many
    cd many
    mkdir $(seq 1100)
    mkdir ../mounts/later
    setfattr -n $reparse -v "$junction" $(seq 1100)
    setfattr -h -x $reparse ../mounts/mnt4
    setfattr -n $reparse -v "$point" ../mounts/later
"#;

#[test]
fn volumes_are_found_behind_a_thousand_junctions() {
    let Some([system, data]) = windows_disks() else { return };
    let place = Workplace::new();
    let (disk, volume) = (place.path().join("disk"), place.path().join("volume"));
    let mut bytes = fs::read(&system).unwrap();
    // The first partition of its MBR.
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let range = number(454) * 512..(number(454) + number(458)) * 512;
    fs::write(&volume, &bytes[range.clone()]).unwrap();
    let made = Volume::in_file(&volume).edit(&[Edit::Script(MANY_JUNCTIONS.to_owned())]);
    match made {
        Ok(()) => {}
        Err(error @ (Error::Unfit { .. } | Error::Start { .. })) => {
            return skip(&error.to_string());
        }
        Err(error) => panic!("{error}"),
    }
    bytes[range].copy_from_slice(&fs::read(&volume).unwrap());
    fs::write(&disk, bytes).unwrap();
    let disks = ["--format", "raw", "-a", text(&disk), "-a", text(&data)];
    let finished = place.run("guestimg", &[&["inspect"], &disks[..]].concat());
    let expected = "\
  mounts       /                     /dev/sda1
               /mounts/later         /dev/sdb2
               /mounts/later/deeper  /dev/sdb1
  missing      /mounts/gone: Volume{4c1b02ff-d990-11dc-99ae-806e6f6e6963} is not there
";
    assert!(finished.stdout.ends_with(expected), "{finished:?}");
    place.assert_clean(&["disk", "volume"]);
}

#[test]
fn a_windows_is_mounted_with_its_volumes_in_their_folders() {
    let Some([system, data]) = windows_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = ["--format", "raw", "-a", text(&system), "-a", text(&data)];
    for way in [&[][..], &["--through-guest"]] {
        let finished = place.run("guestmnt", &[&disks[..], way, &["-i", text(&mnt)]].concat());
        assert_eq!(finished.status, Some(0), "{finished:?}");
        assert!(finished.stderr.contains("/mounts/gone: Volume{4c1b02ff"), "{finished:?}");
        assert_eq!(read(mnt.join("Users/ann/letter.txt")), "Dear reader\r\n");
        // Listed before it is entered, and entered without being listed.
        let listed: Vec<(String, bool)> = fs::read_dir(mnt.join("mounts"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let is_folder = entry.metadata().unwrap().is_dir();
                (entry.file_name().into_string().unwrap(), is_folder)
            })
            .collect();
        assert!(listed.contains(&("mnt4".to_owned(), true)), "{listed:?}");
        assert_eq!(read(mnt.join("mounts/mnt4/data.txt")), "data\n");
        assert_eq!(read(mnt.join("mounts/mnt4/deeper/d.txt")), "drive D\n");
        assert_eq!(names(&mnt.join("mounts/mnt4")), ["data.txt", "deeper"]);
        place.unmount(&mnt);
    }

    // Named by hand, as well.
    let mounts = ["-m", "/dev/sda1", "-m", "/dev/sdb2:/mounts/mnt4", text(&mnt)];
    place.mount(&[&disks[..], &mounts].concat());
    assert_eq!(read(mnt.join("mounts/mnt4/data.txt")), "data\n");
    assert!(fs::read_dir(mnt.join("mounts/mnt4/deeper")).is_err());
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}
