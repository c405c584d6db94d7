//! What is known to be in a folder, and in which orders programs go through its small files and the
//! folders in it.

use std::collections::HashMap;
use std::mem::size_of;

use guestmnt_protocol::attr::{Attr, DirEntry, Following};
use guestmnt_protocol::batch::Numbered;
use guestmnt_protocol::limits::{MAX_BODY, MAX_SMALL_FILE};
use guestmnt_protocol::path::EntryName;

/// Bytes that the listing of one folder may take: some 100,000 entries. What follows is not listed.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of the names in one request, which has the folder's path as well.
const MAX_NAMES: usize = MAX_BODY / 4;

/// Bytes around a name in a request: lengths and numbers.
const NAME_COST: usize = 18;

/// An order in which the files of a folder are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// That of the directory: tar.
    Listed,
    /// By name: rsync, and shells that expand a pattern.
    Name,
    /// By inode number: cp.
    Number,
}

/// All of them.
pub const ORDERS: [Order; 3] = [Order::Listed, Order::Name, Order::Number];

/// The entries of a folder, in the order of its pages.
#[derive(Default)]
pub struct Listing {
    entries: Vec<Listed>,
    by_name: HashMap<EntryName, usize>,
    /// The position of the next page.
    end: u64,
    closed: bool,
    bytes: usize,
    /// The small files in each order, once it was asked for.
    sequences: [Option<Sequence>; ORDERS.len()],
    /// The folders, likewise.
    folders: [Option<Sequence>; ORDERS.len()],
}

struct Listed {
    name: EntryName,
    number: u64,
    /// Its size, where it is a small file.
    small: Option<u32>,
    is_folder: bool,
}

struct Sequence {
    /// Indices of entries in this order.
    indices: Vec<usize>,
    /// Their places in `indices`, by index.
    ranks: HashMap<usize, usize>,
}

impl Listing {
    /// Adds the page that was read from the position `from` on, if it goes on where the last one
    /// ended.
    pub fn add(&mut self, from: u64, page: &[DirEntry], following: Following) {
        if self.closed || from != self.end {
            return;
        }
        for entry in page {
            let bytes = 2 * entry.name.as_bytes().len() + size_of::<Listed>() + 96;
            if self.bytes + bytes > MAX_BYTES {
                self.closed = true;
                break;
            }
            // A broken directory may have a name twice; the first one counts.
            if !self.by_name.contains_key(&entry.name) {
                self.bytes += bytes;
                self.by_name.insert(entry.name.clone(), self.entries.len());
                self.entries.push(Listed {
                    name: entry.name.clone(),
                    number: entry.attr.map_or(0, |attr| attr.ino),
                    small: entry.attr.as_ref().and_then(small_size),
                    is_folder: entry.attr.as_ref().is_some_and(is_folder),
                });
            }
            self.end = entry.next;
        }
        self.closed |= following == Following::Nothing;
        self.sequences = [const { None }; ORDERS.len()];
        self.folders = [const { None }; ORDERS.len()];
    }

    /// The index of the entry `name`.
    #[must_use]
    pub fn find(&self, name: &EntryName) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The number of entries; their indices are below it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The name of an entry.
    #[must_use]
    pub fn name(&self, index: usize) -> &EntryName {
        &self.entries[index].name
    }

    /// An entry, to be asked about.
    #[must_use]
    pub fn numbered(&self, index: usize) -> Numbered {
        let Listed { name, number, .. } = &self.entries[index];
        Numbered { name: name.clone(), number: *number }
    }

    /// As many of these entries, from the first on, as can be named in one request.
    #[must_use]
    pub fn nameable(&self, mut indices: Vec<usize>) -> Vec<usize> {
        let mut bytes = 0;
        let fits = |&index: &usize| {
            bytes += self.name(index).as_bytes().len() + NAME_COST;
            bytes <= MAX_NAMES
        };
        let count = indices.iter().copied().take_while(fits).count();
        indices.truncate(count);
        indices
    }

    /// The size of an entry that is a small file and not empty.
    #[must_use]
    pub fn small(&self, index: usize) -> Option<u32> {
        self.entries[index].small
    }

    /// Bytes that it takes, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many small files further `later` is than `earlier` in this order; `None` where it is
    /// not behind it, or where one of them is no small file.
    pub fn distance(&mut self, order: Order, earlier: usize, later: usize) -> Option<usize> {
        let ranks = &self.sequence(order).ranks;
        ranks.get(&later)?.checked_sub(*ranks.get(&earlier)?).filter(|&distance| distance > 0)
    }

    /// Whether this is the first small file in this order, with others behind it.
    pub fn is_first(&mut self, order: Order, index: usize) -> bool {
        let indices = &self.sequence(order).indices;
        indices.len() > 1 && indices[0] == index
    }

    /// The small files in this order, from the one with this index on.
    pub fn from(&mut self, order: Order, index: usize) -> &[usize] {
        let sequence = self.sequence(order);
        sequence.ranks.get(&index).map_or(&[], |&rank| &sequence.indices[rank..])
    }

    /// The folders in this order: all of them, or those behind the one called `behind`, none where
    /// there is no such.
    pub fn folders(&mut self, order: Order, behind: Option<&EntryName>) -> &[usize] {
        let Self { entries, by_name, folders, .. } = self;
        let Sequence { indices, ranks } = folders[order as usize]
            .get_or_insert_with(|| Sequence::of(entries, order, |entry| entry.is_folder));
        let Some(behind) = behind else { return indices };
        let rank = by_name.get(behind).and_then(|index| ranks.get(index));
        rank.map_or(&[], |&rank| &indices[rank + 1..])
    }

    fn sequence(&mut self, order: Order) -> &Sequence {
        let Self { entries, sequences, .. } = self;
        sequences[order as usize]
            .get_or_insert_with(|| Sequence::of(entries, order, |entry| entry.small.is_some()))
    }
}

impl Sequence {
    /// Those of `entries` that are `wanted`, in this order.
    fn of(entries: &[Listed], order: Order, wanted: impl Fn(&Listed) -> bool) -> Self {
        let mut indices: Vec<usize> =
            (0..entries.len()).filter(|&index| wanted(&entries[index])).collect();
        match order {
            Order::Listed => {}
            Order::Name => indices.sort_by_key(|&index| entries[index].name.as_bytes()),
            Order::Number => indices.sort_by_key(|&index| entries[index].number),
        }
        let ranks = indices.iter().enumerate().map(|(rank, &index)| (index, rank)).collect();
        Self { indices, ranks }
    }
}

fn small_size(attr: &Attr) -> Option<u32> {
    let size = u32::try_from(attr.size).ok()?;
    let is_small = (1..=MAX_SMALL_FILE).contains(&usize::try_from(size).ok()?);
    (is_small && attr.mode & libc::S_IFMT == libc::S_IFREG).then_some(size)
}

fn is_folder(attr: &Attr) -> bool {
    attr.mode & libc::S_IFMT == libc::S_IFDIR
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A folder's page with files of these names, numbers and sizes.
    pub fn page(files: &[(&str, u64, u64)]) -> Vec<DirEntry> {
        let entry = |(next, &(name, ino, size)): (u64, &(&str, u64, u64))| DirEntry {
            next,
            name: EntryName::new(name.as_bytes()).unwrap(),
            attr: Some(Attr { ino, size, mode: libc::S_IFREG | 0o644, ..Attr::default() }),
            target: None,
        };
        (1..).zip(files).map(entry).collect()
    }

    pub fn listing(files: &[(&str, u64, u64)]) -> Listing {
        let mut listing = Listing::default();
        listing.add(0, &page(files), Following::Nothing);
        listing
    }

    #[test]
    fn each_order_leaves_out_what_is_empty_or_large() {
        let large = MAX_SMALL_FILE as u64 + 1;
        let mut listing = listing(&[
            ("c", 7, 10),
            ("empty", 1, 0),
            ("a", 9, 10),
            ("large", 2, large),
            ("b", 8, large - 1),
        ]);
        let names = |listing: &Listing, indices: &[usize]| -> Vec<String> {
            indices
                .iter()
                .map(|&index| String::from_utf8(listing.name(index).as_bytes().to_vec()).unwrap())
                .collect()
        };
        for (order, expected) in [
            (Order::Listed, ["c", "a", "b"]),
            (Order::Name, ["a", "b", "c"]),
            (Order::Number, ["c", "b", "a"]),
        ] {
            let first = listing.find(&EntryName::new(expected[0].as_bytes()).unwrap()).unwrap();
            let indices = listing.from(order, first).to_vec();
            assert_eq!(names(&listing, &indices), expected);
            assert_eq!(listing.distance(order, indices[0], indices[2]), Some(2));
            assert_eq!(listing.distance(order, indices[2], indices[0]), None);
            assert_eq!(listing.distance(order, indices[0], indices[0]), None);
            let firsts = indices.iter().map(|&index| listing.is_first(order, index));
            assert_eq!(firsts.collect::<Vec<_>>(), [true, false, false]);
        }
        let empty = listing.find(&EntryName::new(b"empty").unwrap()).unwrap();
        assert_eq!(listing.distance(Order::Name, 0, empty), None);
        assert!(listing.from(Order::Name, empty).is_empty());
    }

    #[test]
    fn folders_have_an_order_of_their_own() {
        let mut entries = page(&[("b", 3, 1), ("file", 1, 1), ("c", 2, 1), ("a", 4, 1)]);
        for index in [0, 2, 3] {
            entries[index].attr.as_mut().unwrap().mode = libc::S_IFDIR | 0o755;
        }
        let mut listing = Listing::default();
        listing.add(0, &entries, Following::Nothing);
        let name = |text: &str| EntryName::new(text.as_bytes()).unwrap();
        for (order, expected) in
            [(Order::Listed, [0, 2, 3]), (Order::Name, [3, 0, 2]), (Order::Number, [2, 0, 3])]
        {
            assert_eq!(listing.folders(order, None), expected);
            let first = listing.name(expected[0]).clone();
            assert_eq!(listing.folders(order, Some(&first)), &expected[1..]);
            let last = listing.name(expected[2]).clone();
            assert!(listing.folders(order, Some(&last)).is_empty());
        }
        for none in ["file", "elsewhere"] {
            assert!(listing.folders(Order::Name, Some(&name(none))).is_empty());
        }
    }

    #[test]
    fn pages_are_added_in_their_order_and_once() {
        let mut listing = Listing::default();
        let (first, mut second) = (page(&[("a", 1, 1), ("b", 2, 1)]), page(&[("c", 3, 1)]));
        second[0].next = 9;
        listing.add(2, &second, Following::Nothing);
        assert_eq!(listing.len(), 0);
        listing.add(0, &first, Following::More);
        assert_eq!(listing.from(Order::Listed, 0).len(), 2);
        listing.add(0, &first, Following::More);
        listing.add(2, &second, Following::Nothing);
        listing.add(9, &first, Following::More);
        assert_eq!(listing.from(Order::Listed, 0).len(), 3);
    }

    #[test]
    fn a_name_that_is_there_twice_is_listed_once() {
        let listing = listing(&[("a", 1, 10), ("a", 2, 20)]);
        assert_eq!((listing.len(), listing.small(0)), (1, Some(10)));
    }

    #[test]
    fn only_so_many_are_named_at_once_as_fit_into_a_request() {
        let names: Vec<String> = (0..1000).map(|n| format!("{n:0200}")).collect();
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), 1, 1)).collect();
        let listing = listing(&files);
        let named = listing.nameable((5..1000).collect());
        assert_eq!(named, (5..5 + MAX_NAMES / 218).collect::<Vec<_>>());
        assert_eq!(listing.nameable(vec![7]), [7]);
    }

    #[test]
    fn a_listing_does_not_grow_without_end() {
        let mut listing = Listing::default();
        let name = "x".repeat(200);
        for n in 0..100_000u64 {
            let mut page = page(&[(&format!("{name}{n}"), n, 1)]);
            page[0].next = n + 1;
            listing.add(n, &page, Following::More);
        }
        assert!(listing.bytes() <= MAX_BYTES && listing.len() < 100_000);
    }
}
