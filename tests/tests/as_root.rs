//! What only root can do or see. Started by root, `cargo xtask test` runs this program as root.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use guestmnt_tests::program::{Workplace, disks, given, is_root, text};
use guestmnt_tests::specimens::specimen;
use xtask::disks::SYSTEM;
use xtask::disks::filesystems::Kind;
use xtask::skips::skip;
use xtask::user::Ordinary;

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

#[test]
fn where_fuse_is_roots_alone_the_remedy_is_named_and_mends_it() {
    need_root!();
    let place = Workplace::new();
    let (mnt, disk, node) = (place.folder("mnt"), disks().path(SYSTEM), place.path().join("fuse"));
    let user = Ordinary::find().unwrap();
    std::os::unix::fs::chown(&mnt, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    // As the kernel makes it (Documentation/admin-guide/devices.txt), before any udev.
    let made = Command::new("mknod").args(["-m", "600", text(&node), "c", "10", "229"]).output();
    let made = made.unwrap();
    if !made.status.success() {
        skip(&format!("device nodes cannot be made: {}", String::from_utf8_lossy(&made.stderr)));
        return;
    }
    // What an ordinary user is told in a mount namespace of its own that has this device.
    let said = |program: &str, arguments: &[&str]| {
        let inner = place.command(program, arguments);
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", "mount --bind \"$0\" /dev/fuse && exec \"$@\""]).arg(&node);
        command.arg("setpriv").args(["--clear-groups", "--inh-caps=-all"]);
        command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
        command.arg(inner.get_program()).args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        // The workplace is root's.
        command.env_remove("XDG_CACHE_HOME").env_remove("TMPDIR");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let mount = ["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)];

    let (status, words) = said("guestmnt", &mount);
    assert_eq!(status, Some(1), "{words}");
    let reason = "guestmnt: cannot open /dev/fuse: Permission denied (os error 13)\n  hint: as root, `chmod 666 /dev/fuse`";
    assert!(words.contains(reason) && !words.contains("QEMU"), "{words}");
    let (status, words) = said("guestimg", &["doctor"]);
    assert_eq!(status, Some(3), "{words}");
    let finding = words.lines().skip_while(|line| !line.contains(" FUSE ")).take(2);
    let finding: Vec<&str> = finding.collect();
    assert!(
        finding[0].starts_with("BAD ") && finding[1].contains("`chmod 666 /dev/fuse`"),
        "{words}"
    );

    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    let (_, words) = said("guestimg", &["doctor"]);
    assert!(words.contains("ok    FUSE "), "{words}");
    let (_, words) = said("guestmnt", &["-a", "/nonexistent.vmdk", "-m", "/dev/sda1", text(&mnt)]);
    assert!(words.contains("/nonexistent.vmdk") && !words.contains("fuse"), "{words}");
    place.assert_clean(&["mnt", "fuse"]);
}

#[test]
fn a_lock_of_one_user_keeps_out_the_others() {
    need_root!();
    let Some((image, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    // Without a template, which root's first mount would make, and without trying KVM for that.
    let options = ["--no-template", "--accel", "tcg", "--format", "raw", "-a", text(&image)];
    let writable = ["--overlay", "changes.qcow2", "-m", "/dev/sda", "-o", "allow_other"];
    place.mount(&[&options[..], &writable, &[text(&mnt)]].concat());
    let name = entries.iter().find_map(|(name, entry)| entry.file.as_ref().map(|_| name));
    let file = mnt.join(name.expect("it has files"));
    let one = Ordinary::find().unwrap();
    let users = [(one.uid.as_raw(), one.gid.as_raw()), (NOBODY, NOBODY), (0, 0)];
    // util-linux' flock: 1 where somebody else has the lock.
    let lock = |(uid, gid), words: &[&str]| {
        let mut command = Command::new("flock");
        command.args(words).current_dir("/").uid(uid).gid(gid);
        command
    };
    for holder in users {
        for (how, others) in [("--exclusive", [1, 1]), ("--shared", [1, 0])] {
            let held = [how, text(&file), "--command", "echo held; read rest"];
            let mut held =
                lock(holder, &held).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(held.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "held\n", "{holder:?}");
            let tried = |how| {
                let others = users.into_iter().filter(|&user| user != holder);
                let status = |user| {
                    lock(user, &["--nonblock", how, text(&file), "true"]).status().unwrap().code()
                };
                others.map(status).collect::<Vec<_>>()
            };
            for (wanted, expected) in ["--exclusive", "--shared"].into_iter().zip(others) {
                assert_eq!(tried(wanted), [Some(expected); 2], "{holder:?} {how}, then {wanted}");
            }
            drop(held.stdin.take());
            held.wait().unwrap();
            assert_eq!(tried("--exclusive"), [Some(0); 2], "{holder:?} has let go");
        }
    }
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "changes.qcow2"]);
}
