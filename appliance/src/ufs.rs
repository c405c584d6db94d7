//! Which variant of UFS a filesystem is. The kernel's driver has to be told by `ufstype=`: with another
//! one than its own, a filesystem is refused, or shown wrong.
//!
//! Follows fs/ufs/ufs_fs.h and super.c of Linux 6.12 and ufs/ffs/fs.h of FreeBSD.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;

use crate::failure::{errno_of, explained};

/// Where UFS1 and all of its kin have their superblock, in bytes.
const UFS1_PLACE: u64 = 8192;

/// Where UFS2 has it, as far as the kernel looks.
const UFS2_PLACE: u64 = 65536;

/// Where FreeBSD looks besides.
const OTHER_PLACES: [u64; 3] = [0, UFS1_PLACE, 262_144];

/// Bytes of a superblock up to its magic number's end.
const LENGTH: usize = 1376;

const UFS1: u32 = 0x0001_1954;
const UFS2: u32 = 0x1954_0119;
/// Those of HP-UX: with features, long names, and for more than 4 GB.
const HP: [u32; 3] = [0x0019_5612, 0x0009_5014, 0x0523_1994];

/// The sum of the state and the time of a superblock that Solaris left clean.
const SOLARIS_CLEAN: u32 = 0x7c26_9d38;

/// The format of inodes of 4.4BSD and what came from it.
const INODES_OF_44BSD: u32 = 2;

/// A superblock as one byte order has it.
struct Superblock<'a> {
    bytes: &'a [u8],
    number: fn([u8; 4]) -> u32,
}

impl Superblock<'_> {
    fn at(&self, at: usize) -> u32 {
        self.bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| (self.number)(*word))
    }

    fn magic(&self) -> u32 {
        self.at(1372)
    }

    fn time(&self) -> u32 {
        self.at(32)
    }

    /// Whether its inodes are those of 4.4BSD.
    fn is_44bsd(&self) -> bool {
        self.at(1324) == INODES_OF_44BSD
    }

    /// Whether Solaris left it clean, where the state is at this byte.
    fn is_solaris(&self, state: usize) -> bool {
        self.at(state).wrapping_add(self.time()) == SOLARIS_CLEAN
    }

    /// Where a UFS2 says that this superblock is.
    fn is_at(&self, place: u64) -> bool {
        let halves = (u64::from(self.at(1000)), u64::from(self.at(1004)));
        [halves, (halves.1, halves.0)].iter().any(|(low, high)| high << 32 | low == place)
    }
}

/// The option by which the kernel mounts the UFS on the device `node`.
///
/// # Errors
/// `EINVAL` for a UFS that the kernel has no option for, with the reason; else as open(2).
pub fn option(node: &Path) -> Result<String, Failure> {
    let failed =
        |error: std::io::Error| explained(errno_of(&error), format!("cannot be read: {error}"));
    let device = File::open(node).map_err(failed)?;
    kind(&device).map(|kind| format!("ufstype={kind}")).map_err(|why| explained(Errno::EINVAL, why))
}

/// Whether the user's options say which variant it is.
#[must_use]
pub fn names_variant(options: &str) -> bool {
    options.split(',').any(|option| option.starts_with("ufstype="))
}

/// What the kernel calls the variant.
fn kind(device: &File) -> Result<&'static str, String> {
    let read = |place| {
        let mut bytes = vec![0; LENGTH];
        device.read_exact_at(&mut bytes, place).ok().map(|()| bytes)
    };
    let of = |place, wanted: fn(&Superblock, u64) -> Option<&'static str>| {
        let bytes = read(place)?;
        [u32::from_le_bytes, u32::from_be_bytes]
            .into_iter()
            .find_map(|number| wanted(&Superblock { bytes: &bytes, number }, place))
    };
    let is_ufs2 = |block: &Superblock, place: u64| {
        (block.magic() == UFS2 && block.is_at(place)).then_some("ufs2")
    };
    if let Some(kind) = of(UFS2_PLACE, is_ufs2).or_else(|| of(UFS1_PLACE, |block, _| ufs1(block))) {
        return Ok(kind);
    }
    let is_any_ufs2 = |block: &Superblock, _: u64| (block.magic() == UFS2).then_some("ufs2");
    if of(UFS2_PLACE, is_any_ufs2).is_some() {
        return Ok("ufs2");
    }
    match OTHER_PLACES.into_iter().find(|&place| of(place, is_any_ufs2).is_some()) {
        Some(place) => Err(format!(
            "a UFS2 with its superblock at byte {place}; Linux reads UFS2 only where that is at byte \
             {UFS2_PLACE}, as newfs puts it\nhint: FreeBSD reads this one"
        )),
        None => Err("a UFS of a kind that is not recognized\nhint: the option ufstype= names it, such as \
                     -m /dev/sda1:/:ufstype=nextstep; its values are old, 44bsd, ufs2, sun, sunx86, hp, \
                     nextstep, nextstep-cd and openstep"
            .to_owned()),
    }
}

/// The variant of a superblock at the usual place.
fn ufs1(block: &Superblock) -> Option<&'static str> {
    /// Where the state is in a superblock of Solaris.
    const SPARC: usize = 1336;
    const X86: usize = 132;
    let is_big_endian = (block.number)([0, 0, 0, 1]) == 1;
    match block.magic() {
        magic if HP.contains(&magic) => Some("hp"),
        UFS1 if block.is_44bsd() => Some("44bsd"),
        UFS1 if is_big_endian => Some("sun"),
        UFS1 if block.is_solaris(X86) => Some("sunx86"),
        UFS1 if block.is_solaris(SPARC) => Some("sun"),
        UFS1 => Some("old"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Number = fn(u32) -> [u8; 4];
    type Case<'a> = (u64, Number, &'a [(u64, u32)], &'a str);
    const LITTLE: Number = u32::to_le_bytes;
    const BIG: Number = u32::to_be_bytes;

    /// The variant of what has a superblock with these fields at `place`.
    fn kind_at(place: u64, number: Number, fields: &[(u64, u32)]) -> Result<&'static str, String> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for (at, value) in fields {
            file.write_all_at(&number(*value), place + at).unwrap();
        }
        kind(&file)
    }

    #[test]
    fn the_variant_is_told_by_the_superblock() {
        let (time, state) = (1_000_000_000, SOLARIS_CLEAN - 1_000_000_000);
        let table: [Case; 10] = [
            (8192, LITTLE, &[(1372, UFS1), (1324, 2)], "44bsd"),
            (8192, BIG, &[(1372, UFS1), (1324, 2)], "44bsd"),
            (8192, LITTLE, &[(1372, UFS1)], "old"),
            (8192, LITTLE, &[(1372, UFS1), (32, time), (132, state)], "sunx86"),
            (8192, BIG, &[(1372, UFS1), (32, time), (1336, state)], "sun"),
            (8192, BIG, &[(1372, UFS1)], "sun"),
            (8192, BIG, &[(1372, HP[1])], "hp"),
            (65536, LITTLE, &[(1372, UFS2), (1000, 65536)], "ufs2"),
            (65536, BIG, &[(1372, UFS2), (1004, 65536)], "ufs2"),
            (65536, LITTLE, &[(1372, UFS2)], "ufs2"),
        ];
        for (place, number, fields, expected) in table {
            assert_eq!(kind_at(place, number, fields), Ok(expected), "{fields:?}");
        }
    }

    #[test]
    fn what_is_left_of_an_older_ufs2_does_not_count() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for (at, value) in [(65536 + 1372, UFS2), (8192 + 1372, UFS1), (8192 + 1324, 2)] {
            file.write_all_at(&value.to_le_bytes(), at).unwrap();
        }
        assert_eq!(kind(&file), Ok("44bsd"));
    }

    #[test]
    fn a_ufs2_where_the_kernel_does_not_look_is_explained() {
        let why = kind_at(8192, LITTLE, &[(1372, UFS2), (1000, 8192)]).unwrap_err();
        assert!(why.contains("superblock at byte 8192") && why.contains("\nhint: "), "{why}");
        let why = kind_at(8192, LITTLE, &[]).unwrap_err();
        assert!(why.contains("ufstype="), "{why}");
    }
}
