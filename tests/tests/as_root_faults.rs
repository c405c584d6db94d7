//! A full disk under an overlay, which only root can bring about.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use guestmnt_tests::program::{Finished, Workplace, is_root, text};
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::tree::assert_same;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;
use xtask::disks::filesystems::Kind;
use xtask::process::Tool;
use xtask::skips::skip;

/// A small filesystem; gone when this is dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn of(folder: &'a Path, kib: u64) -> Self {
        let options = format!("size={kib}k,mode=1777");
        let kind = Some("tmpfs");
        mount(kind, folder, kind, MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(folder)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // QEMU's descriptors are gone a moment after it.
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// Mounts `image` with the overlay in `overlays`.
fn run(place: &Workplace, image: &Path, overlays: &Path, mnt: &Path) -> Finished {
    // Without a template, which root's first mount would make, and without trying KVM for that.
    let arguments = ["--no-template", "--accel", "tcg", "--format", "raw", "-a", text(image)];
    let arguments = [&arguments[..], &["-m", "/dev/sda", text(mnt)]].concat();
    let output = place.command("guestmnt", &arguments).env("TMPDIR", overlays).output().unwrap();
    let said = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (said(output.stdout), said(output.stderr));
    Finished { status: output.status.code(), stdout, stderr }
}

/// Bytes of a piece of the overlay.
const CLUSTER: u64 = 64 << 10;

/// Leaves something in the journal of the place's image that replaying would write to 40 pieces of
/// the overlay. No file has the blocks.
fn fill_journal(place: &Workplace) {
    let debugfs = || Tool::new("debugfs").within(place.path());
    let script = place.path().join("script");
    let goals = (0..40).map(|n| format!("ffb 1 {}\n", 1000 + n * 700));
    fs::write(&script, goals.collect::<String>()).unwrap();
    let found = debugfs().args(["-f", "script", "image"]).output().unwrap();
    let found = String::from_utf8(found).unwrap();
    let found = found.lines().filter_map(|line| line.strip_prefix("Free blocks found: "));
    let blocks: Vec<&str> = found.map(str::trim).collect();
    assert_eq!(blocks.len(), 40);
    fs::write(place.path().join("block"), vec![1; 40 << 10]).unwrap();
    fs::write(&script, format!("jo\njw -b {} block\njc\n", blocks.join(","))).unwrap();
    debugfs().args(["-w", "-f", "script", "image"]).run().unwrap();
}

#[test]
fn a_disk_without_room_for_an_overlay_is_named() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let (overlays, mnt) = (place.folder("overlays"), place.folder("mnt"));
    let small = Small::of(&overlays, 4);
    let finished = run(&place, &image, &overlays, &mnt);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let words = format!("cannot make the overlay in {}: No space left", overlays.display());
    assert!(finished.stderr.contains(&words), "{finished:?}");
    assert!(finished.stderr.contains("hint: $TMPDIR"), "{finished:?}");

    let out = overlays.join("out.tar");
    let tar = ["tar", "--accel", "tcg", "--format", "raw", "-a", text(&image), "-o", text(&out)];
    let finished = place.run("guestimg", &tar);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let words = format!("guestimg: cannot write {}: No space left on device\n", out.display());
    assert!(finished.stderr.contains(&words), "{finished:?}");
    drop(small);
    place.assert_clean(&["mnt", "overlays"]);
}

#[test]
fn a_journal_for_which_the_overlay_has_no_room_is_left_alone_and_the_files_are_shown() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let Some((specimen, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let (overlays, mnt) = (place.folder("overlays"), place.folder("mnt"));
    let image = place.path().join("image");
    fs::copy(specimen, &image).unwrap();
    fill_journal(&place);
    let small = Small::of(&overlays, 400);
    let finished = run(&place, &image, &overlays, &mnt);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let free = statvfs(overlays.as_path()).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    assert!(free < CLUSTER, "there was room for what the journal holds, and {free} bytes more");
    assert_same(&mnt, &entries);
    place.unmount(&mnt);
    drop(small);
    place.assert_clean(&["mnt", "overlays", "image", "block", "script"]);
}

#[test]
fn a_full_disk_of_the_host_is_the_writers_error_and_costs_nothing_that_was_written() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let (folder, mnt) = (place.folder("overlays"), place.folder("mnt"));
    let overlay = folder.join("o.qcow2");
    let small = Small::of(&folder, 24 << 10);
    let options = ["--no-template", "--accel", "tcg", "--format", "raw", "-a", text(&image)];
    let more = ["--overlay", text(&overlay), "-m", "/dev/sda", text(&mnt)];
    place.mount(&[&options[..], &more].concat());
    let write = |name: &str, mib: usize| -> std::io::Result<()> {
        let mut file = File::create(mnt.join(name))?;
        file.write_all(&vec![7; mib << 20])?;
        file.sync_all()
    };
    write("kept", 1).unwrap();
    let failed = write("big", 12).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(Errno::ENOSPC as i32));
    // It still reads, and what needs no room can be done.
    assert!(fs::read(mnt.join("kept")).unwrap() == vec![7; 1 << 20]);
    fs::remove_file(mnt.join("big")).unwrap();
    // With more room it goes on.
    let size = Some("size=64m");
    mount(Some("tmpfs"), folder.as_path(), Some("tmpfs"), MsFlags::MS_REMOUNT, size).unwrap();
    write("big", 12).unwrap();
    place.unmount(&mnt);
    place.mount(&[&options[..], &more].concat());
    assert!(fs::read(mnt.join("kept")).unwrap() == vec![7; 1 << 20]);
    assert!(fs::read(mnt.join("big")).unwrap() == vec![7; 12 << 20]);
    place.unmount(&mnt);
    drop(small);
    place.assert_clean(&["mnt", "overlays"]);
}

/// The guest has it in memory, since there was room for all of that, and cannot write it any more.
#[test]
fn what_was_synced_is_there_where_others_fill_the_disk_before_the_rest_is_written() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let (folder, mnt) = (place.folder("overlays"), place.folder("mnt"));
    let (overlay, others) = (folder.join("o.qcow2"), folder.join("of others"));
    let small = Small::of(&folder, 400 << 10);
    let options = ["--no-template", "--accel", "tcg", "--format", "raw", "-a", text(&image)];
    let more = ["--overlay", text(&overlay), "-m", "/dev/sda", text(&mnt)];
    place.mount(&[&options[..], &more].concat());
    fs::write(mnt.join("synced"), "synced").unwrap();
    File::open(mnt.join("synced")).unwrap().sync_all().unwrap();
    fs::write(mnt.join("not yet"), vec![7; 6 << 20]).unwrap();
    let free = statvfs(folder.as_path()).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    let fill = File::create(&others).unwrap();
    fallocate(&fill, FallocateFlags::empty(), 0, free.cast_signed()).unwrap();
    drop(fill);
    let unmounted = place.run("guestunmnt", &[text(&mnt)]);
    assert_eq!(unmounted.status, Some(4), "{unmounted:?}");
    assert!(unmounted.stderr.contains("cannot write / in the guest"), "{unmounted:?}");
    fs::remove_file(&others).unwrap();
    place.mount(&[&options[..], &more].concat());
    assert_eq!(fs::read_to_string(mnt.join("synced")).unwrap(), "synced");
    place.unmount(&mnt);
    drop(small);
    place.assert_clean(&["mnt", "overlays"]);
}
