//! Backing files of qcow2: where they may be, and what they are taken for.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::fixtures::*;
use super::*;

const SIZE: u64 = 1 << 20;

fn over(name: &str, format: &str) -> Vec<u8> {
    qcow2_over(SIZE, name.as_bytes(), format)
}

fn refusal(folder: &Folder, name: &str) -> String {
    folder.open(name).unwrap_err().to_string()
}

#[test]
fn backing_files_are_found_by_any_kind_of_name() {
    let folder = Folder::new();
    folder.write("vm/base.qcow2", qcow2(SIZE));
    folder.write("vm/older/base.qcow2", qcow2(SIZE));
    let path = folder.path.display();
    let table = [
        ("base.qcow2".to_owned(), "vm/base.qcow2"),
        ("older/base.qcow2".to_owned(), "vm/older/base.qcow2"),
        (format!("{path}/vm/base.qcow2"), "vm/base.qcow2"),
        ("/nowhere/base.qcow2".to_owned(), "vm/base.qcow2"),
        ("C:\\disks\\base.qcow2".to_owned(), "vm/base.qcow2"),
        ("older\\base.qcow2".to_owned(), "vm/older/base.qcow2"),
    ];
    for (name, expected) in table {
        for format in ["qcow2", ""] {
            folder.write("vm/a.qcow2", over(&name, format));
            let disk = folder.open("vm/a.qcow2").unwrap();
            let paths: Vec<_> = disk.chain.iter().map(|link| link.path.clone()).collect();
            assert_eq!(paths, [folder.path.join("vm/a.qcow2"), folder.path.join(expected)]);
        }
    }
}

#[test]
fn the_header_says_what_a_backing_file_is() {
    let folder = Folder::new();
    folder.write("qcow2", qcow2(2 * SIZE));
    folder.write("raw", vec![0; 4096]);
    folder.write("flat", vec![0; 512]);
    folder.write("disk.vmdk", base(1, "RW 1 FLAT \"flat\" 0"));
    let table = [
        // A guest could write the header of a qcow2 into the first sectors of a raw disk.
        ("qcow2", "raw", Format::Raw, 512),
        ("qcow2", "qcow2", Format::Qcow2, 2 * SIZE),
        ("qcow2", "", Format::Qcow2, 2 * SIZE),
        ("raw", "", Format::Raw, 4096),
        ("disk.vmdk", "vmdk", Format::Vmdk, 512),
        ("disk.vmdk", "", Format::Vmdk, 512),
    ];
    for (name, format, expected, size) in table {
        folder.write("a.qcow2", over(name, format));
        let disk = folder.open("a.qcow2").unwrap();
        assert_eq!((disk.size, disk.chain.len()), (SIZE, 2), "{name} {format}");
        assert_eq!((disk.chain[1].format, disk.chain[1].size), (expected, size), "{name} {format}");
    }
    for (name, format) in [("raw", "qcow2"), ("qcow2", "vmdk"), ("raw", "vdi")] {
        folder.write("a.qcow2", over(name, format));
        assert!(refusal(&folder, "a.qcow2").contains("it is not in the format"), "{name} {format}");
    }
}

#[test]
fn backing_files_elsewhere_need_permission() {
    let folder = Folder::new();
    let outside = Folder::new();
    let (secret, other) = (outside.write("secret", [0; 512]), outside.write("b", qcow2(SIZE)));
    symlink(&other, {
        folder.write("vm/.keys/key", [0; 512]);
        folder.path.join("vm/link")
    })
    .unwrap();
    folder.write("beside.qcow2", qcow2(SIZE));
    fs::hard_link(folder.write("orig", qcow2(SIZE)), folder.path.join("vm/hard")).unwrap();
    let table = [
        (secret.to_str().unwrap(), "outside of the image's folder", &outside.path),
        (other.to_str().unwrap(), "outside of the image's folder", &outside.path),
        ("link", "outside of the image's folder", &outside.path),
        ("../beside.qcow2", "outside of the image's folder", &folder.path),
        (".keys/key", "or hidden in it", &folder.path),
        ("hard", "(hard links)", &folder.path),
    ];
    for (name, words, allow) in table {
        folder.write("vm/a.qcow2", over(name, ""));
        let error = refusal(&folder, "vm/a.qcow2");
        assert!(error.contains(words) && error.contains("--allow-path"), "{name}: {error}");
        assert_eq!(folder.open_allowing("vm/a.qcow2", allow).unwrap().chain.len(), 2, "{name}");
    }
}

#[test]
fn what_is_no_backing_file_is_refused() {
    let folder = Folder::new();
    folder.write("middle.qcow2", over("a.qcow2", ""));
    folder.write("damaged.qcow2", &qcow2(SIZE)[..80]);
    mkfifo(&folder.path.join("fifo"), Mode::S_IRWXU).unwrap();
    fs::create_dir(folder.path.join("folder")).unwrap();
    let table = [
        ("missing.qcow2", "", "its parent is missing; looked for"),
        ("a.qcow2", "", "is also its child"),
        ("middle.qcow2", "", "is also its child"),
        ("fifo", "raw", "it is a FIFO"),
        ("folder", "", "it is a folder"),
        ("/dev/zero", "raw", "it is a device"),
        ("damaged.qcow2", "", "truncated"),
        ("nbd:localhost:10809", "raw", "names a protocol and not a file"),
        ("nbd+unix:///?socket=/s", "raw", "names a protocol and not a file"),
        ("json:{\"driver\":\"null-co\"}", "raw", "names a protocol and not a file"),
        ("ssh://host/file", "", "names a protocol and not a file"),
        ("base\n.qcow2", "", "a control character"),
        ("base\0.qcow2", "", "a control character"),
        ("raw", "host_device", "the format \"host_device\""),
        ("raw", "\u{1b}[2J", "the format \"\\u{1b}[2J\""),
    ];
    for (name, format, words) in table {
        folder.write("a.qcow2", over(name, format));
        let error = refusal(&folder, "a.qcow2");
        assert!(error.contains(words), "{name}: {error}");
        assert!(!error.contains('\u{1b}'), "{name}: {error}");
    }
}

#[test]
fn chains_of_backing_files_end_at_the_limit() {
    let folder = Folder::new();
    folder.write("0", qcow2(SIZE));
    for i in 1..40 {
        folder.write(&i.to_string(), over(&(i - 1).to_string(), "qcow2"));
    }
    assert_eq!(folder.open("32").unwrap().chain.len(), MAX_LINKS);
    assert!(matches!(folder.open("33").unwrap_err().problem(), Problem::TooDeep));
    assert!(matches!(folder.open("39").unwrap_err().problem(), Problem::TooDeep));
}

/// Nothing but the last part of its name says what it is: that is told, and what cannot be it refused.
#[test]
fn a_file_in_the_place_of_a_backing_file_is_told_of() {
    for is_qed in [false, true] {
        let over = |name: &str| match is_qed {
            true => qed_over(SIZE, name.as_bytes(), false),
            false => over(name, ""),
        };
        let folder = Folder::new();
        folder.write("base.img", vec![0; 1 << 20]);
        for name in ["/nowhere/base.img", "older/base.img", "C:\\disks\\base.img"] {
            folder.write("a.img", over(name));
            let warnings = folder.open("a.img").unwrap().warnings.join("\n");
            let found = folder.path.join("base.img").display().to_string();
            for words in [name, found.as_str(), "does not exist", "hint: "] {
                assert!(warnings.contains(words), "{name}: no {words} in {warnings}");
            }
        }
        for name in ["base.img", "./base.img", folder.path.join("base.img").to_str().unwrap()] {
            folder.write("a.img", over(name));
            assert_eq!(folder.open("a.img").unwrap().warnings, Vec::<String>::new(), "{name}");
        }
        folder.write("base.img", vec![0; (1 << 20) + 512]);
        folder.write("a.img", over("base.img"));
        folder.open("a.img").unwrap();
        folder.write("a.img", over("/nowhere/base.img"));
        let error = refusal(&folder, "a.img");
        assert!(error.contains("/nowhere/base.img does not exist"), "{error}");
        assert!(error.contains("1049088 bytes, more than its own 1048576"), "{error}");
    }
}

#[test]
fn a_qed_says_what_its_backing_file_is() {
    let folder = Folder::new();
    folder.write("base", qcow2(SIZE));
    for (is_raw, expected) in [(true, Format::Raw), (false, Format::Qcow2)] {
        folder.write("a.qed", qed_over(SIZE, b"base", is_raw));
        let disk = folder.open("a.qed").unwrap();
        assert_eq!((disk.chain[0].format, disk.chain[1].format), (Format::Qed, expected));
    }
    folder.write("a.qed", qed_over(SIZE, b"nbd:host:1", false));
    assert!(refusal(&folder, "a.qed").contains("names a protocol"));
}

/// Which of several images is over which only an XML file says.
#[test]
fn one_image_of_a_parallels_disk_with_snapshots_is_refused() {
    let folder = Folder::new();
    folder.write("a.hds", parallels(SIZE));
    let image = "<Image><Type>Compressed</Type></Image>";
    folder.write("DiskDescriptor.xml", image);
    folder.open("a.hds").unwrap();
    folder.write("DiskDescriptor.xml", image.repeat(2));
    assert!(refusal(&folder, "a.hds").contains("with snapshots"));
}
