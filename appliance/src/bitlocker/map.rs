//! From the metadata to device-mapper's segments: what is encrypted and what is not, the filesystem's
//! first bytes from where they are kept, and zeros where BitLocker keeps its own.

use std::ops::Range;

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;

use super::metadata::{AREA, Extent, Metadata};
use crate::failure::explained;

/// Bytes of device-mapper's sectors.
pub const SECTOR: u64 = 512;

/// Segments of one volume. The kernel keeps some hundred bytes of each.
const MAX_SEGMENTS: usize = 1 << 16;

/// What a segment is made of, with the sector where that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is decrypted.
    Encrypted(u64),
    /// It is as it is.
    Clear(u64),
    /// BitLocker's own, which reads as zeros.
    Zeros,
    /// Windows was about to convert it: nobody knows which it is, and reading it fails.
    InBetween,
}

/// One segment, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub length: u64,
    /// What it is made of.
    pub kind: Kind,
}

/// The segments of a volume of `sectors` sectors, without gaps.
///
/// # Errors
/// `E2BIG` for too many of them.
pub fn segments(metadata: &Metadata, sectors: u64) -> Result<Vec<Segment>, Failure> {
    let (header, header_length) = (metadata.header.0 / SECTOR, metadata.header.1 / SECTOR);
    let reserved = reserved(metadata);
    let mut segments: Vec<Segment> = Vec::new();
    let mut start = 0;
    while start < sectors {
        let own = reserved.iter().find(|range| range.contains(&start));
        let (kind, end) = if start < header_length {
            let (kind, end) = state(&metadata.extent, start + header);
            (kind, (end.saturating_sub(header)).min(header_length))
        } else if let Some(own) = own {
            (Kind::Zeros, own.end)
        } else {
            let next = reserved.iter().map(|range| range.start).filter(|at| *at > start).min();
            let (kind, end) = state(&metadata.extent, start);
            (kind, end.min(next.unwrap_or(u64::MAX)))
        };
        let end = end.min(sectors).max(start + 1);
        let length = end - start;
        match segments.last_mut() {
            Some(last) if continues(last, kind) => last.length += length,
            _ => segments.push(Segment { start, length, kind }),
        }
        if segments.len() > MAX_SEGMENTS {
            return Err(explained(
                Errno::E2BIG,
                "Windows was encrypting it, and what is encrypted lies in too many pieces\nhint: let \
                 Windows finish",
            ));
        }
        start = end;
    }
    Ok(segments)
}

/// Whether what is of this kind goes on where `last` ends.
fn continues(last: &Segment, kind: Kind) -> bool {
    match (last.kind, kind) {
        (Kind::Encrypted(at), Kind::Encrypted(next)) | (Kind::Clear(at), Kind::Clear(next)) => {
            at + last.length == next
        }
        (Kind::Zeros, Kind::Zeros) | (Kind::InBetween, Kind::InBetween) => true,
        _ => false,
    }
}

/// What is BitLocker's own, in sectors.
fn reserved(metadata: &Metadata) -> Vec<Range<u64>> {
    let (header, length) = metadata.header;
    let mut ranges: Vec<Range<u64>> =
        metadata.areas.iter().map(|&at| at..at.saturating_add(AREA)).collect();
    ranges.push(header..header.saturating_add(length));
    if let Extent::InChunks(chunks) = &metadata.extent {
        ranges.extend(chunks.reserved.iter().cloned());
    }
    ranges.into_iter().map(|range| range.start / SECTOR..range.end.div_ceil(SECTOR)).collect()
}

/// What sector `at` of the device is, and the sector up to which all is like it.
fn state(extent: &Extent, at: u64) -> (Kind, u64) {
    match extent {
        Extent::UpTo { end, in_between } => {
            let converted = end / SECTOR;
            let clear = end.saturating_add(*in_between).div_ceil(SECTOR);
            if at < converted {
                (Kind::Encrypted(at), converted)
            } else if at < clear && *in_between > 0 {
                (Kind::InBetween, clear)
            } else {
                (Kind::Clear(at), u64::MAX)
            }
        }
        Extent::InChunks(chunks) => {
            let (encrypted, end) = chunks.at(at * SECTOR);
            let end = if end == u64::MAX { end } else { end / SECTOR };
            match encrypted {
                Some(true) => (Kind::Encrypted(at), end),
                Some(false) => (Kind::Clear(at), end),
                None => (Kind::InBetween, end),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(extent: Extent) -> Metadata {
        Metadata::for_tests(
            [100 * SECTOR, 300 * SECTOR, 600 * SECTOR],
            (500 * SECTOR, 16 * SECTOR),
            extent,
        )
    }

    fn kinds(extent: Extent) -> Vec<(u64, u64, Kind)> {
        let segments = segments(&metadata(extent), 1000).unwrap();
        segments.into_iter().map(|it| (it.start, it.length, it.kind)).collect()
    }

    #[test]
    fn what_is_behind_the_boundary_is_clear_the_moved_header_too() {
        let extent = Extent::UpTo { end: 400 * SECTOR, in_between: 0 };
        let expected = [
            (0, 16, Kind::Clear(500)),
            (16, 84, Kind::Encrypted(16)),
            (100, 128, Kind::Zeros),
            (228, 72, Kind::Encrypted(228)),
            (300, 128, Kind::Zeros),
            (428, 72, Kind::Clear(428)),
            (500, 16, Kind::Zeros),
            (516, 84, Kind::Clear(516)),
            (600, 128, Kind::Zeros),
            (728, 272, Kind::Clear(728)),
        ];
        assert_eq!(kinds(extent), expected);
    }

    #[test]
    fn what_was_being_converted_cannot_be_read() {
        let extent = Extent::UpTo { end: 50 * SECTOR, in_between: 10 * SECTOR };
        let found = kinds(extent);
        assert_eq!(found[1], (16, 34, Kind::Encrypted(16)));
        assert_eq!(found[2], (50, 10, Kind::InBetween));
        assert_eq!(found[3], (60, 40, Kind::Clear(60)));
    }

    #[test]
    fn a_volume_that_is_encrypted_throughout_has_no_other_segment() {
        let found = kinds(Extent::UpTo { end: u64::MAX, in_between: 0 });
        assert_eq!(found[0], (0, 16, Kind::Encrypted(500)));
        assert!(found.iter().all(|(.., kind)| matches!(kind, Kind::Encrypted(_) | Kind::Zeros)));
    }
}
