//! A directory that is being read: the page that the guest sent last, and where in it the kernel is.

use std::collections::VecDeque;

use guestmnt_protocol::attr::{DirEntry, Following};
use nix::errno::Errno;

/// The largest position: lseek(2) takes none that is negative as `loff_t`, and seekdir(3) is one. It
/// is the guest's: ext4 has it behind the last entry.
const LARGEST_POSITION: u64 = i64::MAX.cast_unsigned();

/// Positions in a directory, as the kernel hands them back.
///
/// The guest's are opaque; these two are ours, since no filesystem that is known uses them: those of
/// ext4 end 2^32 before its last one, others count from 0 on.
const AFTER_DOT: u64 = LARGEST_POSITION - 2;
const AFTER_DOTS: u64 = LARGEST_POSITION - 1;

/// Bytes of a directory's first page: some 200 entries, which are there at once.
pub const FIRST_PAGE: u32 = 16 * 1024;

/// How many times larger each further page is, up to the largest.
const PAGE_GROWTH: u32 = 4;

/// Bytes of the largest page: some 3,000 entries.
const LARGEST_PAGE: u32 = 256 * 1024;

/// One line for the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// `.`
    Dot,
    /// `..`
    DotDot,
    /// What is in the directory.
    Entry(DirEntry),
}

/// What the guest sends of a directory at once.
pub type Page = (Vec<DirEntry>, Following);

/// A directory that is being read.
pub struct Directory {
    /// Entries that came from the guest and were not taken yet.
    page: VecDeque<DirEntry>,
    /// The guest's position of the page's first entry.
    at: u64,
    /// Whether the guest said that nothing follows the page.
    ended: bool,
    /// Bytes of the next page.
    page_size: u32,
    circle: Circle,
}

impl Default for Directory {
    fn default() -> Self {
        let (page, circle) = (VecDeque::new(), Circle::default());
        Self { page, at: 0, ended: false, page_size: FIRST_PAGE, circle }
    }
}

/// Notices that pages lead round in a circle, of any length, without keeping their positions:
/// a position is kept until twice as many pages have come as before it. Source: R. P. Brent, An
/// improved Monte Carlo factorization algorithm, section 2.
#[derive(Default)]
struct Circle {
    kept: Option<u64>,
    /// Pages since then, and how many there may be.
    pages: u64,
    most: u64,
}

impl Circle {
    /// Whether a page that begins at `position` closes the circle.
    fn is_closed_by(&mut self, position: u64) -> bool {
        if self.kept == Some(position) {
            return true;
        }
        if self.pages == self.most {
            (self.kept, self.pages, self.most) = (Some(position), 0, 2 * self.most + 1);
        }
        self.pages += 1;
        false
    }
}

/// The guest's position of one that the kernel knows.
fn in_guest(position: u64) -> u64 {
    if is_ours(position) { 0 } else { position }
}

fn is_ours(position: u64) -> bool {
    matches!(position, AFTER_DOT | AFTER_DOTS)
}

/// Whether the kernel can be told of a position of the guest.
fn is_good(position: u64) -> bool {
    position <= LARGEST_POSITION && !is_ours(position)
}

impl Directory {
    /// Whether this is where the last reading ended.
    #[must_use]
    pub fn is_at(&self, from: u64) -> bool {
        self.at == in_guest(from)
    }

    /// Gives lines from the position `from` on to `take`, with the position behind each, until
    /// `take` says no or the directory ends. A line that was refused is not lost. Pages come from
    /// `fetch`, by the position where they begin and their most bytes.
    ///
    /// # Errors
    /// That of `fetch`, unless lines were taken before it; it comes again with the next call then.
    /// `EIO` for a page that leads nowhere.
    pub fn read(
        &mut self,
        from: u64,
        mut fetch: impl FnMut(u64, u32) -> Result<Page, Errno>,
        mut take: impl FnMut(&Line, u64) -> bool,
    ) -> Result<(), Errno> {
        let mut taken = 0u64;
        if from == 0 {
            if !take(&Line::Dot, AFTER_DOT) {
                return Ok(());
            }
            taken += 1;
        }
        if from == 0 || from == AFTER_DOT {
            if !take(&Line::DotDot, AFTER_DOTS) {
                return Ok(());
            }
            taken += 1;
        }
        let from = in_guest(from);
        if self.at != from {
            *self = Self { at: from, ..Self::default() };
        }
        loop {
            while let Some(entry) = self.page.pop_front() {
                let next = entry.next;
                let line = Line::Entry(entry);
                if !take(&line, next) {
                    let Line::Entry(entry) = line else { unreachable!("made above") };
                    self.page.push_front(entry);
                    return Ok(());
                }
                taken += 1;
                self.at = next;
            }
            if self.ended {
                return Ok(());
            }
            match fetch(self.at, self.page_size) {
                Ok((entries, following)) => self.accept(entries, following)?,
                Err(_) if taken > 0 => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Takes a page that the guest sent. Positions must lead on: a hostile guest shall not make
    /// a directory without end out of a few pages, or out of none.
    fn accept(&mut self, entries: Vec<DirEntry>, following: Following) -> Result<(), Errno> {
        self.ended = following == Following::Nothing;
        let leads_on = match entries.last() {
            Some(last) => last.next != self.at && !self.circle.is_closed_by(self.at),
            None => self.ended,
        };
        if !leads_on || !entries.iter().all(|entry| is_good(entry.next)) {
            return Err(Errno::EIO);
        }
        self.page = entries.into();
        self.page_size = (self.page_size * PAGE_GROWTH).min(LARGEST_PAGE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::listing::tests::page;
    use super::*;

    /// Reads from the start what `fetch` gives; returns how many entries there were.
    fn read(fetch: impl FnMut(u64, u32) -> Result<Page, Errno>) -> Result<usize, Errno> {
        let mut entries = 0;
        let count = |line: &Line, _| {
            entries += usize::from(matches!(line, Line::Entry(_)));
            true
        };
        Directory::default().read(AFTER_DOTS, fetch, count)?;
        Ok(entries)
    }

    #[test]
    fn pages_grow_and_the_last_one_is_not_asked_for_again() {
        let mut asked = Vec::new();
        let count = read(|from, size| {
            asked.push((from, size));
            let mut entries = page(&[("a", 1, 1)]);
            entries[0].next = from + 1;
            let following = if from == 5 { Following::Nothing } else { Following::More };
            Ok((entries, following))
        });
        assert_eq!(count, Ok(6));
        let sizes = [16, 64, 256, 256, 256, 256].map(|kib| kib * 1024);
        assert_eq!(asked, (0..).zip(sizes).collect::<Vec<_>>());
    }

    #[test]
    fn pages_that_lead_nowhere_are_refused() {
        let nothing = read(|_, _| Ok((Vec::new(), Following::More)));
        assert_eq!(nothing, Err(Errno::EIO));
        let back = read(|from, _| {
            let mut entries = page(&[("a", 1, 1)]);
            entries[0].next = from;
            Ok((entries, Following::More))
        });
        assert_eq!(back, Err(Errno::EIO));
    }

    #[test]
    fn positions_that_are_ours_or_negative_are_refused() {
        let ends_at = |position| {
            read(|_, _| {
                let mut entries = page(&[("a", 1, 1)]);
                entries[0].next = position;
                Ok((entries, Following::Nothing))
            })
        };
        for position in [AFTER_DOT, AFTER_DOTS, 1 << 63, u64::MAX] {
            assert_eq!(ends_at(position), Err(Errno::EIO), "{position:x}");
        }
        assert_eq!(ends_at(LARGEST_POSITION), Ok(1));
    }

    #[test]
    fn pages_that_lead_round_in_a_circle_come_to_an_end() {
        for (lead_in, length) in [(0, 2), (0, 3), (5, 2), (7, 100), (1000, 1)] {
            let mut pages = 0;
            let round = read(|from, _| {
                pages += 1;
                let mut entries = page(&[("a", 1, 1), ("b", 2, 1)]);
                entries[0].next = 1 << 40;
                let next = from + 1;
                entries[1].next = if next < lead_in + length { next } else { lead_in };
                Ok((entries, Following::More))
            });
            assert_eq!(round, Err(Errno::EIO), "{lead_in}, {length}");
            assert!(pages <= 4 * (lead_in + length) + 2, "{pages} pages of {lead_in}, {length}");
        }
    }

    #[test]
    fn an_error_behind_some_entries_comes_with_the_next_call() {
        let mut directory = Directory::default();
        let mut fetch = |from, _| {
            if from == 0 { Ok((page(&[("a", 1, 1)]), Following::More)) } else { Err(Errno::EIO) }
        };
        assert_eq!(directory.read(0, &mut fetch, |_, _| true), Ok(()));
        assert_eq!(directory.read(1, &mut fetch, |_, _| true), Err(Errno::EIO));
    }

    #[test]
    fn reading_goes_on_behind_every_position_that_was_given() {
        // As a hash of ext4 or an offset of XFS may be; the order is the directory's alone.
        let nexts = [1, 1 << 62, 7, AFTER_DOT - 1, LARGEST_POSITION];
        let fetch = |from: u64, _| {
            let first = nexts.iter().position(|&next| next == from).map_or(0, |n| n + 1);
            let mut entries = page(&["a", "b", "c", "d", "e"].map(|name| (name, 1, 1)));
            entries.iter_mut().zip(nexts).for_each(|(entry, next)| entry.next = next);
            Ok((entries.split_off(first), Following::Nothing))
        };
        let positions = [&[0, AFTER_DOT, AFTER_DOTS][..], &nexts].concat();
        let all: Vec<u64> = positions[1..].to_vec();
        for (index, &from) in positions.iter().enumerate() {
            for most in 0..=all.len() {
                let mut seen = Vec::new();
                let take = |_: &Line, next| {
                    let room = seen.len() < most;
                    seen.extend(room.then_some(next));
                    room
                };
                Directory::default().read(from, fetch, take).unwrap();
                // Those behind the beginning, which is not one of them.
                let rest = &all[index..];
                assert_eq!(seen, &rest[..most.min(rest.len())], "{most} behind {from}");
            }
        }
    }
}
