//! VMDKs of every shape through a real VM: each holds the same filesystem, and shows it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use guestmnt_tests::images::{Stream, cowd, descriptor, sesparse, shares, snapshot, stream};
use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::showing::Showing;
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;

#[test]
fn what_qemu_img_makes_is_shown() {
    let Some(showing) = Showing::new() else { return };
    for subformat in [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ] {
        let name = format!("{subformat}.vmdk");
        showing.convert("vmdk", &format!("subformat={subformat}"), &name);
        showing.assert_shown(&["-a", &name]);
    }
}

#[test]
fn extents_stay_in_the_page_cache() {
    let Some(showing) = Showing::new() else { return };
    showing.convert("vmdk", "subformat=twoGbMaxExtentFlat", "disk.vmdk");
    let extent = showing.place.path().join("disk-f001.vmdk");
    // Pages that are still to be written could not be dropped.
    File::open(&extent).unwrap().sync_all().unwrap();
    let _ = fs::read(&extent).unwrap();
    let cached = cached(&extent);
    assert!(cached > 0);
    let mnt = showing.place.path().join("mnt");
    showing.place.mount(&["-a", "disk.vmdk", "-m", "/dev/sda", text(&mnt)]);
    assert_eq!(self::cached(&extent), cached);
    showing.place.unmount(&mnt);
}

/// Bytes of a file that the page cache holds.
fn cached(file: &Path) -> u64 {
    let arguments = ["--bytes", "--noheadings", "--output", "RES", text(file)];
    let output = Command::new("fincore").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn streams_as_vmware_writes_them_are_shown() {
    let Some(showing) = Showing::new() else { return };
    let path = showing.place.path().join("stream.vmdk");
    fs::write(path, stream(&showing.bytes(), Stream::Marked)).unwrap();
    showing.assert_shown(&["-a", "stream.vmdk"]);
}

#[test]
fn streams_without_markers_are_shown() {
    let place = Workplace::new();
    let (tree, mnt) = (place.folder("tree"), place.folder("mnt"));
    fs::write(tree.join("hello"), "hello").unwrap();
    mkfs::make(Kind::Ext4, &tree, &place.path().join("image")).unwrap();
    let disk = fs::read(place.path().join("image")).unwrap();
    fs::write(place.path().join("stream.vmdk"), stream(&disk, Stream::Bare)).unwrap();
    place.mount(&["-a", "stream.vmdk", "-m", "/dev/sda", text(&mnt)]);
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"hello");
    place.unmount(&mnt);
}

#[test]
fn disks_of_an_esx_server_are_shown() {
    let Some(showing) = Showing::new() else { return };
    let disk = showing.bytes();
    let write = |name: &str, bytes: &[u8]| fs::write(showing.place.path().join(name), bytes);
    let sectors = disk.len() / 512;
    write("flat", &disk).unwrap();
    write("delta", &cowd(&disk)).unwrap();
    write("se", &sesparse(&disk)).unwrap();
    for (create_type, line) in [
        ("vmfs", format!("RW {sectors} VMFS \"flat\"")),
        ("vmfsSparse", format!("RW {sectors} VMFSSPARSE \"delta\"")),
        ("seSparse", format!("RW {sectors} SESPARSE \"se\"")),
    ] {
        write("disk.vmdk", descriptor(create_type, &line).as_bytes()).unwrap();
        showing.assert_shown(&["-a", "disk.vmdk"]);
    }
}

#[test]
fn disks_of_sixty_extents_in_a_subfolder_are_shown() {
    let Some(showing) = Showing::new() else { return };
    let disk = showing.bytes();
    let parts = showing.place.folder("parts");
    let mut lines = String::new();
    for (i, range) in shares(disk.len(), 60).into_iter().enumerate() {
        let piece = &disk[range];
        let sectors = piece.len() / 512;
        let (line, bytes) = match i % 3 {
            _ if piece.iter().all(|&byte| byte == 0) => {
                let _ = writeln!(lines, "RW {sectors} ZERO");
                continue;
            }
            0 => (format!("RW {sectors} FLAT \"parts/{i}\" 0"), piece.to_vec()),
            1 => (format!("RW {sectors} FLAT \"parts/{i}\" 1"), [&[7; 512], piece].concat()),
            _ => (format!("RW {sectors} VMFSSPARSE \"parts/{i}\""), cowd(piece)),
        };
        let _ = writeln!(lines, "{line}");
        fs::write(parts.join(i.to_string()), bytes).unwrap();
    }
    assert!(lines.contains("ZERO"), "an empty filesystem has empty parts");
    let text = descriptor("twoGbMaxExtentFlat", &lines);
    fs::write(showing.place.path().join("disk.vmdk"), text).unwrap();
    showing.assert_shown(&["-a", "disk.vmdk"]);
}

/// A base and 32 snapshots in three folders, each with a share of the disk, each finding its parent by another
/// kind of hint.
#[test]
fn the_longest_chain_over_several_folders_is_shown() {
    const LINKS: usize = 33;
    const ELSEWHERE: usize = 20;
    let Some(showing) = Showing::new() else { return };
    let disk = showing.bytes();
    let folders = ["base", "vm", "vm/later"].map(|name| showing.place.folder(name));
    let folder = |i: usize| &folders[i / 11];
    for (i, range) in shares(disk.len(), LINKS).into_iter().enumerate() {
        let mut only = vec![0; disk.len()];
        only[range.clone()].copy_from_slice(&disk[range]);
        let extent = format!("{i}-delta.vmdk");
        fs::write(folder(i).join(&extent), cowd(&only)).unwrap();
        let line = format!("RW {} VMFSSPARSE \"{extent}\"", disk.len() / 512);
        let text = match i.checked_sub(1) {
            None => descriptor("vmfsSparse", &line),
            Some(parent) => {
                let path = folder(parent).join(format!("{parent}.vmdk"));
                let name = format!("{parent}.vmdk");
                let hint = match (folder(parent) == folder(i), i % 4) {
                    (true, 0) => name,
                    (true, 1) => format!("C:\\Virtual Machines\\vm\\{name}"),
                    (true, 2) => format!("/vmfs/volumes/4ab/vm/{name}"),
                    (false, _) if i < ELSEWHERE => format!("..\\base\\{name}"),
                    (false, _) => format!("../{name}"),
                    (true, _) => text(&path).to_owned(),
                };
                snapshot("vmfsSparse", &hint, &line)
            }
        };
        fs::write(folder(i).join(format!("{i}.vmdk")), text).unwrap();
    }
    showing.assert_shown(&["-a", "vm/later/32.vmdk"]);
}

#[test]
fn an_extent_that_ends_within_a_grain_is_refused_where_others_follow() {
    let Some(showing) = Showing::new() else { return };
    let disk = showing.bytes();
    let (first, second) = disk.split_at(1004 * 512);
    fs::write(showing.place.path().join("first"), cowd(first)).unwrap();
    fs::write(showing.place.path().join("second"), cowd(second)).unwrap();
    let lines = |a: &str, b: &str| {
        let line = |name: &str, len: usize| format!("RW {} VMFSSPARSE \"{name}\"", len / 512);
        format!("{}\n{}", line(a, first.len()), line(b, second.len()))
    };
    let text = descriptor("vmfsSparse", &lines("first", "second"));
    fs::write(showing.place.path().join("disk.vmdk"), text).unwrap();
    let words = ["its extent first", "1004 sectors are no multiple of its grains of 8"];
    showing.assert_refused(&["-a", "disk.vmdk"], &words);
}

#[test]
fn a_lock_is_a_warning_and_an_extent_names_its_descriptor() {
    let Some(showing) = Showing::new() else { return };
    showing.convert("vmdk", "subformat=twoGbMaxExtentSparse", "disk.vmdk");
    fs::create_dir(showing.place.path().join("disk.vmdk.lck")).unwrap();
    let said = showing.assert_shown(&["-a", "disk.vmdk"]).stderr;
    assert!(said.contains("disk.vmdk.lck says that a virtual machine uses the disk"), "{said}");

    let words = ["disk-s001.vmdk: it holds only an extent", "hint: open disk.vmdk instead"];
    showing.assert_refused(&["-a", "disk-s001.vmdk"], &words);
    showing.convert("vmdk", "subformat=monolithicFlat", "other.vmdk");
    let words = ["other-flat.vmdk: it holds only an extent", "hint: open other.vmdk instead"];
    showing.assert_refused(&["-a", "other-flat.vmdk"], &words);
}

/// VirtualBox keeps neither content id nor name of a parent, only its ids.
#[test]
fn snapshots_of_virtualbox_are_shown() {
    const PIECE: std::ops::Range<usize> = 8 << 20..9 << 20;
    let Some(showing) = Showing::new() else { return };
    let place = showing.place.path();
    let snapshots = showing.place.folder("Snapshots");
    let note = |name: &str, ids: [&str; 4]| {
        let path = place.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let end = 512 + bytes[512..].iter().position(|&byte| byte == 0).unwrap();
        let keys = ["image", "modification", "parent", "parentmodification"];
        let lines: String = keys
            .iter()
            .zip(ids)
            .map(|(key, digit)| {
                let id = format!("{}-0000-0000-0000-000000000000", digit.repeat(8));
                format!("ddb.uuid.{key}=\"{id}\"\n")
            })
            .collect();
        bytes[end..end + lines.len()].copy_from_slice(lines.as_bytes());
        fs::write(path, bytes).unwrap();
    };
    showing.convert("vmdk", "subformat=monolithicSparse", "base.vmdk");
    showing.make("qemu-io", &["-f", "vmdk", "-c", "write -P 85 8M 1M", "base.vmdk"]);
    note("base.vmdk", ["a", "b", "0", "0"]);
    let size = showing.bytes().len().to_string();
    fs::write(place.join("piece"), &showing.bytes()[PIECE]).unwrap();
    for child in ["Snapshots/{1}.vmdk", "Snapshots/{2}.vmdk"] {
        showing.make("qemu-img", &["create", "-f", "vmdk", child, &size]);
        let write = if child.contains('1') { "write -P 17 8M 1M" } else { "write -s piece 8M 1M" };
        showing.make("qemu-io", &["-f", "vmdk", "-c", write, child]);
    }
    note("Snapshots/{1}.vmdk", ["c", "d", "a", "b"]);
    note("Snapshots/{2}.vmdk", ["e", "f", "c", "d"]);
    showing.assert_shown(&["-a", "Snapshots/{2}.vmdk"]);
    fs::remove_file(snapshots.join("{1}.vmdk")).unwrap();
    let words = ["with id cccccccc-0000-0000-0000-000000000000, is missing", "hint: "];
    showing.assert_refused(&["-a", "Snapshots/{2}.vmdk"], &words);
    note("Snapshots/{2}.vmdk", ["e", "f", "a", "d"]);
    showing.assert_refused(&["-a", "Snapshots/{2}.vmdk"], &["says ddb.uuid again"]);
}

#[test]
fn dialects_of_descriptors_are_shown() {
    let Some(showing) = Showing::new() else { return };
    let place = showing.place.path();
    let disk = showing.bytes();
    let sectors = disk.len() / 512;
    let write = |name: &str, bytes: &[u8]| fs::write(place.join(name), bytes).unwrap();
    for name in ["x-flat.vmdk", "Prüfung-flat.vmdk", "测试-flat.vmdk", "ソ-flat.vmdk"] {
        write(name, &disk);
    }
    let line = format!("RW {sectors} FLAT \"x-flat.vmdk\" 0");
    let plain = descriptor("vmfs", &line);
    // Before the settings, so that only that line is bytes of another encoding.
    let encoded = |encoding: &str, name: &[u8]| {
        let text = format!("encoding=\"{encoding}\"\nRW {sectors} VMFS \"NAME\"\n");
        let text = descriptor("vmfs", &text).into_bytes();
        let at = text.windows(4).position(|word| word == b"NAME").unwrap();
        [&text[..at], name, &text[at + 4..]].concat()
    };
    let half = sectors / 2;
    let parts = format!(
        "RW {half} FLAT \"x-flat.vmdk\" 0\nRW {} FLAT \"x-flat.vmdk\" {half}",
        sectors - half
    );
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("windows-1252", encoded("windows-1252", b"Pr\xfcfung-flat.vmdk")),
        ("UTF-8 in windows-1252", encoded("windows-1252", "Prüfung-flat.vmdk".as_bytes())),
        ("GBK", encoded("GBK", b"\xb2\xe2\xca\xd4-flat.vmdk")),
        ("Shift_JIS", encoded("Shift_JIS", b"\x83\x5c-flat.vmdk")),
        ("six values", plain.replace(&line, &format!("{line} 5fbaabe3-6958-40ff")).into()),
        ("seven values", plain.replace(&line, &format!("{line} partition device")).into()),
        ("small letters", plain.replace(&line, &line.to_lowercase()).into()),
        ("byte order mark", format!("\u{feff}{plain}").into()),
        ("carriage returns", plain.replace('\n', "\r").into()),
        ("fullDevice", descriptor("fullDevice", &line).into()),
        ("partitionedDevice", descriptor("partitionedDevice", &parts).into()),
        ("custom", descriptor("custom", &line).into()),
        ("no createType", plain.replace("createType=\"vmfs\"\n", "").into()),
        ("of ESX", plain.replace("x-flat", "/vmfs/volumes/5bd0b7d5-02d4a3bb/x/x-flat").into()),
        ("empty hint", format!("{plain}parentFileNameHint=\"\"\n").into()),
    ];
    for (dialect, bytes) in rows {
        println!("{dialect}");
        write("disk.vmdk", &bytes);
        showing.assert_shown(&["-a", "disk.vmdk"]);
    }
}

#[test]
fn a_description_in_another_encoding_finds_its_disk() {
    let Some(showing) = Showing::new() else { return };
    let vm = showing.place.folder("vm");
    let disk = showing.bytes();
    let line = format!("RW {} FLAT \"x-flat.vmdk\"", disk.len() / 512);
    fs::write(vm.join("x-flat.vmdk"), &disk).unwrap();
    fs::write(vm.join("Prüf.vmdk"), descriptor("vmfs", &line)).unwrap();
    let vmx = b".encoding = \"windows-1252\"\r\nscsi0:0.fileName = \"Pr\xfcf.vmdk\"\r\n";
    fs::write(vm.join("vm.vmx"), vmx).unwrap();
    showing.assert_shown(&["-a", "vm"]);
}

#[test]
fn a_lone_extent_is_shown_where_the_user_says_so() {
    let Some(showing) = Showing::new() else { return };
    showing.convert("vmdk", "subformat=twoGbMaxExtentSparse", "disk.vmdk");
    fs::remove_file(showing.place.path().join("disk.vmdk")).unwrap();
    let words = ["it holds only an extent", "--format vmdk before -a opens the extent alone"];
    showing.assert_refused(&["-a", "disk-s001.vmdk"], &words);
    let shown = showing.assert_shown(&["--format", "vmdk", "-a", "disk-s001.vmdk"]);
    assert!(shown.stderr.contains("it is one extent of a disk, opened alone"), "{shown:?}");
}
