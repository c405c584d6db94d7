//! What only root can do or see. Started by root, `cargo xtask test` runs this program as root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use guestmnt_tests::program::{Workplace, disks, given, is_root, text};
use xtask::disks::SYSTEM;
use xtask::skips::skip;

/// Somebody else.
const NOBODY: u32 = 65534;

/// Returns from the test, saying why, unless this is root.
macro_rules! need_root {
    () => {
        if !is_root() {
            skip("the tests were not started by root");
            return;
        }
    };
}

#[test]
fn root_can_mount_and_is_told_once_that_root_is_not_needed() {
    need_root!();
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let arguments = ["-a", text(&disk), "-m", "/dev/sda1", text(&mnt)];
    for told in [true, false] {
        let finished = place.run("guestmnt", &arguments);
        assert_eq!(finished.status, Some(0), "{finished:?}");
        assert_eq!(finished.stderr.contains("root is not needed"), told, "{finished:?}");
        assert!(mnt.join("Windows").is_dir());
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
}

#[test]
fn others_see_nothing_unless_they_are_allowed_to() {
    need_root!();
    let place = Workplace::new();
    let disk = disks().path(SYSTEM);
    for (name, options, seen) in [("mine", "uid=0", false), ("ours", "allow_other", true)] {
        let mnt = place.folder(name);
        place.mount(&["-a", text(&disk), "-m", "/dev/sda1", "-o", options, text(&mnt)]);
        let mut look = Command::new("ls");
        let output = look.arg(&mnt).uid(NOBODY).gid(NOBODY).output().unwrap();
        assert_eq!(output.status.success(), seen, "{options}: {output:?}");
        place.unmount(&mnt);
    }
    place.assert_clean(&["mine", "ours"]);
}

#[test]
fn users_have_templates_of_their_own() {
    need_root!();
    let place = Workplace::new();
    let disk = disks().path(SYSTEM);
    let prepare = |cache: &str| {
        let mut command = place.command("guestmnt", &["--prepare"]);
        command.env("XDG_CACHE_HOME", place.path().join(cache));
        command
    };
    assert!(prepare("roots").status().unwrap().success());
    let mnt = place.folder("mnt");
    let theirs = place.folder("theirs");
    for path in [&mnt, &theirs] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // Somebody else cannot use root's, and makes one where they can.
    for (cache, made) in [("roots", false), ("theirs", true)] {
        let arguments = ["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)];
        let mut command = place.command("guestmnt", &arguments);
        command.env("XDG_CACHE_HOME", place.path().join(cache)).env_remove("TMPDIR");
        let output = command.uid(NOBODY).gid(NOBODY).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("preparing the VM"), made, "{said}");
        assert_eq!(said.contains("-incoming"), made, "{said}");
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt", "theirs", "roots"]);
}

#[test]
fn without_fuse_the_remedy_is_named() {
    need_root!();
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let inner = place.command("guestmnt", &["-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
    // A mount namespace of its own in which /dev/fuse is an ordinary file.
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount --bind /etc/hostname /dev/fuse && exec \"$@\"", "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    command.env("GUESTMNT_APPLIANCE", given("GUESTMNT_APPLIANCE")).env("HOME", place.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no /dev/fuse") && said.contains("modprobe fuse"), "{said}");
    place.assert_clean(&["mnt"]);
}
