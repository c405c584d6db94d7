//! `--rw`: images that are written themselves, by whom nobody else can use them meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guestmnt::session::record::Record;
use guestmnt_tests::differencing::{Changes, vdi, vdi_ids};
use guestmnt_tests::images::{cowd, descriptor, sesparse};
use guestmnt_tests::live::{await_end, server, signal};
use guestmnt_tests::program::{Finished, Workplace, text};
use guestmnt_tests::showing::{Showing, assert_refused};
use guestmnt_tests::specimens::sha256;
use guestmnt_tests::written::{assert_written, write_to};
use nix::sys::signal::Signal;
use xtask::process::Tool;

/// Writes to the disk `name`, and has guestmnt and qemu-img find in it what was written.
fn assert_takes_writes(showing: &Showing, name: &str, format: &str, is_checked: bool) {
    let at = |name: &str| showing.place.path().join(name);
    write_to(&showing.place, &["-a", name]);
    if is_checked {
        showing.make("qemu-img", &["check", "-f", format, name]);
    }
    assert_written(&showing.place, &["-a", name]);
    showing.make("qemu-img", &["convert", "-f", format, "-O", "raw", name, "copy"]);
    assert_written(&showing.place, &["--format", "raw", "-a", "copy"]);
    fs::remove_file(at("copy")).unwrap();
}

/// The content id of a VMDK and its parent's, as qemu-img reads them.
fn content_ids(image: &Path) -> (u64, u64) {
    let info = Tool::new("qemu-img").args(["info", "--output=json"]).arg(image).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    let id = |name: &str| info["format-specific"]["data"][name].as_u64().unwrap();
    (id("cid"), id("parent-cid"))
}

#[test]
fn vmdks_take_what_is_written_and_another_content_id() {
    let Some(showing) = Showing::new() else { return };
    for subformat in
        ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
    {
        let name = format!("{subformat}.vmdk");
        showing.convert("vmdk", &format!("subformat={subformat}"), &name);
        let before = content_ids(&showing.place.path().join(&name));
        assert_takes_writes(&showing, &name, "vmdk", true);
        let after = content_ids(&showing.place.path().join(&name));
        assert_ne!(before.0, after.0, "{name}");
        assert_eq!(before.1, after.1, "{name}");
    }
}

#[test]
fn other_formats_take_what_is_written() {
    let Some(showing) = Showing::new() else { return };
    for (format, is_checked) in
        [("raw", false), ("qcow2", true), ("vdi", true), ("vpc", false), ("vhdx", true)]
    {
        let name = format!("disk.{format}");
        showing.convert(format, "", &name);
        assert_takes_writes(&showing, &name, format, is_checked);
    }
}

/// A VMDK, and a qcow2 with compressed pieces and a snapshot of its own.
#[test]
fn what_was_synced_to_an_image_survives_the_end_of_qemu() {
    let Some(showing) = Showing::new() else { return };
    let at = |name: &str| showing.place.path().join(name);
    showing.convert("vmdk", "subformat=twoGbMaxExtentSparse", "disk.vmdk");
    let compressed = ["convert", "-c", "-O", "qcow2", "disk.vmdk", "disk.qcow2"];
    showing.make("qemu-img", &compressed);
    showing.make("qemu-img", &["snapshot", "-c", "before", "disk.qcow2"]);
    let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n % 253) as u8).collect();
    // Pieces that nobody has are no damage, and qcow2 can tell of them.
    let leaks = ["-r", "leaks"];
    for (name, format, repair) in
        [("disk.vmdk", "vmdk", &[][..]), ("disk.qcow2", "qcow2", &leaks[..])]
    {
        let mnt = at("mnt");
        let arguments = ["-a", name, "-m", "/dev/sda", text(&mnt)];
        showing.place.mount(&[&["--rw"], &arguments[..]].concat());
        fs::write(mnt.join("synced"), &bytes).unwrap();
        fs::File::open(mnt.join("synced")).unwrap().sync_all().unwrap();
        fs::write(mnt.join("not yet"), &bytes).unwrap();
        let qemu = Record::of(server(&mnt)).unwrap().qemu;
        signal(qemu, Signal::SIGKILL);
        await_end(qemu);
        let unmounted = showing.place.run("guestunmnt", &[text(&mnt)]);
        assert_eq!(unmounted.status, Some(4), "{unmounted:?}");
        let check = [&["check", "-q"], repair, &["-f", format, name]].concat();
        showing.make("qemu-img", &check);
        showing.place.mount(&arguments);
        let found = fs::read(mnt.join("synced"));
        showing.place.unmount(&mnt);
        assert!(found.unwrap() == bytes, "{name}");
    }
    showing.make("qemu-img", &["snapshot", "-a", "before", "disk.qcow2"]);
    showing.assert_shown(&["-a", "disk.qcow2"]);
}

#[test]
fn pieces_of_a_split_disk_take_what_is_written() {
    let Some(showing) = Showing::new() else { return };
    for (number, piece) in (1..).zip(showing.bytes().chunks(12 << 20)) {
        fs::write(showing.place.path().join(format!("disk.00{number}")), piece).unwrap();
    }
    write_to(&showing.place, &["-a", "disk.001"]);
    assert_written(&showing.place, &["-a", "disk.001"]);
}

#[test]
fn of_a_chain_the_leaf_alone_is_written_and_its_parent_not_at_all() {
    let Some(showing) = Showing::new() else { return };
    let at = |name: &str| showing.place.path().join(name);
    showing.convert("vmdk", "subformat=twoGbMaxExtentSparse", "base.vmdk");
    let child = ["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"];
    let over = ["-F", "vmdk", "-b", "base.vmdk", "child.vmdk"];
    showing.make("qemu-img", &[&child[..], &over].concat());
    let bases = [at("base.vmdk"), at("base-s001.vmdk")];
    let before: Vec<String> = bases.iter().map(|base| sha256(base)).collect();
    let ids = content_ids(&at("child.vmdk"));

    assert_takes_writes(&showing, "child.vmdk", "vmdk", true);
    let after: Vec<String> = bases.iter().map(|base| sha256(base)).collect();
    assert_eq!(before, after, "the parent was written");
    assert_ne!(content_ids(&at("child.vmdk")).0, ids.0);
    assert_eq!(content_ids(&at("child.vmdk")).1, ids.1);

    let words = ["child.vmdk was made over it", "hint: write to the newest snapshot"];
    showing.assert_refused(&["--rw", "-a", "base.vmdk"], &words);
    fs::remove_file(at("child.vmdk")).unwrap();
    write_to(&showing.place, &["-a", "base.vmdk"]);
}

#[test]
fn what_cannot_be_written_is_refused_with_the_reason() {
    let Some(showing) = Showing::new() else { return };
    let at = |name: &str| showing.place.path().join(name);
    let disk = showing.bytes();
    let refused = |name: &str, words: &[&str]| {
        showing.assert_refused(&["--rw", "-a", name], words);
    };
    let overlay = "hint: --overlay FILE";
    showing.convert("vmdk", "subformat=streamOptimized", "stream.vmdk");
    refused("stream.vmdk", &["compressed (streamOptimized)", overlay]);
    showing.make("tar", &["--format=ustar", "-cf", "vm.ova", "stream.vmdk"]);
    refused("vm.ova", &["in an archive", overlay]);

    let sectors = disk.len() / 512;
    fs::write(at("esx-delta.vmdk"), cowd(&disk)).unwrap();
    fs::write(at("esx-se.vmdk"), sesparse(&disk)).unwrap();
    fs::write(at("esx-flat.vmdk"), &disk).unwrap();
    fs::write(at("other-flat.vmdk"), &disk).unwrap();
    for (create_type, line, word) in [
        ("vmfsSparse", format!("RW {sectors} VMFSSPARSE \"esx-delta.vmdk\""), "(vmfsSparse)"),
        ("seSparse", format!("RW {sectors} SESPARSE \"esx-se.vmdk\""), "(seSparse)"),
        ("vmfs", format!("RDONLY {sectors} VMFS \"esx-flat.vmdk\""), "(RDONLY)"),
        ("vmfs", format!("RW {sectors} VMFS \"esx-flat.vmdk\"\nRW 8 ZERO"), "(ZERO)"),
        ("vmfs", format!("RW {sectors} VMFS \"other-flat.vmdk\""), "does not begin like"),
    ] {
        fs::write(at("esx.vmdk"), descriptor(create_type, &line)).unwrap();
        refused("esx.vmdk", &[word, "hint: "]);
    }
    let allowed = ["--allow-path", "other-flat.vmdk", "-a", "esx.vmdk"];
    write_to(&showing.place, &allowed);

    showing.convert("vdi", "", "base.vdi");
    let parent = fs::read(at("base.vdi")).unwrap();
    let changes = Changes { disk: &disk, has: &|_| false };
    fs::write(at("child.vdi"), vdi(changes, [7; 32], vdi_ids(&parent))).unwrap();
    refused("child.vdi", &["a snapshot in the format vdi", overlay]);
    refused("base.vdi", &["child.vdi was made over it"]);

    fs::write(at("flat.raw"), &disk).unwrap();
    fs::set_permissions(at("flat.raw"), fs::Permissions::from_mode(0o444)).unwrap();
    refused("flat.raw", &["read-only file", overlay]);
    showing.convert("vmdk", "", "vm.vmdk");
    fs::create_dir(at("vm.vmdk.lck")).unwrap();
    refused("vm.vmdk", &["vm.vmdk.lck says that a virtual machine uses it", "hint: shut"]);
}

#[test]
fn rw_and_overlays_exclude_each_other() {
    let place = Workplace::new();
    for other in [&["--overlay", "o.qcow2"][..], &["--ro"], &["--blocks"]] {
        let words = [&["--rw", "-a", "disk"], other].concat();
        assert_refused(&place, &words, &["cannot be used with"]);
    }
}

/// A program of QEMU's that has an image open for writing.
fn hold(image: &Path) -> std::process::Child {
    let mut holder = Command::new("qemu-io")
        .args(["-f", "raw"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It answers when it has it.
    holder.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    let mut answer = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.contains("32 MiB"), "{answer}");
    holder
}

#[test]
fn who_writes_to_an_image_keeps_all_others_from_it() {
    let Some(showing) = Showing::new() else { return };
    let at = |name: &str| showing.place.path().join(name);
    showing.convert("raw", "", "disk");
    let mut holder = hold(&at("disk"));
    let words = ["another program uses it", "hint: shut the virtual machine down"];
    showing.assert_refused(&["--rw", "--format", "raw", "-a", "disk"], &words);
    let words = ["another program is writing to it", "hint: shut the virtual machine down"];
    showing.assert_refused(&["--ro", "--format", "raw", "-a", "disk"], &words);
    holder.kill().unwrap();
    holder.wait().unwrap();

    let mnt = at("mnt");
    let other: PathBuf = showing.place.folder("other");
    let mount = |how: &[&str], folder: &Path| -> Finished {
        let disk = ["--format", "raw", "-a", "disk"];
        let words = ["-m", "/dev/sda", text(folder)];
        showing.place.run("guestmnt", &[&disk[..], how, &words].concat())
    };
    for how in [&["--rw"][..], &["--ro"], &["--overlay", "o.qcow2"]] {
        let first = mount(&["--rw"], &mnt);
        assert_eq!(first.status, Some(0), "{first:?}");
        let second = mount(how, &other);
        assert_eq!(second.status, Some(1), "{how:?}: {second:?}");
        assert!(second.stderr.contains("hint: "), "{second:?}");
        let beside = Command::new("qemu-io")
            .args(["-f", "raw", "-c", "length"])
            .arg(at("disk"))
            .output()
            .unwrap();

        assert!(String::from_utf8_lossy(&beside.stderr).contains("lock"), "{beside:?}");
        showing.place.unmount(&mnt);
        if how != ["--rw"] {
            let first = mount(how, &other);
            assert_eq!(first.status, Some(0), "{first:?}");
            let second = mount(&["--rw"], &mnt);
            assert_eq!(second.status, Some(1), "{how:?}: {second:?}");
            assert!(second.stderr.contains("another program uses it"), "{second:?}");
            showing.place.unmount(&other);
        }
    }
}
