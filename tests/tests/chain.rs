//! What the image parser makes of a disk, read by QEMU, against the same disk as QEMU reads
//! it by itself.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, id};

use guestmnt::disk::DiskReader;
use guestmnt::image::{Disk, Format, Link, MAX_LINKS, OpenOptions, Problem, Source};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempDir, tempdir};

/// Returns from the test, saying why, where `program` is not installed.
macro_rules! need {
    ($program:literal) => {
        if Command::new($program).arg("--version").output().is_err() {
            println!("SKIP: {} is not installed", $program);
            return;
        }
    };
}

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().expect("the program is installed");
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    output
}

fn qemu_img(args: &[&str]) -> Output {
    run("qemu-img", args)
}

/// Writes `pattern` over `len` bytes at `offset` of a VMDK's disk.
fn write(path: &Path, pattern: u8, offset: u64, len: u64) {
    let command = format!("write -P {pattern} {offset} {len}");
    run("qemu-io", &["-f", "vmdk", "-c", &command, text(path)]);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary names are UTF-8")
}

fn open(path: &Path) -> Disk {
    Disk::open(path, &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// A disk as QEMU can name it: only by this process' descriptors, and nothing left to probe.
struct Blockdev {
    json: Value,
    _descriptors: Vec<NamedTempFile>,
}

impl Blockdev {
    fn new(disk: &Disk) -> Self {
        let mut descriptors = Vec::new();
        let mut below = Value::Null;
        for link in disk.chain.iter().rev() {
            let file = file_of(link, &mut descriptors);
            let mut node = json!({
                "driver": link.qemu_driver(),
                "file": { "driver": "file", "filename": file },
            });
            if ["vmdk", "qcow2"].contains(&link.qemu_driver()) {
                node["backing"] = below;
            }
            below = node;
        }
        Self { json: below, _descriptors: descriptors }
    }

    fn name(&self) -> String {
        format!("json:{}", self.json)
    }
}

fn by_descriptor(file: &File) -> String {
    format!("/proc/{}/fd/{}", id(), file.as_raw_fd())
}

fn file_of(link: &Link, descriptors: &mut Vec<NamedTempFile>) -> String {
    match &link.source {
        Source::File(file) => by_descriptor(file),
        Source::Part { .. } | Source::Patched { .. } | Source::Mapped { .. } => {
            unreachable!("only disks that QEMU reads by itself are opened here")
        }
        Source::Described { descriptor, extents } => {
            let rewritten = NamedTempFile::new().expect("a temporary file");
            let descriptor_text = descriptor.rewritten(|i| by_descriptor(&extents[i]));
            fs::write(rewritten.path(), descriptor_text).expect("a temporary file");
            let path = text(rewritten.path()).to_owned();
            descriptors.push(rewritten);
            path
        }
    }
}

/// The parsed disk at `path` has the size and the bytes that QEMU finds there.
fn assert_reads_as_qemu_does(path: &Path, format: Format) -> Disk {
    let disk = open(path);
    let driver = format.qemu_driver();
    let info = qemu_img(&["info", "-f", driver, "--output", "json", text(path)]);
    let info: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(info["virtual-size"], disk.size, "{path:?}");
    assert_eq!(disk.chain[0].format, format, "{path:?}");
    let whole = json!({
        "driver": driver,
        "file": { "driver": "file", "filename": text(path) },
    });
    assert_same(&format!("json:{whole}"), &Blockdev::new(&disk).name());
    assert_read_here_as_qemu_does(&disk, &format!("json:{whole}"));
    disk
}

/// What this process reads of `disk` by itself, if it can, is what QEMU finds at `whole`: in pieces
/// of odd sizes, and whole.
fn assert_read_here_as_qemu_does(disk: &Disk, whole: &str) {
    let Some(reader) = DiskReader::of(disk).unwrap() else { return };
    let read = NamedTempFile::new().unwrap();
    read.as_file().set_len(disk.size).unwrap();
    let mut buffer = vec![0xaa; 3 * 65_536 + 512];
    let mut at = 0;
    while at < disk.size {
        let length = usize::try_from(disk.size - at).unwrap_or(usize::MAX).min(buffer.len());
        reader.read(&mut buffer[..length], at).unwrap();
        if buffer[..length].iter().any(|&byte| byte != 0) {
            read.as_file().write_all_at(&buffer[..length], at).unwrap();
        }
        at += length as u64;
    }
    let raw =
        json!({ "driver": "raw", "file": { "driver": "file", "filename": text(read.path()) } });
    assert_same(whole, &format!("json:{raw}"));
    assert!(reader.read(&mut [0; 512], disk.size).is_err());
    assert!(reader.read(&mut [0; 513], disk.size - 512).is_err());
}

fn assert_same(a: &str, b: &str) {
    // It warns, and no more, of a size that differs by zeros.
    assert_eq!(qemu_img(&["compare", a, b]).stdout, b"Images are identical.\n", "{a} {b}");
}

/// A raw disk of 5 MiB and a bit, with data at its start, middle and end.
fn source(dir: &Path) -> PathBuf {
    let mut bytes = vec![0; 5 * 1024 * 1024 + 3 * 512];
    let len = bytes.len();
    for (i, at) in [0, len / 2, len - 4096].into_iter().enumerate() {
        for (k, byte) in bytes[at..at + 4096].iter_mut().enumerate() {
            *byte = u8::try_from((k * 7 + i * 31) % 251).expect("below 251");
        }
    }
    let path = dir.join("source.img");
    fs::write(&path, bytes).expect("a temporary file");
    path
}

const SUBFORMATS: [&str; 5] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
];

#[test]
fn every_subformat_reads_as_qemu_reads_it() {
    need!("qemu-img");
    let dir = tempdir().unwrap();
    let source = source(dir.path());
    for subformat in SUBFORMATS {
        let path = dir.path().join(format!("{subformat}.vmdk"));
        let option = format!("subformat={subformat}");
        let args = ["convert", "-O", "vmdk", "-o", &option, text(&source), text(&path)];
        qemu_img(&args);
        let disk = assert_reads_as_qemu_does(&path, Format::Vmdk);
        assert_eq!(disk.chain[0].vmdk.unwrap().create_type.name(), subformat);
        assert_same(text(&source), &Blockdev::new(&disk).name());
    }
}

#[test]
fn disks_split_in_several_extents_read_as_qemu_reads_them() {
    need!("qemu-img");
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let dir = tempdir().unwrap();
        let path = dir.path().join("split disk.vmdk");
        let option = format!("subformat={subformat}");
        qemu_img(&["create", "-f", "vmdk", "-o", &option, text(&path), "5000M"]);
        for (pattern, mib) in [(1, 0), (2, 2047), (3, 4999)] {
            write(&path, pattern, mib << 20, 1 << 20);
        }
        let disk = assert_reads_as_qemu_does(&path, Format::Vmdk);
        let Source::Described { extents, .. } = &disk.chain[0].source else { panic!("text") };
        assert_eq!(extents.len(), 3);
    }
}

/// A chain of `links`, each with a piece of its own, by turns in one file and in extents.
fn snapshots(dir: &TempDir, links: usize) -> PathBuf {
    let path = |i: usize| dir.path().join(format!("{i}.vmdk"));
    for i in 0..links {
        let subformat = if i % 2 == 0 { "monolithicSparse" } else { "twoGbMaxExtentSparse" };
        let option = format!("subformat={subformat}");
        let mut args = vec!["create", "-q", "-f", "vmdk", "-o", &option];
        let parent = format!("{}.vmdk", i.wrapping_sub(1));
        let leaf = path(i);
        match i {
            0 => args.extend([text(&leaf), "16M"]),
            _ => args.extend(["-b", &parent, "-F", "vmdk", text(&leaf)]),
        }
        qemu_img(&args);
        let pattern = u8::try_from(i + 1).expect("few links");
        write(&leaf, pattern, i as u64 * (256 << 10), 512 << 10);
    }
    path(links - 1)
}

#[test]
fn chains_of_snapshots_read_as_qemu_reads_them() {
    need!("qemu-img");
    let dir = tempdir().unwrap();
    let leaf = snapshots(&dir, MAX_LINKS + 1);
    let error = Disk::open(&leaf, &OpenOptions::default()).unwrap_err();
    assert!(matches!(error.problem(), Problem::TooDeep), "{error}");

    let longest = dir.path().join(format!("{}.vmdk", MAX_LINKS - 1));
    let disk = assert_reads_as_qemu_does(&longest, Format::Vmdk);
    assert_eq!(disk.chain.len(), MAX_LINKS);
}

#[test]
fn a_base_that_was_written_after_the_snapshot_is_refused() {
    need!("qemu-img");
    let dir = tempdir().unwrap();
    let leaf = snapshots(&dir, 2);
    open(&leaf);
    write(&dir.path().join("0.vmdk"), 9, 0, 512);
    let error = Disk::open(&leaf, &OpenOptions::default()).unwrap_err();
    assert!(matches!(error.problem(), Problem::CidMismatch { .. }), "{error}");
}

#[test]
fn formats_of_one_file_read_as_qemu_reads_them() {
    need!("qemu-img");
    let dir = tempdir().unwrap();
    let source = source(dir.path());
    let table = [
        ("raw", "", "a.img"),
        ("qcow2", "compat=0.10", "a.qcow2"),
        ("qcow2", "compression_type=zstd,extended_l2=on", "b.qcow2"),
        ("vdi", "", "a.vdi"),
        ("vdi", "static=on", "b.vdi"),
        ("vpc", "", "a.vhd"),
        ("vpc", "subformat=fixed", "b.vhd"),
        ("vpc", "subformat=fixed,force_size=on", "c.vhd"),
        ("vhdx", "", "a.vhdx"),
        ("vhdx", "subformat=fixed", "b.vhdx"),
    ];
    for (driver, options, name) in table {
        let path = dir.path().join(name);
        let mut args = vec!["convert", "-O", driver];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([text(&source), text(&path)]);
        qemu_img(&args);
        assert_reads_as_qemu_does(&path, driver.parse().unwrap());
    }
}

/// An extent with one allocated grain, the last: `capacity` sectors of which the last
/// `grain` are 0xAA. First the 512 bytes of the header, then from sector 4 on the directory,
/// from 8 on the only table, from 72 on the grain.
fn extent_with_a_grain(fields: &[(usize, u64, usize)], width: usize, last: usize) -> Vec<u8> {
    let mut bytes = vec![0; 72 * 512];
    for &(at, value, len) in fields {
        bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
    let (directory, table) = (4 * 512, 8 * 512 + last * width);
    match width {
        4 => {
            bytes[directory] = 8;
            bytes[table] = 72;
        }
        // An allocated table and grain, the first of each, by ESXi's tags.
        _ => {
            bytes[directory + 7] = 0x10;
            bytes[table + 7] = 0x30;
        }
    }
    bytes.extend([0xaa; 8 * 512]);
    bytes
}

#[test]
fn extents_that_qemu_skips_or_nobody_can_create_here_read_as_described() {
    need!("qemu-img");
    let dir = tempdir().unwrap();
    let cowd = [(0, 0x4457_4f43, 4), (4, 1, 4), (12, 64, 4), (16, 8, 4), (20, 4, 4), (24, 1, 4)];
    fs::write(dir.path().join("cowd"), extent_with_a_grain(&cowd, 4, 7)).unwrap();
    let sesparse = [
        (0, 0xcafe_babe, 8),
        (8, 0x2_0000_0001, 8),
        (16, 64, 8),
        (24, 8, 8),
        (32, 64, 8),
        (80, 1, 8),
        (128, 4, 8),
        (136, 1, 8),
        (144, 8, 8),
        (152, 64, 8),
        (192, 72, 8),
        (512, 0xcafe_cafe, 8),
    ];
    fs::write(dir.path().join("se"), extent_with_a_grain(&sesparse, 8, 7)).unwrap();
    fs::write(dir.path().join("flat"), [[1; 512], [2; 512], [3; 512]].concat()).unwrap();
    let path = dir.path().join("a.vmdk");
    let lines = "RW 1 FLAT \"flat\" 2\nRW 2000 ZERO\nRDONLY 2 FLAT \"flat\" 0\n\
                 RW 64 VMFSSPARSE \"cowd\"\nRW 1 ZERO\nRW 64 SESPARSE \"se\"";
    let head = "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"";
    fs::write(&path, format!("{head}\n{lines}\n")).unwrap();
    let grain = [vec![0; 56 * 512], vec![0xaa; 8 * 512]].concat();
    let expected = [
        vec![3; 512],
        vec![0; 2000 * 512],
        vec![1; 512],
        vec![2; 512],
        grain.clone(),
        vec![0; 512],
        grain,
    ]
    .concat();
    let raw = dir.path().join("expected.img");
    fs::write(&raw, expected).unwrap();

    let disk = open(&path);

    assert_same(text(&raw), &Blockdev::new(&disk).name());
}

#[test]
fn a_zero_extent_of_a_snapshot_hides_its_parent() {
    need!("qemu-img");
    let dir = tempdir().unwrap();
    let base = "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n";
    fs::write(dir.path().join("flat"), [7; 1024]).unwrap();
    fs::write(dir.path().join("base.vmdk"), format!("{base}RW 2 VMFS \"flat\"\n")).unwrap();
    let child = "version=1\nCID=2\nparentCID=1\nparentFileNameHint=\"base.vmdk\"\n\
                 createType=\"vmfs\"\nRW 2 ZERO\n";
    let path = dir.path().join("a.vmdk");
    fs::write(&path, child).unwrap();
    let zeros = dir.path().join("zeros.img");
    fs::write(&zeros, [0; 1024]).unwrap();
    assert_same(text(&zeros), &Blockdev::new(&open(&path)).name());
}

/// The folder of disk images that others made, where there is one.
fn images() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/images");
    let folder = std::env::var_os("GUESTMNT_IMAGES").map_or(default, PathBuf::from);
    folder.is_dir().then_some(folder)
}

/// One disk in four kinds of VMDK, as its folder's README states it.
#[test]
fn disks_of_other_makers_hold_what_they_should() {
    const SHA256: &str = "a3bcf05f07a1c06a3380eeca8571f0efb2b85afafa1e21662b8cad436d1f7727";
    need!("qemu-img");
    let Some(archive) = images().map(|dir| dir.join("vmdk.tar.xz")).filter(|p| p.is_file()) else {
        println!("SKIP: no vmdk.tar.xz in the folder of images; GUESTMNT_IMAGES names it");
        return;
    };
    let dir = tempdir().unwrap();
    run("tar", &["-xJf", text(&archive), "-C", text(dir.path())]);
    for subformat in SUBFORMATS.into_iter().filter(|&s| s != "twoGbMaxExtentFlat") {
        let disk = open(&dir.path().join(format!("vmdk/{subformat}.vmdk")));
        assert_eq!(disk.size, 10 << 20, "{subformat}");
        assert_eq!(disk.chain[0].vmdk.unwrap().create_type.name(), subformat);
        let raw = dir.path().join(format!("{subformat}.img"));
        qemu_img(&["convert", "-O", "raw", &Blockdev::new(&disk).name(), text(&raw)]);
        let hash = Sha256::digest(fs::read(raw).unwrap());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, SHA256, "{subformat}");
    }
    for name in ["monolithicFlat-flat.vmdk", "twoGbMaxExtentSparse-s001.vmdk"] {
        let error = Disk::open(&dir.path().join("vmdk").join(name), &OpenOptions::default());
        assert!(matches!(error.unwrap_err().problem(), Problem::IsExtent(Some(_))), "{name}");
    }
}
