//! Disks in other formats than VMDK, through a real VM: each holds the same filesystem, and
//! shows it.

use std::fs;

use guestmnt_tests::images::{Stream, descriptor, shares, stream};
use guestmnt_tests::showing::Showing;
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
    for (i, range) in shares(disk.len(), 12).into_iter().enumerate() {
        let path = showing.place.path().join(format!("disk.img.{:03}", i + 1));
        fs::write(path, &disk[range]).unwrap();
    }
    showing.assert_shown(&["-a", "disk.img.001"]);
    showing.assert_shown(&["--format", "raw", "-a", "disk.img.001"]);
    showing.assert_refused(&["-a", "disk.img.002"], &["hint: open disk.img.001 instead"]);
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
