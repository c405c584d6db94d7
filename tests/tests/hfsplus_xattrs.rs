//! Extended attributes of HFS+ have their whole names, on a real VM.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Workplace, text};
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;
use xtask::skips::skip;

/// Bytes of a node of the tree of attributes.
const NODE: usize = 4096;

fn put(bytes: &mut [u8], at: usize, value: u64, width: usize) {
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Gives the file `number` of a volume these attributes, each with its own name for a value: a tree of
/// one leaf behind the volume. Source: TN1150, "Attributes File".
fn add_attributes(image: &Path, number: u64, names: &[&str]) {
    const HEADER: usize = 1024;
    let mut bytes = fs::read(image).unwrap();
    let block = u32_at(&bytes, HEADER + 40);
    let start = bytes.len() / block;
    let blocks = 2 * NODE / block;
    bytes.resize((start + blocks + 1) * block, 0);
    put(&mut bytes, HEADER + 44, (start + blocks + 1) as u64, 4);
    let fork = HEADER + 352;
    for (at, value, width) in
        [(0, 2 * NODE, 8), (8, NODE, 4), (12, blocks, 4), (16, start, 4), (20, blocks, 4)]
    {
        put(&mut bytes, fork + at, value as u64, width);
    }
    let mut header = vec![0; NODE];
    header[8] = 1;
    // Three records: the header's, one that is reserved, the map of nodes.
    put(&mut header, 10, 3, 2);
    let fields = [(0, 1, 2), (2, 1, 4), (6, names.len(), 4), (10, 1, 4), (14, 1, 4), (18, NODE, 2)];
    for (at, value, width) in fields {
        put(&mut header, 14 + at, value as u64, width);
    }
    for (at, value, width) in [(20, 266, 2), (22, 2, 4), (32, NODE, 4), (38, 6, 4)] {
        put(&mut header, 14 + at, value as u64, width);
    }
    header[248] = 0xc0;
    for (record, at) in [14, 120, 248, NODE - 8].into_iter().enumerate() {
        put(&mut header, NODE - 2 * (record + 1), at as u64, 2);
    }
    let mut leaf = vec![0; NODE];
    (leaf[8], leaf[9]) = (0xff, 1);
    put(&mut leaf, 10, names.len() as u64, 2);
    let mut at = 14;
    for (record, name) in names.iter().enumerate() {
        put(&mut leaf, NODE - 2 * (record + 1), at as u64, 2);
        let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        put(&mut leaf, at, 12 + units.len() as u64, 2);
        put(&mut leaf, at + 4, number, 4);
        put(&mut leaf, at + 12, units.len() as u64 / 2, 2);
        leaf[at + 14..at + 14 + units.len()].copy_from_slice(&units);
        at += 14 + units.len();
        // In the record itself.
        put(&mut leaf, at, 0x10, 4);
        put(&mut leaf, at + 12, name.len() as u64, 4);
        leaf[at + 16..at + 16 + name.len()].copy_from_slice(name.as_bytes());
        at = (at + 16 + name.len()).next_multiple_of(2);
    }
    put(&mut leaf, NODE - 2 * (names.len() + 1), at as u64, 2);
    bytes[start * block..start * block + NODE].copy_from_slice(&header);
    bytes[start * block + NODE..start * block + 2 * NODE].copy_from_slice(&leaf);
    // The second header is 1024 bytes before the end.
    let end = bytes.len();
    bytes.copy_within(HEADER..HEADER + 512, end - 1024);
    fs::write(image, bytes).unwrap();
}

/// A volume with the files `file` and `other`. `None`, and a skip, where there can be none.
fn volume(place: &Workplace) -> Option<PathBuf> {
    if let Some(program) = Kind::HfsPlus.missing_program() {
        skip(&format!("without {program} there is no HFS+"));
        return None;
    }
    let tree = place.folder("tree");
    for name in ["file", "other"] {
        fs::write(tree.join(name), name).unwrap();
    }
    let image = place.path().join("image");
    mkfs::make(Kind::HfsPlus, &tree, &image).unwrap();
    Some(image)
}

#[test]
fn attributes_have_their_whole_names() {
    let names = ["com.apple.metadata:kMDItem", "com.apple.quarantine", "user.note"];
    let place = Workplace::new();
    let Some(image) = volume(&place) else { return };
    let disk = ["--format", "raw", "-a", text(&image), "-m", "/dev/sda"];
    let mnt = place.folder("mnt");
    place.mount(&[&disk[..], &[text(&mnt)]].concat());
    let number = fs::metadata(mnt.join("file")).unwrap().ino();
    place.unmount(&mnt);
    add_attributes(&image, number, &names);

    let shown = names.map(|name| match name {
        "user.note" => name.to_owned(),
        _ => format!("osx.{name}"),
    });
    // Every file of such a volume has it, from the catalog.
    const FINDER_INFO: &str = "osx.com.apple.FinderInfo";
    for listed_first in [false, true] {
        place.mount(&[&disk[..], &[text(&mnt)]].concat());
        if listed_first {
            assert_eq!(fs::read_dir(&mnt).unwrap().count(), 2);
        }
        let file = mnt.join("file");
        let mut found: Vec<_> =
            xattr::list(&file).unwrap().map(|name| name.into_string().unwrap()).collect();
        found.sort();
        assert_eq!(found[0], FINDER_INFO);
        assert_eq!(found[1..], shown);
        for (name, value) in shown.iter().zip(names) {
            assert_eq!(xattr::get(&file, name).unwrap().as_deref(), Some(value.as_bytes()));
        }
        let of_other: Vec<_> = xattr::list(mnt.join("other")).unwrap().collect();
        assert_eq!(of_other, [FINDER_INFO]);
        place.unmount(&mnt);
    }
    let tar = place.path().join("tar");
    let mut command = place.command("guestimg", &[&["tar"], &disk[..], &["/"]].concat());
    let status = command.stdout(fs::File::create(&tar).unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let bytes = fs::read(&tar).unwrap();
    for name in &shown {
        let record = format!("SCHILY.xattr.{name}=");
        assert!(bytes.windows(record.len()).any(|at| at == record.as_bytes()), "{name}");
    }
    place.assert_clean(&["image", "tree", "tar", "mnt"]);
}
