//! Links of Windows lead, inside the mount, to what they name by drive or volume: on a real VM, by both
//! drivers of NTFS.

use std::fs;
use std::path::Path;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::windows_disks;

const LETTER: &str = "Dear reader\r\n";

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn target(root: &Path, link: &str) -> String {
    let target = fs::read_link(root.join(link)).unwrap_or_else(|error| panic!("{link}: {error}"));
    target.into_os_string().into_string().unwrap()
}

/// What is on drive C: leads to what is there, if its root is `root`.
fn assert_own_lead(root: &Path) {
    for folder in ["junction", "symbolic", "rooted/ann"] {
        assert_eq!(read(root, &format!("links/{folder}/letter.txt")), LETTER, "{folder}");
    }
    for file in ["file", "relative"] {
        assert_eq!(read(root, &format!("links/{file}")), LETTER, "{file}");
    }
}

#[test]
fn links_lead_to_the_drives_and_volumes_that_a_windows_knows() {
    let Some([system, data]) = windows_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = ["--format", "raw", "-a", text(&system), "-a", text(&data)];
    let _ = place.run("guestmnt", &[&disks[..], &["-i", text(&mnt)]].concat());
    assert_own_lead(&mnt);
    assert_eq!(read(&mnt, "links/to-d/d.txt"), "drive D\n");
    assert_eq!(read(&mnt, "links/to-volume/d.txt"), "drive D\n");
    // A drive that this Windows does not know.
    assert_eq!(target(&mnt, "links/to-e"), "E:/nothing");
    // From another volume back.
    assert_eq!(read(&mnt, "mounts/mnt4/deeper/back/ann/letter.txt"), LETTER);
    assert_eq!(target(&mnt, "mounts/mnt4/deeper/back"), "../../../Users");
    place.unmount(&mnt);

    let _ = place.run("guestmnt", &[&disks[..], &["--all", text(&mnt)]].concat());
    assert_own_lead(&mnt.join("sda1"));
    assert_eq!(read(&mnt, "sda1/links/to-d/d.txt"), "drive D\n");
    assert_eq!(read(&mnt, "sda1/mounts/mnt4/data.txt"), "data\n");
    assert_eq!(read(&mnt, "sdb1/back/ann/letter.txt"), LETTER);
    let gone = target(&mnt, "sda1/mounts/gone");
    assert_eq!(gone, "Volume{4c1b02ff-d990-11dc-99ae-806e6f6e6963}/");
    place.unmount(&mnt);

    let file = "/links/to-d/D.TXT";
    let found = place.run("guestimg", &[&["cat", "-i"], &disks[..], &[file]].concat());
    assert_eq!(found.status, Some(1), "only what links name is found by any letters: {found:?}");
    let file = "/links/to-d/d.txt";
    let found = place.run("guestimg", &[&["cat", "-i"], &disks[..], &[file]].concat());
    assert_eq!(found.stdout, "drive D\n", "{found:?}");
    place.assert_clean(&["mnt"]);
}

#[test]
fn links_to_what_is_not_mounted_are_shown_as_windows_shows_them() {
    let Some([system, data]) = windows_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let data = text(&data);
    let disks = ["--format", "raw", "-a", text(&system), "-a", data];
    for device in ["/dev/sda1", "/dev/sda1:/::ntfs-3g"] {
        place.mount(&[&disks[..], &["-m", device, text(&mnt)]].concat());
        assert_own_lead(&mnt);
        assert_eq!(target(&mnt, "links/to-d"), "D:/", "{device}");
        assert_eq!(target(&mnt, "links/relative"), "../Users/ann/letter.txt", "{device}");
        // ntfs-3g shows what is stored as well: a junction by its tag.
        let stored = xattr::get(mnt.join("links/junction"), "system.ntfs_reparse_data");
        let tag = stored.ok().flatten().map(|stored| stored[..4].to_vec());
        let is_shown = device.ends_with("ntfs-3g");
        assert_eq!(tag, is_shown.then(|| 0xa000_0003_u32.to_le_bytes().to_vec()), "{device}");
        place.unmount(&mnt);

        let raw = ["-o", "symlinks=raw", "-m", device, text(&mnt)];
        place.mount(&[&disks[..], &raw].concat());
        assert_eq!(target(&mnt, "links/junction"), "\\??\\C:\\Users\\ann", "{device}");
        assert_eq!(target(&mnt, "links/rooted"), "\\Users", "{device}");
        place.unmount(&mnt);
    }
    // Nobody says what C: is.
    place.mount(&["--format", "raw", "-a", data, "-m", "/dev/sda1", text(&mnt)]);
    assert_eq!(target(&mnt, "back"), "Users");
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn links_of_windows_lead_where_files_are_written_too() {
    let Some([system, _]) = windows_disks() else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let overlay = place.path().join("overlay.qcow2");
    let how = ["--overlay", text(&overlay), "-m", "/dev/sda1", text(&mnt)];
    place.mount(&[&["--format", "raw", "-a", text(&system)], &how[..]].concat());
    assert_own_lead(&mnt);
    // In the place of a junction, whose record is still on the disk.
    fs::remove_dir(mnt.join("links/junction"))
        .or_else(|_| fs::remove_file(mnt.join("links/junction")))
        .unwrap();
    std::os::unix::fs::symlink("file", mnt.join("links/new")).unwrap();
    assert_eq!(target(&mnt, "links/new"), "file");
    assert_eq!(read(&mnt, "links/new"), LETTER);
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "overlay.qcow2"]);
}
