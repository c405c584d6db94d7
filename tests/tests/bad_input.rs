//! What cannot work says so in one clear message, with status 1, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use guestmnt_tests::program::{Finished, Workplace, disks, is_root, text};
use xtask::disks::{BASE, NEWEST, SNAPSHOTS, SYSTEM};
use xtask::skips::skip;

/// A workplace with a folder `mnt`.
fn place() -> Workplace {
    let place = Workplace::new();
    let _ = place.folder("mnt");
    place
}

/// Runs guestmnt, which has to fail, and checks that nothing is left but `files`.
fn fails(place: &Workplace, arguments: &[&str], files: &[&str]) -> Finished {
    let finished = place.run("guestmnt", arguments);
    assert_eq!(finished.status, Some(1), "{arguments:?}: {finished:?}");
    assert_eq!(finished.stdout, "", "{arguments:?}");
    place.assert_clean(&[&["mnt"], files].concat());
    finished
}

fn says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(finished.stderr.contains(word), "no {word:?} in\n{}", finished.stderr);
    }
}

/// The demo's disks, copied where they can be damaged. The user can read them.
fn copied(place: &Workplace) -> xtask::disks::Disks {
    let folder = place.folder("disks");
    let placed = disks().place(&folder).unwrap();
    for name in [BASE, SNAPSHOTS[0], SNAPSHOTS[1], SNAPSHOTS[2]] {
        // A copy of its own instead of a hard link: it will be written to.
        let path = placed.path(name);
        let text = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
    }
    placed
}

#[test]
fn a_missing_extent_is_named_with_the_descriptor() {
    let place = place();
    let disks = copied(&place);
    fs::remove_file(disks.path("Win7/Win7_x64_ssdx-s002.vmdk")).unwrap();
    let disk = disks.path(NEWEST);
    let finished = fails(&place, &["-a", text(&disk), "-m", "/dev/sda2", "mnt"], &["disks"]);
    says(&finished, &["Win7_x64_ssdx-s002.vmdk", "Win7_x64_ssdx.vmdk"]);
}

#[test]
fn a_missing_parent_is_named_with_its_child() {
    let place = place();
    let disks = copied(&place);
    fs::remove_file(disks.path(SNAPSHOTS[1])).unwrap();
    let disk = disks.path(NEWEST);
    let finished = fails(&place, &["-a", text(&disk), "-m", "/dev/sda2", "mnt"], &["disks"]);
    says(&finished, &["Win7_x64_ssdx-000002.vmdk", "Win7_x64_ssdx-000003.vmdk"]);
}

#[test]
fn a_parent_that_was_changed_is_named_with_both_numbers() {
    let place = place();
    let disks = copied(&place);
    let parent = disks.path(SNAPSHOTS[1]);
    let text_before = String::from_utf8_lossy(&fs::read(&parent).unwrap()).into_owned();
    let line = text_before.lines().find(|line| line.starts_with("CID=")).unwrap().to_owned();
    let changed = text_before.replace(&line, "CID=12345678");
    fs::write(&parent, changed.as_bytes()).unwrap();
    let disk = disks.path(NEWEST);
    let finished = fails(&place, &["-a", text(&disk), "-m", "/dev/sda2", "mnt"], &["disks"]);
    says(&finished, &["12345678", line.trim_start_matches("CID="), "hint:"]);
}

#[test]
fn files_that_are_no_images_are_refused() {
    let place = place();
    fs::write(place.path().join("short.vmdk"), b"KDMV\x01\0\0\0").unwrap();
    fs::write(place.path().join("text.vmdk"), "hello").unwrap();
    fs::write(place.path().join("empty.img"), "").unwrap();
    for file in ["short.vmdk", "text.vmdk", "empty.img", "missing.vmdk", "mnt", "/dev/null"] {
        let leftovers = ["short.vmdk", "text.vmdk", "empty.img"];
        let finished = fails(&place, &["-a", file, "-m", "/dev/sda1", "mnt"], &leftovers);
        says(&finished, &[file]);
        assert!(!finished.stderr.contains("QEMU"), "{finished:?}");
    }
    let arguments = ["--format", "floppy", "-a", "x", "-m", "/dev/sda1", "mnt"];
    says(&fails(&place, &arguments, &["short.vmdk", "text.vmdk", "empty.img"]), &["floppy"]);
}

#[test]
fn a_device_that_is_not_there_is_answered_with_those_that_are() {
    let place = place();
    let disk = disks().path(SYSTEM);
    let finished = fails(&place, &["-a", text(&disk), "-m", "/dev/sda7", "mnt"], &[]);
    says(&finished, &["there is no /dev/sda7", "/dev/sda1 (ntfs)"]);
    let finished = fails(&place, &["-a", text(&disk), "-m", "/dev/sdb1", "mnt"], &[]);
    says(&finished, &["there is no /dev/sdb1"]);
}

#[test]
fn what_is_no_filesystem_is_named() {
    let place = place();
    let image = |name: &str| place.path().join(name);
    fs::write(image("empty.img"), vec![0; 1 << 20]).unwrap();
    let swap = image("swap.img");
    fs::write(&swap, vec![0; 1 << 20]).unwrap();
    assert!(Command::new("/sbin/mkswap").arg(&swap).output().unwrap().status.success());
    // The first bytes of a LUKS2 header are all that a probe looks at.
    let mut luks = vec![0; 1 << 20];
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
    luks[168..204].copy_from_slice(b"01234567-89ab-cdef-0123-456789abcdef");
    fs::write(image("luks.img"), luks).unwrap();
    let files = ["empty.img", "swap.img", "luks.img"];
    for (file, word) in [("empty.img", "empty"), ("swap.img", "swap"), ("luks.img", "encrypted")] {
        fs::set_permissions(image(file), fs::Permissions::from_mode(0o644)).unwrap();
        let arguments = ["--format", "raw", "-a", file, "-m", "/dev/sda", "mnt"];
        says(&fails(&place, &arguments, &files), &["cannot mount /dev/sda on /", word]);
    }
}

#[test]
fn what_the_guests_kernel_logged_is_shown_line_by_line() {
    let place = place();
    fs::write(place.path().join("empty.img"), vec![0; 1 << 20]).unwrap();
    let arguments = ["--format", "raw", "-a", "empty.img", "-m", "/dev/sda:/::ext4", "mnt"];
    let finished = fails(&place, &arguments, &["empty.img"]);
    says(&finished, &["cannot mount /dev/sda on /: not a good ext4 filesystem", "\n    EXT4-fs ("]);
    assert!(!finished.stderr.contains("\\u{a}"), "{finished:?}");
}

#[test]
fn mountpoints_that_cannot_be_used_are_refused_before_anything_starts() {
    let place = place();
    fs::write(place.path().join("file"), "").unwrap();
    let disk = disks().path(SYSTEM);
    for (mountpoint, words) in [
        ("file", ["not a folder", "file"]),
        ("missing", ["No such file", "mkdir missing"]),
        ("/proc", ["mounted there already", "guestunmnt /proc"]),
    ] {
        let arguments = ["-a", text(&disk), "-m", "/dev/sda1", mountpoint];
        says(&fails(&place, &arguments, &["file"]), &words);
    }
}

#[test]
fn a_second_mount_on_the_same_folder_is_refused() {
    let place = place();
    let mnt = place.path().join("mnt");
    let disk = disks().path(SYSTEM);
    let arguments = ["-a", text(&disk), "-m", "/dev/sda1", "mnt"];
    place.mount(&arguments);
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1));
    says(&finished, &["mounted there already", "guestunmnt"]);
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn options_that_make_no_sense_give_status_1() {
    let place = place();
    let disk = disks().path(SYSTEM);
    let disk = text(&disk);
    for (arguments, word) in [
        (vec!["mnt"], "no disk image"),
        (vec!["-a", disk, "mnt"], "nothing is to be mounted on /"),
        (vec!["-a", disk, "-m", "/dev/sda1:/x", "mnt"], "nothing is to be mounted on /"),
        (vec!["-a", disk, "-m", "sda1:x", "mnt"], "does not begin with /"),
        (vec!["-a", disk, "-m", "/dev/sda1", "-o", "rw", "mnt"], "-o rw"),
        (vec!["-a", disk, "-m", "/dev/sda1", "--accel", "xen", "mnt"], "auto, kvm or tcg"),
        (vec!["-a", disk, "-m", "/dev/sda1", "--memsize", "1", "mnt"], "128"),
        (vec!["-a", disk, "-m", "/dev/sda1"], "FOLDER"),
    ] {
        says(&fails(&place, &arguments, &[]), &[word]);
    }
}

#[test]
fn without_qemu_or_an_appliance_the_remedy_is_named() {
    let place = place();
    let disk = disks().path(SYSTEM);
    let arguments = ["-a", text(&disk), "-m", "/dev/sda1", "mnt"];
    let run = |variable: &str, value: &Path| {
        let output = place.command("guestmnt", &arguments).env(variable, value).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run("GUESTMNT_APPLIANCE", Path::new("/nonexistent"));
    assert!(said.contains("cargo xtask build-appliance"), "{said}");
    let said = run("GUESTMNT_QEMU", Path::new("/nonexistent"));
    assert!(said.contains("/nonexistent"), "{said}");
    let said = run("GUESTMNT_QEMU", Path::new("/bin/false"));
    assert!(said.contains("QEMU"), "{said}");
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_missing_folder_for_overlays_is_no_fault_of_the_template() {
    let place = place();
    let disk = disks().path(SYSTEM);
    let mut command = place.command("guestmnt", &["-a", text(&disk), "-m", "/dev/sda1", "mnt"]);
    let output = command.env("TMPDIR", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = "cannot make the overlay in /nonexistent: No such file or directory";
    assert!(said.contains(expected) && said.contains("hint: $TMPDIR"), "{said}");
    // Nothing else was tried.
    assert!(!said.contains("template"), "{said}");
    place.assert_clean(&["mnt"]);
}

#[test]
fn an_appliance_of_another_version_is_refused() {
    let place = place();
    let folder = place.folder("appliance");
    let files = [
        ("manifest.json", r#"{"protocol": 999, "kernel": "6"}"#),
        ("vmlinux", ""),
        ("initramfs.cpio", ""),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    let disk = disks().path(SYSTEM);
    let mut command = place.command("guestmnt", &["-a", text(&disk), "-m", "/dev/sda1", "mnt"]);
    let output = command.env("GUESTMNT_APPLIANCE", &folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("another version") && said.contains("protocol 999"), "{said}");
}

#[test]
fn a_kernel_that_panics_is_shown_with_its_last_words() {
    let place = place();
    let folder = place.folder("appliance");
    let real = guestmnt_tests::program::given("GUESTMNT_APPLIANCE");
    for name in ["manifest.json", "vmlinux"] {
        std::os::unix::fs::symlink(real.join(name), folder.join(name)).unwrap();
    }
    // An initramfs without a program in it.
    fs::write(folder.join("initramfs.cpio"), vec![0; 512]).unwrap();
    let disk = disks().path(SYSTEM);
    let mut command = place.command("guestmnt", &["-a", text(&disk), "-m", "/dev/sda1", "mnt"]);
    let output = command.env("GUESTMNT_APPLIANCE", &folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the guest is gone") && said.contains("Kernel panic"), "{said}");
    place.assert_clean(&["mnt", "appliance"]);
}

#[test]
fn a_folder_of_somebody_else_is_refused() {
    if is_root() {
        skip("root may write everywhere");
        return;
    }
    let place = place();
    let disk = disks().path(SYSTEM);
    let finished = fails(&place, &["-a", text(&disk), "-m", "/dev/sda1", "/usr/share"], &[]);
    says(&finished, &["write access", "/usr/share"]);
}
