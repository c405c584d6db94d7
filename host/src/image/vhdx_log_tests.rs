//! Logs as they are left behind, and logs that mislead.

use super::fixtures::*;
use super::vhdx_log::Log;
use super::*;
use crate::image::file::ImageFile;

const SECTOR: u64 = 4096;
const ID: [u8; 16] = [7; 16];
const MIB: usize = 1 << 20;

/// A file of 3 MiB of 0xee with a log in its second one, which holds `entries` at their sectors.
fn file(entries: &[(usize, Vec<u8>)]) -> (Folder, ImageFile) {
    let folder = Folder::new();
    let mut bytes = vec![0xee; 3 * MIB];
    bytes[MIB..2 * MIB].fill(0);
    for (sector, entry) in entries {
        for (i, part) in entry.chunks(4096).enumerate() {
            bytes[MIB + (sector + i) % 256 * 4096..][..4096].copy_from_slice(part);
        }
    }
    let path = folder.write("file", bytes);
    let file = ImageFile::open(&path).unwrap();
    (folder, file)
}

const LOG: Log = Log { guid: Guid(ID), version: 0, offset: MIB as u64, len: 1 << 20 };

/// The first bytes of the third MiB's first sectors, after the replay; or what was wrong.
fn replayed(entries: &[(usize, Vec<u8>)]) -> Result<[u8; 4], String> {
    let (_folder, file) = file(entries);
    let file = match LOG.replay(&file) {
        Ok(patches) => file.with_patches(patches),
        Err(problem) => return Err(problem.to_string()),
    };
    Ok([0, 1, 2, 3].map(|i| {
        let sector: [u8; 4096] = file.header((2 * MIB) as u64 + i * SECTOR, "sector").unwrap();
        assert!(sector.iter().all(|&byte| byte == sector[0]));
        sector[0]
    }))
}

/// An entry that writes to a sector of the third MiB.
fn entry(sequence: u64, tail: u64, sector: u64, byte: Option<u8>) -> Vec<u8> {
    let writes = [((2 * MIB) as u64 + sector * SECTOR, byte)];
    vhdx_log_entry(ID, sequence, tail * 4096, &writes)
}

#[test]
fn the_active_sequence_is_replayed_in_order() {
    let (a, b) = (Some(0xaa), Some(0xbb));
    let old = |mut entry: Vec<u8>, at: usize| {
        entry[at] ^= 1;
        entry
    };
    let with_id = |id: u8| vhdx_log_entry([id; 16], 9, 0, &[(2 << 20, Some(1))]);
    type Row = (Vec<(usize, Vec<u8>)>, Result<[u8; 4], &'static str>);
    let none = Err("its log has no entries that are whole");
    let rows: Vec<Row> = vec![
        (vec![(0, entry(5, 0, 1, a))], Ok([0xee, 0xaa, 0xee, 0xee])),
        // The later one counts where both write.
        (vec![(0, entry(5, 0, 1, a)), (2, entry(6, 0, 1, b))], Ok([0xee, 0xbb, 0xee, 0xee])),
        (vec![(0, entry(5, 0, 0, a)), (2, entry(6, 0, 1, None))], Ok([0xaa, 0, 0, 0xee])),
        // What is older than the last one's tail is in the file already.
        (vec![(0, entry(5, 0, 1, a)), (2, entry(6, 2, 2, b))], Ok([0xee, 0xee, 0xbb, 0xee])),
        // Around the end of the log.
        (vec![(255, entry(5, 255, 1, a)), (1, entry(6, 255, 2, b))], Ok([0xee, 0xaa, 0xbb, 0xee])),
        // A higher number elsewhere counts; one whose tail is gone does not.
        (vec![(0, entry(5, 0, 1, a)), (8, entry(90, 8, 2, b))], Ok([0xee, 0xee, 0xbb, 0xee])),
        (vec![(0, entry(5, 0, 1, a)), (8, entry(90, 2, 2, b))], Ok([0xee, 0xaa, 0xee, 0xee])),
        // A number is skipped, or the second is torn: the first is whole by itself.
        (vec![(0, entry(5, 0, 1, a)), (2, entry(7, 0, 2, b))], Ok([0xee, 0xaa, 0xee, 0xee])),
        (
            vec![(0, entry(5, 0, 1, a)), (2, old(entry(6, 0, 2, b), 5000))],
            Ok([0xee, 0xaa, 0xee, 0xee]),
        ),
        (vec![], none),
        (vec![(0, with_id(8))], none),
        (vec![(0, entry(0, 0, 1, a))], none),
        (vec![(0, vhdx_log_entry(ID, 5, 0, &[(100, a)]))], none),
        (vec![(0, vhdx_log_entry(ID, 5, 0, &[(1 << 63, a)]))], Err("its log writes beyond")),
        (
            vec![(0, vhdx_log_entry(ID, 5, 0, &[(u64::MAX - 4095, None)]))],
            Err("its log writes beyond"),
        ),
    ];
    for (number, (entries, expected)) in rows.into_iter().enumerate() {
        match (replayed(&entries), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "row {number}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{number}: {found}"),
            (found, expected) => panic!("row {number}: {found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn every_flipped_bit_of_an_entry_makes_it_none() {
    let sound = entry(5, 0, 1, Some(0xaa));
    for at in (0..100).chain(4096..4110).chain(8180..8192) {
        for bit in 0..8 {
            let mut entry = sound.clone();
            entry[at] ^= 1 << bit;
            assert!(replayed(&[(0, entry)]).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_file_shorter_than_its_log_says_is_refused() {
    let with = |at: usize, len: u64| {
        let mut entry = entry(5, 0, 1, Some(0xaa));
        entry[at..at + 8].copy_from_slice(&len.to_le_bytes());
        seal(&mut entry);
        entry
    };
    let (flushed, least) = (48, 56);
    assert!(replayed(&[(0, with(flushed, 3 << 20))]).is_ok());
    let refusal = replayed(&[(0, with(flushed, (3 << 20) + 1))]).unwrap_err();
    assert!(refusal.contains("truncated"), "{refusal}");
    let (_folder, file) = file(&[(0, with(least, 5 << 20))]);
    assert_eq!(LOG.replay(&file).unwrap().len(), 5 << 20);
    let (_folder, file) = self::file(&[(0, with(least, u64::MAX))]);
    assert!(LOG.replay(&file).is_err());
}

#[test]
fn places_of_a_log_are_checked() {
    let (_folder, file) = file(&[(0, entry(5, 0, 1, Some(1)))]);
    assert!(LOG.replay(&file).is_ok());
    for log in [
        Log { len: 0, ..LOG },
        Log { len: 4096, ..LOG },
        Log { offset: 4096, ..LOG },
        Log { offset: 3 << 20, ..LOG },
        Log { offset: u64::MAX << 20, ..LOG },
        Log { len: 64 << 20, ..LOG },
        Log { version: 1, ..LOG },
    ] {
        assert!(log.replay(&file).is_err(), "{log:?}");
    }
}

#[test]
fn a_disk_with_a_log_is_opened_with_it_and_cannot_be_written() {
    let folder = Folder::new();
    // The log says that the disk has 4 MiB.
    let mut bytes = vhdx(2 << 20);
    bytes.resize(2 * MIB, 0);
    let size_at = (256 << 10) + 136;
    let mut header = vhdx_header(1, [1; 16], ID);
    header[68..72].copy_from_slice(&(1u32 << 20).to_le_bytes());
    header[72..80].copy_from_slice(&(1u64 << 20).to_le_bytes());
    seal(&mut header);
    bytes[64 << 10..][..4096].copy_from_slice(&header);
    let mut sector = bytes[256 << 10..][..4096].to_vec();
    sector[size_at - (256 << 10)..][..8].copy_from_slice(&(4u64 << 20).to_le_bytes());
    let mut entry = vhdx_log_entry(ID, 5, 0, &[(256 << 10, Some(0))]);
    entry[64 + 4..64 + 8].copy_from_slice(&sector[4092..]);
    entry[64 + 8..64 + 16].copy_from_slice(&sector[..8]);
    entry[4096 + 8..4096 + 4092].copy_from_slice(&sector[8..4092]);
    seal(&mut entry);
    bytes[MIB..][..8192].copy_from_slice(&entry);
    let path = folder.write("a.vhdx", &bytes);

    let disk = folder.open("a.vhdx").unwrap();
    assert_eq!(disk.size, 4 << 20);
    assert!(disk.warnings[0].contains("a.vhdx: it was not closed"), "{:?}", disk.warnings);
    let link = &disk.chain[0];
    assert!(matches!(link.source, Source::Patched { .. }));
    assert_eq!(link.qemu_driver(), "vhdx");
    let refusal = Disk::open_for_writing(&path, &OpenOptions::default()).unwrap_err().to_string();
    assert!(refusal.contains("log has to be replayed") && refusal.contains("hint: "), "{refusal}");
    assert!(std::fs::read(path).unwrap() == bytes);
}
