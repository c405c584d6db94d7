//! A KVM that opens but does not work falls back to TCG by itself, and is not tried again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use guestmnt_tests::program::{Workplace, disks, text};
use xtask::disks::SYSTEM;
use xtask::skips::skip;

/// A stand-in for QEMU that does `with_kvm` when it is to use KVM, and else is the real one.
fn qemu_whose_kvm(place: &Workplace, with_kvm: &str) -> PathBuf {
    let path = place.path().join("qemu-system-x86_64");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *'-accel kvm'*) {with_kvm};; esac\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A workplace of somebody who can open /dev/kvm.
fn place_with_kvm() -> Option<Workplace> {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        skip("/dev/kvm cannot be opened here");
        return None;
    }
    Some(Workplace::new())
}

/// Mounts and unmounts with `-v`; gives what was said and how long mounting took.
fn mounted(place: &Workplace, qemu: Option<&PathBuf>) -> (String, Duration) {
    let mnt = place.path().join("mnt");
    let _ = fs::create_dir(&mnt);
    let disk = disks().path(SYSTEM);
    let mut command =
        place.command("guestmnt", &["-v", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
    if let Some(qemu) = qemu {
        command.env("GUESTMNT_QEMU", qemu);
    }
    let started = Instant::now();
    let output = command.output().unwrap();
    let took = started.elapsed();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(mnt.join("Windows").is_dir());
    place.unmount(&mnt);
    (said, took)
}

const FELL_BACK: &str = "kvm does not work on this machine";

#[test]
fn a_qemu_that_aborts_on_kvm_falls_back_once() {
    let Some(place) = place_with_kvm() else { return };
    let qemu = qemu_whose_kvm(&place, "echo 'error: failed to set MSR' >&2; exit 134");
    assert!(mounted(&place, Some(&qemu)).0.contains(FELL_BACK));
    assert!(!mounted(&place, Some(&qemu)).0.contains(FELL_BACK), "the verdict was not kept");
}

#[test]
fn a_guest_that_never_says_a_word_under_kvm_falls_back_once() {
    let Some(place) = place_with_kvm() else { return };
    // The real QEMU, whose guest never runs. The script has to do without processes of its own.
    let qemu = qemu_whose_kvm(
        &place,
        "for word do case $word in kvm) word=tcg;; host) word=max;; esac; set -- \"$@\" \"$word\"; shift; done; exec /usr/bin/qemu-system-x86_64 \"$@\" -S",
    );
    let (said, took) = mounted(&place, Some(&qemu));
    assert!(said.contains(FELL_BACK), "{said}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(!mounted(&place, Some(&qemu)).0.contains(FELL_BACK), "the verdict was not kept");
}

#[test]
fn this_machines_own_kvm_works_or_falls_back() {
    let Some(place) = place_with_kvm() else { return };
    let first = mounted(&place, None).0;
    let second = mounted(&place, None).0;
    assert!(!second.contains(FELL_BACK), "{second}");
    println!(
        "this machine's KVM {}",
        if first.contains(FELL_BACK) { "does not work" } else { "works" }
    );
}

#[test]
fn kvm_alone_fails_clearly_where_it_does_not_work() {
    let Some(place) = place_with_kvm() else { return };
    let qemu = qemu_whose_kvm(&place, "echo 'error: failed to set MSR' >&2; exit 134");
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let mut command = place
        .command("guestmnt", &["--accel", "kvm", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
    let output = command.env("GUESTMNT_QEMU", &qemu).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("failed to set MSR"), "{said}");
    place.assert_clean(&["mnt", "qemu-system-x86_64"]);
}

/// As a nested KVM is, or one on a machine with much else to do.
#[test]
fn a_kvm_that_boots_slowly_is_waited_for_while_its_guest_prints() {
    let Some(place) = place_with_kvm() else { return };
    // TCG that soon forgets what it translated, whose guest says all that it does.
    let qemu = qemu_whose_kvm(
        &place,
        "for word do case $word in kvm) word=tcg,tb-size=8;; host) word=max,-erms,-fsrm;; *quiet\\ loglevel=4*) word=\"${word%%quiet loglevel=4*}loglevel=8${word#*loglevel=4}\";; esac; set -- \"$@\" \"$word\"; shift; done; exec /usr/bin/qemu-system-x86_64 \"$@\"",
    );
    let said = mounted(&place, Some(&qemu)).0;
    assert!(!said.contains(FELL_BACK), "{said}");
}
