//! What was brought to the disk is there, whatever dies, and whatever is full.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use guestmnt::session::record::Record;
use guestmnt_tests::chance::{Chance, rounds};
use guestmnt_tests::live::await_end;
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::disks::filesystems::Kind;
use xtask::process::Tool;

fn image(kind: Kind) -> Option<PathBuf> {
    specimen(kind).map(|(image, _)| image)
}

/// Bytes that tell the file and how often it was written.
fn bytes(file: u64, time: u64) -> Vec<u8> {
    let length = 1 + (file * 37 + time * 9973) % 60_000;
    (0..length).map(|at| ((file + time * 3 + at / 7) % 251) as u8).collect()
}

/// Writes files again and again, each brought to the disk, until something fails. Returns how often
/// each was there whole when that was said to be so.
fn write_until_the_end(folder: &Path) -> [u64; 8] {
    let mut synced = [0; 8];
    for number in 0.. {
        let file = number % 8;
        let time = number / 8 + 1;
        let write = || -> std::io::Result<()> {
            let (new, path) = (folder.join("new"), folder.join(file.to_string()));
            let mut opened = File::create(&new)?;
            opened.write_all(&bytes(file, time))?;
            opened.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(folder)?.sync_all()
        };
        if write().is_err() {
            break;
        }
        synced[usize::try_from(file).unwrap()] = time;
    }
    synced
}

/// Checks that each file is as it was when it was brought to the disk, or as it became later.
fn assert_there(folder: &Path, synced: &[u64; 8]) {
    for (file, &time) in (0..).zip(synced) {
        if time == 0 {
            continue;
        }
        let found = fs::read(folder.join(file.to_string())).unwrap();
        let later = [time, time + 1].iter().any(|&time| found == bytes(file, time));
        assert!(later, "file {file} is not as it was the {time}th time: {} bytes", found.len());
    }
}

fn survives_kills(victims: impl Fn(u32, u32) -> Vec<u32>) {
    let Some(image) = image(Kind::Ext4) else { return };
    let mut shown = OverImage::new(&image);
    let mut chance = Chance::new();
    for round in 0..rounds(1) {
        let folder = shown.path().join(format!("round{round}"));
        fs::create_dir(&folder).unwrap();
        File::open(shown.path()).unwrap().sync_all().unwrap();
        let writer = thread::spawn({
            let folder = folder.clone();
            move || write_until_the_end(&folder)
        });
        // Somewhere in the middle of it.
        thread::sleep(Duration::from_millis(300));
        chance.wait(1000);
        let server = shown.server();
        let qemu = Record::of(server).expect("it is served").qemu;
        for victim in victims(server, qemu) {
            kill(Pid::from_raw(victim.cast_signed()), Signal::SIGKILL).unwrap();
        }
        let synced = writer.join().unwrap();
        // What goes on without its VM is ended.
        let _ = kill(Pid::from_raw(server.cast_signed()), Signal::SIGTERM);
        shown.reap();
        await_end(qemu);
        let check = Tool::new("qemu-img").args(["check", "-q"]).arg(shown.overlay());
        check.args(["-r", "leaks"]).run().unwrap();
        shown.mount();
        assert_there(&folder, &synced);
    }
}

#[test]
fn what_was_synced_survives_the_end_of_qemu() {
    survives_kills(|_, qemu| vec![qemu]);
}

#[test]
fn what_was_synced_survives_the_end_of_guestmnt() {
    survives_kills(|server, _| vec![server]);
}

#[test]
fn what_was_synced_survives_the_end_of_both() {
    survives_kills(|server, qemu| vec![qemu, server]);
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
    let new = shown.path().join("new");
    let refused = fs::write(&new, "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::EROFS as i32));
    assert!(shown.said().contains("Windows is hibernated on it"), "{}", shown.said());
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
