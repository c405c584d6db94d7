//! Headers of all formats: whole, cut at every byte, with every bit turned over.

use std::os::unix::fs::FileExt;

use super::fixtures::*;
use super::*;

const SIZE: u64 = 2048 * SECTOR_SIZE;

/// Every kind of file: its name, its bytes, its format, and where its tables end.
fn images() -> Vec<(&'static str, Vec<u8>, Format, usize)> {
    let fixed = [vec![0; 2048 * 512], vhd_footer(SIZE, 2)].concat();
    let stream = with_footer(monolithic_sparse(1, 2048));
    let stream_len = stream.len();
    vec![
        ("sparse.vmdk", monolithic_sparse(1, 2048), Format::Vmdk, 4096 + 4),
        ("stream.vmdk", stream, Format::Vmdk, stream_len),
        ("a.qcow2", qcow2(SIZE), Format::Qcow2, 104),
        ("a.vdi", vdi(SIZE), Format::Vdi, 512),
        ("a.vhd", vhd(SIZE), Format::Vpc, 1536),
        ("fixed.vhd", fixed, Format::Vpc, 2048 * 512 + 512),
        ("a.vhdx", vhdx(SIZE), Format::Vhdx, VHDX_TABLES[2].end),
        ("a.qed", qed(SIZE), Format::Qed, 8192),
        ("a.hds", parallels(SIZE), Format::Parallels, 68),
        ("a.img", vec![0; 2048 * 512], Format::Raw, 1),
    ]
}

#[test]
fn every_format_is_told_and_its_size_read() {
    let folder = Folder::new();
    for (name, bytes, format, _) in images() {
        folder.write(name, bytes);
        let disk = folder.open(name).unwrap();
        assert_eq!((disk.size, disk.chain[0].format), (SIZE, format), "{name}");
        assert!(matches!(disk.chain[0].source, Source::File(_)), "{name}");

        let path = folder.path.join(name);
        let formats = [Format::Vmdk, Format::Qcow2, Format::Vdi, Format::Vpc, Format::Vhdx];
        for wanted in formats.into_iter().chain([Format::Qed, Format::Parallels]) {
            let options = OpenOptions { format: Some(wanted), ..OpenOptions::default() };
            let opened = Disk::open(&path, &options);
            assert_eq!(opened.is_ok(), wanted == format, "{name} as {wanted}: {opened:?}");
        }
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let raw = Disk::open(&path, &options).unwrap();
        assert_eq!(raw.size, path.metadata().unwrap().len().next_multiple_of(512), "{name}");
    }
}

#[test]
fn a_file_cut_within_its_tables_is_refused() {
    let folder = Folder::new();
    for (name, bytes, format, tables_end) in images() {
        let path = folder.write(name, &bytes);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let step = if tables_end > 100_000 { 509 } else { 1 };
        for len in (0..tables_end).rev().step_by(step) {
            file.set_len(len as u64).unwrap();
            let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
            if name == "fixed.vhd" && len + 1 == tables_end {
                continue; // the footer of Virtual PC before 2004 ends there
            }
            // Without its magic it passes for one of plain sectors, which have that name too.
            let is_told = format != Format::Parallels || len >= 16;
            assert!(!is_told || folder.open(name).is_err(), "{name} of {len} bytes");
            assert!(Disk::open(&path, &options).is_err(), "{name} of {len} bytes");
        }
    }
}

#[test]
fn every_flipped_bit_gives_an_error_or_a_disk_in_bounds() {
    let folder = Folder::new();
    let mut places: Vec<(&str, Vec<u8>, Vec<usize>)> = vec![
        ("sparse.vmdk", monolithic_sparse(1, 2048), (0..1024).collect()),
        ("stream.vmdk", with_footer(monolithic_sparse(1, 2048)), (8192..9728).collect()),
        ("a.qcow2", qcow2(SIZE), (0..104).collect()),
        ("a.qed", qed(SIZE), (0..64).collect()),
        ("a.hds", parallels(SIZE), (0..64).collect()),
        ("a.vdi", vdi(SIZE), (0..512).collect()),
        ("a.vhd", vhd(SIZE), (0..640).collect()),
        ("a.vhdx", vhdx(SIZE), VHDX_TABLES.into_iter().flatten().collect()),
    ];
    for (name, extent) in [("cowd", cowd(2048)), ("sesparse", sesparse(2048))] {
        let kind = if name == "cowd" { "VMFSSPARSE" } else { "SESPARSE" };
        folder.write(&format!("{name}.vmdk"), base(1, &format!("RW 2048 {kind} \"{name}\"")));
        places.push((name, extent, (0..1024).collect()));
    }
    for (name, bytes, offsets) in places {
        let path = folder.write(name, &bytes);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let disk = if name.contains('.') { name.to_owned() } else { format!("{name}.vmdk") };
        for at in offsets {
            for bit in 0..8 {
                file.write_all_at(&[bytes[at] ^ 1 << bit], at as u64).unwrap();
                if let Ok(disk) = folder.open(&disk) {
                    assert!((1..=MAX_DISK_SIZE).contains(&disk.size), "{name} {at} {bit}");
                    assert!(disk.size.is_multiple_of(SECTOR_SIZE), "{name} {at} {bit}");
                }
            }
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
        folder.open(&disk).unwrap();
    }
}

#[test]
fn headers_that_mislead_are_refused_with_the_reason() {
    let edit = |mut bytes: Vec<u8>, at: usize, new: &[u8]| {
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let sparse = || monolithic_sparse(1, 2048);
    let large = (MAX_DISK_SIZE + SECTOR_SIZE).to_be_bytes();
    let large_le = (MAX_DISK_SIZE + SECTOR_SIZE).to_le_bytes();
    let metadata = 256 << 10;
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a.vmdk", edit(sparse(), 12, &[0; 8]), "holds no sectors"),
        ("a.vmdk", with_footer(edit(sparse(), 12, &[0; 8])), "holds no sectors"),
        ("a.vmdk", edit(sparse(), 12, &[0xff; 8]), "larger than 64 TiB"),
        ("a.vmdk", edit(sparse(), 12, &[1]), "its header says 2049 sectors"),
        ("a.vmdk", edit(sparse(), 4, &[4]), "version 4"),
        ("a.vmdk", edit(sparse(), 73, b"\n"), ""),
        ("a.vmdk", edit(sparse(), 75, b"\n\n"), "line ends were converted"),
        ("a.vmdk", edit(sparse(), 20, &[0; 8]), "grains of 0 sectors"),
        ("a.vmdk", edit(sparse(), 20, &[0xff; 8]), "grains of 18446744073709551615 sectors"),
        ("a.vmdk", edit(sparse(), 44, &[0; 4]), "grain tables of 0 entries"),
        ("a.vmdk", edit(sparse(), 44, &[0xff; 4]), "grain tables of 4294967295 entries"),
        ("a.vmdk", edit(sparse(), 56, &[0xfe; 8]), "before the grain directory"),
        ("a.vmdk", edit(sparse(), 56, &[0xff; 8]), "before the footer"),
        ("a.vmdk", edit(sparse(), 64, &[17]), "before the first grain"),
        ("a.vmdk", edit(sparse(), 77, &[2]), "compressed in way 2"),
        ("a.vmdk", edit(sparse(), 28, &[2]), "not in the second sector"),
        ("a.vmdk", edit(sparse(), 36, &[129]), "longer than 64 KiB"),
        ("a.vmdk", edit(sparse(), 36, &[0xff; 8]), "longer than 64 KiB"),
        ("a.qcow2", edit(qcow2(SIZE), 7, &[4]), "version 4"),
        ("a.qcow2", edit(qcow2(SIZE), 15, &[104]), "has an empty file name"),
        ("a.qcow2", edit(edit(qcow2(SIZE), 8, &[1]), 18, &[1]), "not in its first cluster"),
        ("a.qcow2", edit(edit(qcow2(SIZE), 14, &[1]), 16, &[255; 4]), "not in its first cluster"),
        ("a.qcow2", edit(edit(qcow2(SIZE), 15, &[200]), 18, &[4]), "not in its first cluster"),
        ("a.qcow2", edit(qcow2_over(SIZE, b"b", "raw"), 108, &[9]), "extensions do not end"),
        ("a.qcow2", edit(qcow2(SIZE), 23, &[8]), "no valid size"),
        ("a.qcow2", edit(qcow2(SIZE), 23, &[22]), "no valid size"),
        ("a.qcow2", edit(qcow2(SIZE), 35, &[1]), "encrypted qcow2"),
        ("a.qcow2", edit(qcow2(SIZE), 35, &[2]), "encrypted with LUKS"),
        ("a.qcow2", edit(qcow2(SIZE), 79, &[4]), "data in another file"),
        ("a.qcow2", edit(qcow2(SIZE), 79, &[32]), "unknown features"),
        ("a.qcow2", edit(qcow2(SIZE), 24, &large), "larger than 64 TiB"),
        ("a.qcow2", edit(qcow2(SIZE), 24, &[0; 8]), "no sectors"),
        ("a.vdi", edit(vdi(SIZE), 455, &[1]), "of a kind that was never in use"),
        ("a.vdi", edit(vdi(SIZE), 424, &[1]), "of a kind that was never in use"),
        ("a.vdi", edit(vdi(SIZE), 76, &[4]), "of a kind that was never in use"),
        ("a.vdi", edit(vdi(SIZE), 76, &[3]), "of a kind that was never in use"),
        ("a.vdi", edit(vdi(SIZE), 368, &[0xff; 8]), "larger than 64 TiB"),
        ("a.vhd", edit(vhd(SIZE), 63, &[4]), "says too little of its parent"),
        ("a.vhd", edit(vhd(SIZE), 63, &[2]), "no known type"),
        ("a.vhd", edit(vhd(SIZE), 16, &[0xff; 8]), "before the VHD header"),
        ("a.vhd", edit(vhd(SIZE), 48, &large), "larger than 64 TiB"),
        ("a.vhd", vhd_footer(SIZE, 2), "no known type"),
        ("a.vhd", [vec![0; 512], vhd_footer(SIZE, 2)].concat(), "before the last sector"),
        ("a.vhdx", edit(vhdx(SIZE), metadata + 96, &[2]), "lacks the size of sectors"),
        ("a.vhdx", edit(vhdx(SIZE), metadata + 132, &[2]), "lacks the parent"),
        ("a.vhdx", edit(vhdx(SIZE), metadata + 136, &large_le), "larger than 64 TiB"),
        ("a.vhdx", edit(vhdx(SIZE), metadata + 10, &[0xff; 2]), "too many entries"),
        ("a.vhdx", edit(vhdx(SIZE), metadata + 48, &[0xff; 4]), "before the metadata"),
        ("a.vhdx", edit(vhdx(SIZE), (192 << 10) + 8, &[0xff; 4]), "too many entries"),
        ("a.vhdx", edit(vhdx(SIZE), (192 << 10) + 32, &[0xff; 8]), "before the metadata table"),
        ("a.vmdk", vec![], "it is empty"),
        ("a.vmdk", vec![7; 4096], "not a VMDK"),
        ("a.vdi", vec![7; 4096], "not a VMDK"),
        ("a.ova", vec![7; 4096], "not a VMDK"),
        ("a.img", vec![], "it is empty"),
    ];
    let folder = Folder::new();
    for (name, bytes, reason) in table {
        folder.write(name, bytes);
        match folder.open(name) {
            Ok(_) => assert!(reason.is_empty(), "{reason}"),
            Err(e) => assert!(!reason.is_empty() && e.to_string().contains(reason), "{e}"),
        }
    }
}

#[test]
fn a_raw_disk_ends_with_a_whole_sector() {
    let folder = Folder::new();
    folder.write("a.img", [7; 513]);
    assert_eq!(folder.open("a.img").unwrap().size, 1024);
    folder.write("no-extension", [7]);
    assert_eq!(folder.open("no-extension").unwrap().size, 512);
}

/// A fixed VHD of four sectors.
fn fixed_vhd() -> Vec<u8> {
    [vec![0xda; 2048], vhd_footer(2048, 2)].concat()
}

#[test]
fn footers_of_vhd_are_mended_in_memory() {
    let damaged = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 0x40;
        bytes
    };
    let grows = || {
        let mut bytes = vhd(1 << 20);
        bytes.resize(4096, 0);
        [bytes, vhd_footer(1 << 20, 3)].concat()
    };
    let wrong = Some("its footer has a wrong checksum");
    let copy = Some("the copy of its footer at the start is damaged");
    let (footer, creator) = (2048, 28);
    type Row = (&'static str, Vec<u8>, u64, Option<&'static str>, bool);
    let rows: Vec<Row> = vec![
        ("whole", fixed_vhd(), 2048, None, false),
        ("511 bytes", fixed_vhd()[..2559].to_vec(), 2048, None, true),
        ("sum", damaged(fixed_vhd(), footer + 64), 2048, wrong, true),
        (
            "511 bytes and sum",
            damaged(fixed_vhd(), footer + 64)[..2559].to_vec(),
            2048,
            wrong,
            true,
        ),
        ("creator", damaged(fixed_vhd(), footer + creator), 2048, wrong, true),
        ("growing", grows(), 1 << 20, None, false),
        ("growing, end damaged", damaged(grows(), 4096), 1 << 20, None, false),
        // By the copy at the start it would have another size.
        ("growing, start damaged", damaged(grows(), 54), 1 << 20, copy, true),
        ("growing, no start", damaged(grows(), 0), 1 << 20, copy, true),
        ("growing, both", damaged(damaged(grows(), 30), 4096 + 40), 1 << 20, wrong, true),
    ];
    let folder = Folder::new();
    for (name, bytes, size, warning, is_patched) in rows {
        let path = folder.write("a.vhd", &bytes);
        let disk = folder.open("a.vhd").unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(disk.size, size, "{name}");
        match warning {
            None => assert!(disk.warnings.is_empty(), "{name}: {:?}", disk.warnings),
            Some(warning) => assert!(disk.warnings[0].contains(warning), "{:?}", disk.warnings),
        }
        assert_eq!(matches!(disk.chain[0].source, Source::Patched { .. }), is_patched, "{name}");
        assert_eq!(disk.chain[0].qemu_driver(), "vpc");
        assert!(std::fs::read(&path).unwrap() == bytes, "{name}");
        let writing = Disk::open_for_writing(&path, &OpenOptions::default());
        assert_eq!(writing.is_err(), is_patched, "{name}");
    }
}

#[test]
fn the_sectors_of_a_vhdx_are_those_of_the_disk_unless_told_otherwise() {
    let folder = Folder::new();
    let mut bytes = vhdx_over(&[], [2 << 20 | 6, 0], 0);
    let metadata = 256 << 10;
    bytes[metadata + 180] = 0; // no parent
    bytes[metadata + 200..metadata + 204].copy_from_slice(&4096u32.to_le_bytes());
    let path = folder.write("a.vhdx", bytes);
    for (told, expected) in [
        (None, BlockSize::Bytes4096),
        (Some(BlockSize::Bytes512), BlockSize::Bytes512),
        (Some(BlockSize::Bytes4096), BlockSize::Bytes4096),
    ] {
        let options = OpenOptions { block_size: told, ..OpenOptions::default() };
        let disk = Disk::open(&path, &options).unwrap();
        assert_eq!(disk.block_size, expected);
        assert_eq!(disk.chain[0].qemu_driver(), "qcow2");
    }
    folder.write("b.vhdx", vhdx(2 << 20));
    assert_eq!(folder.open("b.vhdx").unwrap().block_size, BlockSize::Bytes512);
}
