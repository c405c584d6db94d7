//! Contents of several small files of one directory in one payload.
//!
//! First an [`Outcome`] for each file, in the order asked for, then the bytes of those that are
//! [`Outcome::Here`], one behind the other.

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_PAYLOAD, MAX_SMALL_FILE};
use crate::path::EntryName;

/// A file of the directory that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// Its name.
    pub name: EntryName,
    /// The filesystem's own number of it, as in [`crate::attr::Attr::ino`], by which the guest may find
    /// it sooner; 0 where that is not known.
    pub number: u64,
}

/// A file whose first bytes are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Which one.
    pub file: Numbered,
    /// How many of its bytes, at most [`MAX_SMALL_FILE`].
    pub size: u32,
}

/// What is wanted of files that lie on their disk as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Plain {
    /// Their bytes, as of all others.
    Bytes,
    /// Where they are: the host reads them itself.
    Places,
}

/// How the request for a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// So many bytes of it are in the payload; fewer than were wanted only at its end.
    Here(u32),
    /// All that was wanted is on a disk, in one piece.
    Stored(Stored),
    /// With an error number.
    Failed(u16),
}

/// Bytes on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The disk's number.
    pub disk: u8,
    /// The first one's place on the disk.
    pub place: u64,
    /// How many they are.
    pub length: u32,
}

/// Most bytes of an outcome: a kind, a disk, and numbers of 64 and 32 bits.
const MAX_OUTCOME: usize = 1 + 1 + 10 + 5;

/// Sizes of files that are being collected for one payload.
#[derive(Clone, Debug, Default)]
pub struct Planned(usize);

impl Planned {
    /// Adds a file of `size` bytes, unless it is too large or does not fit any more. Returns whether
    /// it was added.
    pub fn add(&mut self, size: u32) -> bool {
        let size = size as usize;
        let sum = self.0 + size + MAX_OUTCOME;
        let fits = size <= MAX_SMALL_FILE && sum <= MAX_PAYLOAD;
        if fits {
            self.0 = sum;
        }
        fits
    }

    /// Most bytes of the payload.
    #[must_use]
    pub fn most(&self) -> usize {
        self.0
    }
}

/// Appends an outcome to `page`.
pub fn push_outcome(page: &mut Vec<u8>, outcome: &Outcome) {
    postcard::to_io(outcome, page).expect("a vector takes whatever is written to it");
}

/// Takes the first outcome off `page`.
///
/// # Errors
/// The page is not in the form that [`push_outcome`] writes.
pub fn pop_outcome(page: &mut &[u8]) -> Result<Outcome, postcard::Error> {
    let (outcome, rest) = postcard::take_from_bytes(page)?;
    *page = rest;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_these_bytes() {
        let stored = Stored { disk: 1, place: 300, length: 5 };
        let outcomes = [Outcome::Here(300), Outcome::Stored(stored), Outcome::Failed(5)];
        let mut page = Vec::new();
        outcomes.iter().for_each(|outcome| push_outcome(&mut page, outcome));
        assert_eq!(page, [0, 0xac, 2, 1, 1, 0xac, 2, 5, 2, 5]);
        let mut rest = page.as_slice();
        assert_eq!([(); 3].map(|()| pop_outcome(&mut rest).unwrap()), outcomes);
        assert!(rest.is_empty());
        assert!(pop_outcome(&mut &[3, 0][..]).is_err());
    }

    #[test]
    fn what_was_planned_fits_into_a_payload() {
        let stored = Stored { disk: u8::MAX, place: u64::MAX, length: u32::MAX };
        let mut page = Vec::new();
        push_outcome(&mut page, &Outcome::Stored(stored));
        assert_eq!(page.len(), MAX_OUTCOME);

        let small = u32::try_from(MAX_SMALL_FILE).unwrap();
        let mut planned = Planned::default();
        assert!(!planned.add(small + 1) && !planned.add(u32::MAX));
        let count = (0..).take_while(|_| planned.add(small)).count();
        assert_eq!(count, MAX_PAYLOAD / MAX_SMALL_FILE - 1);
        assert!(planned.most() <= MAX_PAYLOAD && planned.add(100));
    }
}
