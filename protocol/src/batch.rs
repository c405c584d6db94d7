//! How the contents of several files lie in one payload.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 to 8 n | for each of the n files, in the order asked for: error number, length of contents |
//! | then | each file's contents, at a multiple of [`ALIGNMENT`], in as much room as was asked for |
//!
//! Numbers are of 32 bits, little-endian. Where everything lies follows from the request alone: the
//! guest can have the disk write each file's bytes right to their place, and the host knows the
//! places before it looks at anything that the guest wrote.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_PAYLOAD, MAX_SMALL_FILE};
use crate::path::EntryName;

/// Bytes of a disk's sector: what direct reading wants its memory aligned to.
pub const ALIGNMENT: usize = 512;

/// Bytes of one file's outcome at the payload's start.
const OUTCOME_LEN: usize = 8;

/// A file whose first bytes are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its name.
    pub name: EntryName,
    /// How many of its bytes, at most [`MAX_SMALL_FILE`].
    pub size: u32,
}

/// Where the outcomes and contents of some files lie in a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    rooms: Vec<Range<usize>>,
}

impl Layout {
    /// The layout for files of these sizes. `None` where one is too large or all of them do not fit
    /// into a payload.
    #[must_use]
    pub fn of(sizes: &[u32]) -> Option<Self> {
        let mut planned = Planned::default();
        sizes.iter().all(|&size| planned.add(size)).then_some(())?;
        let mut start = outcomes_len(sizes.len());
        let mut rooms = Vec::with_capacity(sizes.len());
        for &size in sizes {
            let size = usize::try_from(size).ok()?;
            rooms.push(start..start + size);
            start += size.next_multiple_of(ALIGNMENT);
        }
        Some(Self { rooms })
    }

    /// Bytes of the payload. The room of each file ends at a multiple of [`ALIGNMENT`].
    #[must_use]
    pub fn len(&self) -> usize {
        let end = self.rooms.last().map_or(0, |room| room.end);
        end.next_multiple_of(ALIGNMENT)
    }

    /// Whether it is one of no files.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Where the outcomes end and the contents begin.
    #[must_use]
    pub fn contents_start(&self) -> usize {
        outcomes_len(self.rooms.len())
    }

    /// Where each file's contents lie, in the order asked for.
    #[must_use]
    pub fn rooms(&self) -> &[Range<usize>] {
        &self.rooms
    }
}

/// Sizes that are being collected for one payload.
#[derive(Clone, Debug, Default)]
pub struct Planned {
    count: usize,
    contents: usize,
}

impl Planned {
    /// Adds a file of `size` bytes, unless it is too large or does not fit any more. Returns whether
    /// it was added.
    pub fn add(&mut self, size: u32) -> bool {
        let size = size as usize;
        let contents = self.contents + size.next_multiple_of(ALIGNMENT);
        let fits = size <= MAX_SMALL_FILE && outcomes_len(self.count + 1) + contents <= MAX_PAYLOAD;
        if fits {
            (self.count, self.contents) = (self.count + 1, contents);
        }
        fits
    }
}

fn outcomes_len(count: usize) -> usize {
    (count * OUTCOME_LEN).next_multiple_of(ALIGNMENT)
}

/// How reading a file ended: the length of what was read, or an error number.
pub type Outcome = Result<u32, u16>;

/// Writes the outcome of the `index`-th file.
///
/// # Panics
/// Where `payload` has no room for it: it is shorter than its [`Layout::len`].
pub fn set_outcome(payload: &mut [u8], index: usize, outcome: Outcome) {
    let (errno, length) = match outcome {
        Ok(length) => (0, length),
        Err(errno) => (u32::from(errno), 0),
    };
    let place = &mut payload[index * OUTCOME_LEN..(index + 1) * OUTCOME_LEN];
    place[..4].copy_from_slice(&errno.to_le_bytes());
    place[4..].copy_from_slice(&length.to_le_bytes());
}

/// Reads the outcome of the `index`-th file. `None` where `payload` is too short or holds nothing
/// that [`set_outcome`] writes.
#[must_use]
pub fn outcome(payload: &[u8], index: usize) -> Option<Outcome> {
    let place = payload.get(index * OUTCOME_LEN..(index + 1) * OUTCOME_LEN)?;
    let word = |at: usize| Some(u32::from_le_bytes(place.get(at..at + 4)?.try_into().ok()?));
    match (word(0)?, word(4)?) {
        (0, length) => Some(Ok(length)),
        (errno, 0) => Some(Err(u16::try_from(errno).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_begin_at_sectors_behind_the_outcomes() {
        let layout = Layout::of(&[1, 512, 513, 0]).unwrap();
        assert_eq!(layout.contents_start(), 512);
        assert_eq!(layout.rooms(), [512..513, 1024..1536, 1536..2049, 2560..2560]);
        assert_eq!(layout.len(), 2560);
        assert_eq!(Layout::of(&[9; 65]).unwrap().contents_start(), 1024);
    }

    #[test]
    fn what_does_not_fit_into_a_payload_has_no_layout() {
        let small = u32::try_from(MAX_SMALL_FILE).unwrap();
        let most = MAX_PAYLOAD / MAX_SMALL_FILE - 1;
        assert!(Layout::of(&vec![small; most]).unwrap().len() <= MAX_PAYLOAD);
        assert_eq!(Layout::of(&vec![small; most + 1]), None);
        assert_eq!(Layout::of(&[small + 1]), None);
        assert_eq!(Layout::of(&[u32::MAX]), None);
        let empty = MAX_PAYLOAD / OUTCOME_LEN;
        assert!(Layout::of(&vec![0; empty]).is_some());
        assert_eq!(Layout::of(&vec![0; empty + 1]), None);
    }

    #[test]
    fn what_was_planned_is_what_fits() {
        let mut planned = Planned::default();
        let sizes: Vec<u32> =
            (0..).map(|n| n * 37 % 5000).take_while(|&n| planned.add(n)).collect();
        let mut one_more = sizes.clone();
        one_more.push(5000);
        assert!(Layout::of(&sizes).is_some());
        assert_eq!(Layout::of(&one_more), None);
    }

    #[test]
    fn outcomes_have_these_bytes() {
        let mut payload = vec![0xff; 16];
        set_outcome(&mut payload, 0, Ok(300));
        set_outcome(&mut payload, 1, Err(5));
        assert_eq!(payload, [0, 0, 0, 0, 44, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(outcome(&payload, 0), Some(Ok(300)));
        assert_eq!(outcome(&payload, 1), Some(Err(5)));
        assert_eq!(outcome(&payload, 2), None);
        assert_eq!(outcome(&payload[..15], 1), None);
    }

    #[test]
    fn outcomes_that_nobody_writes_are_refused() {
        for bytes in [[5, 0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(outcome(&bytes, 0), None, "{bytes:?}");
        }
    }
}
