//! Tells the filesystems that most devices hold by their signatures: a guess, which mounting
//! confirms, and which libblkid replaces where it does not.
//!
//! libblkid alone would do, but under TCG its search takes as long as mounting: it looks the device
//! up in sysfs and reads a MiB in forty places. This reads once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes at the device's start that are looked at; behind them lies nothing of the table.
const LENGTH: usize = 68 << 10;

/// Offset, signature, and libblkid's name of the filesystem. `None` for what is no filesystem, or
/// one that takes a closer look: then the guess is left to libblkid.
///
/// Sources: the superblocks in fs/* of Linux; the specifications of LUKS, of LVM2's label and of
/// MD's superblock 1.
const SIGNATURES: &[(usize, &[u8], Option<&str>)] = &[
    (3, b"NTFS    ", Some("ntfs")),
    (3, b"EXFAT   ", Some("exfat")),
    (0x36, b"FAT12   ", Some("vfat")),
    (0x36, b"FAT16   ", Some("vfat")),
    (0x52, b"FAT32   ", Some("vfat")),
    (0x438, b"\x53\xef", Some("ext4")),
    (0, b"XFSB", Some("xfs")),
    (0x1_0040, b"_BHRfS_M", Some("btrfs")),
    (0x8001, b"CD001", None),
    (0x8001, b"BEA01", None),
    (0x400, b"H+", None),
    (0x400, b"HX", None),
    (0x400, b"BD", None),
    (0x400, b"\xe2\xe1\xf5\xe0", Some("erofs")),
    (0x400, b"\x10\x20\xf5\xf2", Some("f2fs")),
    (0, b"hsqs", Some("squashfs")),
    (0, b"LUKS\xba\xbe", None),
    (3, b"-FVE-FS-", None),
    (3, b"MSWIN4.1", None),
    (0x200, b"LABELONE", None),
    (0, b"LABELONE", None),
    (0, b"\xfc\x4e\x2b\xa9", None),
    (0x1000, b"\xfc\x4e\x2b\xa9", None),
    (0xff6, b"SWAPSPACE2", None),
    (0xff6, b"SWAP-SPACE", None),
];

/// libblkid's name for the filesystem on the device at `node`, where one of the usual signatures
/// is there and no other.
pub fn usual_filesystem(node: &Path) -> Option<&'static str> {
    let mut start = vec![0; LENGTH];
    File::open(node).ok()?.read_exact_at(&mut start, 0).ok()?;
    guess(&start)
}

fn guess(start: &[u8]) -> Option<&'static str> {
    let mut found = SIGNATURES
        .iter()
        .filter(|(at, signature, _)| start[*at..].starts_with(signature))
        .map(|(.., name)| *name);
    match (found.next(), found.next()) {
        (Some(name), None) => name,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess_at(pieces: &[(usize, &[u8])]) -> Option<&'static str> {
        let mut start = vec![0; LENGTH];
        for (at, bytes) in pieces {
            start[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        guess(&start)
    }

    #[test]
    fn one_signature_makes_a_guess() {
        assert_eq!(guess_at(&[(3, b"NTFS    ")]), Some("ntfs"));
        assert_eq!(guess_at(&[(0x438, b"\x53\xef")]), Some("ext4"));
        assert_eq!(guess_at(&[(0x1_0040, b"_BHRfS_M")]), Some("btrfs"));
    }

    #[test]
    fn remnants_and_what_is_no_filesystem_are_left_to_libblkid() {
        assert_eq!(guess_at(&[]), None);
        assert_eq!(guess_at(&[(3, b"NTFS    "), (0x438, b"\x53\xef")]), None);
        assert_eq!(guess_at(&[(0x438, b"\x53\xef"), (0x1000, b"\xfc\x4e\x2b\xa9")]), None);
        assert_eq!(guess_at(&[(0, b"LUKS\xba\xbe")]), None);
        assert_eq!(guess_at(&[(0x8001, b"CD001")]), None);
    }

    #[test]
    fn the_table_stays_within_what_is_read() {
        assert!(SIGNATURES.iter().all(|(at, signature, _)| at + signature.len() <= LENGTH));
    }
}
