//! Disks in other formats than VMDK, through a real VM: each holds the same filesystem, and
//! shows it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use guestmnt_tests::images::{Stream, descriptor, stream};
use guestmnt_tests::showing::Showing;
use guestmnt_tests::specimens::sha256;
use xtask::disks::filesystems::Kind;

#[test]
fn what_qemu_img_makes_is_shown() {
    let Some(showing) = Showing::new() else { return };
    let table = [
        ("raw", "", "disk.img"),
        ("qcow2", "compat=0.10", "old.qcow2"),
        ("qcow2", "compression_type=zstd,extended_l2=on", "new.qcow2"),
        ("vdi", "", "disk.vdi"),
        ("vdi", "static=on", "static.vdi"),
        ("vpc", "force_size=on", "disk.vhd"),
        ("vpc", "subformat=fixed,force_size=on", "fixed.vhd"),
        ("vhdx", "", "disk.vhdx"),
        ("vhdx", "subformat=fixed", "fixed.vhdx"),
        ("qed", "", "disk.qed"),
        ("parallels", "", "disk.hds"),
    ];
    for (format, options, name) in table {
        showing.convert(format, options, name);
        showing.assert_shown(&["-a", name]);
        if name != "disk.img" {
            fs::remove_file(showing.place.path().join(name)).unwrap();
        }
    }
}

/// Snapshots over a base in each format, with a share of the disk in each link.
#[test]
fn backing_files_of_any_format_are_shown() {
    let Some(showing) = Showing::new() else { return };
    let bases = [
        ("raw", ""),
        ("qcow2", ""),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vdi", ""),
        ("vpc", "force_size=on"),
        ("vhdx", ""),
        ("qed", ""),
        ("parallels", ""),
    ];
    let pieces: [(u64, usize); 2] = [(0, 1 << 20), (8 << 20, 4 << 20)];
    for (format, options) in bases {
        let base = format!("base.{format}");
        showing.convert(format, options, &base);
        showing.make("qemu-img", &["create", "-f", "qcow2", "-b", &base, "-F", format, "1.qcow2"]);
        showing.make("qemu-img", &["snapshot", "-c", "inside", "1.qcow2"]);
        showing.make(
            "qemu-img",
            &["create", "-f", "qcow2", "-b", "1.qcow2", "-F", "qcow2", "2.qcow2"],
        );
        // What the base has there is wrong, and mended above it.
        for (link, (at, len)) in ["1.qcow2", "2.qcow2"].into_iter().zip(pieces) {
            let spoil = format!("write -P 170 {at} {len}");
            let below = if link == "2.qcow2" { ("1.qcow2", "qcow2") } else { (&*base, format) };
            showing.make("qemu-io", &["-f", below.1, "-c", &spoil, below.0]);
            let piece = &showing.bytes()[usize::try_from(at).unwrap()..][..len];
            fs::write(showing.place.path().join("piece"), piece).unwrap();
            let mend = format!("write -s piece {at} {len}");
            showing.make("qemu-io", &["-f", "qcow2", "-c", &mend, link]);
        }
        showing.assert_shown(&["-a", "2.qcow2"]);
    }
}

#[test]
fn a_raw_disk_that_looks_like_another_is_what_it_is_said_to_be() {
    let Some(showing) = Showing::new() else { return };
    let place = showing.place.path();
    fs::write(place.join("secret"), "secret").unwrap();
    // The first kilobyte of ext4 is free for boot loaders: a qcow2 that is over another file.
    showing.make(
        "qemu-img",
        &["create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", "trap", "32M"],
    );
    let mut disk = showing.bytes();
    disk[..1024].copy_from_slice(&fs::read(place.join("trap")).unwrap()[..1024]);
    fs::write(place.join("disk.img"), &disk).unwrap();
    showing.assert_shown(&["--format", "raw", "-a", "disk.img"]);
    showing.assert_refused(&["-a", "disk.img"], &["/etc/passwd", "outside of the image's folder"]);
    let line = format!("RW {} FLAT \"disk.img\" 0", disk.len() / 512);
    fs::write(place.join("disk.vmdk"), descriptor("monolithicFlat", &line)).unwrap();
    showing.assert_shown(&["-a", "disk.vmdk"]);
    showing.make("qemu-img", &["create", "-f", "qcow2", "-b", "disk.img", "-F", "raw", "a.qcow2"]);
    showing.assert_shown(&["-a", "a.qcow2"]);
}

#[test]
fn what_qemu_cannot_read_says_what_to_do() {
    let Some(showing) = Showing::new() else { return };
    let secret = "secret,id=s,data=x";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
    let luks = ["create", "-f", "qcow2", "--object", secret, "-o", options, "luks.qcow2", "1M"];
    showing.make("qemu-img", &luks);
    showing.assert_refused(&["-a", "luks.qcow2"], &["encrypted with LUKS", "hint: "]);
    let data = ["create", "-f", "qcow2", "-o", "data_file=data.raw", "data.qcow2", "1M"];
    showing.make("qemu-img", &data);
    showing.assert_refused(&["-a", "data.qcow2"], &["its data in another file", "hint: "]);
}

#[test]
fn a_split_disk_is_shown_from_its_first_piece() {
    let Some(showing) = Showing::new() else { return };
    let disk = showing.bytes();
    for (number, piece) in (1..).zip(disk.chunks((disk.len() / 11).next_multiple_of(512))) {
        fs::write(showing.place.path().join(format!("disk.img.{number:03}")), piece).unwrap();
    }
    showing.assert_shown(&["-a", "disk.img.001"]);
    showing.assert_shown(&["--format", "raw", "-a", "disk.img.001"]);
    showing.assert_refused(&["-a", "disk.img.002"], &["hint: open disk.img.001 instead"]);
    // Cut short, it would shift all that follows.
    let seventh = fs::File::options().write(true).open(showing.place.path().join("disk.img.007"));
    seventh.unwrap().set_len(4096).unwrap();
    let shorter = ["piece disk.img.007: its 4096 bytes are fewer", "hint: compare its size"];
    showing.assert_refused(&["-a", "disk.img.001"], &shorter);
    fs::remove_file(showing.place.path().join("disk.img.007")).unwrap();
    showing.assert_refused(&["-a", "disk.img.001"], &["piece number 7 is missing", "hint: "]);
}

#[test]
fn disks_in_an_archive_are_shown_where_they_are() {
    let Some(showing) = Showing::new() else { return };
    let place = showing.place.path();
    fs::write(place.join("vm.ovf"), "<Envelope/>").unwrap();
    let stream = stream(&showing.bytes(), Stream::Marked);
    fs::write(place.join("disk1.vmdk"), stream).unwrap();
    showing.make("tar", &["--format=ustar", "-cf", "one.ova", "vm.ovf", "disk1.vmdk"]);
    showing.assert_shown(&["-a", "one.ova"]);
    showing.convert("qcow2", "", "disk2.qcow2");
    showing.convert("vpc", "subformat=fixed,force_size=on", "disk3.vhd");
    for format in ["ustar", "pax", "gnu"] {
        let format = format!("--format={format}");
        let files = ["vm.ovf", "disk1.vmdk", "disk2.qcow2", "disk3.vhd"];
        showing.make("tar", &[&[&*format, "-cf", "all.ova"], &files[..]].concat());
        showing.assert_refused(&["-a", "all.ova"], &["several disks", "    all.ova:disk3.vhd"]);
        for disk in &files[1..] {
            showing.assert_shown(&["-a", &format!("all.ova:{disk}")]);
        }
    }
}

#[test]
fn sectors_of_4096_bytes_are_counted_in_partition_tables() {
    // The ext4 of the other tests has blocks that are smaller than such sectors.
    let Some(showing) = Showing::of(Kind::Erofs) else { return };
    const START: u32 = 256;
    let filesystem = showing.bytes();
    let sectors = u32::try_from(filesystem.len() / 4096).unwrap();
    let mut disk = vec![0; START as usize * 4096];
    disk[0x1be + 4] = 0x83;
    disk[0x1be + 8..0x1be + 12].copy_from_slice(&START.to_le_bytes());
    disk[0x1be + 12..0x1be + 16].copy_from_slice(&sectors.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.extend(&filesystem);
    // Not a whole sector at the end.
    disk.extend([0; 512]);
    fs::write(showing.place.path().join("disk.img"), disk).unwrap();
    showing.assert_mounted(&["--blocksize", "4096", "-a", "disk.img", "-m", "/dev/sda1"]);
    let finished = showing.place.run("guestmnt", &["-a", "disk.img", "-m", "/dev/sda1", "mnt"]);
    assert_eq!(finished.status, Some(1), "{finished:?}");
}

#[test]
fn a_qed_shows_its_backing_file() {
    let Some(showing) = Showing::new() else { return };
    showing.convert("vdi", "", "base.vdi");
    showing.make("qemu-img", &["create", "-f", "qed", "-b", "base.vdi", "-F", "vdi", "a.qed"]);
    showing.make("qemu-io", &["-f", "vdi", "-c", "write -P 170 0 1M", "base.vdi"]);
    fs::write(showing.place.path().join("piece"), &showing.bytes()[..1 << 20]).unwrap();
    showing.make("qemu-io", &["-f", "qed", "-c", "write -s piece 0 1M", "a.qed"]);
    showing.assert_shown(&["-a", "a.qed"]);
}

/// Its hash would pass for that of the disk in it.
#[test]
fn what_is_no_disk_is_refused_by_every_command() {
    let Some(showing) = Showing::new() else { return };
    let place = showing.place.path();
    fs::write(place.join("disk.img"), showing.bytes()).unwrap();
    showing.make("gzip", &["-k", "disk.img"]);
    fs::write(place.join("notes.txt"), "a\n".repeat(2048)).unwrap();
    let programs: [&[&str]; 7] = [
        &["guestmnt", "-m", "/dev/sda", "mnt", "-a"],
        &["guestmnt", "--blocks", "mnt", "-a"],
        &["guestimg", "filesystems", "-a"],
        &["guestimg", "inspect", "-a"],
        &["guestimg", "ls", "/", "-a"],
        &["guestimg", "tar", "/", "-a"],
        &["guestimg", "export", "--check", "--force"],
    ];
    for (name, words) in [("disk.img.gz", "hint: gunzip -k "), ("notes.txt", "it is text")] {
        for program in programs {
            let further: &[&str] = if program[1] == "export" { &[name, "out"] } else { &[name] };
            let arguments = [&program[1..], further].concat();
            let refused = showing.place.run(program[0], &arguments);
            assert_eq!(refused.status, Some(1), "{arguments:?}: {refused:?}");
            let said = format!("cannot open {name}: it is ");
            assert!(refused.stderr.contains(&said), "{arguments:?}: {refused:?}");
            assert!(refused.stderr.contains(words), "{arguments:?}: {refused:?}");
            assert!(!place.join("out").exists(), "{arguments:?}");
        }
    }
    let raw = ["export", "--check", "--format", "raw", "disk.img.gz", "out"];
    let raw = showing.place.run("guestimg", &raw);
    assert!(raw.stdout.contains(&sha256(&place.join("disk.img.gz"))), "{raw:?}");
}

/// QEMU's own words do not say which image they are about.
#[test]
fn what_qemu_refuses_is_named() {
    let Some(showing) = Showing::new() else { return };
    showing.convert("qcow2", "", "good.qcow2");
    showing.convert("qcow2", "", "bad.qcow2");
    let path = showing.place.path().join("bad.qcow2");
    let mut bytes = fs::read(&path).unwrap();
    // The first table is at no multiple of a cluster.
    bytes[47] = 1;
    fs::write(&path, bytes).unwrap();
    for images in [&["-a", "bad.qcow2"][..], &["-a", "good.qcow2", "-a", "bad.qcow2"]] {
        let arguments = [images, &["-m", "/dev/sda", "mnt"]].concat();
        let refused = showing.place.run("guestmnt", &arguments);
        assert_eq!(refused.status, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("bad.qcow2: "), "{refused:?}");
        assert!(!refused.stderr.contains("good.qcow2"), "{refused:?}");
    }
}

#[test]
fn an_image_may_have_any_name() {
    let Some(showing) = Showing::new() else { return };
    let name = OsStr::from_bytes(b"disk \xff.vmdk");
    let mnt = showing.place.path().join("mnt");
    showing.convert("vmdk", "", "disk.vmdk");
    fs::rename(showing.place.path().join("disk.vmdk"), showing.place.path().join(name)).unwrap();
    let run = |program: &str, arguments: &[&OsStr]| {
        let mut command = showing.place.command(program, &[]);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    fn words<'w>(words: &[&'w str]) -> Vec<&'w OsStr> {
        words.iter().map(|word| OsStr::new(*word)).collect()
    }
    run("guestmnt", &[&words(&["-m", "/dev/sda", "-a"])[..], &[name, mnt.as_os_str()]].concat());
    let status = run("guestimg", &[&words(&["status", "--json"])[..], &[mnt.as_os_str()]].concat());
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let image = &status[0]["session"]["images"][0];
    assert!(image["text"].as_str().unwrap().ends_with("disk \\xff.vmdk"), "{status}");
    assert!(image["bytes"].as_array().unwrap().iter().any(|byte| byte == 255), "{status}");
    assert!(run("guestimg", &[OsStr::new("status")]).contains("disk \\xff.vmdk"));
    showing.place.unmount(&mnt);
    let mut whole = words(&["export", "--check"]);
    whole.extend([name, OsStr::new("out")]);
    assert!(run("guestimg", &whole).contains(&sha256(&showing.image)));
}
