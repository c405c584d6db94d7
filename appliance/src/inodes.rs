//! The inodes of the files of an NTFS directory: read together, and told without asking the driver
//! where their records say it all.
//!
//! What the driver says is what counts: see [`crate::agreement`]. Nothing is told of a volume that can
//! be written: its driver has in memory what its records do not say yet.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, TryLockError};

use guestmnt_protocol::attr::Attr;

use crate::agreement::Agreement;
use crate::ntfs::mend;
use crate::ordinary::{Facts, Ordinary};
use crate::records::Records;

/// Records that are this close to each other, in bytes, are read in one piece.
const GAP: u64 = 32 * 1024;

/// Bytes of a piece, unless a single record is larger.
const MAX_PIECE: u64 = 256 * 1024;

/// An NTFS volume that is mounted.
pub struct Volume {
    /// Its records.
    pub records: Records,
    /// Whether nobody writes to it.
    is_frozen: bool,
    /// What its driver and its records agree on.
    agreement: Agreement,
    /// Where pieces are read to.
    space: Mutex<Vec<u8>>,
}

impl Volume {
    /// The volume with these records, to which nobody writes where it `is_frozen`.
    #[must_use]
    pub fn new(records: Records, is_frozen: bool) -> Self {
        Self { records, is_frozen, agreement: Agreement::default(), space: Mutex::default() }
    }
}

/// The inodes of the files of one directory.
pub struct Inodes {
    volume: Arc<Volume>,
    /// The directory's own number.
    folder: u64,
}

impl Inodes {
    /// Those of the files in the directory with the number `folder`.
    #[must_use]
    pub fn of(volume: Arc<Volume>, folder: u64) -> Self {
        Self { volume, folder }
    }

    /// The volume that they are on.
    #[must_use]
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// What can be told of these files, each a number and a name; the others are being read ahead for
    /// the driver.
    #[must_use]
    pub fn facts(&self, files: &[(u64, &[u8])]) -> Vec<Option<Facts>> {
        let mut facts = vec![None; files.len()];
        if self.volume.is_frozen && !self.volume.agreement.is_broken() {
            self.read(files, |index, file| facts[index] = Some(file.facts));
        } else {
            let numbers = ordered(files);
            self.pieces(&numbers).for_each(|piece| self.read_ahead(piece));
        }
        facts
    }

    /// Attributes of the file with these facts; the driver says what they are where `ask` does.
    pub fn attr(&self, facts: &Facts, ask: impl FnOnce() -> Option<Attr>) -> Option<Attr> {
        self.volume.agreement.attr(facts, ask)
    }

    /// Whether the record of the file with these facts may be believed as to what the file holds;
    /// `is_same` says whether the driver gives that, and `None` where it gives nothing.
    pub fn has_contents(&self, facts: &Facts, is_same: impl FnOnce() -> Option<bool>) -> bool {
        self.volume.agreement.has_contents(facts, is_same)
    }

    /// Hands on those of these files that can be told, each a number and a name, with their indices:
    /// none before the driver has agreed on one.
    pub fn each(&self, files: &[(u64, &[u8])], take: impl FnMut(usize, Ordinary<'_>)) {
        if self.volume.is_frozen && self.volume.agreement.has_begun() {
            self.read(files, take);
        }
    }

    fn read(&self, files: &[(u64, &[u8])], mut take: impl FnMut(usize, Ordinary<'_>)) {
        let mut own = Vec::new();
        let mut shared = match self.volume.space.try_lock() {
            Ok(shared) => Some(shared),
            // What it holds does not count.
            Err(TryLockError::Poisoned(shared)) => Some(shared.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let space = shared.as_deref_mut().unwrap_or(&mut own);
        let numbers = ordered(files);
        let mut pieces = self.pieces(&numbers).peekable();
        if pieces.next().is_some() && pieces.peek().is_some() {
            self.pieces(&numbers).for_each(|piece| self.read_ahead(piece));
        }
        for piece in self.pieces(&numbers) {
            self.read_piece(piece, files, space, &mut take);
        }
    }

    /// Files whose records are read together.
    fn pieces<'n>(&self, numbers: &'n [Numbered]) -> impl Iterator<Item = &'n [Numbered]> {
        let record = self.volume.records.geometry.record;
        let (gap, most) = (GAP / record, MAX_PIECE / record);
        let mut rest = numbers;
        std::iter::from_fn(move || {
            let first = rest.first()?.number;
            let mut last = first;
            let count = rest.iter().take_while(|file| {
                let fits = file.number - last <= gap && file.number - first < most;
                last = file.number;
                fits
            });
            let (piece, behind) = rest.split_at(count.count());
            rest = behind;
            Some(piece)
        })
    }

    /// Where on the volume the records of a piece are.
    fn places(&self, piece: &[Numbered]) -> impl Iterator<Item = (u64, u64)> {
        let Records { geometry, table, .. } = &self.volume.records;
        let bytes = |number: u64| number.saturating_mul(geometry.record);
        let (first, last) = (piece[0].number, piece[piece.len() - 1].number);
        table.places(bytes(first), bytes(last - first + 1))
    }

    fn read_ahead(&self, piece: &[Numbered]) {
        self.places(piece)
            .for_each(|(start, length)| self.volume.records.read_ahead(start, length));
    }

    /// Reads the records of a piece to `space`, and hands on what is ordinary.
    fn read_piece(
        &self,
        piece: &[Numbered],
        files: &[(u64, &[u8])],
        space: &mut Vec<u8>,
        take: &mut impl FnMut(usize, Ordinary<'_>),
    ) -> Option<()> {
        let Records { device, geometry, .. } = &self.volume.records;
        let record = usize::try_from(geometry.record).ok()?;
        let first = piece[0].number;
        let at = |file: &Numbered| usize::try_from(file.number - first).ok().map(|n| n * record);
        let needed = at(piece.last()?)? + record;
        if space.len() < needed {
            space.resize(needed, 0);
        }
        let mut filled = 0;
        for (start, length) in self.places(piece) {
            let end = filled + usize::try_from(length).ok()?;
            device.read_exact_at(space.get_mut(filled..end)?, start).ok()?;
            filled = end;
        }
        // Where a part of the table has no place, what is behind it would be taken for it.
        if filled != needed {
            return None;
        }
        for link in piece.chunk_by(|one, other| one.number == other.number) {
            let bytes = &mut space[at(&link[0])?..][..record];
            if mend(bytes, b"FILE").is_none() {
                continue;
            }
            for &Numbered { number, index } in link {
                let name = files[index].1;
                if let Some(file) = Ordinary::read(bytes, number, geometry, self.folder, name) {
                    take(index, file);
                }
            }
        }
        Some(())
    }
}

/// A file by the number of its record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Numbered {
    number: u64,
    /// Its place among those that are asked for.
    index: usize,
}

/// Files in the order of their records; the directory itself and the one that it is in are left out.
fn ordered(files: &[(u64, &[u8])]) -> Vec<Numbered> {
    let wanted = files.iter().enumerate().filter(|(_, (_, name))| !matches!(*name, b"." | b".."));
    let mut numbers: Vec<Numbered> =
        wanted.map(|(index, &(number, _))| Numbered { number, index }).collect();
    // Mostly they are, and sorting would take as long as all else: little is translated yet in a guest
    // that was restored.
    if !numbers.is_sorted() {
        numbers.sort_unstable();
    }
    numbers
}
