//! Reads and searches a file on its disk, where its layout is known.

use std::io;

use guestmnt_protocol::message::{Extent, Layout};
use nix::errno::Errno;

use crate::disk::{DiskReader, Piece, gather};

/// Replaces `buffer` by what is at `offset` of a file with this layout on `disk`, at most `size`
/// bytes, fewer only at its end.
///
/// # Errors
/// As [`DiskReader::read`].
pub fn fill(
    disk: &DiskReader,
    layout: &Layout,
    offset: u64,
    size: usize,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let left = layout.size.saturating_sub(offset);
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(size);
    buffer.resize(length, 0);
    pieces(disk, layout, offset, length, &mut gather(buffer))
}

/// Gives `length` bytes from `offset` of a file with this layout on `disk` to `take`, piece by piece,
/// one behind the other.
///
/// # Errors
/// As [`DiskReader::pieces`].
pub fn pieces<'a>(
    disk: &'a DiskReader,
    layout: &Layout,
    offset: u64,
    length: usize,
    take: &mut dyn FnMut(Piece<'a>) -> io::Result<()>,
) -> io::Result<()> {
    let end = offset + length as u64;
    let first = layout.runs.partition_point(|run| run.at + run.length <= offset);
    let mut at = offset;
    for run in layout.runs[first..].iter().take_while(|run| run.at < end) {
        if at < run.at {
            take(Piece::Zeros(distance(at, run.at)))?;
            at = run.at;
        }
        let part = distance(at, end.min(run.at + run.length));
        disk.pieces(run.stored + (at - run.at), part, take)?;
        at += part as u64;
    }
    if at < end {
        take(Piece::Zeros(distance(at, end)))?;
    }
    Ok(())
}

/// Where the next byte that is stored, or is not, is from byte `offset` of a file with this layout
/// on `disk`.
///
/// # Errors
/// `ENXIO` where there is none; `EIO` where [`DiskReader::find`] fails.
pub fn seek(disk: &DiskReader, layout: &Layout, offset: u64, what: Extent) -> Result<u64, Errno> {
    if offset >= layout.size {
        return Err(Errno::ENXIO);
    }
    let first = layout.runs.partition_point(|run| run.at + run.length <= offset);
    let mut at = offset;
    for run in layout.runs[first..].iter().take_while(|run| run.at < layout.size) {
        if run.at > at && what == Extent::Hole {
            return Ok(at);
        }
        at = at.max(run.at);
        let length = layout.size.min(run.at + run.length) - at;
        let found = disk.find(run.stored + (at - run.at), length, what).map_err(|_| Errno::EIO)?;
        match found {
            Some(distance) => return Ok(at + distance),
            None => at += length,
        }
    }
    match what {
        Extent::Data => Err(Errno::ENXIO),
        // The end of a file counts as one.
        Extent::Hole => Ok(at),
    }
}

/// Whether a layout says where the bytes up to `end` of the file are.
pub fn reaches(layout: &Layout, end: u64) -> bool {
    end.min(layout.size) <= layout.end
}

/// Bytes from `from` to `to`; none where that is before. They are within one request.
fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to.saturating_sub(from)).expect("a part of one request")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use guestmnt_protocol::message::Run;

    use super::*;
    use crate::image::{Disk, Format, OpenOptions};

    /// A raw disk of 64 KiB whose bytes tell their places.
    fn disk() -> (tempfile::TempDir, DiskReader) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raw");
        fs::write(&path, (0..65_536u32).map(byte_at).collect::<Vec<u8>>()).unwrap();
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let disk = Disk::open(&path, &options).unwrap();
        (folder, DiskReader::of(&disk).unwrap().unwrap())
    }

    fn byte_at(place: u32) -> u8 {
        u8::try_from(place / 7 % 251).unwrap()
    }

    #[test]
    fn every_request_gets_runs_holes_and_nothing_behind_the_end() {
        let (_folder, disk) = disk();
        let runs = vec![
            Run { at: 4096, length: 4096, stored: 20_480 },
            Run { at: 8192, length: 4096, stored: 0 },
            Run { at: 16_384, length: 8192, stored: 40_960 },
        ];
        let layout = Layout { disk: 0, size: 20_000, end: 20_000, runs };
        let mut file = vec![0u8; 20_000];
        for (at, byte) in (0u32..).zip(&mut file) {
            *byte = match at {
                4096..8192 => byte_at(at - 4096 + 20_480),
                8192..12_288 => byte_at(at - 8192),
                16_384.. => byte_at(at - 16_384 + 40_960),
                _ => 0,
            };
        }
        let mut buffer = Vec::new();
        for offset in (0..21_000).step_by(617) {
            for size in [1, 4096, 5000, 30_000] {
                fill(&disk, &layout, offset as u64, size, &mut buffer).unwrap();
                let expected = &file[offset.min(20_000)..(offset + size).min(20_000)];
                assert!(buffer == expected, "{size} bytes at {offset}");
            }
        }
    }

    #[test]
    fn holes_are_those_of_the_layout_and_of_the_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raw");
        let file = fs::File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 65_536], 65_536).unwrap();
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let disk = DiskReader::of(&Disk::open(&path, &options).unwrap()).unwrap().unwrap();
        // A hole, a run whose first half the image stores nothing of, and a hole.
        let runs = vec![Run { at: 4096, length: 131_072, stored: 0 }];
        let layout = Layout { disk: 0, size: 200_000, end: 200_000, runs };
        let (start, end) = (4096 + 65_536, 4096 + 131_072);
        let table = [
            (0, Extent::Data, Ok(start)),
            (start + 5, Extent::Data, Ok(start + 5)),
            (end, Extent::Data, Err(Errno::ENXIO)),
            (0, Extent::Hole, Ok(0)),
            (5000, Extent::Hole, Ok(5000)),
            (start, Extent::Hole, Ok(end)),
            (end + 1, Extent::Hole, Ok(end + 1)),
            (200_000, Extent::Hole, Err(Errno::ENXIO)),
        ];
        for (offset, what, expected) in table {
            assert_eq!(seek(&disk, &layout, offset, what), expected, "{what:?} from {offset}");
        }
    }

    #[test]
    fn runs_beyond_the_disk_are_an_error() {
        let (_folder, disk) = disk();
        for stored in [65_536 - 4095, 65_536, 1 << 40, (1 << 63) - 4096] {
            let runs = vec![Run { at: 0, length: 4096, stored }];
            let layout = Layout { disk: 0, size: 4096, end: 4096, runs };
            assert!(fill(&disk, &layout, 0, 4096, &mut Vec::new()).is_err(), "{stored}");
        }
    }
}
