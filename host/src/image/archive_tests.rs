use std::os::unix::fs::FileExt;

use super::super::fixtures::{Folder, monolithic_sparse, qcow2, qcow2_over};
use super::super::{Format, Source};
use super::*;

const SIZE: u64 = 2048 * SECTOR_SIZE;

/// One entry with a header as POSIX has it.
fn entry(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
    header(name, kind, &format!("{:011o}\0", bytes.len()), bytes)
}

fn header(name: &str, kind: u8, len: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..124 + len.len()].copy_from_slice(len.as_bytes());
    header[156] = kind;
    header[257..263].copy_from_slice(b"ustar\0");
    sealed(header, bytes)
}

/// The header with its sum, and what it is of.
fn sealed(mut header: Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend(bytes);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let len = (1..).find(|len: &usize| len.to_string().len() + rest.len() == *len).unwrap();
    format!("{len}{rest}")
}

#[test]
fn the_only_disk_is_taken_and_one_of_several_is_named() {
    let folder = Folder::new();
    let disk = monolithic_sparse(1, 2048);
    let ovf = entry("vm.ovf", b'0', b"<Envelope/>");
    let one = [ovf.clone(), entry("disk1.vmdk", b'0', &disk)];
    folder.write("one.ova", archive(&one));
    let opened = folder.open("one.ova").unwrap();
    assert_eq!((opened.size, opened.chain[0].format), (SIZE, Format::Vmdk));
    assert_eq!(opened.chain[0].path, folder.path.join("one.ova:disk1.vmdk"));
    let Source::Part { offset, len, .. } = opened.chain[0].source else { panic!("a part") };
    assert_eq!((offset, len), (1536, disk.len() as u64));

    let two = [&one[..], &[entry("disk2.qcow2", b'0', &qcow2(SIZE))]].concat();
    folder.write("two.ova", archive(&two));
    let path = folder.path.join("two.ova").display().to_string();
    assert_eq!(
        folder.open("two.ova").unwrap_err().to_string(),
        format!(
            "cannot open {path}: it holds several disks:\n    {path}:disk1.vmdk\n    \
             {path}:disk2.qcow2\n  hint: name one of them after -a"
        )
    );
    assert_eq!(folder.open("two.ova:disk2.qcow2").unwrap().chain[0].format, Format::Qcow2);
    assert_eq!(folder.open("two.ova:vm.ovf").unwrap().chain[0].format, Format::Raw);
    let error = folder.open("two.ova:disk3.vmdk").unwrap_err().to_string();
    assert!(error.contains("it holds no disk3.vmdk; its disks are:\n"), "{error}");
    folder.write("none.ova", archive(&[ovf]));
    assert!(folder.open("none.ova").unwrap_err().to_string().contains("it holds no disk"));
}

#[test]
fn names_and_lengths_come_from_extensions_where_there_are_some() {
    let long = format!("{}.vmdk", "x".repeat(200));
    let disk = monolithic_sparse(1, 2048);
    let pax = record("path", &long) + &record("size", &disk.len().to_string());
    let gnu_len = [&[0x80][..], &[0; 3], &(disk.len() as u64).to_be_bytes()].concat();
    let mut gnu = entry("long.vmdk", b'0', &[]);
    gnu[124..136].copy_from_slice(&gnu_len);
    let gnu = sealed(gnu[..512].to_vec(), &disk);
    let mut prefixed = entry("disk.vmdk", b'0', &disk);
    prefixed[345..348].copy_from_slice(b"dir");
    let prefixed = sealed(prefixed[..512].to_vec(), &disk);
    let wrong = header("short", b'0', "00000000007", &disk);
    let table: [(Vec<Vec<u8>>, &str); 5] = [
        (vec![entry("pax", b'x', pax.as_bytes()), wrong], &long),
        (vec![entry("L", b'L', long.as_bytes()), entry("s", b'0', &disk)], &long),
        (vec![gnu], "long.vmdk"),
        (vec![entry("g", b'g', record("size", "9").as_bytes()), prefixed], "dir/disk.vmdk"),
        (vec![header("l", b'2', "00000000777", b""), entry("./a.vmdk", 0, &disk)], "a.vmdk"),
    ];
    let folder = Folder::new();
    for (entries, name) in table {
        folder.write("a.ova", archive(&entries));
        let opened = folder.open("a.ova").unwrap();
        assert_eq!(opened.chain[0].path, folder.path.join(format!("a.ova:{name}")));
        assert_eq!(opened.size, SIZE, "{name}");
        assert!(folder.open(&format!("a.ova:{name}")).is_ok(), "{name}");
    }
}

#[test]
fn archives_that_mislead_are_refused_with_the_reason() {
    let disk = monolithic_sparse(1, 2048);
    let text = b"# Disk DescriptorFile\nversion=1\n";
    let parts = |len: &str| header("a.vmdk", b'0', len, &disk);
    let mut huge = entry("a.vmdk", b'0', &disk);
    huge[124] = 0x80;
    huge[125..136].fill(0xff);
    let pax = |text: &str| [entry("x", b'x', text.as_bytes()), entry("a.vmdk", b'0', &disk)];
    let mut other = entry("a", b'0', b"");
    other[0] = b'b';
    let table: [(&str, Vec<u8>, &str); 15] = [
        ("sum", archive(&[vec![1; 512]]), "not a VMDK"),
        ("second", archive(&[entry("a", b'0', b""), vec![1; 512]]), "at byte 512 has a bad number"),
        ("other", archive(&[entry("a", b'0', b""), other]), "at byte 512, is none"),
        ("long", archive(&[parts("77777777777\0")]), "before the file in it"),
        ("digits", archive(&[parts("0000000009x\0")]), "a bad number"),
        ("huge", archive(&[sealed(huge[..512].to_vec(), &disk)]), "a bad number"),
        ("name", archive(&[entry("L", b'L', &[b'x'; 70_000])]), "too long a name"),
        ("record", archive(&pax("99 size=1\n")), "extended header at byte 0"),
        ("record", archive(&pax("0 size=1\n")), "extended header at byte 0"),
        ("record", archive(&pax("size=1\n")), "extended header at byte 0"),
        ("record", archive(&pax(&record("size", "-1"))), "extended header at byte 0"),
        ("sparse", archive(&[entry("a.vmdk", b'S', &disk)]), "sparse file, which is not supported"),
        ("count", archive(&vec![entry("a", b'0', b""); 5000]), "more than 4096 files"),
        ("text", archive(&[entry("a.vmdk", b'0', text)]), "its extents beside it in an archive"),
        (
            "snapshot",
            archive(&[entry("a.qcow2", b'0', &qcow2_over(SIZE, b"/etc/passwd", "raw"))]),
            "a snapshot in an archive",
        ),
    ];
    let folder = Folder::new();
    for (what, bytes, words) in table {
        folder.write("a.ova", bytes);
        let error = folder.open("a.ova").unwrap_err().to_string();
        assert!(error.contains(words), "{what}: {error}");
    }
}

#[test]
fn every_cut_and_every_flipped_bit_gives_an_error_or_a_disk_in_bounds() {
    let pax = record("path", "disk.vmdk");
    let entries =
        [entry("pax", b'x', pax.as_bytes()), entry("d", b'0', &monolithic_sparse(1, 2048))];
    let bytes = archive(&entries);
    let folder = Folder::new();
    let path = folder.write("a.ova", &bytes);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let check = |what: &str| {
        let Ok(disk) = folder.open("a.ova") else { return };
        let Source::Part { ref file, offset, len } = disk.chain[0].source else { panic!("a part") };
        assert!(offset + len <= file.metadata().unwrap().len(), "{what}");
    };
    for at in 0..1536 {
        for bit in 0..8 {
            file.write_all_at(&[bytes[at] ^ 1 << bit], at as u64).unwrap();
            check(&format!("bit {bit} of byte {at}"));
        }
        file.write_all_at(&bytes[at..=at], at as u64).unwrap();
    }
    for len in (0..bytes.len() as u64).rev() {
        file.set_len(len).unwrap();
        check(&format!("{len} bytes"));
    }
}

#[test]
fn an_archive_that_is_not_called_so_is_a_raw_disk_only_where_that_is_said() {
    let folder = Folder::new();
    let bytes = archive(&[entry("a.qcow2", b'0', &qcow2(SIZE))]);
    folder.write("disk.img", &bytes);
    let error = folder.open("disk.img").unwrap_err().to_string();
    assert!(error.contains("a tar archive"), "{error}");
    let options = crate::image::OpenOptions { format: Some(Format::Raw), ..Default::default() };
    let disk = crate::image::Disk::open(&folder.path.join("disk.img"), &options).unwrap();
    assert_eq!(disk.size, bytes.len() as u64);
    folder.write("a.ova:b.img", [0; 512]);
    assert_eq!(folder.open("a.ova:b.img").unwrap().size, 512);
}

#[test]
fn lengths_of_files_are_judged_as_with_numbers_that_cannot_overflow() {
    let folder = Folder::new();
    let disk = vec![0; 1024];
    let numbers =
        [0, 1, 511, 512, 513, 1024, 1025, 1536, 1 << 33, 1 << 62, u64::MAX - 511, u64::MAX];
    for len in numbers {
        let in_bytes: Vec<u8> = [&[0x80, 0, 0, 0][..], &len.to_be_bytes()].concat();
        let mut long = vec![0; 512];
        long[..8].copy_from_slice(b"disk.img");
        long[124..136].copy_from_slice(&in_bytes);
        long[156] = b'0';
        let size = record("size", &len.to_string());
        let extended = [entry("pax", b'x', size.as_bytes()), entry("disk.img", b'0', &disk)];
        for file in [sealed(long, &disk), extended.concat()] {
            // Sectors of zeros are the end of the archive, so that it may end after each.
            let text = [file, vec![0; 512]].concat();
            let start = text.len() as u128 - 1536;
            folder.write("a.ova", &text);
            let found = folder.open("a.ova:disk.img").map(|disk| disk.size);
            let sectors = u128::from(len).div_ceil(512);
            let is_there = len > 0 && start + sectors * 512 <= text.len() as u128;
            assert_eq!(found.is_ok(), is_there, "{len}: {found:?}");
            if let Ok(size) = found {
                assert_eq!(u128::from(size), sectors * 512, "{len}");
            }
        }
    }
}
