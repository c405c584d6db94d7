//! `guestimg ls`, `cat`, `cp`, `tar` and `export`: what comes out of disks, against what was put in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Output;

use guestmnt::disk::DiskReader;
use guestmnt::image::{Disk, OpenOptions};
use guestmnt_tests::program::{Finished, Workplace, disks, text};
use guestmnt_tests::specimens::{assembled, sha256, specimen};
use guestmnt_tests::tree::assert_same;
use serde_json::{Value, json};
use xtask::disks::filesystems::Kind;
use xtask::disks::manifest::Entry;
use xtask::disks::{NEWEST, SYSTEM};
use xtask::process::Tool;

fn guestimg(place: &Workplace, arguments: &[&str]) -> Finished {
    let finished = place.run("guestimg", arguments);
    assert_eq!(finished.status, Some(0), "{arguments:?}: {finished:?}");
    finished
}

fn output(place: &Workplace, arguments: &[&str]) -> Output {
    let output = place.command("guestimg", arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

/// Unpacks a stream as GNU tar does.
fn unpack(archive: &Path, folder: &Path) {
    fs::create_dir(folder).unwrap();
    Tool::new("tar").arg("-xpf").arg(archive).arg("-C").arg(folder).run().unwrap();
}

fn assert_sparse(file: &Path) {
    let metadata = fs::metadata(file).unwrap();
    assert!(metadata.blocks() * 512 < metadata.size() / 2, "{}", file.display());
}

fn everything_comes_out_as_it_went_in(image: &Path, entries: &BTreeMap<String, Entry>) {
    let place = Workplace::new();
    let image = ["-a", text(image)];
    let stream = || output(&place, &[&["tar"], &image[..]].concat()).stdout;
    let first = stream();
    assert!(first == stream(), "the same files give another stream");
    let archive = place.path().join("archive");
    fs::write(&archive, first).unwrap();
    let unpacked = place.path().join("unpacked");
    unpack(&archive, &unpacked);
    assert_same(&unpacked, entries);

    let copy = place.folder("copy");
    guestimg(&place, &[&["cp"], &image[..], &["/", text(&copy)]].concat());
    assert_same(&copy, entries);
    place.assert_clean(&["archive", "unpacked", "copy"]);
}

#[test]
fn everything_comes_out_of_ext4_as_it_went_in() {
    let Some((image, entries)) = specimen(Kind::Ext4) else { return };
    everything_comes_out_as_it_went_in(&image, &entries);
}

#[test]
fn everything_comes_out_of_btrfs_as_it_went_in() {
    let Some((image, entries)) = specimen(Kind::Btrfs) else { return };
    everything_comes_out_as_it_went_in(&image, &entries);
}

#[test]
fn everything_comes_out_of_ntfs_as_it_went_in() {
    let manifest = disks().manifest().unwrap();
    everything_comes_out_as_it_went_in(&disks().path(SYSTEM), &manifest.disks[SYSTEM][0].entries);
}

#[test]
fn a_tar_stream_has_owners_attributes_devices_and_rights_and_a_copy_does_not() {
    let place = Workplace::new();
    let source = place.folder("source");
    fs::write(source.join("tool"), "#!/bin/sh\n").unwrap();
    let sparse = File::create(source.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(b"data", 4 << 20).unwrap();
    let image = place.path().join("image");
    xtask::disks::mkfs::make(Kind::Ext4, &source, &image).unwrap();
    let requests = [
        "sif tool mode 0104755",
        "sif tool uid 1234567",
        "ea_set tool user.note kept",
        "ea_set tool trusted.other left",
        "mknod null c 1 3",
        "symlink away /etc/passwd",
    ];
    for request in requests {
        Tool::new("debugfs").args(["-w", "-R", request]).arg(&image).run().unwrap();
    }
    let disk = ["--format", "raw", "-a", text(&image)];
    let archive = place.path().join("archive");
    guestimg(&place, &[&["tar"], &disk[..], &["-o", text(&archive), "/"]].concat());
    let listed = Tool::new("tar")
        .args(["--numeric-owner", "--xattrs-include=*", "-tvvf"])
        .arg(&archive)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed).unwrap();
    let line = |name: &str| listed.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(line("tool").starts_with("-rwsr-xr-x"), "{listed}");
    assert!(line("tool").contains(" 1234567/"), "{listed}");
    for xattr in ["user.note", "trusted.other"] {
        assert!(listed.contains(xattr), "{listed}");
    }
    assert!(line("null").starts_with('c') && line("null").contains(" 1,3 "), "{listed}");

    let unpacked = place.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let part = Tool::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&unpacked);
    part.args(["sparse"]).run().unwrap();

    let copy = place.folder("copy");
    let files = ["/tool", "/null", "/away", "/sparse", text(&copy)];
    let arguments = [&["cp"], &disk[..], &files].concat();
    let finished = place.run("guestimg", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert_eq!(finished.stderr, "guestimg: /null: left out: it is a device\n");
    let expected = fs::read(source.join("sparse")).unwrap();
    for folder in [&unpacked, &copy] {
        assert!(fs::read(folder.join("sparse")).unwrap() == expected);
        assert_sparse(&folder.join("sparse"));
    }
    let tool = fs::metadata(copy.join("tool")).unwrap();
    let me = nix::unistd::geteuid().as_raw();
    assert_eq!((tool.mode(), tool.uid()), (0o100_755, me));
    assert_eq!(xattr::get(copy.join("tool"), "user.note").unwrap().as_deref(), Some(&b"kept"[..]));
    assert_eq!(fs::read_link(copy.join("away")).unwrap().to_str(), Some("/etc/passwd"));
    assert!(!copy.join("null").exists());
    place.assert_clean(&["source", "image", "archive", "unpacked", "copy"]);
}

#[test]
fn files_that_are_there_stay_unless_they_are_to_be_replaced() {
    let newest = disks().path(NEWEST);
    let place = Workplace::new();
    let copy = place.folder("copy");
    fs::write(copy.join("state.txt"), "mine").unwrap();
    let files = ["-a", text(&newest), "-m", "/dev/sda2", "state.txt", "/ufos", text(&copy)];
    let finished = place.run("guestimg", &[&["cp"], &files[..]].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    // The first to need a VM says that it prepares one.
    let last = finished.stderr.lines().last();
    assert_eq!(last, Some("guestimg: /state.txt: cannot write: File exists"), "{finished:?}");
    assert_eq!(fs::read_to_string(copy.join("state.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(copy.join("ufos/ufo.txt")).unwrap(), "Ufos are not real\n");
    guestimg(&place, &[&["cp", "--force"], &files[..]].concat());
    assert_ne!(fs::read_to_string(copy.join("state.txt")).unwrap(), "mine");

    let archive = place.path().join("archive");
    fs::write(&archive, "mine").unwrap();
    let stream = ["tar", "-a", text(&newest), "-m", "/dev/sda2", "-o", text(&archive), "/ufos"];
    let finished = place.run("guestimg", &stream);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("is there already\n  hint: --force"), "{finished:?}");
    assert_eq!(fs::read_to_string(&archive).unwrap(), "mine");
    place.assert_clean(&["copy", "archive"]);
}

#[test]
fn files_are_listed_and_printed() {
    let newest = disks().path(NEWEST);
    let place = Workplace::new();
    let disk = ["-a", text(&newest), "-m", "/dev/sda2"];
    let listed = guestimg(&place, &[&["ls"], &disk[..], &["/ufos"]].concat()).stdout;
    let words: Vec<&str> = listed.split_whitespace().collect();
    assert_eq!((words[0], words[4], words[7]), ("-rwxr-xr-x", "18", "ufo.txt"), "{listed}");
    let listed = guestimg(&place, &[&["ls", "-R", "--json"], &disk[..]].concat()).stdout;
    let files: Value = serde_json::from_str(&listed).unwrap();
    let file = |path: &str| {
        let files = files.as_array().unwrap().iter();
        files.clone().find(|file| file["path"] == path).cloned().unwrap()
    };
    assert_eq!(file("/ufos/ufo.txt")["size"], 18);
    assert_eq!(file("/ufos")["type"], "directory");

    let printed =
        guestimg(&place, &[&["cat"], &disk[..], &["/ufos/ufo.txt", "ufos//ufo.txt"]].concat());
    assert_eq!(printed.stdout, "Ufos are not real\n".repeat(2));
    let finished =
        place.run("guestimg", &[&["cat"], &disk[..], &["/no", "/ufos/ufo.txt"]].concat());
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(1), "Ufos are not real\n"));
    assert_eq!(finished.stderr, "guestimg: /no: No such file or directory\n");
    let both = ["cat", "--json", "/no", "/ufos/ufo.txt"];
    let finished = place.run("guestimg", &[&both[..], &disk].concat());
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let files: Value = serde_json::from_str(&finished.stdout).unwrap();
    let expected = json!([
        { "path": "/no", "error": "No such file or directory" },
        { "path": "/ufos/ufo.txt", "size": 18, "base64": "VWZvcyBhcmUgbm90IHJlYWwK" },
    ]);
    assert_eq!(files, expected);

    let finished = place.run("guestimg", &["ls", "-a", text(&newest)]);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("/dev/sda1 (ntfs)\n    /dev/sda2 (ntfs)"), "{finished:?}");
    let system = disks().path(SYSTEM);
    let sole = guestimg(&place, &["ls", "-a", text(&system)]);
    assert!(sole.stdout.contains("Windows"), "the only filesystem: {sole:?}");
    place.assert_clean(&[]);
}

/// The bytes of a disk from `start` on.
fn sectors(image: &Path, start: u64, length: u64) -> Vec<u8> {
    let disk = Disk::open(image, &OpenOptions::default()).unwrap();
    let disk = DiskReader::of(&disk).unwrap().unwrap();
    let mut bytes = vec![0; usize::try_from(length.min(disk.size() - start)).unwrap()];
    disk.read(&mut bytes, start).unwrap();
    bytes
}

#[test]
fn a_whole_disk_is_exported_without_a_vm() {
    let system = disks().path(SYSTEM);
    let place = Workplace::with_own_cache();
    let out = place.path().join("out");
    let told = guestimg(&place, &["export", "--check", text(&system), text(&out)]).stdout;
    assert_eq!(told, format!("sha256 {}\n", sha256(&out)));
    assert!(fs::read(&out).unwrap() == sectors(&system, 0, u64::MAX));
    assert_sparse(&out);
    let finished = place.run("guestimg", &["export", text(&system), text(&out)]);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("is there already\n  hint: --force"), "{finished:?}");
    // Nothing was started that leaves a trace, a template among them.
    assert!(!place.path().join(".cache").exists());
    place.assert_clean(&["out"]);
}

#[test]
fn a_partition_is_exported_to_either_form() {
    let system = disks().path(SYSTEM);
    let place = Workplace::new();
    let named = format!("{}:sda1", text(&system));
    let (raw, qcow2) = (place.path().join("raw"), place.path().join("qcow2"));
    guestimg(&place, &["export", &named, text(&raw)]);
    let start = File::open(&raw).unwrap();
    let mut boot = [0; 512];
    start.read_exact_at(&mut boot, 0).unwrap();
    assert_eq!(&boot[3..7], b"NTFS");
    let length = fs::metadata(&raw).unwrap().len();
    assert!(fs::read(&raw).unwrap() == sectors(&system, 2048 * 512, length));
    guestimg(&place, &["export", "-O", "qcow2", "--check", &named, text(&qcow2)]);
    for arguments in [
        &["compare", "-f", "raw", "-F", "qcow2", text(&raw), text(&qcow2)][..],
        &["check", "-f", "qcow2", text(&qcow2)],
    ] {
        Tool::new("qemu-img").args(arguments).run().unwrap();
    }
    let finished =
        place.run("guestimg", &["export", &named.replace("sda1", "sda7"), text(&raw), "-f"]);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("no sda7 on the disk; there are: sda sda1"), "{finished:?}");
    assert_eq!(fs::metadata(&raw).unwrap().len(), length, "the old file stays");
    place.assert_clean(&["raw", "qcow2"]);
}

#[test]
fn what_only_qemu_reads_and_volumes_are_exported_through_the_guest() {
    let Some((plain, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let (image, out) = (place.path().join("disk.qcow2"), place.path().join("out"));
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "-c"];
    Tool::new("qemu-img").args(convert).arg(&plain).arg(&image).run().unwrap();
    guestimg(&place, &["export", text(&image), text(&out)]);
    assert_eq!(sha256(&out), sha256(&plain));

    let Some([a, b]) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    let named = format!("{}:my-vg/root", text(&a));
    let disks = ["export", "-f", "--format", "raw", "-a", text(&b), &named, text(&out)];
    guestimg(&place, &disks);
    let (volume, plain) = (fs::read(&out).unwrap(), fs::read(&plain).unwrap());
    // It was mounted once before it was copied there, which a few bytes of the journal tell.
    let differing = volume.iter().zip(&plain).filter(|(one, other)| one != other).count();
    assert!(volume.len() >= plain.len() && differing < 100, "{differing} bytes differ");
    place.assert_clean(&["disk.qcow2", "out"]);
}
