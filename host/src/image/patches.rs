//! Changes to a file that exist in memory only: what a log would write if it were replayed.
//!
//! The file stays as it is. Reads through [`Patches`] see the changes, and [`Patches::extents`]
//! lists what QEMU has to join to see them too: parts of the file, and parts of a file in memory.
//!
//! **Invariant:** knows no format; opens no file of the host.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::SECTOR_SIZE;
use super::memory;

/// The unit of changes: offsets and lengths are multiples of it.
pub const UNIT: u64 = SECTOR_SIZE;

/// Most separate runs of changed bytes. Each becomes an extent with a descriptor of its own.
const MAX_RUNS: usize = 512;

/// Changes to a file of a known length, by the place of their first byte. None overlap.
#[derive(Debug)]
pub struct Patches {
    runs: BTreeMap<u64, Run>,
    data: Vec<u8>,
    /// Bytes of the file itself.
    file_len: u64,
    /// Bytes of the file with its changes.
    len: u64,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    len: u64,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// From this place in `data` on.
    Data(u64),
    Zero,
}

/// Consecutive bytes that come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    source: Source,
    len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The file, from this byte on.
    File(u64),
    /// `data`, from this byte on.
    Data(u64),
    Zero,
}

impl Patches {
    /// No changes to a file of `file_len` bytes.
    pub fn new(file_len: u64) -> Self {
        Self { runs: BTreeMap::new(), data: Vec::new(), file_len, len: file_len }
    }

    /// Bytes of the file with its changes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether QEMU can join so many pieces.
    pub fn are_few(&self) -> bool {
        self.runs.len() <= MAX_RUNS
    }

    /// Makes the file at least `len` bytes long.
    pub fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Puts `bytes` at `offset`. Both are in units of [`UNIT`], and the end does not overflow.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let at = self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        self.put(offset, Run { len: bytes.len() as u64, content: Content::Data(at) });
    }

    /// Puts `len` zeros at `offset`. Both are in units of [`UNIT`], and the end does not overflow.
    pub fn zero(&mut self, offset: u64, len: u64) {
        self.put(offset, Run { len, content: Content::Zero });
    }

    fn put(&mut self, offset: u64, run: Run) {
        assert!(offset.is_multiple_of(UNIT) && run.len.is_multiple_of(UNIT), "checked by callers");
        if run.len == 0 {
            return;
        }
        let end = offset + run.len;
        self.grow(end);
        self.clear(offset..end);
        // Runs that go on in the same place are one.
        if let Some((&start, before)) = self.runs.range_mut(..offset).next_back()
            && start + before.len == offset
            && before.content.skip(before.len) == run.content
        {
            before.len += run.len;
            return;
        }
        self.runs.insert(offset, run);
    }

    /// Takes away what runs have in `range`.
    fn clear(&mut self, range: Range<u64>) {
        let overlapping: Vec<(u64, Run)> = self
            .runs
            .range(..range.end)
            .rev()
            .take_while(|(start, run)| *start + run.len > range.start)
            .map(|(&start, &run)| (start, run))
            .collect();
        for (start, run) in overlapping {
            self.runs.remove(&start);
            if start < range.start {
                self.runs.insert(start, Run { len: range.start - start, ..run });
            }
            let end = start + run.len;
            if end > range.end {
                let content = run.content.skip(range.end - start);
                self.runs.insert(range.end, Run { len: end - range.end, content });
            }
        }
    }

    /// Where the bytes of `range` come from, one span behind the other.
    fn spans(&self, range: Range<u64>) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut at = range.start;
        let first = self.runs.range(..=range.start).next_back().map_or(range.start, |(&at, _)| at);
        for (&start, run) in self.runs.range(first..range.end) {
            let (from, to) = (start.max(at), (start + run.len).min(range.end));
            if from >= to {
                continue;
            }
            self.unchanged(at..from, &mut spans);
            let source = match run.content.skip(from - start) {
                Content::Data(at) => Source::Data(at),
                Content::Zero => Source::Zero,
            };
            spans.push(Span { source, len: to - from });
            at = to;
        }
        self.unchanged(at..range.end, &mut spans);
        spans
    }

    /// Spans of bytes without changes: the file's, then zeros where it has grown.
    fn unchanged(&self, range: Range<u64>, spans: &mut Vec<Span>) {
        let end_of_file = self.file_len.clamp(range.start, range.end.max(range.start));
        if range.start < end_of_file {
            let len = end_of_file - range.start;
            spans.push(Span { source: Source::File(range.start), len });
        }
        if end_of_file < range.end {
            spans.push(Span { source: Source::Zero, len: range.end - end_of_file });
        }
    }

    /// Fills `buffer` from `offset` of `file` as it is with its changes.
    ///
    /// # Errors
    /// As pread(2); `UnexpectedEof` where the file became shorter.
    pub fn read(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut rest = buffer;
        for span in self.spans(offset..offset + rest.len() as u64) {
            let (part, behind) = rest.split_at_mut(index(span.len));
            rest = behind;
            match span.source {
                Source::File(at) => file.read_exact_at(part, at)?,
                Source::Data(at) => part.copy_from_slice(&self.data[index(at)..][..part.len()]),
                Source::Zero => part.fill(0),
            }
        }
        Ok(())
    }

    /// What has to be joined for `count` sectors from `first` on: each file with the number of its
    /// sectors and the first of them.
    ///
    /// # Errors
    /// Those of memfd_create(2) and dup(2).
    pub fn extents(
        &self,
        file: &File,
        first: u64,
        count: u64,
    ) -> io::Result<Vec<(u64, u64, File)>> {
        let data = memory::holding(|memory| memory.write_all(&self.data))?;
        let spans = self.spans(first * SECTOR_SIZE..(first + count) * SECTOR_SIZE);
        let longest_zeros =
            spans.iter().filter(|span| span.source == Source::Zero).map(|span| span.len).max();
        let zeros = memory::zeros(longest_zeros.unwrap_or(0).next_multiple_of(SECTOR_SIZE))?;
        let mut extents: Vec<(u64, u64, File)> = Vec::with_capacity(spans.len());
        let mut odd = 0;
        for span in spans {
            let (at, file) = match span.source {
                Source::File(at) => (at, file),
                Source::Data(at) => (at, &data),
                Source::Zero => (0, &zeros),
            };
            // Only a file's end lies within a sector, and zeros follow it.
            let len = (span.len - odd.min(span.len)).next_multiple_of(SECTOR_SIZE);
            odd = len + odd - span.len;
            if len > 0 {
                extents.push((len / SECTOR_SIZE, at / SECTOR_SIZE, file.try_clone()?));
            }
        }
        Ok(extents)
    }
}

impl Content {
    /// What follows the first `len` bytes.
    fn skip(self, len: u64) -> Self {
        match self {
            Self::Data(at) => Self::Data(at + len),
            Self::Zero => Self::Zero,
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("the caller holds so many bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every two changes of up to three units in a file of four units and a bit, against plain
    /// bytes.
    #[test]
    fn reads_and_extents_see_all_changes_and_nothing_else() {
        const FILE: u64 = 4 * UNIT + 70;
        let bytes: Vec<u8> = (0..FILE).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let file = memory::holding(|file| file.write_all(&bytes)).unwrap();
        let changes: Vec<(u64, u64, bool)> = (0..6u64)
            .flat_map(|at| (0..4).flat_map(move |len| [(at, len, false), (at, len, true)]))
            .collect();
        for &one in &changes {
            for &two in &changes {
                let mut patches = Patches::new(FILE);
                let mut expected = bytes.clone();
                for (i, (at, len, is_zero)) in [one, two].into_iter().enumerate() {
                    let (at, len) = (at * UNIT, len * UNIT);
                    let fill = if is_zero { 0 } else { 0xd0 + u8::try_from(i).unwrap() };
                    if is_zero {
                        patches.zero(at, len);
                    } else {
                        patches.write(at, &vec![fill; index(len)]);
                    }
                    if len > 0 {
                        expected.resize(expected.len().max(index(at + len)), 0);
                        expected[index(at)..index(at + len)].fill(fill);
                    }
                }
                assert_eq!(patches.len(), expected.len() as u64, "{one:?} {two:?}");
                let mut read = vec![1; expected.len() - 300];
                patches.read(&file, &mut read, 300).unwrap();
                assert!(read == expected[300..], "{one:?} {two:?}");
                let sectors = patches.len().div_ceil(SECTOR_SIZE);
                let mut joined = Vec::new();
                for (count, first, part) in patches.extents(&file, 0, sectors).unwrap() {
                    let mut bytes = vec![0; index(count * SECTOR_SIZE)];
                    let there = part.metadata().unwrap().len() - first * SECTOR_SIZE;
                    let there = index(there).min(bytes.len());
                    part.read_exact_at(&mut bytes[..there], first * SECTOR_SIZE).unwrap();
                    joined.extend(bytes);
                }
                expected.resize(index(sectors * SECTOR_SIZE), 0);
                assert!(joined == expected, "{one:?} {two:?}");
            }
        }
    }
}
