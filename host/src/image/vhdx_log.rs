//! The log of a VHDX that was not closed: entries with sectors that belong elsewhere in the file.
//! They are put over the file in memory; nothing is written to it.
//!
//! Source: \[MS-VHDX\], 2.3 and 2.3.3, "Log Replay".

use std::collections::HashMap;

use super::crc32c::crc32c_without;
use super::error::Problem;
use super::fields::{le32, le64};
use super::file::ImageFile;
use super::guid::Guid;
use super::patches::Patches;
use super::{MAX_DISK_SIZE, hint};

/// Bytes of a sector of the log, and of one that it changes.
const SECTOR: usize = 4096;

/// Most bytes of a log. Hyper-V makes them of 1 MiB.
const MAX_LOG: u32 = 16 << 20;

/// An entry's own fields before its descriptors, and the length of a descriptor.
const HEADER_LEN: usize = 64;
const DESCRIPTOR_LEN: usize = 32;

/// Bytes that are summed to find the entries, as a multiple of the log's. In a sound log each byte
/// is part of one entry or two.
const MAX_SUMMED: usize = 8;

/// Where a file has its log, and the id that its entries must bear.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// The id that belongs to the entries; nil for a log without any.
    pub guid: Guid,
    /// The format's version: 0.
    pub version: u16,
    /// Byte of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Log {
    /// The changes that the log makes to `file`; its header is still the one that refers to it.
    ///
    /// # Errors
    /// [`Problem::Damaged`] for a log without a sequence of entries that are whole, or that writes
    /// outside of the file, [`Problem::Unsupported`] for one beyond the limits of this module.
    pub fn replay(&self, file: &ImageFile) -> Result<Patches, Problem> {
        const MIB: u32 = 1 << 20;
        if self.version != 0 || self.len > MAX_LOG {
            return Err(unsupported("it has a log of another version, or of more than 16 MiB"));
        }
        if self.len == 0 || !self.len.is_multiple_of(MIB) || !self.offset.is_multiple_of(MIB.into())
        {
            return Err(Problem::damaged("its log has no valid place"));
        }
        let len = usize::try_from(self.len).expect("at most MAX_LOG");
        let bytes = file.bytes(self.offset, len, "end of its log")?;
        let mut search =
            Search { ring: Ring(&bytes), guid: self.guid, known: HashMap::new(), summed: 0 };
        let sequence = search.active_sequence()?;
        let mut patches = Patches::new(file.len);
        for entry in &sequence {
            if entry.flushed_len > patches.len() {
                return Err(Problem::Truncated {
                    what: "length that its log counts on",
                    len: file.len,
                });
            }
            entry.apply(&mut patches)?;
        }
        if !patches.are_few() {
            return Err(unsupported("its log changes it in too many places"));
        }
        Ok(patches)
    }
}

fn unsupported(what: &str) -> Problem {
    Problem::Unsupported { what: what.to_owned(), hint: hint::REPLAY }
}

fn damaged() -> Problem {
    Problem::damaged("its log has no entries that are whole")
}

/// The bytes of a log, which go on with the first behind the last.
struct Ring<'l>(&'l [u8]);

impl Ring<'_> {
    fn sectors(&self) -> usize {
        self.0.len() / SECTOR
    }

    /// The sector of a number, which may be beyond the last.
    fn sector(&self, number: usize) -> &[u8] {
        let at = number % self.sectors() * SECTOR;
        &self.0[at..at + SECTOR]
    }

    /// `count` sectors from the one with the number `first` on, at most all.
    fn joined(&self, first: usize, count: usize) -> Vec<u8> {
        (first..first + count).flat_map(|number| self.sector(number)).copied().collect()
    }
}

/// An entry that is whole.
#[derive(Clone, Debug)]
struct Entry {
    sectors: usize,
    sequence: u64,
    /// The sector of the log where the oldest entry begins that counts with this one.
    tail: usize,
    /// Bytes that the file had on disk when it was written.
    flushed_len: u64,
    /// Bytes that the file has at least.
    least_len: u64,
    bytes: Vec<u8>,
}

impl Entry {
    /// Reads the one that begins with sector `first` of `ring`. `None` where it is not whole.
    fn read(ring: &Ring, first: usize, guid: Guid, summed: &mut usize) -> Option<Self> {
        let header = ring.sector(first);
        let len = usize::try_from(le32(header, 8)).ok()?;
        let tail = usize::try_from(le32(header, 12)).ok()?;
        let fits = (SECTOR..=ring.0.len()).contains(&len) && len.is_multiple_of(SECTOR);
        if !header.starts_with(b"loge") || header[32..48] != guid.0 || !fits {
            return None;
        }
        if tail >= ring.0.len() || !tail.is_multiple_of(SECTOR) {
            return None;
        }
        *summed += len;
        let bytes = ring.joined(first, len / SECTOR);
        let entry = Self {
            sectors: len / SECTOR,
            sequence: le64(header, 16),
            tail: tail / SECTOR,
            flushed_len: le64(header, 48),
            least_len: le64(header, 56),
            bytes,
        };
        let is_whole = entry.sequence > 0
            && crc32c_without(&entry.bytes, 4) == le32(header, 4)
            && entry.writes().is_some();
        is_whole.then_some(entry)
    }

    /// What it writes, in order. `None` where a descriptor or its data is not one.
    fn writes(&self) -> Option<Vec<Write<'_>>> {
        let count = usize::try_from(le32(&self.bytes, 24)).ok()?;
        let descriptors_len = count.checked_mul(DESCRIPTOR_LEN)?.checked_add(HEADER_LEN)?;
        let descriptors = self.bytes.get(HEADER_LEN..descriptors_len)?;
        let mut data = self.bytes[descriptors_len.next_multiple_of(SECTOR).min(self.bytes.len())..]
            .chunks_exact(SECTOR);
        let mut writes = Vec::with_capacity(count);
        for descriptor in descriptors.chunks_exact(DESCRIPTOR_LEN) {
            let offset = le64(descriptor, 16);
            if le64(descriptor, 24) != self.sequence || !offset.is_multiple_of(SECTOR as u64) {
                return None;
            }
            let what = match &descriptor[..4] {
                b"zero" => What::Zeros(le64(descriptor, 8)),
                b"desc" => {
                    let sector = data.next()?;
                    let (high, low) = (le32(sector, 4), le32(sector, SECTOR - 4));
                    let sequence = u64::from(high) << 32 | u64::from(low);
                    if !sector.starts_with(b"data") || sequence != self.sequence {
                        return None;
                    }
                    What::Sector { descriptor, sector }
                }
                _ => return None,
            };
            if matches!(what, What::Zeros(len) if !len.is_multiple_of(SECTOR as u64)) {
                return None;
            }
            writes.push(Write { offset, what });
        }
        Some(writes)
    }

    fn apply(&self, patches: &mut Patches) -> Result<(), Problem> {
        let within = |offset: u64, len: u64| match offset.checked_add(len) {
            Some(end) if end <= MAX_DISK_SIZE => Ok(()),
            _ => Err(Problem::damaged("its log writes beyond the end of the file")),
        };
        for write in self.writes().into_iter().flatten() {
            match write.what {
                What::Zeros(len) => {
                    within(write.offset, len)?;
                    patches.zero(write.offset, len);
                }
                What::Sector { descriptor, sector } => {
                    within(write.offset, SECTOR as u64)?;
                    // The marks of a data sector stand where the descriptor has the data.
                    let mut bytes = sector.to_vec();
                    bytes[..8].copy_from_slice(&descriptor[8..16]);
                    bytes[SECTOR - 4..].copy_from_slice(&descriptor[4..8]);
                    patches.write(write.offset, &bytes);
                }
            }
        }
        within(self.least_len, 0)?;
        patches.grow(self.least_len);
        Ok(())
    }
}

struct Write<'e> {
    offset: u64,
    what: What<'e>,
}

enum What<'e> {
    Zeros(u64),
    Sector { descriptor: &'e [u8], sector: &'e [u8] },
}

/// Looks for the entries that count.
struct Search<'l> {
    ring: Ring<'l>,
    guid: Guid,
    /// What there is at each sector that was looked at.
    known: HashMap<usize, Option<Entry>>,
    summed: usize,
}

impl Search<'_> {
    fn entry(&mut self, at: usize) -> Result<Option<&Entry>, Problem> {
        let Self { ring, guid, known, summed } = self;
        if *summed > ring.0.len() * MAX_SUMMED {
            return Err(damaged());
        }
        let entry = known.entry(at).or_insert_with(|| Entry::read(ring, at, *guid, summed));
        Ok(entry.as_ref())
    }

    /// The entries to replay, the oldest first: of all runs of entries that are whole and numbered
    /// one by one, and whose last says that it begins within the run, the one that ends with the
    /// highest number, from where its last entry says.
    fn active_sequence(&mut self) -> Result<Vec<Entry>, Problem> {
        let sectors = self.ring.sectors();
        let mut best: Option<(u64, Vec<usize>)> = None;
        let mut start = 0;
        while start < sectors {
            let run = self.run_from(start)?;
            let Some(&last) = run.last() else {
                start += 1;
                continue;
            };
            let last = self.entry(last)?.ok_or_else(damaged)?;
            let (sequence, tail, after) = (last.sequence, last.tail, last.sectors);
            if let Some(first) = run.iter().position(|&at| at == tail)
                && best.as_ref().is_none_or(|&(before, _)| before < sequence)
            {
                best = Some((sequence, run[first..].to_vec()));
                // Within the run there is none that ends later.
                let end = run[run.len() - 1] + after;
                start = if end > start && end < sectors { end } else { sectors.max(start + 1) };
                continue;
            }
            start += 1;
        }
        let (_, run) = best.ok_or_else(damaged)?;
        let mut entries = Vec::with_capacity(run.len());
        for at in run {
            entries.push(self.entry(at)?.ok_or_else(damaged)?.clone());
        }
        Ok(entries)
    }

    /// The sectors where entries begin that follow each other from `start` on.
    fn run_from(&mut self, start: usize) -> Result<Vec<usize>, Problem> {
        let sectors = self.ring.sectors();
        let mut run = Vec::new();
        let (mut at, mut used) = (start, 0);
        let mut before = None;
        while let Some(entry) = self.entry(at)? {
            let follows =
                before.is_none_or(|before: u64| before.checked_add(1) == Some(entry.sequence));
            // A run that comes around to its own beginning ends there.
            if !follows || used + entry.sectors > sectors {
                break;
            }
            before = Some(entry.sequence);
            used += entry.sectors;
            run.push(at);
            at = (at + entry.sectors) % sectors;
        }
        Ok(run)
    }
}
