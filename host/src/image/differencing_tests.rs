//! Differencing disks of VirtualBox and Microsoft: how they find their parents, and tables that
//! mislead.

use std::os::unix::fs::FileExt;

use super::fixtures::*;
use super::*;

const SIZE: u64 = 2 << 20;
const ID: [u8; 16] = [0x11; 16];
const STATE: [u8; 16] = [0x22; 16];
const LINKAGE: &str = "{33333333-3333-3333-3333-333333333333}";
const PARTLY: u64 = 2 << 20 | 7;
const FULLY: u64 = 2 << 20 | 6;

fn base_vdi(id: [u8; 16], state: [u8; 16]) -> Vec<u8> {
    let mut bytes = vdi(SIZE);
    bytes[392..408].copy_from_slice(&id);
    bytes[408..424].copy_from_slice(&state);
    bytes
}

fn base_vhdx(write_id: [u8; 16]) -> Vec<u8> {
    let mut bytes = vhdx(SIZE);
    bytes[64 << 10..][..4096].copy_from_slice(&vhdx_header(7, [0; 16], [0; 16]));
    bytes[128 << 10..][..4096].copy_from_slice(&vhdx_header(8, write_id, [0; 16]));
    bytes
}

fn child_vdi(entries: &[u32]) -> Vec<u8> {
    let mut bytes = vdi_over(SIZE, [[5; 16], [6; 16], ID, STATE], entries);
    bytes.resize(4096 + (1 << 20), 0xdd);
    bytes
}

fn child_vhdx() -> Vec<u8> {
    let pairs = [("parent_linkage", LINKAGE), ("relative_path", ".\\base.vhdx")];
    vhdx_over(&pairs, [PARTLY, 0], 0x0f)
}

fn chain(folder: &Folder, name: &str) -> Vec<String> {
    let disk = folder.open(name).unwrap_or_else(|e| panic!("{e}"));
    let relative =
        |link: &Link| link.path.strip_prefix(&folder.path).unwrap().display().to_string();
    disk.chain.iter().map(relative).collect()
}

fn refusal(folder: &Folder, name: &str) -> String {
    folder.open(name).unwrap_err().to_string()
}

#[test]
fn a_vdi_is_found_by_its_id_in_the_folders_of_virtualbox() {
    for (base, child) in [
        ("base.vdi", "child.vdi"),
        ("base.vdi", "Snapshots/{1}.vdi"),
        ("Snapshots/{0}.vdi", "child.vdi"),
    ] {
        let folder = Folder::new();
        folder.write(child, child_vdi(&[0, u32::MAX]));
        assert!(
            refusal(&folder, child).contains("11111111-1111-1111-1111-111111111111, is missing")
        );
        folder.write("a other.vdi", base_vdi([0x33; 16], STATE));
        folder.write("broken.vdi", "text");
        folder.write(base, base_vdi(ID, STATE));
        assert_eq!(chain(&folder, child), [child, base]);
        let link = &folder.open(child).unwrap().chain[0];
        assert_eq!((link.format, link.qemu_driver()), (Format::Vdi, "qcow2"));
        folder.write(base, base_vdi(ID, [0x23; 16]));
        let error = refusal(&folder, child);
        assert!(error.contains("expected, ") && error.contains("23232323-"), "{error}");
        assert!(error.contains("the base was changed after the snapshot"), "{error}");
    }
}

#[test]
fn a_vhd_is_found_by_its_names_and_known_by_its_id() {
    let folder = Folder::new();
    folder.write("vm/base.vhd", vhd_base(ID));
    folder.write("vm/older/base.vhd", vhd_base(ID));
    folder.write("vm/wrong.vhd", vhd_base(STATE));
    let table = [
        ([".\\base.vhd", "", ""], "vm/base.vhd"),
        ([".\\older\\base.vhd", "", ""], "vm/older/base.vhd"),
        (["", "C:\\disks\\base.vhd", ""], "vm/base.vhd"),
        (["", "", "base.vhd"], "vm/base.vhd"),
        (["gone.vhd", "C:\\wrong.vhd", "base.vhd"], "vm/base.vhd"),
    ];
    for (names, expected) in table {
        folder.write("vm/child.vhd", vhd_over(ID, names, [0xff; 8]));
        assert_eq!(chain(&folder, "vm/child.vhd"), ["vm/child.vhd", expected], "{names:?}");
    }
    for (name, words) in [
        ("gone.vhd", "its parent is missing"),
        ("wrong.vhd", "id 11111111-1111-1111-1111-111111111111 expected"),
        ("child.vhd", "id 11111111-1111-1111-1111-111111111111 expected"),
        ("nbd:host:1", "names a protocol"),
        ("a\nb", "a control character"),
        ("/dev/zero", "it is a device"),
        ("/etc/passwd", "it is not in the format vpc"),
    ] {
        folder.write("vm/child.vhd", vhd_over(ID, [name, "", ""], [0xff; 8]));
        let error = refusal(&folder, "vm/child.vhd");
        assert!(error.contains(words), "{name}: {error}");
    }
    folder.write("vm/child.vhd", vhd_over([9; 16], ["child.vhd", "", ""], [0xff; 8]));
    assert!(refusal(&folder, "vm/child.vhd").contains("is also its child"));
}

#[test]
fn a_vhdx_is_found_by_its_locator_and_known_by_its_id() {
    let folder = Folder::new();
    folder.write("vm/base.vhdx", base_vhdx([0x33; 16]));
    folder.write("vm/other.vhdx", base_vhdx([0x44; 16]));
    let linkage = ("parent_linkage", LINKAGE);
    for pairs in [
        [linkage, ("relative_path", ".\\base.vhdx")],
        [linkage, ("absolute_win32_path", "\\\\?\\D:\\vms\\base.vhdx")],
        [("relative_path", "base.vhdx"), linkage],
    ] {
        folder.write("vm/child.avhdx", vhdx_over(&pairs, [PARTLY, FULLY], 0));
        assert_eq!(chain(&folder, "vm/child.avhdx"), ["vm/child.avhdx", "vm/base.vhdx"]);
    }
    let long = "x".repeat(40_000);
    for (pairs, words) in [
        (vec![linkage], "says too little of its parent"),
        (vec![("relative_path", "base.vhdx")], "says too little of its parent"),
        (vec![linkage, ("relative_path", "gone.vhdx")], "its parent is missing"),
        (vec![linkage, ("relative_path", "other.vhdx")], "33333333-3333-3333-3333-333333333333"),
        (vec![linkage, ("relative_path", "json:{}")], "names a protocol"),
        (vec![linkage, ("relative_path", &long)], "too long an item"),
    ] {
        folder.write("vm/child.avhdx", vhdx_over(&pairs, [PARTLY, 0], 0));
        let error = refusal(&folder, "vm/child.avhdx");
        assert!(error.contains(words), "{error}");
    }
}

fn edit(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Blocks and bitmaps past the end of the file; where there is no bitmap, all of its block.
#[test]
fn what_is_past_the_end_of_a_snapshot_is_missing() {
    let vhd = || vhd_over(ID, ["base.vhd", "", ""], [0xff; 8]);
    let (table, bitmaps) = (320 << 10, (320 << 10) + 8 * 4096);
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("c.vdi", child_vdi(&[1, 0])),
        ("c.vdi", child_vdi(&[u32::MAX - 2, 0])),
        ("c.vhd", edit(vhd(), 1536, &[0x7f])),
        ("c.avhdx", edit(child_vhdx(), table + 7, &[0x7f])),
        ("c.avhdx", edit(child_vhdx(), bitmaps + 7, &[0xff])),
    ];
    let folder = Folder::new();
    folder.write("base.vdi", base_vdi(ID, STATE));
    folder.write("base.vhd", vhd_base(ID));
    folder.write("base.vhdx", base_vhdx([3 * 0x11; 16]));
    for (number, (name, bytes)) in rows.into_iter().enumerate() {
        folder.write(name, bytes);
        let disk = folder.open(name).unwrap_or_else(|error| panic!("{number} {name}: {error}"));
        assert_eq!(disk.missing.ranges()[0].start, 0, "{number} {name}");
        assert!(disk.warnings[0].contains("cut short"), "{number} {name}: {:?}", disk.warnings);
    }
}

#[test]
fn tables_that_mislead_are_refused_with_the_reason() {
    let vhd = || vhd_over(ID, ["base.vhd", "", ""], [0xff; 8]);
    let with_log = edit(child_vhdx(), 64 << 10, &vhdx_header(1, [1; 16], [7; 16]));
    let (table, bitmaps) = (320 << 10, (320 << 10) + 8 * 4096);
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("c.vdi", child_vdi(&[0]), "does not fit its size"),
        ("c.vdi", edit(child_vdi(&[0, 0]), 376, &[0; 4]), "no valid size"),
        ("c.vdi", edit(child_vdi(&[0, 0]), 376, &[1, 0, 0, 1]), "no valid size"),
        ("c.vdi", edit(child_vdi(&[0, 0]), 380, &[1]), "no valid size"),
        ("c.vdi", edit(child_vdi(&[0, 0]), 344, &[1]), "no valid size"),
        ("c.vdi", edit(child_vdi(&[0, 0]), 340, &[0xff; 4]), "before the table of blocks"),
        ("c.vdi", edit(child_vdi(&[0, 0]), 68, &[2]), "another version"),
        ("c.vdi", edit(child_vdi(&[0, 0]), 368, &(65u64 << 40).to_le_bytes()), "64 TiB"),
        ("c.vhd", edit(vhd(), 512 + 28, &[0; 4]), "does not fit its size"),
        ("c.vhd", edit(vhd(), 512 + 32, &[0; 4]), "no valid size"),
        ("c.vhd", edit(vhd(), 512 + 32, &[0x40]), "no valid size"),
        ("c.vhd", edit(vhd(), 512 + 16, &[0xff; 8]), "before the table of blocks"),
        ("c.vhd", edit(vhd(), 512 + 576 + 8, &[0xff; 4]), "name is too long"),
        ("c.vhd", edit(vhd(), 512 + 576 + 16, &[0xff; 8]), "before the name of the parent"),
        ("c.vhd", edit(vhd(), 2048, &[0, 0xd8]), "is no text"),
        ("c.avhdx", edit(child_vhdx(), table, &[4]), "a state that is none"),
        ("c.avhdx", edit(child_vhdx(), bitmaps, &[0]), "has no bitmap"),
        ("c.avhdx", edit(child_vhdx(), 64 << 10, &[0]), "neither of its headers is whole"),
        ("c.avhdx", edit(child_vhdx(), (64 << 10) + 20, &[1]), "neither of its headers is whole"),
        ("c.avhdx", with_log, "its log has no valid place"),
        ("c.avhdx", edit(child_vhdx(), (256 << 10) + 176, &[0; 4]), "no valid size"),
        ("c.avhdx", edit(child_vhdx(), (256 << 10) + 200, &[1]), "no valid size"),
        ("c.avhdx", edit(child_vhdx(), (192 << 10) + 72, &[0; 4]), "does not fit its size"),
    ];
    let folder = Folder::new();
    folder.write("base.vdi", base_vdi(ID, STATE));
    folder.write("base.vhd", vhd_base(ID));
    folder.write("base.vhdx", base_vhdx([0x33; 16]));
    for (name, bytes, words) in rows {
        folder.write(name, bytes);
        let error = refusal(&folder, name);
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// Makes `name` a file of `len` bytes, with zeros behind what it holds.
fn lengthen(folder: &Folder, name: &str, len: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(folder.path.join(name)).unwrap();
    file.set_len(len).unwrap();
}

#[test]
fn a_small_file_cannot_ask_for_bitmaps_without_end() {
    let folder = Folder::new();
    // A million blocks, all of them at the beginning of the file: their table is a hole in it.
    let mut vhd = vhd_over(ID, ["base.vhd", "", ""], [0x5a; 8]);
    vhd[48..56].copy_from_slice(&(32u64 << 30).to_be_bytes());
    vhd[512 + 16..512 + 24].copy_from_slice(&(1u64 << 20).to_be_bytes());
    vhd[512 + 28..512 + 32].copy_from_slice(&(1u32 << 20).to_be_bytes());
    folder.write("base.vhd", vhd_base(ID));
    folder.write("c.vhd", vhd);
    lengthen(&folder, "c.vhd", 8 << 20);
    // 8192 blocks of 256 MiB in parts, with one bitmap of 64 KiB.
    const BLOCKS: usize = 8192;
    let mut vhdx = child_vhdx();
    let (regions, metadata, table) = (192 << 10, 256 << 10, 512 << 10);
    vhdx[regions + 64..regions + 72].copy_from_slice(&(512u64 << 10).to_le_bytes());
    vhdx[regions + 72..regions + 76].copy_from_slice(&(512u32 << 10).to_le_bytes());
    vhdx[metadata + 176..metadata + 180].copy_from_slice(&(256u32 << 20).to_le_bytes());
    vhdx[metadata + 192..metadata + 200].copy_from_slice(&(2u64 << 40).to_le_bytes());
    // Of 17 entries each, the last is that of the bitmaps.
    for (number, entry) in vhdx[table..].chunks_exact_mut(8).take(BLOCKS / 16 * 17).enumerate() {
        let word: u64 = if number % 17 == 16 { 3 << 20 | 6 } else { 1 << 20 | 7 };
        entry.copy_from_slice(&word.to_le_bytes());
    }
    folder.write("base.vhdx", base_vhdx([0x33; 16]));
    folder.write("c.avhdx", vhdx);
    lengthen(&folder, "c.avhdx", 512 << 20);
    for name in ["c.vhd", "c.avhdx"] {
        let error = refusal(&folder, name);
        assert!(error.contains("it holds changes in too many places"), "{name}: {error}");
    }
}

#[test]
fn every_flipped_bit_gives_an_error_or_a_disk_in_bounds() {
    let folder = Folder::new();
    folder.write("base.vdi", base_vdi(ID, STATE));
    folder.write("base.vhd", vhd_base(ID));
    folder.write("base.vhdx", base_vhdx([0x33; 16]));
    let table = 320 << 10;
    let rows: [(&str, Vec<u8>, Vec<usize>); 3] = [
        ("c.vdi", child_vdi(&[0, u32::MAX]), (64..520).collect()),
        (
            "c.vhd",
            vhd_over(ID, ["base.vhd", "", ""], [0x5a; 8]),
            (0..84).chain(512..560).chain(1088..1144).chain(1536..1540).chain(3072..3080).collect(),
        ),
        (
            "c.avhdx",
            child_vhdx(),
            VHDX_TABLES
                .into_iter()
                .flatten()
                .chain((256 << 10) + 128..(256 << 10) + 400)
                .chain(table..table + 16)
                .chain(table + 8 * 4096..table + 8 * 4096 + 8)
                .chain(64 << 10..(64 << 10) + 64)
                .collect(),
        ),
    ];
    for (name, bytes, offsets) in rows {
        let path = folder.write(name, &bytes);
        assert_eq!(folder.open(name).unwrap().chain.len(), 2, "{name}");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for at in offsets {
            for bit in 0..8 {
                file.write_all_at(&[bytes[at] ^ 1 << bit], at as u64).unwrap();
                if let Ok(disk) = folder.open(name) {
                    assert!((1..=MAX_DISK_SIZE).contains(&disk.size), "{name} {at} {bit}");
                }
            }
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
    }
}
