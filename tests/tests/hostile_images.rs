//! Images that name what they must not: each is refused with the reason before QEMU starts,
//! and not a byte of what it names is read.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use guestmnt_tests::images::{descriptor, qcow2_over, snapshot};
use guestmnt_tests::program::text;
use guestmnt_tests::showing::assert_refused;
use guestmnt_tests::trap::Trap;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

#[test]
fn extents_outside_are_refused_and_not_read() {
    let trap = Trap::new();
    for (name, words) in trap.names() {
        for (kind, first) in [("FLAT", " 0"), ("VMFS", "")] {
            let line = format!("RW 8 {kind} \"{name}\"{first}");
            trap.write("disk.vmdk", descriptor("monolithicFlat", &line));
            let words = if words == "No such file" { "does not exist" } else { words };
            trap.refused("disk.vmdk", &[words]);
        }
    }
    trap.assert_secret_is_kept();
}

#[test]
fn backing_files_outside_are_refused_and_not_read() {
    let trap = Trap::new();
    for (name, words) in trap.names() {
        let words = if words == "No such file" { "its parent is missing" } else { words };
        for format in ["raw", "qcow2"] {
            trap.write("disk.qcow2", qcow2_over(name.as_bytes(), format));
            // The secret's name is looked for beside the image, too, where there is none.
            trap.refused("disk.qcow2", &[words]);
        }
    }
    trap.assert_secret_is_kept();
}

#[test]
fn disks_of_a_machine_outside_are_refused_and_not_read() {
    let trap = Trap::new();
    for name in ["../outside/secret.vmdk", "link.vmdk", "nbd:host:1/x.vmdk", "gone.vmdk"] {
        let _ = symlink(&trap.secret, trap.vm.join("link.vmdk"));
        let _ = symlink("secret", trap.place.path().join("outside/secret.vmdk"));
        trap.write("vm.vmx", format!("scsi0:0.fileName = \"{name}\""));
        trap.refused("", &["cannot open vm/"]);
        trap.refused("vm.vmx", &["cannot open vm/vm.vmx"]);
    }
    trap.assert_secret_is_kept();
}

#[test]
fn parents_that_are_no_vmdk_are_refused() {
    let trap = Trap::new();
    for name in ["nbd:host:1", "json:{}", "/dev/zero", "fifo", "a\u{7f}b"] {
        if name == "fifo" {
            mkfifo(&trap.vm.join(name), Mode::S_IRWXU).unwrap();
        }
        trap.write("disk.vmdk", snapshot("vmfs", name, "RW 8 ZERO"));
        trap.refused("disk.vmdk", &["cannot open vm/disk.vmdk"]);
    }
    // A parent may be anywhere, so this is looked at, as far as to see that it is none.
    trap.write("disk.vmdk", snapshot("vmfs", text(&trap.secret), "RW 8 ZERO"));
    trap.refused("disk.vmdk", &["outside/secret: it is not a VMDK"]);
}

#[test]
fn descriptors_that_mislead_are_refused() {
    let trap = Trap::new();
    trap.write("flat", [0; 4096]);
    let line = |text: &str| descriptor("monolithicFlat", text);
    let with = |from: &str, to: &str| line("RW 8 ZERO").replace(from, to);
    let lines = |count: usize, text: &str| {
        (0..count).fold(String::new(), |mut all, _| {
            let _ = writeln!(all, "{text}");
            all
        })
    };
    let most = u64::MAX;
    let table = [
        (line("RW 8 FLAT \"flat\n\" 0"), "line 6 is not a whole extent"),
        (line("RW 8 FLAT \"fl\0at\" 0"), "a zero byte"),
        (line("RW 8 FLAT \"fl\rat\" 0"), "a control character"),
        (line(&format!("RW 8 FLAT \"flat\" {most}")), "before the sectors"),
        (line(&format!("RW 8 FLAT \"flat\" {}", most / 512 + 1)), "before the sectors"),
        (line(&format!("RW {most} FLAT \"flat\" 0")), "no valid size"),
        (line("RW 99999999999999999999 ZERO"), "no valid size"),
        (line("RW -8 ZERO"), "no valid size"),
        (line("RW 0 ZERO"), "no valid size"),
        (line(&lines(3, "RW 68719476736 ZERO")), "larger than 64 TiB"),
        (line("RW 8 FLAT \"flat\" 0\nRW 1 FLAT \"flat\" 7"), "in use by an earlier extent"),
        (line("RW 8 FLAT \"disk.vmdk\" 0"), "in use by an earlier extent"),
        (line(&lines(4097, "RW 1 ZERO")), "more than 4096 extents"),
        (line(&lines(1_000_000, "RW 1 ZERO")), "longer than 64 KiB"),
        (line("RW 8 FLAT \"\\\\.\\PhysicalDrive0\" 0"), "a physical device"),
        (with("CID=12345678", "CID=123456789"), "no valid value"),
        (with("version=1", "version=1\nversion=1"), "again"),
    ];
    for (text, words) in table {
        trap.write("disk.vmdk", text);
        trap.refused("disk.vmdk", &[words]);
    }
    trap.assert_secret_is_kept();
}

#[test]
fn chains_without_end_are_refused() {
    let trap = Trap::new();
    trap.write("self.vmdk", snapshot("vmfs", "self.vmdk", "RW 8 ZERO"));
    trap.refused("self.vmdk", &["its parent self.vmdk is also its child"]);
    trap.write("a.vmdk", snapshot("vmfs", "b.vmdk", "RW 8 ZERO"));
    trap.write("b.vmdk", snapshot("vmfs", "./../vm/a.vmdk", "RW 8 ZERO"));
    trap.refused("a.vmdk", &["its parent a.vmdk is also its child"]);
    const DEPTH: usize = 10_000;
    for i in 0..DEPTH {
        let parent = format!("{}.vmdk", i + 1);
        trap.write(&format!("{i}.vmdk"), snapshot("vmfs", &parent, "RW 8 ZERO"));
    }
    trap.refused("0.vmdk", &["cannot open ", "32.vmdk: the chain has more than 33 links"]);
    trap.assert_secret_is_kept();
}

#[test]
fn what_is_no_regular_file_is_no_disk() {
    let trap = Trap::new();
    mkfifo(&trap.vm.join("fifo"), Mode::S_IRWXU).unwrap();
    let _ = UnixListener::bind(trap.vm.join("socket")).unwrap();
    fs::create_dir(trap.vm.join("empty")).unwrap();
    for (name, words) in [
        ("fifo", "it is a FIFO"),
        ("socket", "it is a socket"),
        ("empty", "it holds no disk"),
        ("gone", "No such file"),
    ] {
        trap.refused(name, &[words]);
    }
    for name in ["nbd:localhost:10809", "json:{\"driver\":\"null-co\"}", "ssh://host/file"] {
        assert_refused(&trap.place, &["-a", name], &["No such file"]);
    }
    assert!(Path::new("/dev/zero").exists());
    assert_refused(&trap.place, &["-a", "/dev/zero"], &["it is a device"]);
    trap.assert_secret_is_kept();
}
