//! What was written is there, however the mount ends, and whatever is full.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use guestmnt_tests::dirty::marked_dirty;
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::disks::filesystems::Kind;

fn image(kind: Kind) -> Option<PathBuf> {
    specimen(kind).map(|(image, _)| image)
}

/// Bytes that tell the file and how often it was written.
fn bytes(file: u64, time: u64) -> Vec<u8> {
    let length = 1 + (file * 37 + time * 9973) % 60_000;
    (0..length).map(|at| ((file + time * 3 + at / 7) % 251) as u8).collect()
}

#[test]
fn a_signal_ends_a_mount_with_all_that_was_written() {
    let Some(image) = image(Kind::Ext4) else { return };
    let mut shown = OverImage::new(&image);
    let file = shown.path().join("file");
    let mut opened = File::create(&file).unwrap();
    opened.write_all(&bytes(1, 1)).unwrap();
    // It is open, and nothing of it was brought to the disk.
    kill(Pid::from_raw(shown.server().cast_signed()), Signal::SIGTERM).unwrap();
    let status = shown.wait();
    drop(opened);
    assert!(status.success(), "{status}\n{}", shown.said());
    shown.mount();
    assert!(fs::read(&file).unwrap() == bytes(1, 1));
}

#[test]
fn a_full_filesystem_says_so_and_loses_nothing() {
    let Some(image) = image(Kind::Ext4) else { return };
    let mut shown = OverImage::new(&image);
    let kept = shown.path().join("kept");
    fs::write(&kept, bytes(2, 2)).unwrap();
    File::open(&kept).unwrap().sync_all().unwrap();
    let filled = File::create(shown.path().join("filled")).unwrap();
    let fill = |from: u64| {
        (from..from + 60).try_for_each(|mib| filled.write_all_at(&[7; 1 << 20], mib << 20))
    };
    let failed = fill(0).and_then(|()| filled.sync_all()).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(Errno::ENOSPC as i32));
    drop(filled);
    assert!(fs::read(&kept).unwrap() == bytes(2, 2));
    fs::remove_file(shown.path().join("filled")).unwrap();
    fs::write(shown.path().join("again"), "there is room").unwrap();
    shown.remount();
    assert!(fs::read(&kept).unwrap() == bytes(2, 2));
    assert_eq!(fs::read_to_string(shown.path().join("again")).unwrap(), "there is room");
}

#[test]
fn an_ntfs_that_windows_is_hibernated_on_is_not_written_to() {
    let Some(image) = image(Kind::Ntfs) else { return };
    let mut shown = OverImage::new(&image);
    fs::write(shown.path().join("hiberfil.sys"), "hibr, and all of the memory").unwrap();
    shown.remount();
    is_written_by_force_alone(shown, &["Windows is hibernated on it"]);
}

#[test]
fn an_ntfs_that_is_marked_dirty_is_not_written_to() {
    let Some(image) = image(Kind::Ntfs) else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dirty = folder.path().join("dirty");
    fs::write(&dirty, marked_dirty(fs::read(image).unwrap())).unwrap();
    let shown = OverImage::new(&dirty);
    is_written_by_force_alone(shown, &["it is dirty", "hint: chkdsk"]);
}

/// Checks that nothing is written to what is mounted, for these reasons, unless that is forced.
fn is_written_by_force_alone(mut shown: OverImage, reasons: &[&str]) {
    let new = shown.path().join("new");
    let refused = fs::write(&new, "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::EROFS as i32));
    let said = shown.said();
    assert!(reasons.iter().all(|reason| said.contains(reason)), "{said}");
    shown.unmount();
    shown.options = vec!["--force-dirty".to_owned()];
    shown.mount();
    fs::write(&new, "all the same").unwrap();
    shown.remount();
    assert_eq!(fs::read_to_string(&new).unwrap(), "all the same");
}

#[test]
fn a_filesystem_that_cannot_be_written_is_read_only_and_says_so() {
    let Some(image) = image(Kind::Squashfs) else { return };
    let shown = OverImage::new(&image);
    let refused = OpenOptions::new().append(true).create(true).open(shown.path().join("new"));
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::EROFS as i32));
    assert!(shown.said().contains("squashfs is never written to"), "{}", shown.said());
}
