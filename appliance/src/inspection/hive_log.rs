//! A hive together with the logs beside it: what Windows meant to write to a hive that was not closed.
//!
//! Nothing is written and nothing copied: each sector is read from where it was written last. Logs are
//! those of Windows 8.1 and later, entries with hashes, and those of the versions before, a bitmap and
//! sectors. Everything is untrusted: entries count up to the first that makes no sense.
//!
//! Follows "Windows registry file format specification" (msuhanov/regf).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::hive::BASE;
use crate::little_endian::u32_at;

/// What logs are made of, in bytes.
const SECTOR: u64 = 512;
const STEP: usize = 512;

/// Sectors of all logs together that are taken: 128 MiB of a hive.
const MAX_SECTORS: usize = 1 << 18;

/// How a hive was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds everything.
    Closed,
    /// What it lacks is in its logs.
    Logged,
    /// It lacks something that is in no log.
    Incomplete,
}

/// A hive as it was meant to be.
pub struct LoggedFile {
    file: File,
    logs: Vec<File>,
    /// Sectors of the file that are in a log: which one, and the byte there.
    logged: BTreeMap<u64, (usize, u64)>,
    header: Header,
    state: State,
}

impl LoggedFile {
    /// The hive in `file`; `None` where there is none. `logs` is called for those of a hive that was
    /// not closed.
    #[must_use]
    pub fn open(file: File, logs: impl FnOnce() -> Vec<File>) -> Option<Self> {
        let mut header = Header::read(&file)?;
        if header.is_whole() && header.number(PRIMARY) == header.number(SECONDARY) {
            let logged = BTreeMap::new();
            return Some(Self { file, logs: Vec::new(), logged, header, state: State::Closed });
        }
        let logs = logs();
        let mut written = header.time();
        if !header.is_whole() {
            // The header of the first bin has the time as well.
            let mut bin = [0; 0x1c];
            file.read_exact_at(&mut bin, BASE).ok()?;
            written = bin.last_chunk().copied();
            let others = logs.iter().filter_map(Header::read).find(Header::is_whole);
            header = others.unwrap_or(header);
        }
        let mut logged = BTreeMap::new();
        replay_entries(&logs, header.number(SECONDARY)?, &mut logged);
        if logged.is_empty() {
            let fitting = |log: &File| old_log(log).filter(|(time, _)| Some(*time) == written);
            let found = logs.iter().enumerate().find_map(|(n, log)| Some((n, fitting(log)?.1)));
            if let Some((number, sectors)) = found {
                let place = |(sector, stored)| (sector, (number, stored));
                logged.extend(sectors.into_iter().map(place));
            }
        }
        let state = if logged.is_empty() { State::Incomplete } else { State::Logged };
        Some(Self { file, logs, logged, header, state })
    }

    /// How the hive was left.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Where the root's cell is, from [`BASE`] on.
    #[must_use]
    pub fn root(&self) -> Option<u32> {
        self.header.number(ROOT)
    }

    /// As [`FileExt::read_at`]; what is read may end with a sector.
    ///
    /// # Errors
    /// As pread(2).
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let (sector, within) = (at / SECTOR, at % SECTOR);
        let up_to = |end: u64| usize::try_from(end).map_or(buffer.len(), |n| n.min(buffer.len()));
        if let Some(&(log, stored)) = self.logged.get(&sector) {
            let length = up_to(SECTOR - within);
            return self.logs[log].read_at(&mut buffer[..length], stored + within);
        }
        let next = self.logged.range(sector..).next();
        let length = next.map_or(buffer.len(), |(next, _)| up_to(next * SECTOR - at));
        self.file.read_at(&mut buffer[..length], at)
    }
}

/// Where numbers are in a header, in bytes.
const PRIMARY: usize = 4;
const SECONDARY: usize = 8;
const TIME: usize = 0xc;
const KIND: usize = 0x1c;
const ROOT: usize = 0x24;
const BINS_SIZE: usize = 0x28;

/// The first sector of a hive, or of a log.
struct Header([u8; 512]);

impl Header {
    fn read(file: &File) -> Option<Self> {
        let mut bytes = [0; 512];
        file.read_exact_at(&mut bytes, 0).ok()?;
        bytes.starts_with(b"regf").then_some(Self(bytes))
    }

    fn number(&self, at: usize) -> Option<u32> {
        u32_at(&self.0, at)
    }

    fn time(&self) -> Option<[u8; 8]> {
        self.0.get(TIME..)?.first_chunk().copied()
    }

    fn is_whole(&self) -> bool {
        let (words, _) = self.0.as_chunks::<4>();
        let sum = words[..127].iter().fold(0, |sum, word| sum ^ u32::from_le_bytes(*word));
        let sum = match sum {
            0 => 1,
            u32::MAX => u32::MAX - 1,
            sum => sum,
        };
        u32::from_le_bytes(words[127]) == sum
    }
}

/// Takes the entries of `logs` whose numbers follow each other from `expected` on.
fn replay_entries(logs: &[File], mut expected: u32, logged: &mut BTreeMap<u64, (usize, u64)>) {
    // Either log may be the one that was begun first.
    let first = |log: &File| Some(Entry::read(log, SECTOR)?.number);
    let mut order: Vec<(u32, usize)> =
        logs.iter().enumerate().filter_map(|(n, log)| Some((first(log)?, n))).collect();
    order.sort_unstable();
    for (_, number) in order {
        let log = &logs[number];
        let mut at = SECTOR;
        while let Some(entry) = Entry::read(log, at)
            && entry.number <= expected
            && logged.len() < MAX_SECTORS
        {
            if entry.number == expected {
                let mut stored = at + entry.pages_at;
                for (start, length) in entry.pages {
                    for within in (0..u64::from(length)).step_by(STEP) {
                        let sector = (BASE + u64::from(start) + within) / SECTOR;
                        logged.insert(sector, (number, stored + within));
                    }
                    stored += u64::from(length);
                }
                expected = expected.wrapping_add(1);
            }
            at += entry.size;
        }
    }
}

/// An entry of a log.
struct Entry {
    /// Bytes.
    size: u64,
    /// The number of what it changes.
    number: u32,
    /// Places of the pages from [`BASE`] on, and their lengths.
    pages: Vec<(u32, u32)>,
    /// The first page, from the entry's beginning on.
    pages_at: u64,
}

impl Entry {
    const HEADER: usize = 40;

    fn read(log: &File, at: u64) -> Option<Self> {
        let mut header = [0; Self::HEADER];
        log.read_exact_at(&mut header, at).ok()?;
        let field = |at: usize| u32_at(&header, at);
        let size = u64::from(field(4)?);
        let bins_are_whole = u64::from(field(0x10)?).is_multiple_of(BASE);
        if !header.starts_with(b"HvLE")
            || size == 0
            || !size.is_multiple_of(SECTOR)
            || !bins_are_whole
        {
            return None;
        }
        let mut own = Marvin::new();
        own.add(&header[..32]);
        let (rest, end) = (at + Self::HEADER as u64, at.checked_add(size)?);
        if own.finish() != header[32..] || Marvin::of(log, rest, end)? != header[24..32] {
            return None;
        }
        let count = usize::try_from(field(0x14)?).ok().filter(|count| *count <= MAX_SECTORS)?;
        let pages_at = Self::HEADER + 8 * count;
        if pages_at as u64 > size {
            return None;
        }
        let mut references = vec![0; 8 * count];
        log.read_exact_at(&mut references, rest).ok()?;
        let (pairs, _) = references.as_chunks::<8>();
        let pages: Vec<(u32, u32)> =
            pairs.iter().filter_map(|pair| Some((u32_at(pair, 0)?, u32_at(pair, 4)?))).collect();
        let fits = |n: &u32| u64::from(*n).is_multiple_of(SECTOR);
        let stored: u64 = pages.iter().map(|(_, length)| u64::from(*length)).sum();
        let sane = pages.iter().all(|(start, length)| fits(start) && fits(length));
        let pages_at = pages_at as u64;
        let whole = sane && stored <= size - pages_at;
        whole.then_some(Self { size, number: field(0xc)?, pages, pages_at })
    }
}

/// When a log of Windows 8 or before was written, and its sectors: each by its number in the hive, with
/// its byte in the log.
type OldLog = ([u8; 8], Vec<(u64, u64)>);

fn old_log(log: &File) -> Option<OldLog> {
    const OLD: u32 = 1;
    let header = Header::read(log).filter(Header::is_whole)?;
    if header.number(KIND)? != OLD || header.number(PRIMARY) != header.number(SECONDARY) {
        return None;
    }
    let mut bitmap = vec![0; 4 + usize::try_from(header.number(BINS_SIZE)? / 4096).ok()?];
    log.read_exact_at(&mut bitmap, SECTOR).ok()?;
    let bits = bitmap.strip_prefix(b"DIRT")?;
    let stored = (SECTOR + bitmap.len() as u64).next_multiple_of(SECTOR);
    let dirty = (0..8 * bits.len()).filter(|bit| bits[bit / 8] & 1 << (bit % 8) != 0);
    let sectors = (0..).zip(dirty.take(MAX_SECTORS));
    let sectors = sectors.map(|(n, bit)| (BASE / SECTOR + bit as u64, stored + n * SECTOR));
    let sectors: Vec<(u64, u64)> = sectors.collect();
    // All of it, or the hive would be worse than without.
    let end = sectors.last().map_or(0, |(_, stored)| stored + SECTOR);
    (log.metadata().ok()?.len() >= end).then_some((header.time()?, sectors))
}

/// Marvin32, a hash, of whole words of four bytes.
struct Marvin {
    low: u32,
    high: u32,
}

impl Marvin {
    fn new() -> Self {
        // The seed of Windows' registry.
        Self { low: 0x7a4e_55c5, high: 0x82ef_4d88 }
    }

    /// The hash of a part of a file.
    fn of(file: &File, mut at: u64, end: u64) -> Option<[u8; 8]> {
        let mut hash = Self::new();
        let mut piece = [0; 4096];
        while at < end {
            let length =
                usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
            file.read_exact_at(&mut piece[..length], at).ok()?;
            hash.add(&piece[..length]);
            at += length as u64;
        }
        Some(hash.finish())
    }

    fn add(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().for_each(|word| self.mix(u32::from_le_bytes(*word)));
    }

    fn mix(&mut self, word: u32) {
        self.low = self.low.wrapping_add(word);
        self.high ^= self.low;
        self.low = self.low.rotate_left(20).wrapping_add(self.high);
        self.high = self.high.rotate_left(9) ^ self.low;
        self.low = self.low.rotate_left(27).wrapping_add(self.high);
        self.high = self.high.rotate_left(19);
    }

    fn finish(mut self) -> [u8; 8] {
        self.mix(0x80);
        self.mix(0);
        (u64::from(self.high) << 32 | u64::from(self.low)).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use xtask::disks::hive::{Key, Log};

    use super::*;
    use crate::inspection::hive::Hive;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// A hive whose only value is `text`.
    fn hive(text: &str) -> Vec<u8> {
        let mut root = Key::root();
        root.at("One").set("Text", text);
        root.hive()
    }

    /// The value, and how the hive was left.
    fn shown(hive: &[u8], logs: &[Vec<u8>]) -> (String, State) {
        let logs = logs.iter().map(|log| file(log)).collect();
        let hive = Hive::open(file(hive), || logs).unwrap();
        let text = hive.key("One").unwrap().value("Text").unwrap().text().unwrap();
        (text, hive.state())
    }

    fn expect(text: &str, state: State) -> (String, State) {
        (text.to_owned(), state)
    }

    #[test]
    fn a_closed_hive_has_no_use_for_its_logs() {
        let log = Log::of(&hive("newer")).entry(1, &hive("newer")).finish();
        assert_eq!(shown(&hive("closed"), &[log]), expect("closed", State::Closed));
    }

    #[test]
    fn entries_that_follow_each_other_are_replayed() {
        let old = Log::dirty(hive("0"), 5);
        let one = |number: u32, text: &str| Log::of(&old).entry(number, &hive(text)).finish();
        assert_eq!(shown(&old, &[one(5, "1")]), expect("1", State::Logged));
        assert_eq!(shown(&old, &[one(6, "2"), one(5, "1")]), expect("2", State::Logged));
        // Older ones before, a gap behind.
        let log = Log::of(&old).entry(4, &hive("x")).entry(5, &hive("1")).entry(7, &hive("x"));
        assert_eq!(shown(&old, &[log.finish()]), expect("1", State::Logged));
        assert_eq!(shown(&old, &[one(6, "2")]), expect("0", State::Incomplete));
        assert_eq!(shown(&old, &[]), expect("0", State::Incomplete));
        // Without its own header.
        let mut torn = old.clone();
        torn[0x30] ^= 1;
        assert_eq!(shown(&torn, &[one(5, "1")]), expect("1", State::Logged));
    }

    #[test]
    fn an_entry_of_which_any_byte_is_wrong_ends_it() {
        let old = Log::dirty(hive("0"), 5);
        let log = Log::of(&old).entry(5, &hive("1")).entry(6, &hive("2")).finish();
        assert_eq!(shown(&old, std::slice::from_ref(&log)).0, "2");
        let second = 512 + (log.len() - 512) / 2;
        for at in [0, 4, 8, 0xc, 0x10, 0x14, 0x18, 0x20, 0x28, 0x2c, 0x30, 0x200] {
            let mut log = log.clone();
            log[second + at] ^= 0x10;
            assert_eq!(shown(&old, &[log]), expect("1", State::Logged), "{at:#x}");
        }
        for length in (0..log.len()).step_by(500) {
            let text = shown(&old, &[log[..length].to_vec()]).0;
            assert_eq!(text, if length < second { "0" } else { "1" }, "{length}");
        }
    }

    #[test]
    fn a_log_with_a_bitmap_fits_by_its_time() {
        let old = Log::dirty(hive("0"), 5);
        let log = Log::of(&old).sectors(&hive("1"));
        assert_eq!(shown(&old, &[vec![0; 512], log.clone()]), expect("1", State::Logged));
        // Of another time, by the hive's header and, where that is torn, by its first bin.
        let mut other = old.clone();
        other[0xc] = 9;
        other[4096 + 0x14] = 9;
        assert_eq!(shown(&other, std::slice::from_ref(&log)), expect("0", State::Incomplete));
        assert_eq!(shown(&old, &[log[..600].to_vec()]).0, "0");
    }

    #[test]
    fn the_hash_is_that_of_windows() {
        // Of nothing, folded to 32 bits: a value that other programs have for this seed.
        let [a, b, c, d, e, f, g, h] = Marvin::new().finish();
        let folded = u32::from_le_bytes([a ^ e, b ^ f, c ^ g, d ^ h]);
        assert_eq!(folded, 0xb008_92ac);
    }
}
