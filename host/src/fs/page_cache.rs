//! Filling the kernel's page cache ahead of those who read a file from front to back.
//!
//! The kernel asks for 128 KiB at a time, and wakes somebody for each. So what follows is put into
//! its page cache unasked (`FUSE_NOTIFY_STORE`), where a file is read past the VM: by threads that
//! answered the reader, who takes what he has meanwhile. At a distance from him, since the kernel's
//! own requests go ahead of him as well, and no further than he has come: whoever stops has cost
//! little, and whoever reads here and there nothing.
//!
//! One such thread keeps one processor busy, while the reader waits for an answer now and then and
//! leaves the other idle; with two, a file comes a tenth sooner.
//!
//! The kernel makes a file longer that is stored to behind its end, and older ones do not clear the
//! rest of its last page. So that is left to be asked for.
//! Source: `fuse_notify_store()` in fs/fuse/dev.c.

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use fuser::{INodeNo, Notifier};
use guestmnt_protocol::message::Layout;
use log::{debug, trace};

use super::TRACE;
use super::nodes::NodeId;
use super::operations::Operations;
use super::runs;
use super::sequence::Sequence;
use super::splice::Splice;
use super::stats::Ahead;
use crate::disk::DiskReader;

/// Bytes that are stored at once, and what their places are multiples of: whole pages, whatever the
/// size of a page.
const CHUNK: u32 = 128 << 10;

/// Bytes read in sequence before anything is stored.
const MIN_LENGTH: u64 = 256 << 10;

/// Bytes between the furthest that the kernel asked for and what is stored. With less, the kernel
/// gets there while it is being stored, and both wait for each other's pages.
const MAX_DISTANCE: u64 = 2 << 20;

/// Bytes behind that distance that are stored before the kernel asks for more.
const MAX_AHEAD: u64 = 16 << 20;

/// Files whose readers are watched.
const MAX_FILES: usize = 32;

/// Threads of which one may store. A page may be waited for until another has answered for it.
const THREADS: usize = 4;

/// Threads that may store what is in one file.
const MAX_STORING: usize = 2;

/// The kernel's page cache, and who reads what.
pub struct PageCache {
    /// The way to it, once there is one.
    connection: OnceLock<Connection>,
    /// Threads that may store at once.
    most: usize,
    state: Mutex<State>,
}

struct Connection {
    notifier: Notifier,
    splice: Splice,
}

#[derive(Default)]
struct State {
    /// The latest last.
    files: Vec<File>,
    /// The files that are stored, each once for each thread that does.
    storing: Vec<NodeId>,
}

/// A file that is being read.
struct File {
    node: NodeId,
    sequence: Sequence,
    /// Where the next chunk is stored, unless that is at or behind `until`.
    next: u64,
    until: u64,
}

/// That this thread stores what is in a file, until this is dropped.
struct Storing<'a> {
    cache: &'a PageCache,
    node: NodeId,
}

impl PageCache {
    /// Filled by some of the `threads` that answer the kernel, once it is connected.
    #[must_use]
    pub fn of(threads: usize) -> Self {
        Self { connection: OnceLock::new(), most: threads / THREADS, state: Mutex::default() }
    }

    /// Threads that may store at once, and answer nobody meanwhile.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Has it filled through `notifier` and `splice`.
    pub fn connect(&self, notifier: Notifier, splice: Splice) {
        // It is connected once.
        let _ = self.connection.set(Connection { notifier, splice });
    }

    /// Forgets a node, whose number may be given to another file.
    pub fn forget(&self, node: NodeId) {
        self.state().files.retain(|file| file.node != node);
    }

    /// Takes note of a request that was answered, and says whether this thread is to store what
    /// follows.
    fn begin(&self, node: NodeId, offset: u64, size: u64) -> Option<Storing<'_>> {
        let begins = self.state().note(self.most, node, offset, size);
        begins.then(|| Storing { cache: self, node })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic may have left behind is a file of which nothing more is stored.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storing<'_> {
    /// Where the next chunk of the file is, which has `size` bytes. `None` where none is to be stored
    /// for now.
    fn next(&self, size: u64) -> Option<u64> {
        self.cache.state().next(self.node, size)
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.cache.state().end(self.node);
    }
}

impl State {
    fn note(&mut self, most: usize, node: NodeId, offset: u64, size: u64) -> bool {
        let known = self.files.iter().position(|file| file.node == node);
        let mut file = match known {
            Some(index) => self.files.remove(index),
            None => File::at(node, offset),
        };
        file.note(offset, size);
        let at_it = self.storing.iter().filter(|stored| **stored == node).count();
        let is_free = at_it < MAX_STORING && self.storing.len() < most;
        let begins = is_free && file.next < file.until;
        if begins {
            self.storing.push(node);
        }
        if self.files.len() == MAX_FILES {
            self.files.remove(0);
        }
        self.files.push(file);
        begins
    }

    fn next(&mut self, node: NodeId, size: u64) -> Option<u64> {
        let file = self.files.iter_mut().find(|file| file.node == node)?;
        let (start, end) = (file.next, file.next.checked_add(CHUNK.into())?);
        if start >= file.until || end > size {
            return None;
        }
        file.next = end;
        Some(start)
    }

    fn end(&mut self, node: NodeId) {
        if let Some(index) = self.storing.iter().position(|stored| *stored == node) {
            self.storing.swap_remove(index);
        }
    }
}

impl File {
    fn at(node: NodeId, offset: u64) -> Self {
        Self { node, sequence: Sequence::at(offset), next: 0, until: 0 }
    }

    fn note(&mut self, offset: u64, size: u64) {
        if !self.sequence.note(offset, size, self.next) {
            (self.next, self.until) = (0, 0);
        }
        let Sequence { next, length, .. } = self.sequence;
        if length < MIN_LENGTH {
            return;
        }
        let from = next.saturating_add(length.min(MAX_DISTANCE));
        let from = from.checked_next_multiple_of(CHUNK.into()).unwrap_or(u64::MAX);
        self.next = self.next.max(from);
        self.until = from.saturating_add(length.min(MAX_AHEAD));
    }
}

impl Connection {
    /// Stores the chunk at `start` of a file with this layout on `disk`, and tells how. `buffer` is
    /// for what cannot be spliced, such as more pieces than a pipe holds.
    fn store(
        &self,
        node: NodeId,
        start: u64,
        disk: &DiskReader,
        layout: &Layout,
        buffer: &mut Vec<u8>,
    ) -> io::Result<Ahead> {
        let length = CHUNK as usize;
        let spliced = self
            .splice
            .store(node, start, CHUNK, |take| runs::pieces(disk, layout, start, length, take));
        if spliced.is_ok() {
            return Ok(Ahead::Spliced);
        }
        runs::fill(disk, layout, start, length, buffer)?;
        self.notifier.store(INodeNo(node.0), start, buffer)?;
        Ok(Ahead::Copied)
    }
}

impl Operations {
    /// Puts what follows `size` bytes at `offset` of the file `id`, which the kernel was just given
    /// from the images, into its page cache, where that is worth it.
    pub fn store_ahead(&self, id: NodeId, offset: u64, size: u32) {
        let (Some(kept), Some(connection)) = (&self.kept, self.page_cache.connection.get()) else {
            return;
        };
        let Some(storing) = self.page_cache.begin(id, offset, size.into()) else { return };
        // What is stored under its number must be in this file.
        if !self.nodes.hold(id) {
            return;
        }
        let length = self.nodes.entry(id).map_or(0, |entry| entry.size);
        self.buffers.with(|buffer| {
            while let Some(start) = storing.next(length) {
                let started = Instant::now();
                let end = start + u64::from(CHUNK);
                let Some((layout, disk)) = kept.layouts.known_up_to(id, end) else { break };
                // The kernel may know the file no more, or have ended.
                let how = match connection.store(id, start, disk, &layout, buffer) {
                    Ok(how) => how,
                    Err(error) => return debug!("the kernel takes nothing ahead: {error}"),
                };
                self.stats.ahead.request(how);
                self.stats.ahead.bytes(CHUNK as usize);
                let took = started.elapsed().as_micros();
                let path = || self.nodes.path(id).map_or_else(|_| String::new(), |p| p.to_string());
                trace!(target: TRACE, "store {} {CHUNK}@{start}: ok ({took} us)", path());
                // The reader, or who answers him, may be waiting for this processor. The kernel would
                // have him wait for milliseconds.
                thread::yield_now();
            }
        });
        self.nodes.forget(id, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);
    const REQUEST: u64 = 128 << 10;
    const LARGE: u64 = 1 << 40;

    /// Takes note of a request, and gives the chunks that are to be stored by then.
    fn request(state: &mut State, node: NodeId, offset: u64) -> Vec<u64> {
        if !state.note(1, node, offset, REQUEST) {
            return Vec::new();
        }
        let chunks = std::iter::from_fn(|| state.next(node, LARGE)).collect();
        state.end(node);
        chunks
    }

    #[test]
    fn as_much_is_stored_as_was_read_at_a_distance() {
        let mut state = State::default();
        assert_eq!(request(&mut state, NODE, 0), [0u64; 0]);
        assert_eq!(request(&mut state, NODE, REQUEST), [4, 5].map(|n| n * REQUEST));
        assert_eq!(request(&mut state, NODE, 2 * REQUEST), [6, 7, 8].map(|n| n * REQUEST));
        let mut stored = Vec::new();
        for n in 3..200 {
            if !stored.contains(&(n * REQUEST)) {
                stored.extend(request(&mut state, NODE, n * REQUEST));
            }
        }
        let last = state.files[0].sequence.next;
        assert!(stored.is_sorted() && stored.len() > 150, "{stored:?}");
        assert!(stored.iter().all(|&chunk| chunk < last + MAX_DISTANCE + MAX_AHEAD));
    }

    #[test]
    fn nothing_is_stored_that_the_file_does_not_have_whole() {
        let mut state = State::default();
        state.note(1, NODE, 0, 4 * REQUEST);
        let first = 8 * REQUEST;
        assert_eq!(state.next(NODE, first + REQUEST - 1), None);
        assert_eq!(state.next(NODE, first + REQUEST), Some(first));
        assert_eq!(state.next(NODE, first + REQUEST), None);
    }

    #[test]
    fn who_reads_here_and_there_gets_nothing() {
        let mut state = State::default();
        for n in 0..1000u64 {
            let offset = n * 7_919 % 1000 * (1 << 24);
            assert_eq!(request(&mut state, NODE, offset), [0u64; 0], "request {n}");
        }
    }

    #[test]
    fn a_file_is_stored_by_two_threads_and_few_threads_store() {
        let mut state = State::default();
        let begins = |state: &mut State, node| state.note(3, NodeId(node), 0, 4 * REQUEST);
        assert!(begins(&mut state, 1));
        assert!(begins(&mut state, 1));
        assert!(!begins(&mut state, 1), "two threads store it");
        assert!(begins(&mut state, 2));
        assert!(!begins(&mut state, 3), "three threads store");
        state.end(NodeId(1));
        assert!(begins(&mut state, 3));
        assert!(!begins(&mut state, 1), "three threads store");
        assert_eq!(state.storing.len(), 3);
    }

    #[test]
    fn two_threads_store_each_chunk_once() {
        let cache = PageCache::of(2 * THREADS);
        let [one, other] = [4, 8].map(|size| cache.begin(NODE, 0, size * REQUEST).unwrap());
        let chunks: Vec<u64> =
            [&one, &other].into_iter().cycle().map_while(|storing| storing.next(LARGE)).collect();
        assert!(chunks.len() >= 8 && chunks.is_sorted_by(|a, b| a < b), "{chunks:?}");
    }

    #[test]
    fn nothing_more_is_stored_of_a_file_that_was_forgotten() {
        let cache = PageCache::of(THREADS);
        assert!(cache.begin(NODE, 0, REQUEST).is_none());
        let storing = cache.begin(NODE, REQUEST, 4 * REQUEST).unwrap();
        assert!(storing.next(LARGE).is_some());
        cache.forget(NODE);
        assert_eq!(storing.next(LARGE), None);
        // Another file of this number.
        assert!(cache.begin(NODE, 0, REQUEST).is_none());
        drop(storing);
        assert_eq!(cache.state().storing, []);
        assert!(cache.begin(NODE, REQUEST, 4 * REQUEST).is_some());
    }

    #[test]
    fn readers_of_many_files_stay_within_the_bounds() {
        let mut state = State::default();
        for n in 0..1000 {
            (0..4).for_each(|at| drop(request(&mut state, NodeId(n + 2), at * REQUEST)));
        }
        assert!(state.files.len() <= MAX_FILES);
        assert_eq!(state.storing, []);
    }

    #[test]
    fn no_numbers_are_too_large() {
        let numbers = [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        for (offset, size) in numbers.into_iter().flat_map(|at| numbers.map(|size| (at, size))) {
            let mut state = State::default();
            state.note(1, NODE, offset, size);
            state.note(1, NODE, offset, size);
            while state.next(NODE, u64::MAX).is_some() {}
        }
    }
}
