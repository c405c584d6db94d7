//! Which small files of a folder are worth being fetched together, and what was fetched.
//!
//! A program that reads one small file after the other would wait for a round trip and for the
//! disk with each. Once it has read two that follow each other in one of the usual orders, those
//! that come next are fetched in batches, the next batch while one is being used. In the folders
//! that it comes to afterwards, the first file in that order is enough. A reader that goes
//! elsewhere ends that: nothing is fetched for a reader who jumps about.
//!
//! Bytes are kept until the kernel has them, which keeps them itself.

use std::collections::HashMap;
use std::sync::Arc;

use guestmnt_protocol::batch::{Planned, Stored, Wanted};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use nix::errno::Errno;

use super::listing::{Listing, ORDERS, Order};

/// Files of the first batch: the reader waits for all of them, and may stop after the next.
const FIRST_BATCH: usize = 128;

/// Files that may fit into a batch: each takes a sector at least.
const MAX_BATCH: usize = MAX_PAYLOAD / 512;

/// The next batch is fetched when no more bytes than these wait to be read.
const FEW_BYTES: usize = MAX_PAYLOAD / 2;

/// How many files a reader who has an order may leave out: the kernel may have them.
const SKIP: usize = 4;

/// The order in which the last folders were read.
pub type Habit = Option<Order>;

/// A file of a folder.
enum State {
    /// It is being fetched.
    Coming,
    /// It was fetched, and the kernel does not have it yet.
    Here(Arc<[u8]>),
    /// It is known where it is.
    Stored(Stored),
    /// The kernel has it.
    Given,
    /// It could not be fetched with others, and is not tried again.
    Alone,
}

/// How a folder's small files are being read.
#[derive(Default)]
pub struct SmallFiles {
    /// The file that was read last.
    last: Option<usize>,
    /// The order in which they are read, as long as they are.
    order: Option<Order>,
    /// Whether a batch was fetched since there is an order.
    begun: bool,
    states: HashMap<usize, State>,
    coming: usize,
    held_bytes: usize,
}

/// What was fetched of a file: all of it, or where all of it is.
pub enum Arrived {
    /// Its bytes.
    Bytes(Arc<[u8]>),
    /// Their place.
    Stored(Stored),
}

/// Where a file's bytes are to be had.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// Here is all of it.
    Here(Arc<[u8]>),
    /// All of it is on a disk.
    Stored(Stored),
    /// It is being fetched: wait, and ask again.
    Coming,
    /// It has to be fetched, together with those that follow it; these are the files.
    Batch(Vec<usize>),
    /// It has to be read by itself.
    Guest,
}

impl SmallFiles {
    /// Where to take the file `index` from, which is read from byte `offset` on.
    pub fn source(
        &mut self,
        listing: &mut Listing,
        index: usize,
        offset: u64,
        habit: &mut Habit,
    ) -> Source {
        match self.states.get(&index) {
            Some(State::Here(bytes)) => {
                let bytes = Arc::clone(bytes);
                self.last = Some(index);
                return Source::Here(bytes);
            }
            Some(State::Stored(stored)) => {
                let stored = *stored;
                self.last = Some(index);
                return Source::Stored(stored);
            }
            Some(State::Coming) => return Source::Coming,
            Some(State::Alone) => return Source::Guest,
            // Somebody reads the folder once more.
            Some(State::Given) if offset == 0 => {
                self.states.retain(|_, state| !matches!(state, State::Given));
            }
            Some(State::Given) | None => {}
        }
        if offset > 0 || listing.small(index).is_none() {
            return Source::Guest;
        }
        let order = match self.last.replace(index) {
            Some(last) => {
                *habit = self.follows(listing, last, index);
                *habit
            }
            None => habit.filter(|&order| listing.is_first(order, index)),
        };
        self.begun &= order.is_some() && order == self.order;
        self.order = order;
        match order {
            Some(order) => Source::Batch(self.pick(listing, order, index)),
            None => {
                self.states.insert(index, State::Given);
                Source::Guest
            }
        }
    }

    /// The order in which `index` comes next after `last`.
    fn follows(&self, listing: &mut Listing, last: usize, index: usize) -> Option<Order> {
        let mut within = |order, most| {
            listing.distance(order, last, index).is_some_and(|distance| distance <= most)
        };
        let kept = self.order.filter(|&order| within(order, SKIP));
        kept.or_else(|| ORDERS.into_iter().find(|&order| within(order, 1)))
    }

    /// The next batch, where it is time to fetch one before it is asked for.
    pub fn next_batch(&mut self, listing: &mut Listing) -> Option<Vec<usize>> {
        let (order, last) = (self.order?, self.last?);
        if self.coming > 0 || self.held_bytes > FEW_BYTES {
            return None;
        }
        let batch = self.pick(listing, order, last);
        (!batch.is_empty()).then_some(batch)
    }

    /// The files from `index` on that nothing is known of, as many as one request brings. They
    /// are coming then.
    fn pick(&mut self, listing: &mut Listing, order: Order, index: usize) -> Vec<usize> {
        let most = if self.begun { MAX_BATCH } else { FIRST_BATCH };
        self.begun = true;
        let candidates: Vec<usize> = listing
            .from(order, index)
            .iter()
            .copied()
            .filter(|index| !self.states.contains_key(index))
            .take(most)
            .collect();
        let mut planned = Planned::default();
        let mut fits = |&index: &usize| listing.small(index).is_some_and(|size| planned.add(size));
        let mut picked = listing.nameable(candidates);
        let count = picked.iter().take_while(|index| fits(index)).count();
        picked.truncate(count);
        self.coming += picked.len();
        self.states.extend(picked.iter().map(|&index| (index, State::Coming)));
        picked
    }

    /// A file of a batch has arrived, or its error. What is not as long as the listing says is not
    /// used: whoever reads it gets what the guest says of it alone.
    pub fn arrived(&mut self, listing: &Listing, index: usize, file: Result<Arrived, Errno>) {
        if !matches!(self.states.get(&index), Some(State::Coming)) {
            return;
        }
        self.coming -= 1;
        let wanted = listing.small(index);
        let state = match file {
            Ok(Arrived::Bytes(bytes)) if u32::try_from(bytes.len()).ok() == wanted => {
                self.held_bytes += bytes.len();
                State::Here(bytes)
            }
            Ok(Arrived::Stored(stored)) if Some(stored.length) == wanted => State::Stored(stored),
            _ => State::Alone,
        };
        self.states.insert(index, state);
    }

    /// A file of a batch will not arrive, since the batch failed as a whole. No more are fetched.
    pub fn failed(&mut self, index: usize) {
        if matches!(self.states.get(&index), Some(State::Coming)) {
            self.coming -= 1;
            self.states.insert(index, State::Alone);
        }
        self.order = None;
    }

    /// A file cannot be read where it is said to be.
    pub fn misplaced(&mut self, index: usize) {
        self.states.insert(index, State::Alone);
    }

    /// The kernel has the bytes of the file up to `end`; with the last one the file is let go.
    pub fn given(&mut self, index: usize, end: usize) {
        if let Some(State::Here(bytes)) = self.states.get(&index)
            && end >= bytes.len()
        {
            self.held_bytes -= bytes.len();
            self.states.insert(index, State::Given);
        }
    }

    /// Bytes that are kept, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.held_bytes + self.states.len() * 64
    }
}

/// The files of a batch as they are asked for.
#[must_use]
pub fn wanted(listing: &Listing, batch: &[usize]) -> Vec<Wanted> {
    let wanted = |&index: &usize| {
        Some(Wanted { file: listing.numbered(index), size: listing.small(index)? })
    };
    batch.iter().filter_map(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::super::listing::tests::listing;
    use super::*;

    const COUNT: usize = 200;

    /// Files whose names go up and whose numbers go down.
    fn folder() -> Listing {
        let names: Vec<String> = (0..COUNT).map(|n| format!("{n:03}")).collect();
        let files: Vec<_> =
            (0..).zip(&names).map(|(n, name)| (name.as_str(), 1000 - n, 10 + n)).collect();
        listing(&files)
    }

    /// Reads a file as the kernel does; returns the batches that were fetched for it.
    fn read(files: &mut SmallFiles, listing: &mut Listing, index: usize) -> Vec<Vec<usize>> {
        let mut batches = Vec::new();
        loop {
            match files.source(listing, index, 0, &mut None) {
                Source::Here(bytes) => {
                    assert_eq!(bytes[0], u8::try_from(index).unwrap());
                    files.given(index, bytes.len());
                    batches.extend(files.next_batch(listing));
                    return batches;
                }
                Source::Guest => return batches,
                Source::Stored(stored) => {
                    assert_eq!(stored.place, index as u64);
                    batches.extend(files.next_batch(listing));
                    return batches;
                }
                Source::Coming => {
                    let batch = batches.last().unwrap().clone();
                    arrive(files, listing, &batch);
                }
                Source::Batch(batch) => {
                    arrive(files, listing, &batch);
                    batches.push(batch);
                }
            }
        }
    }

    fn arrive(files: &mut SmallFiles, listing: &Listing, batch: &[usize]) {
        for &index in batch {
            let size = listing.small(index).unwrap() as usize;
            let bytes = vec![u8::try_from(index).unwrap(); size];
            files.arrived(listing, index, Ok(Arrived::Bytes(bytes.into())));
        }
    }

    fn read_all(order: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
        let (mut files, mut listing) = (SmallFiles::default(), folder());
        let mut batches = Vec::new();
        for index in order {
            let new = read(&mut files, &mut listing, index);
            for batch in &new {
                arrive(&mut files, &listing, batch);
            }
            batches.extend(new);
        }
        assert_eq!((files.held_bytes, files.coming), (0, 0));
        batches
    }

    #[test]
    fn files_that_are_read_in_order_come_in_two_batches() {
        let forward: Vec<usize> = (0..COUNT).collect();
        let expected = [forward[1..129].to_vec(), forward[129..].to_vec()];
        assert_eq!(read_all(forward.iter().copied()), expected);
        let backward = read_all((0..COUNT).rev());
        assert_eq!(backward.iter().map(Vec::len).collect::<Vec<_>>(), [128, 71]);
    }

    #[test]
    fn nothing_is_fetched_for_a_reader_who_jumps_about() {
        assert_eq!(read_all((0..COUNT).map(|n| n * 37 % COUNT)), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_reader_who_goes_elsewhere_ends_the_fetching() {
        let (mut files, mut listing) = (SmallFiles::default(), folder());
        assert!(read(&mut files, &mut listing, COUNT - 2).is_empty());
        assert_eq!(read(&mut files, &mut listing, COUNT - 1), [[COUNT - 1]]);
        for index in [50, 10, 70, 30] {
            assert!(read(&mut files, &mut listing, index).is_empty(), "{index}");
        }
        assert_eq!(files.next_batch(&mut listing), None);
    }

    #[test]
    fn a_folder_that_is_read_again_is_fetched_again() {
        let twice = read_all((0..COUNT).chain(0..COUNT));
        assert_eq!(twice.iter().map(Vec::len).sum::<usize>(), 2 * (COUNT - 1));
    }

    #[test]
    fn an_order_that_was_seen_holds_for_the_folders_that_follow() {
        let mut habit = None;
        let first =
            |index, habit: &mut Habit| SmallFiles::default().source(&mut folder(), index, 0, habit);
        assert_eq!(first(COUNT - 1, &mut habit), Source::Guest);
        let (mut files, mut listing) = (SmallFiles::default(), folder());
        files.source(&mut listing, 51, 0, &mut habit);
        assert!(matches!(files.source(&mut listing, 50, 0, &mut habit), Source::Batch(_)));
        // By number it is the first, by name the last.
        assert!(matches!(first(COUNT - 1, &mut habit), Source::Batch(_)));
        assert_eq!(first(0, &mut habit), Source::Guest);
        let (mut files, mut listing) = (SmallFiles::default(), folder());
        files.source(&mut listing, 3, 0, &mut habit);
        files.source(&mut listing, 90, 0, &mut habit);
        assert_eq!(first(COUNT - 1, &mut habit), Source::Guest);
    }

    #[test]
    fn bytes_of_another_length_than_the_listings_are_not_used() {
        let (mut files, mut listing) = (SmallFiles::default(), folder());
        assert_eq!(files.source(&mut listing, 0, 0, &mut None), Source::Guest);
        let Source::Batch(batch) = files.source(&mut listing, 1, 0, &mut None) else { panic!() };
        for (index, length) in [(1, 10), (2, 13), (3, 0)] {
            files.arrived(&listing, index, Ok(Arrived::Bytes(vec![0; length].into())));
        }
        files.arrived(&listing, 4, Err(Errno::EIO));
        for index in 1..5 {
            assert_eq!(files.source(&mut listing, index, 0, &mut None), Source::Guest, "{index}");
        }
        assert_eq!(files.source(&mut listing, 5, 0, &mut None), Source::Coming);
        batch.into_iter().for_each(|index| files.failed(index));
        assert_eq!(files.source(&mut listing, 5, 0, &mut None), Source::Guest);
        assert_eq!((files.coming, files.next_batch(&mut listing)), (0, None));
        // What nobody asked for is nobody's.
        files.arrived(&listing, 199, Ok(Arrived::Bytes([0; 209].into())));
        assert_eq!(files.source(&mut listing, 199, 0, &mut None), Source::Guest);
    }

    #[test]
    fn a_place_is_kept_for_ever_unless_it_is_wrong() {
        let (mut files, mut listing) = (SmallFiles::default(), folder());
        let stored = |place, length| Stored { disk: 0, place, length };
        assert_eq!(files.source(&mut listing, 0, 0, &mut None), Source::Guest);
        assert!(matches!(files.source(&mut listing, 1, 0, &mut None), Source::Batch(_)));
        for (index, length) in [(1, 11), (2, 11), (3, 13)] {
            let file = Arrived::Stored(stored(index as u64, length));
            files.arrived(&listing, index, Ok(file));
        }
        for _ in 0..2 {
            assert_eq!(files.source(&mut listing, 1, 0, &mut None), Source::Stored(stored(1, 11)));
            files.given(1, 4096);
        }
        assert_eq!(files.source(&mut listing, 2, 0, &mut None), Source::Guest);
        files.misplaced(3);
        assert_eq!(files.source(&mut listing, 3, 0, &mut None), Source::Guest);
    }

    #[test]
    fn a_file_is_kept_until_the_kernel_has_its_end() {
        let (mut files, mut listing) = (SmallFiles::default(), folder());
        assert_eq!(files.source(&mut listing, 0, 0, &mut None), Source::Guest);
        assert!(matches!(files.source(&mut listing, 1, 0, &mut None), Source::Batch(_)));
        arrive(&mut files, &listing, &[1]);
        files.given(1, 4);
        assert!(matches!(files.source(&mut listing, 1, 4, &mut None), Source::Here(_)));
        files.given(1, 4096);
        assert_eq!(files.source(&mut listing, 1, 4, &mut None), Source::Guest);
    }
}
