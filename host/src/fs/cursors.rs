//! Where in which directories the kernel reads.
//!
//! The kernel opens directories without a request, so there are no handles: who goes on where a
//! read ended goes on with the page that was fetched for it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use super::directory::Directory;
use super::nodes::Lifetime;

/// Directories that are being read at the same time, or were just now. One more only costs the
/// guest a page that it sent already.
const MAX_CURSORS: usize = 16;

/// The directories that were read in part.
#[derive(Default)]
pub struct Cursors(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// The latest first.
    cursors: VecDeque<(Lifetime, Directory)>,
    /// Counts changes of the filesystem, after each of which pages that were read are old.
    changes: u64,
}

/// A cursor that is the caller's alone.
pub struct Taken {
    /// It.
    pub directory: Directory,
    changes: u64,
}

impl Cursors {
    /// One that goes on at the position `from` of a directory.
    pub fn take(&self, directory: Lifetime, from: u64) -> Taken {
        let mut kept = self.lock();
        let stands = |(of, cursor): &(Lifetime, Directory)| *of == directory && cursor.is_at(from);
        let index = kept.cursors.iter().position(stands);
        let found = index.and_then(|index| kept.cursors.remove(index));
        let directory = found.map(|(_, cursor)| cursor).unwrap_or_default();
        Taken { directory, changes: kept.changes }
    }

    /// Keeps one for who goes on with it, unless something changed since it was taken.
    pub fn give_back(&self, directory: Lifetime, cursor: Taken) {
        let mut kept = self.lock();
        if kept.changes == cursor.changes {
            kept.cursors.truncate(MAX_CURSORS - 1);
            kept.cursors.push_front((directory, cursor.directory));
        }
    }

    /// Forgets all pages, since something changed.
    pub fn forget(&self) {
        let mut kept = self.lock();
        kept.changes += 1;
        kept.cursors.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nothing panics while it holds the cursors")
    }
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::attr::{Attr, Following};
    use guestmnt_protocol::path::EntryName;

    use super::super::listing::tests::page;
    use super::super::nodes::{Nodes, ROOT};
    use super::*;

    /// Takes a cursor, reads `count` entries with it and gives it back; returns the pages that
    /// were fetched.
    fn read(cursors: &Cursors, of: Lifetime, from: u64, count: usize) -> usize {
        let (mut pages, mut entries) = (0, 0);
        let fetch = |_, _| {
            pages += 1;
            Ok((page(&[("a", 1, 1), ("b", 2, 1), ("c", 3, 1)]), Following::Nothing))
        };
        let mut cursor = cursors.take(of, from);
        let take = |_: &_, _| {
            entries += 1;
            entries <= count
        };
        cursor.directory.read(from, fetch, take).unwrap();
        cursors.give_back(of, cursor);
        pages
    }

    fn lifetimes(count: u64) -> Vec<Lifetime> {
        let nodes = Nodes::new();
        let folder = |ino: u64| {
            let attr = Attr { ino, mode: libc::S_IFDIR, ..Attr::default() };
            let name = EntryName::new(ino.to_string().as_bytes()).unwrap();
            let id = nodes.look_up(ROOT, name, &attr).unwrap();
            nodes.lifetime(id).unwrap()
        };
        (64..64 + count).map(folder).collect()
    }

    #[test]
    fn a_page_serves_whoever_goes_on_behind_what_was_taken_of_it() {
        let (cursors, of) = (Cursors::default(), lifetimes(2));
        // `.`, `..` and one entry.
        assert_eq!(read(&cursors, of[0], 0, 3), 1);
        assert_eq!(read(&cursors, of[1], 1, 1), 1, "another directory");
        assert_eq!(read(&cursors, of[0], 2, 1), 1, "another position");
        assert_eq!(read(&cursors, of[0], 1, 1), 0);
        assert_eq!(read(&cursors, of[0], 2, 1), 0);
    }

    #[test]
    fn no_page_survives_a_change() {
        let (cursors, of) = (Cursors::default(), lifetimes(1));
        assert_eq!(read(&cursors, of[0], 0, 3), 1);
        cursors.forget();
        assert_eq!(read(&cursors, of[0], 1, 1), 1);
        let taken = cursors.take(of[0], 2);
        cursors.forget();
        cursors.give_back(of[0], taken);
        assert_eq!(read(&cursors, of[0], 2, 1), 1);
    }

    #[test]
    fn only_the_latest_are_kept() {
        let (cursors, of) = (Cursors::default(), lifetimes(40));
        of.iter().for_each(|of| assert_eq!(read(&cursors, *of, 0, 3), 1));
        assert_eq!(cursors.lock().cursors.len(), MAX_CURSORS);
        assert_eq!(read(&cursors, of[39], 1, 1), 0);
        assert_eq!(read(&cursors, of[0], 1, 1), 1);
    }
}
