//! Filesystems on what has to be assembled first, on a real VM: named as people name them, compared
//! file by file, and the images unchanged.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use guestmnt_tests::program::{Finished, Workplace, text};
use guestmnt_tests::specimens::{assembled, sha256, specimen};
use guestmnt_tests::tree::{assert_same, assert_same_but_times};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use xtask::disks::assembled::PASSPHRASE;
use xtask::disks::filesystems::Kind;
use xtask::disks::sparse;
use xtask::disks::specimens::MOUNTPOINTS;

/// Arguments for `disks` and what is mounted where.
fn arguments<'a>(disks: &'a [PathBuf], mounts: &[&'a str], mnt: &'a Path) -> Vec<&'a str> {
    let mut arguments = vec!["--format", "raw"];
    for disk in disks {
        arguments.extend(["-a", text(disk)]);
    }
    for mount in mounts {
        arguments.extend(["-m", mount]);
    }
    arguments.push(text(mnt));
    arguments
}

/// Mounts each of `volumes`, which hold the ext4 specimen, and compares.
fn holds_the_specimen(disks: &[PathBuf], volumes: &[&str]) {
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let before: Vec<String> = disks.iter().map(|disk| sha256(disk)).collect();
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    for volume in volumes {
        place.mount(&arguments(disks, &[volume], &mnt));
        assert_same(&mnt, &entries);
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
    assert_eq!(disks.iter().map(|disk| sha256(disk)).collect::<Vec<_>>(), before);
}

/// What `guestmnt` says where it cannot mount.
fn refusal(disks: &[PathBuf], volume: &str) -> Finished {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let finished = place.run("guestmnt", &arguments(disks, &[volume], &mnt));
    assert_eq!(finished.status, Some(1), "{finished:?}");
    place.assert_clean(&["mnt"]);
    finished
}

#[test]
fn logical_volumes_over_two_disks_are_mounted_thin_ones_too() {
    let Some(disks) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    holds_the_specimen(&disks, &["/dev/my-vg/root", "/dev/mapper/my--vg-root", "/dev/my-vg/thin"]);
}

#[test]
fn the_order_of_the_disks_is_of_no_matter() {
    let Some([a, b]) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    holds_the_specimen(&[b, a], &["/dev/my-vg/root"]);
}

#[test]
fn a_logical_volume_that_is_not_there_is_answered_with_those_that_are() {
    let Some(disks) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    let expected = "\
guestmnt: there is no /dev/my-vg/swap in the image
Did you mean to mount one of these filesystems?
    /dev/my-vg/root (ext4)
    /dev/my-vg/thin (ext4)
";
    let finished = refusal(&disks, "/dev/my-vg/swap");
    assert!(finished.stderr.ends_with(expected), "{finished:?}");
}

#[test]
fn half_a_volume_group_says_that_the_other_half_is_missing() {
    let Some([a]) = assembled(["lvm-a.img"]) else { return };
    let finished = refusal(&[a], "/dev/my-vg/root");
    let reason = "guestmnt: cannot mount /dev/my-vg/root on /: lvm cannot activate it\n";
    assert!(finished.stderr.contains(reason), "{finished:?}");
    assert!(finished.stderr.contains("missing PV"), "{finished:?}");
}

#[test]
fn copies_of_a_physical_volume_are_named() {
    let Some([a, b]) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    let place = Workplace::new();
    let copy = place.path().join("copy");
    fs::copy(&b, &copy).unwrap();
    let finished = refusal(&[a, b, copy], "/dev/my-vg/root");
    let reason = "guestmnt: cannot mount /dev/my-vg/root on /: \
                  /dev/sdb and /dev/sdc are copies of one physical volume; mount one disk at a time\n";
    assert!(finished.stderr.contains(reason), "{finished:?}");
}

#[test]
fn an_array_is_mounted_whole_and_degraded() {
    let Some([a, b]) = assembled(["raid-a.img", "raid-b.img"]) else { return };
    holds_the_specimen(&[a.clone(), b.clone()], &["/dev/md0", "/dev/md/0"]);
    holds_the_specimen(&[b], &["/dev/md0"]);
    holds_the_specimen(&[a], &["/dev/md0"]);
}

#[test]
fn a_volume_group_on_an_array_is_found() {
    let Some(disks) = assembled(["raid-lvm.img"]) else { return };
    holds_the_specimen(&disks, &["/dev/array/root"]);
    let finished = refusal(&disks, "/dev/md/data");
    let reason = "cannot mount /dev/md/data on /: is part of a volume group (LVM2_member)";
    assert!(finished.stderr.contains(reason), "{finished:?}");
}

#[test]
fn subvolumes_on_two_devices_are_mounted_where_they_belong() {
    let Some(disks) = assembled(["btrfs-a.img", "btrfs-b.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let home = place.folder("home");
    place.mount(&arguments(&disks, &["btrfsvol:/dev/sdb/@home"], &home));
    assert_same_but_times(&home, &entries);
    place.unmount(&home);

    let expected = "\
Did you mean to mount one of these filesystems?
    /dev/sda (btrfs)
    btrfsvol:/dev/sda/@ (btrfs)
    btrfsvol:/dev/sda/@home (btrfs)
    /dev/sdb (btrfs)
";
    let finished = refusal(&disks, "btrfsvol:/dev/sda/@nix");
    let reason = "cannot mount btrfsvol:/dev/sda/@nix on /: there is no such subvolume";
    assert!(finished.stderr.contains(reason), "{finished:?}");
    assert!(finished.stderr.ends_with(expected), "{finished:?}");

    place.mount(&arguments(&disks, &["/dev/sda"], &mnt));
    assert_eq!(fs::read_to_string(mnt.join("@/name")).unwrap(), "root\n");
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "home"]);
}

#[test]
fn a_btrfs_clone_is_mounted_beside_its_original() {
    let Some((image, entries)) = specimen(Kind::Btrfs) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let copy = place.path().join("copy");
    fs::copy(&image, &copy).unwrap();
    let inner = format!("/dev/sdb:/{}", MOUNTPOINTS[0]);
    place.mount(&arguments(&[image, copy], &["/dev/sda", &inner], &mnt));
    assert_same_but_times(&mnt.join(MOUNTPOINTS[0]), &entries);
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "copy"]);
}

#[test]
fn an_xfs_clone_is_mounted_beside_its_original() {
    let Some((image, entries)) = specimen(Kind::Xfs) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let copy = place.path().join("copy");
    sparse::copy(&image, &copy).unwrap();
    let inner = format!("/dev/sdb:/{}", MOUNTPOINTS[0]);
    place.mount(&arguments(&[image, copy], &["/dev/sda", &inner], &mnt));
    assert_same_but_times(&mnt.join(MOUNTPOINTS[0]), &entries);
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "copy"]);
}

#[test]
fn encrypted_volumes_are_opened_with_their_keys() {
    let Some(disks) = assembled(["luks1.img", "luks2.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let file = place.path().join("key");
    fs::write(&file, format!("{PASSPHRASE}\n")).unwrap();
    let by_file = format!("/dev/sdb:file:{}", file.display());
    let for_all = format!("all:key:{PASSPHRASE}");
    let table: [(&[&str], &str); 4] = [
        (&["--key", &for_all], "/dev/sda"),
        (&["--key", &for_all], "/dev/mapper/cryptsda"),
        (&["--key", "all:key:wrong", "--key", &by_file], "/dev/secret/root"),
        (&["--key", "/dev/sda:key:wrong", "--key", &for_all], "/dev/sda"),
    ];
    for (keys, volume) in table {
        place.mount(&[keys, &arguments(&disks, &[volume], &mnt)].concat());
        assert_same(&mnt, &entries);
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt", "key"]);
}

#[test]
fn keys_are_read_from_standard_input() {
    let Some(disks) = assembled(["luks1.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let arguments = [&["--keys-from-stdin"], &arguments(&disks, &["/dev/sda"], &mnt)[..]].concat();
    let mut command = place.command("guestmnt", &arguments);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let lines = format!("wrong\n{PASSPHRASE}\n");
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_same(&mnt, &entries);
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_key_is_asked_for_on_a_terminal_that_does_not_show_it() {
    let Some(disks) = assembled(["luks1.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let pty = openpty(None, None).unwrap();
    let mut command = place.command("guestmnt", &arguments(&disks, &["/dev/sda"], &mnt));
    let terminal = pty.slave.try_clone().unwrap();
    let mut child = command.stdin(terminal).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    let (mut said, mut typing) = (child.stderr.take().unwrap(), fs::File::from(pty.master));
    let mut wait_for = |text: &str| read_until(&mut said, text);
    wait_for("guestmnt: key of /dev/sda: ");
    typing.write_all(b"wrong\n").unwrap();
    wait_for("guestmnt: the key does not open /dev/sda\nguestmnt: key of /dev/sda: ");
    typing.write_all(format!("{PASSPHRASE}\n").as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_same(&mnt, &entries);
    place.unmount(&mnt);
    // Nothing of it was echoed, and the terminal shows again what is typed.
    let modes = tcgetattr(&pty.slave).unwrap();
    assert!(modes.local_flags.contains(LocalFlags::ECHO));
    tcsetattr(&pty.slave, SetArg::TCSANOW, &modes).unwrap();
    typing.write_all(b"end").unwrap();
    let mut echoed = [0; 64];
    let count = typing.read(&mut echoed).unwrap();
    assert_eq!(&echoed[..count], b"end");
    place.assert_clean(&["mnt"]);
}

#[test]
fn volume_groups_of_one_name_are_told_and_each_is_mounted_by_itself() {
    let Some(disks) = assembled(["namesake-a.img", "namesake-b.img"]) else { return };
    let finished = refusal(&disks, "/dev/system/root");
    let reason = "cannot mount /dev/system/root on /: several volume groups are called system; \
                  mount one disk at a time";
    assert!(finished.stderr.contains(reason), "{finished:?}");
    for disk in disks {
        holds_the_specimen(&[disk], &["/dev/system/root"]);
    }
}

/// Where the superblock of an array says how far its members are in step: to the end, once it was
/// stopped. Source: `resync_offset` in include/uapi/linux/raid/md_p.h.
const IN_STEP: u64 = 4096 + 208;

#[test]
fn an_array_that_was_written_to_is_stopped() {
    let Some(originals) = assembled(["raid-a.img", "raid-b.img", "raid-lvm.img"]) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = ["a", "b", "lvm"].map(|name| place.path().join(name));
    for (original, disk) in originals.iter().zip(&disks) {
        sparse::copy(original, disk).unwrap();
    }
    for volume in ["/dev/md0", "/dev/array/root"] {
        place.mount(&[&["--rw"], &arguments(&disks, &[volume], &mnt)[..]].concat());
        fs::write(mnt.join("new"), volume).unwrap();
        place.unmount(&mnt);
    }
    for disk in &disks {
        let mut end = [0; 8];
        fs::File::open(disk).unwrap().read_exact_at(&mut end, IN_STEP).unwrap();
        assert_eq!(u64::from_le_bytes(end), u64::MAX, "{}", disk.display());
    }
    place.mount(&arguments(&disks, &["/dev/array/root"], &mnt));
    assert_eq!(fs::read_to_string(mnt.join("new")).unwrap(), "/dev/array/root");
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "a", "b", "lvm"]);
}

/// Reads `said` until it ends in `text`.
fn read_until(said: &mut impl Read, text: &str) {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).ends_with(text) {
        let mut byte = [0];
        assert_eq!(said.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&read));
        read.push(byte[0]);
    }
}

#[test]
fn keys_of_all_volumes_are_asked_for_and_nothing_leaves_one_closed() {
    let Some(disks) = assembled(["luks1.img", "luks2.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let pty = openpty(None, None).unwrap();
    let disks = ["-a", text(&disks[0]), "-a", text(&disks[1])];
    for (selection, status) in [("-i", 1), ("--all", 0)] {
        let arguments = [&["--format", "raw"], &disks[..], &[selection, text(&mnt)]].concat();
        let mut command = place.command("guestmnt", &arguments);
        let terminal = pty.slave.try_clone().unwrap();
        let mut child = command.stdin(terminal).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        let mut said = child.stderr.take().unwrap();
        let mut typing = fs::File::from(pty.master.try_clone().unwrap());
        read_until(&mut said, "guestmnt: key of /dev/sda, or nothing to leave it closed: ");
        typing.write_all(b"\n").unwrap();
        read_until(&mut said, "guestmnt: key of /dev/sdb, or nothing to leave it closed: ");
        typing.write_all(format!("{PASSPHRASE}\n").as_bytes()).unwrap();
        read_until(&mut said, "guestmnt: /dev/sda is encrypted; --key /dev/sda:file:PATH opens it");
        if status == 1 {
            read_until(&mut said, "guestmnt: there is no operating system on the disks");
        }
        assert_eq!(child.wait().unwrap().code(), Some(status));
    }
    assert_same(&mnt.join("secret-root"), &entries);
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_wrong_key_and_no_key_say_so() {
    let Some(disks) = assembled(["luks1.img"]) else { return };
    let finished = refusal(&disks, "/dev/sda");
    let reason = "cannot mount /dev/sda on /: holds an encrypted volume (crypto_LUKS)";
    assert!(finished.stderr.contains(reason), "{finished:?}");
    assert!(finished.stderr.contains("hint: --key /dev/sda:file:PATH opens it"), "{finished:?}");
    assert!(finished.stderr.contains("but what encrypted volumes may hold"), "{finished:?}");

    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let key = ["--key", "/dev/sda:key:hunter2"];
    let arguments = [&key, &arguments(&disks, &["/dev/sda"], &mnt)[..]].concat();
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(
        finished.stderr.contains("cannot open /dev/sda: no key given for it fits"),
        "{finished:?}"
    );
    assert!(!finished.stderr.contains("hunter2"), "{finished:?}");
    place.assert_clean(&["mnt"]);
}
