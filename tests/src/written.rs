//! Something that is written to a mount, and found again in another one.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::program::{Workplace, text};

/// What is written to a file: more than what fits into the filesystem's own records.
fn bytes() -> Vec<u8> {
    (0..3_000_001u32).map(|n| (n / 3 % 251) as u8).collect()
}

fn mount(place: &Workplace, disks: &[&str], how: &[&str], mnt: &Path) {
    place.mount(&[disks, how, &["-m", "/dev/sda", "-o", "symlinks=raw", text(mnt)]].concat());
}

/// Mounts the filesystem that is the whole of the first disk in `disks` with `--rw`, and writes.
///
/// # Panics
/// Where any of it fails.
pub fn write_to(place: &Workplace, disks: &[&str]) {
    write(place, disks, &["--rw"]);
}

/// As [`write_to`], with an overlay for the last of `disks`.
///
/// # Panics
/// Where any of it fails.
pub fn write_to_overlay(place: &Workplace, disks: &[&str], overlay: &str) {
    write(place, disks, &["--overlay", overlay]);
}

fn write(place: &Workplace, disks: &[&str], how: &[&str]) {
    let mnt = place.path().join("mnt");
    mount(place, disks, how, &mnt);
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(mnt.join("written/below"))?;
        fs::write(mnt.join("written/below/file"), bytes())?;
        fs::write(mnt.join("written/gone"), "gone")?;
        fs::remove_file(mnt.join("written/gone"))?;
        symlink("below/file", mnt.join("written/link"))?;
        File::open(mnt.join("written/below/file"))?.sync_all()
    };
    let written = write();
    place.unmount(&mnt);
    written.expect("the files can be written");
}

/// Mounts `disks` read-only, and looks for what [`write_to`] wrote.
///
/// # Panics
/// Where something else is there.
pub fn assert_written(place: &Workplace, disks: &[&str]) {
    let mnt = place.path().join("mnt");
    mount(place, disks, &["--ro"], &mnt);
    let found = fs::read(mnt.join("written/link"));
    let names = fs::read_dir(mnt.join("written")).map(Iterator::count);
    place.unmount(&mnt);
    assert!(found.expect("the file is there") == bytes(), "{disks:?}: the file is another");
    assert_eq!(names.expect("the folder is there"), 2, "{disks:?}");
}
