//! What QEMU is confined by, shown by a canary in its place, and by what the kernel says of a real
//! one.

use std::fs;
use std::time::UNIX_EPOCH;

use guestmnt::vm::confinement::{ConfineError, Confinement, Layer, Part, Policy};
use guestmnt_tests::canary::{Aims, duties};
use guestmnt_tests::lacking::Lacking;
use guestmnt_tests::program::{Workplace, disks, text};
use serde_json::Value;
use xtask::disks::SYSTEM;
use xtask::skips::skip;

/// Returns from the test, saying why, where this host does not offer all layers.
macro_rules! need_all_layers {
    ($aims:expr) => {
        let (_, report) = $aims.canary(&Confinement::default());
        if let Some(state) = report.missing().next() {
            skip(&format!("this host does not offer all of the confinement: {state}"));
            return;
        }
    };
}

#[test]
fn a_canary_gets_nowhere() {
    let aims = Aims::new();
    need_all_layers!(aims);
    let (outcomes, _) = aims.canary(&Confinement::new(Policy::Required));
    assert!(outcomes.len() >= 40, "{outcomes:#?}");
    let done: Vec<_> = outcomes.iter().filter(|(_, error)| error.is_none()).collect();
    assert!(done.is_empty(), "{done:?}");
}

#[test]
fn without_confinement_the_canary_gets_far() {
    let aims = Aims::new();
    let confinement = Layer::ALL
        .into_iter()
        .fold(Confinement::default(), |all, layer| all.without(Part::Layer(layer)));
    let (outcomes, report) = aims.canary(&confinement);
    assert!(
        report.0.iter().all(|state| state.missing.is_some() || state.layer == Layer::Unprivileged)
    );
    for name in [
        "read /etc/passwd",
        "list /",
        "list the home folder",
        "read an image by its path",
        "write in the home folder",
        "write in /tmp",
        "open an inherited file for writing",
        "change the mode of an inherited file",
        "connect over TCP",
        "connect to a socket by its path",
        "connect to an abstract socket",
        "signal the parent",
        "hold the parent",
        "read the parent's environment",
        "fork",
        "execute /bin/sh",
    ] {
        assert_eq!(outcomes[name], None, "{name}");
    }
}

#[test]
fn each_layer_is_seen_to_do_something() {
    let aims = Aims::new();
    need_all_layers!(aims);
    for (part, prevented) in duties() {
        let (outcomes, _) = aims.canary(&Confinement::default().without(part));
        for name in prevented {
            assert_eq!(outcomes[*name], None, "without {part:?}: {name}");
        }
    }
}

#[test]
fn what_is_missing_is_named_and_refused_where_all_is_required() {
    let aims = Aims::new();
    let without = Confinement::new(Policy::Required).without(Part::Layer(Layer::Landlock));
    let error = aims.started(&without).unwrap_err();
    let ConfineError::Missing(missing) = &error else { panic!("{error}") };
    assert!(missing.iter().any(|state| state.layer == Layer::Landlock), "{missing:?}");
    assert!(error.to_string().contains("hint: "), "{error}");
}

#[test]
fn status_shows_since_when_a_mount_lives_its_memory_and_its_layers() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    assert_eq!(place.run("guestimg", &["status", text(&mnt)]).status, Some(3));
    let now = || UNIX_EPOCH.elapsed().unwrap().as_secs();
    let before = now();
    place.mount(&["-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
    let finished = place.run("guestimg", &["status", "--json", text(&mnt)]);
    let shown: Value = serde_json::from_str(&finished.stdout).unwrap();
    let mount = &shown[0];
    assert!((before..=now()).contains(&mount["session"]["since"].as_u64().unwrap()), "{mount:#}");
    // More than QEMU takes without a guest, less than the guest has.
    let memory = mount["memory"].as_u64().unwrap() >> 20;
    assert!((8..256).contains(&memory), "{mount:#}");
    assert_eq!(mount["session"]["images"][0], text(&disk.canonicalize().unwrap()));
    assert_eq!(mount["qemu"]["no_new_privileges"], true, "{mount:#}");
    assert_eq!(mount["qemu"]["root"], false, "{mount:#}");
    assert_eq!(mount["qemu"]["capabilities"], false, "{mount:#}");
    assert!(mount["qemu"]["seccomp_filters"].as_u64() >= Some(2), "{mount:#}");
    let layers = mount["session"]["confinement"].as_array().unwrap();
    let in_force = |name| layers.iter().any(|l| l["layer"] == name && l["missing"].is_null());
    if in_force("namespaces") && in_force("user-namespace") {
        let expected = serde_json::json!(["user", "mnt", "pid", "ipc", "uts", "net"]);
        assert_eq!(mount["qemu"]["namespaces"], expected, "{mount:#}");
    }
    let complete = layers.iter().all(|layer| layer["missing"].is_null());
    assert_eq!(finished.status, Some(if complete { 0 } else { 2 }));
    let plain = place.run("guestimg", &["status"]);
    for words in [text(&mnt), "\n  since        20", "\n  memory       "] {
        assert!(plain.stdout.contains(words), "{plain:?}");
    }
    place.unmount(&mnt);
    place.assert_clean(&["mnt"]);
}

#[test]
fn doctor_names_what_a_host_lacks() {
    let place = Workplace::new();
    let finished = place.run("guestimg", &["doctor", "--json"]);
    let findings: Value = serde_json::from_str(&finished.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    let found = |subject: &str| {
        let finding = findings.iter().find(|finding| finding["subject"] == subject);
        finding.unwrap_or_else(|| panic!("{subject}: {findings:#?}"))["found"].as_str().unwrap()
    };
    for subject in ["QEMU", "KVM", "FUSE", "fusermount3", "user namespaces", "Landlock"] {
        assert!(!found(subject).is_empty());
    }
    for subject in ["confinement", "template"] {
        assert!(!found(subject).is_empty());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(found("kernel"), format!("Linux {}", release.trim_end()));
    assert!(found("appliance").contains(": Linux "), "{findings:#?}");
    assert!(matches!(finished.status, Some(0 | 2)), "{finished:?}");

    let mut command = place.command("guestimg", &["doctor"]);
    let output = command.env("GUESTMNT_QEMU", "/nonexistent/qemu").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("BAD   QEMU"), "{said}");
}

#[test]
fn a_mount_can_require_the_whole_confinement() {
    let aims = Aims::new();
    need_all_layers!(aims);
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    place.mount(&["--require-confinement", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)]);
    assert!(mnt.join("Windows").is_dir());
    place.unmount(&mnt);

    // A wrapper may run whatever it likes, so that QEMU is less confined in one.
    let wrapper = place.path().join("qemu");
    std::fs::write(&wrapper, "#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n").unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let arguments = ["--require-confinement", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)];
    let mut command = place.command("guestmnt", &arguments);
    let output = command.env("GUESTMNT_QEMU", &wrapper).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("Landlock (QEMU is a script") && said.contains("hint:"), "{said}");
    place.assert_clean(&["mnt", "qemu"]);
}

/// Without a user namespace QEMU has no capabilities either: only those that it could be given stay.
const BOUNDING_SET: &str = "no capabilities nor a way to get some (it has none, but may not";

#[test]
fn on_a_host_without_a_layer_disks_are_read_with_a_warning_and_refused_where_all_is_required() {
    need_all_layers!(Aims::new());
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    for (lacking, words) in [
        (
            Lacking::Namespaces,
            &["network namespaces", "own user namespace", "own root folder", BOUNDING_SET][..],
        ),
        (Lacking::Landlock, &["Landlock"]),
        (Lacking::Seccomp, &["seccomp"]),
    ] {
        let tells = |said: &str| words.iter().all(|words| said.contains(words));
        let run = |program, arguments: &[&str]| {
            let output = lacking.run(place.command(program, arguments));
            let said = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code(), said(output.stdout), said(output.stderr))
        };
        let (status, _, said) = run("guestimg", &["ls", "-a", text(&disk), "-m", "/dev/sda1"]);
        assert_eq!(status, Some(0), "{lacking:?}: {said}");
        assert!(said.contains("less confined") && tells(&said), "{lacking:?}: {said}");

        let (status, findings, _) = run("guestimg", &["doctor"]);
        assert_eq!(status, Some(2), "{lacking:?}: {findings}");
        let (_, about) = findings.split_once("less  confinement").unwrap();
        assert!(tells(about), "{lacking:?}: {findings}");

        let arguments = ["--require-confinement", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)];
        let (status, _, said) = run("guestmnt", &arguments);
        assert_eq!(status, Some(1), "{lacking:?}: {said}");
        assert!(tells(&said) && said.contains("hint:"), "{lacking:?}: {said}");
    }
    place.assert_clean(&["mnt"]);
}
