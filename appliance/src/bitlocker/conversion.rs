//! Encrypt-on-write: Windows since 8 encrypts what is written to a volume at once, and the rest by and
//! by. Bitmaps say which chunks are encrypted already, one for each region of the volume, each in two
//! records of which the younger counts.
//!
//! Follows dissect.fve's description of what fvevol.sys does.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;

use crate::failure::explained;
use crate::little_endian::{u16_at, u32_at, u64_at};

/// Bytes of one bitmap with its records, and how many of them there may be: a chunk has 64 KiB and more.
const MAX_BITMAP: u32 = 16 << 20;
const MAX_BITMAPS: usize = 4096;

/// Which chunks are encrypted.
#[derive(Debug, PartialEq, Eq)]
pub struct EncryptOnWrite {
    /// Bytes of a chunk.
    chunk: u64,
    regions: Vec<Region>,
    /// What of the volume is kept for all this, in bytes.
    pub reserved: Vec<Range<u64>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Region {
    start: u64,
    end: u64,
    bits: Vec<u8>,
    count: u64,
}

impl EncryptOnWrite {
    /// Reads them from `device`, which has `size` bytes; they are described at one of `places`.
    ///
    /// # Errors
    /// `EIO` where neither description is whole.
    pub fn read(device: &File, places: [u64; 2], size: u64) -> Result<Self, Failure> {
        let read = |at: u64, length: u32| {
            let end = at.checked_add(u64::from(length)).filter(|end| *end <= size)?;
            let mut bytes = vec![0; usize::try_from(end - at).ok()?];
            device.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
        };
        places.iter().find_map(|&at| Self::described(at, places, read)).ok_or_else(|| {
            explained(
                Errno::EIO,
                "Windows was encrypting it, and what says how far is damaged\nhint: let Windows \
                 finish, or decrypt the volume there",
            )
        })
    }

    fn described(
        at: u64,
        places: [u64; 2],
        read: impl Fn(u64, u32) -> Option<Vec<u8>>,
    ) -> Option<Self> {
        let length = u16_at(&read(at, 56)?, 10)?;
        let bytes = read(at, length.into())?;
        let is_whole = bytes.starts_with(b"FVE-EOW\0") && checksum_is_right(&bytes, 36);
        is_whole.then_some(())?;
        let chunk = u64::from(u32_at(&bytes, 20)?);
        (chunk >= 512 && chunk.is_power_of_two()).then_some(())?;
        let log = u64::from(u32_at(&bytes, 24)?);
        let head = usize::from(u16_at(&bytes, 8)?);
        let mut reserved: Vec<Range<u64>> = Vec::new();
        for place in places {
            reserved.push(place..place.checked_add(u64::from(length).next_multiple_of(512))?);
        }
        let bitmaps = bytes.get(head..)?.chunks_exact(8).take(MAX_BITMAPS);
        let mut regions = Vec::new();
        for place in bitmaps.filter_map(|number| u64_at(number, 0)) {
            let length = u32_at(&read(place, 60)?, 12)?;
            (length <= MAX_BITMAP).then_some(())?;
            let bytes = read(place, length)?;
            reserved.push(place..place.checked_add(u64::from(length).next_multiple_of(512))?);
            let log_at = u64_at(&bytes, 36)?;
            reserved.push(log_at..log_at.checked_add(log)?);
            regions.push(Region::parse(&bytes)?);
        }
        regions.sort_by_key(|region| region.start);
        Some(Self { chunk, regions, reserved })
    }

    /// Whether byte `at` is encrypted, and up to where all is like it. `None` where no bitmap says that:
    /// the end is where the next one begins.
    pub fn at(&self, at: u64) -> (Option<bool>, u64) {
        let next = self.regions.partition_point(|region| region.start <= at);
        let until = self.regions.get(next).map_or(u64::MAX, |region| region.start);
        let region = next.checked_sub(1).map(|index| &self.regions[index]);
        let Some(region) = region.filter(|region| at < region.end) else { return (None, until) };
        let first = (at - region.start) / self.chunk;
        let Some(value) = region.bit(first) else { return (None, until.min(region.end)) };
        let same = (first..region.count).take_while(|n| region.bit(*n) == Some(value)).count();
        let end = region.start + (first + same as u64) * self.chunk;
        (Some(value), end.min(region.end).min(until))
    }
}

impl Region {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (start, length) = (u64_at(bytes, 20)?, u64_at(bytes, 28)?);
        let records = [u32_at(bytes, 44)?, u32_at(bytes, 48)?].map(usize::try_from);
        let [first, second] = [records[0].ok()?, records[1].ok()?];
        let is_whole =
            bytes.starts_with(b"FVE-EOWBM\0") && checksum_is_right(bytes.get(..first)?, 56);
        is_whole.then_some(())?;
        let record = |at: usize| {
            let rest = bytes.get(at..)?;
            let record = rest.get(..usize::try_from(u32_at(rest, 12)?).ok()?)?;
            let is_whole = record.starts_with(b"FVE-EOWBR\0") && checksum_is_right(record, 32);
            is_whole.then_some(())?;
            let bits = record.get(usize::from(u16_at(record, 10)?)..)?;
            let count = u64::from(u32_at(record, 16)?);
            (count <= 8 * bits.len() as u64).then_some(())?;
            Some((u64_at(record, 20)?, count, bits.to_vec()))
        };
        let youngest = [record(first), record(second)].into_iter().flatten();
        let (_, count, bits) = youngest.max_by_key(|(number, ..)| *number)?;
        Some(Self { start, end: start.checked_add(length)?, bits, count })
    }

    fn bit(&self, number: u64) -> Option<bool> {
        (number < self.count).then_some(())?;
        let byte = self.bits.get(usize::try_from(number / 8).ok()?)?;
        Some(byte >> (number % 8) & 1 == 1)
    }
}

/// Whether the CRC-32 at byte `at` is that of `bytes` with zeros in its place.
fn checksum_is_right(bytes: &[u8], at: usize) -> bool {
    let Some(stored) = u32_at(bytes, at) else { return false };
    let mut crc = u32::MAX;
    for (index, byte) in bytes.iter().enumerate() {
        let byte = if (at..at + 4).contains(&index) { 0 } else { *byte };
        crc = (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        });
    }
    !crc == stored
}
