//! Disks put together byte by byte, some of them hostile. That good ones read as QEMU reads them
//! is tested with QEMU's own images.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::DiskReader;
use super::sparse::{Place, SparseExtent};
use crate::image::{Disk, OnMissing, OpenOptions};
use guestmnt_protocol::message::Extent;

const GRAIN: usize = 64 << 10;
const DIRECTORY: usize = 512;
const TABLE: usize = 1024;

/// An extent of four grains, with these entries in its table; stored grains begin at 64 KiB, in
/// the file's order filled with 1, 2, …
fn sparse(entries: [u32; 4], flags: u32, grains: u8) -> Vec<u8> {
    let mut bytes = vec![0; GRAIN];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"KDMV");
    put(4, &1u32.to_le_bytes());
    put(8, &flags.to_le_bytes());
    put(12, &512u64.to_le_bytes());
    put(20, &128u64.to_le_bytes());
    put(44, &512u32.to_le_bytes());
    put(56, &1u64.to_le_bytes());
    put(64, &128u64.to_le_bytes());
    put(73, b"\n \r\n");
    put(DIRECTORY, &2u32.to_le_bytes());
    for (n, entry) in entries.iter().enumerate() {
        put(TABLE + 4 * n, &entry.to_le_bytes());
    }
    for grain in 1..=grains {
        bytes.resize(bytes.len() + GRAIN, grain);
    }
    bytes
}

/// Writes a disk of one sparse extent; `parent` is its parent's name and id.
fn write(folder: &Path, name: &str, extent: &[u8], parent: Option<&str>) -> PathBuf {
    let (parent_cid, hint) = match parent {
        None => ("ffffffff", String::new()),
        Some(parent) => ("00000007", format!("parentFileNameHint=\"{parent}\"\n")),
    };
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID={parent_cid}\n\
         createType=\"twoGbMaxExtentSparse\"\n{hint}RW 512 SPARSE \"{name}-s001.vmdk\"\n"
    );
    fs::write(folder.join(format!("{name}-s001.vmdk")), extent).unwrap();
    let path = folder.join(format!("{name}.vmdk"));
    fs::write(&path, text).unwrap();
    path
}

/// Where the next data or hole is, from each grain on.
fn found(reader: &DiskReader, what: Extent) -> [Option<u64>; 4] {
    let grain = GRAIN as u64;
    let from = |n: u64| reader.find(n * grain, (4 - n) * grain, what).unwrap();
    [0, 1, 2, 3].map(|n| from(n).map(|distance| n + distance / grain))
}

#[test]
fn what_a_chain_stores_is_told_from_its_holes() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "base", &sparse([128, 256, 384, 0], 1, 3), None);
    let child = write(folder.path(), "child", &sparse([0, 1, 128, 0], 1 | 4, 1), Some("base.vmdk"));
    // Grain 0 is the parent's, 1 zeros, 2 stored, 3 nowhere.
    let reader = reader(&child);
    assert_eq!(found(&reader, Extent::Data), [Some(0), Some(2), Some(2), None]);
    assert_eq!(found(&reader, Extent::Hole), [Some(1), Some(1), Some(3), Some(3)]);
    assert!(reader.find(0, 4 * GRAIN as u64 + 1, Extent::Data).is_err());
    assert_eq!(reader.find(100, 0, Extent::Data).unwrap(), None);
}

#[test]
fn a_search_through_grains_without_end_stops_and_says_data() {
    // 8 GiB in grains of one sector, none of them stored: 16 million to be looked at.
    const CAPACITY: u64 = 8 << 30;
    let folder = tempfile::tempdir().unwrap();
    let mut extent = sparse([0; 4], 1, 0);
    extent[12..20].copy_from_slice(&(CAPACITY / 512).to_le_bytes());
    extent[20..28].copy_from_slice(&1u64.to_le_bytes());
    extent[64..72].copy_from_slice(&0u64.to_le_bytes());
    extent[DIRECTORY..].fill(0);
    extent.resize(1 << 20, 0);
    let path = write(folder.path(), "empty", &extent, None);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("RW 512", &format!("RW {}", CAPACITY / 512))).unwrap();
    let reader = reader(&path);
    let far = reader.find(0, CAPACITY, Extent::Data).unwrap().expect("it stops");
    assert!((1 << 20..CAPACITY / 16).contains(&far), "{far}");
    // Who reads on there gets zeros, and who asks again gets further.
    assert_eq!(reader.find(far, CAPACITY - far, Extent::Hole).unwrap(), Some(0));
    assert_eq!(reader.find(far, CAPACITY - far, Extent::Data).unwrap(), Some(far));
    assert_eq!(reader.find(CAPACITY - 4096, 4096, Extent::Data).unwrap(), None);
}

fn reader(path: &Path) -> DiskReader {
    let disk = Disk::open(path, &OpenOptions::default()).unwrap();
    DiskReader::of(&disk).unwrap().expect("of a kind that can be read")
}

/// What each grain of a disk is filled with.
fn grains(reader: &DiskReader) -> [u8; 4] {
    let mut bytes = vec![0xee; 4 * GRAIN];
    reader.read(&mut bytes, 0).unwrap();
    std::array::from_fn(|n| {
        let grain = &bytes[n * GRAIN..][..GRAIN];
        assert!(grain.iter().all(|byte| byte == &grain[0]), "grain {n} is of one kind");
        grain[0]
    })
}

#[test]
fn grains_are_stored_zero_or_the_parents() {
    const ZERO_GRAINS: u32 = 4;
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "base", &sparse([256, 128, 384, 0], 1, 3), None);
    let child = sparse([0, 128, 1, 0], 1 | ZERO_GRAINS, 1);
    let path = write(folder.path(), "child", &child, Some("base.vmdk"));
    assert_eq!(grains(&reader(&folder.path().join("base.vmdk"))), [2, 1, 3, 0]);
    assert_eq!(grains(&reader(&path)), [2, 1, 0, 0]);
}

#[test]
fn a_grain_is_read_up_to_the_end_of_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut extent = sparse([128, 0, 0, 0], 1, 1);
    extent.truncate(GRAIN + 1000);
    let reader = reader(&write(folder.path(), "short", &extent, None));
    let mut bytes = [0xee; 1000];
    reader.read(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [1; 1000]);
    for (at, len) in [(0, 1001), (0, GRAIN), (1000, 1), (GRAIN - 1, 2)] {
        let error = reader.read(&mut vec![0; len], at as u64).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{at} {len}");
    }
    reader.read(&mut vec![0; GRAIN], GRAIN as u64).unwrap();
    assert_eq!(found(&reader, Extent::Hole), [Some(1), Some(1), Some(2), Some(3)]);
    let options = OpenOptions { on_missing: OnMissing::Zeros, ..OpenOptions::default() };
    let disk = Disk::open(&folder.path().join("short.vmdk"), &options).unwrap();
    let mut bytes = vec![0xee; GRAIN];
    DiskReader::of(&disk).unwrap().unwrap().read(&mut bytes, 0).unwrap();
    assert!(bytes == [vec![1; 1000], vec![0; GRAIN - 1000]].concat());
}

#[test]
fn tables_that_lead_out_of_their_file_are_errors_where_they_are_used() {
    let folder = tempfile::tempdir().unwrap();
    for entry in [257, u32::MAX] {
        let extent = sparse([128, entry, 0, 0], 1, 1);
        let reader = reader(&write(folder.path(), "out", &extent, None));
        assert!(reader.read(&mut vec![0; GRAIN], 0).is_ok(), "{entry}");
        assert!(reader.read(&mut vec![0; GRAIN], GRAIN as u64).is_err(), "{entry}");
    }
    let mut extent = sparse([128, 0, 0, 0], 1, 1);
    extent[DIRECTORY..DIRECTORY + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let reader = reader(&write(folder.path(), "table", &extent, None));
    assert!(reader.read(&mut [0; 512], 0).is_err());
}

#[test]
fn a_file_that_gets_shorter_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let reader = reader(&write(folder.path(), "cut", &sparse([128, 0, 0, 0], 1, 1), None));
    let extent = fs::File::options().write(true).open(folder.path().join("cut-s001.vmdk")).unwrap();
    extent.set_len(GRAIN as u64 + 1).unwrap();
    assert!(reader.read(&mut vec![0; GRAIN], 0).is_err());
}

#[test]
fn compressed_grains_are_qemus_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "packed", &sparse([128, 0, 0, 0], 1 | 1 << 16, 1), None);
    let disk = Disk::open(&path, &OpenOptions::default()).unwrap();
    assert!(DiskReader::of(&disk).unwrap().is_none());
}

#[test]
fn every_part_of_a_disk_of_many_extents_is_read() {
    const SECTOR: usize = 512;
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(12 * SECTOR).collect();
    fs::write(folder.path().join("flat"), &bytes).unwrap();
    // From sectors 9, 0 and 3 of the file, with zeros between them.
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID=ffffffff\n\
                createType=\"twoGbMaxExtentFlat\"\nRW 3 FLAT \"flat\" 9\nRW 1 ZERO\n\
                RW 1 FLAT \"flat\" 0\nRW 2 FLAT \"flat\" 3\n";
    let path = folder.path().join("disk.vmdk");
    fs::write(&path, text).unwrap();
    let sectors = |first: usize, count: usize| bytes[first * SECTOR..][..count * SECTOR].to_vec();
    let disk = [sectors(9, 3), vec![0; SECTOR], sectors(0, 1), sectors(3, 2)].concat();
    let reader = reader(&path);
    let edges: Vec<usize> =
        (0..=7 * SECTOR).filter(|n| (n + 1) % SECTOR < 3).chain([100, 2000]).collect();
    for &start in &edges {
        for &end in edges.iter().filter(|&&end| end >= start) {
            let mut buffer = vec![0xee; end - start];
            let read = reader.read(&mut buffer, start as u64);
            assert_eq!(read.is_ok(), end <= disk.len(), "{start}..{end}");
            if end <= disk.len() {
                assert_eq!(buffer, disk[start..end], "{start}..{end}");
            }
        }
    }
    let beyond = [7 * SECTOR as u64, 1 << 63, u64::MAX];
    assert!(beyond.iter().all(|&at| reader.read(&mut [0], at).is_err()));
}

/// Places in an extent against reckoning in 128 bits: all combinations of an entry of the directory,
/// one of the table, and what is asked for.
#[test]
fn grains_are_found_as_with_numbers_that_cannot_overflow() {
    const CAPACITY: u64 = 4 * GRAIN as u64;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("extent");
    let bytes = sparse([128, 0, 0, 0], 1, 1);
    fs::write(&path, &bytes).unwrap();
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let (file_len, grain) = (bytes.len() as u128, GRAIN as u128);
    let asked = [0, 1, GRAIN as u64 - 1, GRAIN as u64, CAPACITY - 1, CAPACITY, 1 << 63, u64::MAX];
    for sector in [0, 2, 252, 253, 256, 1 << 23, u32::MAX] {
        file.write_all_at(&u32::to_le_bytes(sector), DIRECTORY as u64).unwrap();
        let table = u128::from(sector) * 512;
        for entry in [0, 1, 128, 255, 256, 1 << 23, u32::MAX] {
            // Of the file's own bytes, only these are other ones.
            file.write_all_at(&u32::to_le_bytes(entry), TABLE as u64).unwrap();
            let extent = SparseExtent::of(&file).unwrap().unwrap();
            for offset in asked {
                for length in asked.into_iter().filter(|&length| length > 0) {
                    let found = extent.find(offset, length).ok();
                    let end = u128::from(offset) + u128::from(length);
                    let is_inside = end <= u128::from(CAPACITY);
                    let has_table = table == 0 || table + 512 * 4 <= file_len;
                    if !is_inside || !has_table {
                        assert_eq!(found, None, "{sector} {entry} {offset} {length}");
                        continue;
                    }
                    if sector != 2 || u128::from(offset) >= grain {
                        continue;
                    }
                    let at = u128::from(entry) * 512;
                    let place = match found {
                        None => None,
                        Some((Place::Stored(place), _)) => Some(u128::from(place)),
                        Some((Place::Parent | Place::Zero, _)) => Some(0),
                    };
                    let expected = match entry {
                        0 => Some(0),
                        _ => (at < file_len).then_some(at + u128::from(offset)),
                    };
                    assert_eq!(place, expected, "{sector} {entry} {offset} {length}");
                }
            }
        }
    }
}

#[test]
fn of_a_last_sector_that_is_not_whole_the_rest_is_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let (alone, first) = (folder.path().join("disk.img"), folder.path().join("pieces.001"));
    fs::write(&alone, [7; 1000]).unwrap();
    fs::write(&first, [7; 512]).unwrap();
    fs::write(folder.path().join("pieces.002"), [7; 488]).unwrap();
    for path in [alone, first] {
        let reader = reader(&path);
        assert_eq!((reader.size(), reader.exact_size()), (1024, 1000));
        let mut bytes = [0xee; 1024];
        reader.read(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[..1000], &bytes[1000..]), (&[7; 1000][..], &[0; 24][..]));
        reader.read(&mut bytes[..20], 1004).unwrap();
        assert_eq!(bytes[..20], [0; 20]);
        assert_eq!(reader.find(0, 1024, Extent::Hole).unwrap(), Some(1000));
        assert_eq!(reader.find(1001, 23, Extent::Data).unwrap(), None);
    }
}
