//! Filesystems that were not unmounted: the journal is replayed, so that the files are as they
//! were last written, and the image stays as it is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::sha256;
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;
use xtask::process::Tool;
use xtask::skips::skip;

/// A workplace with an image of `kind` that holds `state.txt`, a block of `before`.
fn image_of(kind: Kind) -> Workplace {
    let place = Workplace::new();
    let source = place.folder("source");
    fs::write(source.join("state.txt"), "before  ".repeat(512)).unwrap();
    mkfs::make(kind, &source, &place.path().join("image")).unwrap_or_else(|e| panic!("{e}"));
    place
}

/// Mounts the workplace's image and checks what `state.txt` holds, and that the image is unchanged.
fn assert_shows(place: &Workplace, options: &str, expected: &str) {
    let image = place.path().join("image");
    let before = sha256(&image);
    let mnt = place.folder("mnt");
    let mount = format!("/dev/sda:/:{options}");
    place.mount(&["--format", "raw", "-a", text(&image), "-m", &mount, text(&mnt)]);
    let state = fs::read_to_string(mnt.join("state.txt")).unwrap();
    assert_eq!(state, expected.repeat(512), "with {options:?}");
    place.unmount(&mnt);
    fs::remove_dir(&mnt).unwrap();
    place.assert_clean(&["source", "image", "after", "script"]);
    assert_eq!(sha256(&image), before, "the image was changed");
}

fn printed(tool: Tool) -> String {
    String::from_utf8(tool.output().unwrap_or_else(|error| panic!("{error}"))).unwrap()
}

#[test]
fn what_stands_in_ext4s_journal_is_shown() {
    let place = image_of(Kind::Ext4);
    let path = |name: &str| place.path().join(name);
    let debugfs = || Tool::new("debugfs").within(place.path());
    let blocks = printed(debugfs().args(["-R", "blocks state.txt", "image"]));
    let blocks: Vec<&str> = blocks.split_whitespace().collect();
    fs::write(path("after"), "after   ".repeat(512)).unwrap();
    let script = format!("jo\njw -b {} after\njc\n", blocks.join(","));
    fs::write(path("script"), script).unwrap();
    debugfs().args(["-w", "-f", "script", "image"]).run().unwrap();
    let features = printed(Tool::new("dumpe2fs").arg("-h").arg(path("image")));
    assert!(features.contains("needs_recovery"), "{features}");

    assert_shows(&place, "", "after   ");
    assert_shows(&place, "noload", "before  ");
}

#[test]
fn an_xfs_with_a_dirty_log_is_mounted() {
    if let Some(program) = Kind::Xfs.missing_program() {
        skip(&format!("{program} is not installed"));
        return;
    }
    let place = image_of(Kind::Xfs);
    let image = place.path().join("image");
    dirty_log(&image);
    let found = Tool::new("xfs_repair").args(["-f", "-n"]).arg(&image).output();
    let said = found.unwrap_err().to_string();
    assert!(said.contains("valuable metadata changes"), "{said}");
    assert_shows(&place, "", "before  ");
}

/// Makes the record of a clean unmount, which is all that the log of a new XFS holds, one of a
/// transaction that begins and does not end.
///
/// Source: "XFS Algorithms & Data Structures", journaling log.
fn dirty_log(image: &Path) {
    const BLOCK: usize = 512;
    // Of xlog_rec_header, which the checksum covers as far as its 328 bytes go.
    const HEADER: usize = 328;
    const CRC: std::ops::Range<usize> = 32..36;
    const LENGTH: usize = 12;
    // Of the xlog_op_header behind it: length, client, flags.
    const OPERATION: std::ops::Range<usize> = BLOCK + 4..BLOCK + 10;
    const UNMOUNT: u8 = 0x20;
    const BEGIN_OF_TRANSACTION: [u8; 6] = [0, 0, 0, 0, 0x69, 0x01];

    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut superblock = [0; 512];
    file.read_exact_at(&mut superblock, 0).unwrap();
    let number = |at: usize| u32::from_be_bytes(superblock[at..at + 4].try_into().unwrap());
    // sb_blocksize, sb_logstart in blocks, sb_agblocks, sb_agblklog: the number of the group stands
    // above as many bits as count the blocks of one.
    let (block_size, group_blocks) = (u64::from(number(4)), u64::from(number(84)));
    let start = u64::from(number(48)) << 32 | u64::from(number(52));
    let (group, within) = (start >> superblock[124], start & ((1 << superblock[124]) - 1));
    let at = (group * group_blocks + within) * block_size;

    let mut record = vec![0; 2 * BLOCK];
    file.read_exact_at(&mut record, at).unwrap();
    assert_eq!(record[..4], [0xfe, 0xed, 0xba, 0xbe], "the log begins with a record");
    assert_eq!(record[OPERATION.end - 1], UNMOUNT);
    let length: usize =
        u32::from_be_bytes(record[LENGTH..LENGTH + 4].try_into().unwrap()).try_into().unwrap();
    record.resize(BLOCK + length, 0);
    file.read_exact_at(&mut record, at).unwrap();
    record[OPERATION].copy_from_slice(&BEGIN_OF_TRANSACTION);
    record[CRC].fill(0);
    let covered = [&record[..HEADER], &record[BLOCK..]].concat();
    record[CRC].copy_from_slice(&crc32c(&covered).to_le_bytes());
    file.write_all_at(&record, at).unwrap();
}

/// Castagnoli's, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    });
    !crc
}

#[test]
fn crc32c_is_castagnolis() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
