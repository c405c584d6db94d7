//! What is missing of images that were cut short, against what QEMU reads as zeros when the files
//! are made as long again as they were.

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use crate::image::fixtures::{Folder, monolithic_sparse};

/// Bytes of the disks.
const SIZE: usize = 9 << 19;

fn qemu_img(folder: &Path, arguments: &[&str]) -> bool {
    let Ok(output) = Command::new("qemu-img").args(arguments).current_dir(folder).output() else {
        println!("SKIP: qemu-img is not installed");
        return false;
    };
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    true
}

/// A folder with a raw disk without a single zero. `None` without qemu-img.
fn folder_with_disk() -> Option<Folder> {
    let folder = Folder::new();
    let bytes: Vec<u8> = (0..SIZE).map(|n| u8::try_from(1 + n / 7 % 255).unwrap()).collect();
    folder.write("disk.raw", bytes);
    qemu_img(&folder.path, &["--version"]).then_some(folder)
}

/// What is missing of the disk `top` in the eyes of QEMU, once `file` is `len` bytes long again.
fn zeros(folder: &Folder, top: &str, format: &str, file: &str, len: u64) -> Vec<Range<u64>> {
    let path = folder.path.join(file);
    let cut = fs::metadata(&path).unwrap().len();
    let open = || File::options().write(true).open(&path).unwrap();
    open().set_len(len).unwrap();
    qemu_img(&folder.path, &["convert", "-f", format, "-O", "raw", top, "found.raw"]);
    open().set_len(cut).unwrap();
    let bytes = fs::read(folder.path.join("found.raw")).unwrap();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for at in (0..bytes.len()).filter(|&at| bytes[at] == 0).map(|at| at as u64) {
        match ranges.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => ranges.push(at..at + 1),
        }
    }
    ranges
}

fn cut(folder: &Folder, file: &str, len: u64) {
    let file = File::options().write(true).open(folder.path.join(file)).unwrap();
    file.set_len(len).unwrap();
}

/// Cuts `file` short at some places, and compares what is then missing of the disk `top`.
fn check_cuts(folder: &Folder, top: &str, format: &str, file: &str) {
    let whole = folder.open(top).unwrap();
    assert!(whole.missing.is_empty() && whole.warnings.is_empty(), "{top}: {whole:?}");
    let len = fs::metadata(folder.path.join(file)).unwrap().len();
    let mut missed = 0;
    for lacks in [1, 70_000, (1 << 20) + 1, 5 << 19] {
        cut(folder, file, len - lacks);
        let disk = match folder.open(top) {
            Ok(disk) => disk,
            Err(error) => panic!("{top} without {lacks} bytes: {error}"),
        };
        let expected = zeros(folder, top, format, file, len);
        assert_eq!(disk.missing.ranges(), expected, "{top} without {lacks} bytes");
        let warned = disk.warnings.iter().any(|warning| warning.contains("cut short"));
        assert!(warned || expected.is_empty(), "{top}: {:?}", disk.warnings);
        missed += usize::from(!expected.is_empty());
    }
    assert!(missed >= 1, "{top}");
}

#[test]
fn what_lies_past_the_end_of_a_file_is_missing() {
    let Some(folder) = folder_with_disk() else { return };
    let table = [
        ("vmdk", "subformat=monolithicSparse", "a.vmdk", "a.vmdk"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "b.vmdk", "b-s001.vmdk"),
        ("vmdk", "subformat=monolithicFlat", "c.vmdk", "c-flat.vmdk"),
        ("qcow2", "cluster_size=64k", "a.qcow2", "a.qcow2"),
        ("qcow2", "cluster_size=512,compat=0.10", "b.qcow2", "b.qcow2"),
        ("qcow2", "cluster_size=2M,extended_l2=on", "c.qcow2", "c.qcow2"),
        ("qcow2", "refcount_bits=1", "d.qcow2", "d.qcow2"),
        ("vdi", "static=off", "a.vdi", "a.vdi"),
        ("vdi", "static=on", "b.vdi", "b.vdi"),
        ("vpc", "force_size=on", "a.vhd", "a.vhd"),
        ("vhdx", "block_size=1M", "a.vhdx", "a.vhdx"),
        ("qed", "cluster_size=4k", "a.qed", "a.qed"),
        ("parallels", "cluster_size=64k", "a.hds", "a.hds"),
    ];
    for (format, options, name, file) in table {
        qemu_img(&folder.path, &["convert", "-O", format, "-o", options, "disk.raw", name]);
        check_cuts(&folder, name, format, file);
    }
}

/// A child holds some of what its parent lacks; the rest shows through.
#[test]
fn a_snapshot_hides_what_its_parent_lacks() {
    let Some(folder) = folder_with_disk() else { return };
    for (format, base_format) in [("qcow2", "vdi"), ("vmdk", "vmdk")] {
        let (base, child) = (format!("base.{base_format}"), format!("child.{format}"));
        qemu_img(&folder.path, &["convert", "-O", base_format, "disk.raw", &base]);
        let create = ["create", "-q", "-f", format, "-b", &base, "-F", base_format, &child];
        qemu_img(&folder.path, &create);
        let writes = ["write -P 3 3M 64k", "write -P 4 4M 128k"];
        let write = writes.iter().flat_map(|write| ["-c", write]);
        let command = Command::new("qemu-io")
            .args(["-f", format])
            .args(write)
            .arg(&child)
            .current_dir(&folder.path)
            .output()
            .unwrap();
        assert!(command.status.success(), "{command:?}");
        check_cuts(&folder, &child, format, &base);
    }
}

#[test]
fn a_compressed_cluster_is_missing_with_its_last_byte() {
    let Some(folder) = folder_with_disk() else { return };
    for (format, options, lacks) in
        [("qcow2", "compression_type=zlib", 513), ("qcow2", "compression_type=zstd", 4096)]
    {
        let arguments = ["convert", "-c", "-O", format, "-o", options, "disk.raw", "packed"];
        qemu_img(&folder.path, &arguments);
        assert!(folder.open("packed").unwrap().missing.is_empty(), "{options}");
        let len = fs::metadata(folder.path.join("packed")).unwrap().len();
        cut(&folder, "packed", len - lacks);
        let missing = folder.open("packed").unwrap().missing;
        assert!(missing.bytes() >= 64 << 10 && missing.bytes() < SIZE as u64, "{missing:?}");
    }
}

/// A file that claims a TiB in grains of one sector, all in the one table that it has.
#[test]
fn a_small_file_with_huge_tables_takes_bounded_work() {
    const SECTORS: u64 = (1 << 40) / 512;
    const DIRECTORY: usize = 8192;
    let folder = Folder::new();
    let mut disk = monolithic_sparse(7, SECTORS);
    disk[20..28].copy_from_slice(&1u64.to_le_bytes());
    disk[56..64].copy_from_slice(&(DIRECTORY as u64 / 512).to_le_bytes());
    // Behind the directory, of a word for each of the tables: a hole but for its first part.
    let (end, filled) = (DIRECTORY + usize::try_from(SECTORS / 512 * 4).unwrap(), 4 << 20);
    disk.resize(DIRECTORY, 0);
    let table = u32::try_from(end / 512).unwrap().to_le_bytes();
    disk.extend(table.repeat(filled / 4));
    folder.write("huge.vmdk", &disk);
    cut(&folder, "huge.vmdk", end as u64 + 2048);
    let error = folder.open("huge.vmdk").map(|disk| disk.warnings);
    let told = format!("{error:?}");
    assert!(told.contains("too large"), "{told}");
}
