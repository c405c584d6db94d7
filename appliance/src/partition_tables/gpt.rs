//! A GUID partition table, of which the kernel refuses what is not whole.
//!
//! Follows the UEFI specification 2.10, chapter 5.3. Its two copies are at the disk's beginning and end, each
//! a header with a checksum of itself and of the entries.

use std::fmt;
use std::fs::File;

use super::{Partition, misfits, read};
use crate::little_endian::{u32_at, u64_at};

/// The sizes of sectors that disks have, the usual one first.
const SECTOR_SIZES: [u64; 2] = [512, 4096];

const SIGNATURE: &[u8] = b"EFI PART";

/// Bytes of a header, as far as it is known.
const HEADER: usize = 92;

/// Bytes of entries that are read at most; the usual is 16 KiB.
const MAX_ENTRIES: usize = 1 << 20;

/// Why a copy cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// There is no header where it should be.
    Missing,
    /// The header's checksum is wrong.
    Header,
    /// The header is one of another place, or has fields that make no sense.
    Misplaced,
    /// The entries are not there, or their checksum is wrong.
    Entries,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no header",
            Self::Header => "the header has a wrong checksum",
            Self::Misplaced => "the header is of another place",
            Self::Entries => "the entries have a wrong checksum",
        })
    }
}

/// What a copy says.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The partitions, as far as the disk has them.
    pub partitions: Vec<Partition>,
    /// The numbers of those that are cut off.
    pub cut: Vec<u16>,
    /// The numbers of those of which nothing is there.
    pub beyond: Vec<u16>,
    /// Bytes of the disk that the table is of, where they are more than there are.
    missing: u64,
    /// Bytes of its sectors.
    sector: u64,
}

impl Found {
    /// What has to be known of it, as the end of a sentence; empty where all is well.
    pub fn remarks(&self) -> String {
        let mut said = String::new();
        if self.missing > 0 {
            said += &format!("; {} bytes are missing at the end of the image", self.missing);
        }
        said + &misfits(&self.cut, &self.beyond)
    }
}

/// Whether a header begins here.
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(SIGNATURE)
}

/// Reads the copy at the beginning of a disk of `size` bytes, in sectors of whatever size.
///
/// # Errors
/// [`Damage`] of the copy in sectors of the usual size, or of the one that is there.
pub fn read_primary(disk: &File, size: u64) -> Result<Found, Damage> {
    first_of(SECTOR_SIZES.map(|sector| (sector, 1)), disk, size)
}

/// Reads the copy at the end of a disk of `size` bytes, or before `end`, the sector after what the
/// MBR protects: the image may have grown.
///
/// # Errors
/// As [`read_primary`].
pub fn read_backup(disk: &File, size: u64, end: Option<u64>) -> Result<Found, Damage> {
    let last = SECTOR_SIZES.map(|sector| (sector, (size / sector).saturating_sub(1)));
    let protected =
        end.into_iter().flat_map(|end| SECTOR_SIZES.map(|sector| (sector, end.saturating_sub(1))));
    first_of(last.into_iter().chain(protected), disk, size)
}

/// The first copy that is whole, else what is the matter with the one that is not missing.
fn first_of(
    places: impl IntoIterator<Item = (u64, u64)>,
    disk: &File,
    size: u64,
) -> Result<Found, Damage> {
    let mut damage = Damage::Missing;
    for (sector, number) in places {
        match read_copy(disk, size, sector, number) {
            Ok(found) => return Ok(found),
            Err(other) if damage == Damage::Missing => damage = other,
            Err(_) => {}
        }
    }
    Err(damage)
}

/// Reads the copy whose header is in the sector `number`.
fn read_copy(disk: &File, size: u64, sector: u64, number: u64) -> Result<Found, Damage> {
    let at = number.checked_mul(sector).ok_or(Damage::Missing)?;
    let bytes = usize::try_from(sector).ok().and_then(|length| read(disk, at, length));
    let bytes = bytes.filter(|bytes| is_header(bytes)).ok_or(Damage::Missing)?;
    let long = |at| u64_at(&bytes, at).ok_or(Damage::Misplaced);
    let short = |at| u32_at(&bytes, at).ok_or(Damage::Misplaced);
    let length = usize::try_from(short(12)?).ok();
    let length = length.filter(|length| (HEADER..=bytes.len()).contains(length));
    let mut header = bytes[..length.ok_or(Damage::Header)?].to_vec();
    header[16..20].fill(0);
    if crc32(&header) != short(16)? {
        return Err(Damage::Header);
    }
    if long(24)? != number {
        return Err(Damage::Misplaced);
    }
    let (other, last_usable) = (long(32)?, long(48)?);
    let (first, count, width) = (long(72)?, short(80)?, short(84)?);
    let (count, width) = (count as usize, width as usize);
    if !(128..=4096).contains(&width) || !width.is_power_of_two() {
        return Err(Damage::Misplaced);
    }
    let length = count.checked_mul(width).filter(|&length| length <= MAX_ENTRIES);
    let entries = first
        .checked_mul(sector)
        .zip(length)
        .and_then(|(at, length)| read(disk, at, length))
        .ok_or(Damage::Entries)?;
    if crc32(&entries) != short(88)? {
        return Err(Damage::Entries);
    }
    let end = number.max(other).max(last_usable).saturating_add(1).saturating_mul(sector);
    let missing = end.saturating_sub(size);
    let mut found =
        Found { partitions: Vec::new(), cut: Vec::new(), beyond: Vec::new(), missing, sector };
    for (number, entry) in (1..).zip(entries.chunks_exact(width)) {
        found.add(number, entry, size);
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, number: u16, entry: &[u8], size: u64) {
        let is_unused = entry[..16].iter().all(|&byte| byte == 0);
        let sectors = u64_at(entry, 32).zip(u64_at(entry, 40));
        let Some((first, last)) = sectors.filter(|(first, last)| !is_unused && first <= last)
        else {
            return;
        };
        let bytes = |sectors: u64| sectors.saturating_mul(self.sector);
        let (start, end) = (bytes(first), bytes(last.saturating_add(1)));
        if start >= size {
            self.beyond.push(number);
            return;
        }
        if end > size {
            self.cut.push(number);
        }
        self.partitions.push(Partition { number, start, length: end.min(size) - start });
    }
}

/// CRC-32 as Ethernet has it. Bit by bit: it is needed for damaged tables only.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let is_odd = crc & 1 == 1;
            crc = crc >> 1 ^ if is_odd { 0xedb8_8320 } else { 0 };
        }
    }
    !crc
}
