//! An open directory: the page that the guest sent last, and where in it the kernel reads.

use std::collections::VecDeque;

use guestmnt_protocol::attr::{DirEntry, Following};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::path::GuestPath;
use nix::errno::Errno;

use crate::guest::Guest;

/// A position in a directory, as the kernel hands it back.
///
/// The guest's positions are opaque, but non-negative as `loff_t`; those with the top bit are ours.
const AFTER_DOT: u64 = 1 << 63;
const AFTER_DOTS: u64 = AFTER_DOT | 1;

/// Bytes of a directory's first page: some 200 entries, which are there at once.
const FIRST_PAGE: u32 = 16 * 1024;

/// How many times larger each further page is, up to a payload's size.
const PAGE_GROWTH: u32 = 4;

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
}

impl Default for Directory {
    fn default() -> Self {
        Self { page: VecDeque::new(), at: 0, ended: false, page_size: FIRST_PAGE }
    }
}

impl Directory {
    /// Gives lines from the position `from` on to `take`, with the position behind each, until
    /// `take` says no or the directory ends. A line that was refused is not lost.
    ///
    /// # Errors
    /// The guest's error, unless lines were taken before it; it comes again with the next call then.
    pub fn read(
        &mut self,
        guest: &Guest,
        path: &GuestPath,
        from: u64,
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
        let from = if from & AFTER_DOT != 0 { 0 } else { from };
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
            match guest.read_dir(path.clone(), self.at, self.page_size) {
                Ok((entries, following)) => self.accept(entries, following)?,
                Err(_) if taken > 0 => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Takes a page that the guest sent. Positions must lead on: a hostile guest shall not make
    /// a directory without end out of one page, or out of none.
    fn accept(&mut self, entries: Vec<DirEntry>, following: Following) -> Result<(), Errno> {
        self.ended = following == Following::Nothing;
        let leads_on = match entries.last() {
            Some(last) => last.next != self.at,
            None => self.ended,
        };
        if !leads_on || entries.iter().any(|entry| entry.next & AFTER_DOT != 0) {
            return Err(Errno::EIO);
        }
        self.page = entries.into();
        let largest = u32::try_from(MAX_PAYLOAD).expect("a payload fits 32 bits");
        self.page_size = self.page_size.saturating_mul(PAGE_GROWTH).min(largest);
        Ok(())
    }
}
