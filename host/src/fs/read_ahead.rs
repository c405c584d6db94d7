//! Reading ahead of those who read a file from front to back.
//!
//! The kernel never asks for more than 128 KiB, and a trip to the guest costs as much for that as
//! for a MiB. So once a file is being read in sequence, pieces of a MiB are fetched before they are
//! asked for, and the kernel's requests are served from them. Whoever reads here and there is left
//! alone: nothing is fetched that nobody asked for.
//!
//! A piece is gone once it was handed out whole, since the kernel keeps what it was given. Nobody waits
//! for one that is not being fetched yet: the threads may be busy with a file that is slow.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::path::GuestPath;
use log::debug;
use nix::errno::Errno;

use super::nodes::NodeId;
use super::sequence::Sequence;
use crate::guest::{Guest, Piece};

/// Bytes of a piece.
const PIECE: u64 = MAX_PAYLOAD as u64;

/// Pieces that are kept or fetched at once, for all files.
const MAX_PIECES: usize = 8;

/// How far ahead of a reader pieces are fetched.
const AHEAD: u64 = 3 * PIECE;

/// Bytes read in sequence before anything is fetched.
const MIN_RUN: u64 = 256 << 10;

/// What pieces begin at multiples of, which reading past the guest's page cache takes.
const ALIGNMENT: u64 = 4096;

/// Files whose readers are watched.
const MAX_RUNS: usize = 32;

/// Threads that fetch. While the guest works on one piece, the next is on its way.
const WORKERS: usize = 2;

/// Reads files of a guest, ahead where that is worth it.
pub struct ReadAhead {
    shared: Arc<Shared>,
}

struct Shared {
    guest: Arc<Guest>,
    state: Mutex<State>,
    /// A piece has come, or one is wanted, or it is over.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Who reads what, the latest last.
    runs: Vec<Run>,
    /// The oldest first.
    pieces: Vec<Ahead>,
    wanted: VecDeque<Wanted>,
    workers: usize,
    ended: bool,
}

/// A file that is being read.
struct Run {
    node: NodeId,
    sequence: Sequence,
    /// Behind the last byte that was or will be fetched ahead.
    ahead: u64,
    /// A piece showed that the file ends before `ahead`.
    ended: bool,
}

/// A piece, on its way or here.
struct Ahead {
    node: NodeId,
    start: u64,
    /// `None` while it is on its way.
    piece: Option<Arc<Piece>>,
    /// Bytes that nobody has asked for yet.
    left: u64,
}

struct Wanted {
    node: NodeId,
    path: GuestPath,
    start: u64,
}

impl ReadAhead {
    /// Of the files of `guest`.
    #[must_use]
    pub fn of(guest: Arc<Guest>) -> Self {
        let state = Mutex::default();
        Self { shared: Arc::new(Shared { guest, state, changed: Condvar::new() }) }
    }

    /// Hands up to `size` bytes at `offset` of the file `node` to `take`; fewer come only at the
    /// file's end. `path` is asked for where the guest has to be.
    ///
    /// # Errors
    /// The guest's error, or `EIO`, or that of `path`; `take` was not called then.
    pub fn read(
        &self,
        node: NodeId,
        path: impl Fn() -> Result<GuestPath, Errno>,
        offset: u64,
        size: u32,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), Errno> {
        let Shared { guest, state: _, changed } = &*self.shared;
        let mut state = self.shared.lock();
        if let Some(start) = state.note(node, offset, u64::from(size)) {
            let path = path()?;
            if state.want(node, path, start) && state.workers < WORKERS {
                self.start_worker(&mut state);
            }
            changed.notify_all();
        }
        while let Some(index) = state.covering(node, offset, u64::from(size)) {
            let Some(piece) = state.pieces[index].piece.clone() else {
                state = match state.take_back(index) {
                    Some(wanted) => self.shared.fetch(state, wanted),
                    None => changed.wait(state).expect(NO_PANIC),
                };
                continue;
            };
            let start = state.pieces[index].start;
            state.hand_out(index, u64::from(size));
            drop(state);
            let bytes = piece.bytes();
            let part = within(offset - start, size, bytes.len());
            take(&bytes[part]);
            return Ok(());
        }
        drop(state);
        guest.read(path()?, offset, size, take)
    }

    /// Forgets a node, whose number may be given to another file.
    pub fn forget(&self, node: NodeId) {
        let mut state = self.shared.lock();
        state.runs.retain(|run| run.node != node);
        state.wanted.retain(|wanted| wanted.node != node);
        state.pieces.retain(|ahead| ahead.node != node);
    }

    fn start_worker(&self, state: &mut State) {
        let shared = Arc::clone(&self.shared);
        let worker = thread::Builder::new().name("read-ahead".to_owned());
        match worker.spawn(move || shared.fetch_wanted()) {
            Ok(_) => state.workers += 1,
            Err(error) => {
                debug!("no thread to read ahead: {error}");
                state.forget_wanted();
            }
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.forget_wanted();
        self.shared.changed.notify_all();
    }
}

/// Nothing that holds the state panics.
const NO_PANIC: &str = "nothing panics while it holds the pieces";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }

    /// Fetches what is wanted, until there is nobody left to want it.
    fn fetch_wanted(&self) {
        let mut state = self.lock();
        while !state.ended {
            state = match state.wanted.pop_front() {
                Some(wanted) => self.fetch(state, wanted),
                None => self.changed.wait(state).expect(NO_PANIC),
            };
        }
    }

    /// Fetches a piece, and wakes those who wait for it.
    fn fetch<'a>(&'a self, state: MutexGuard<'a, State>, wanted: Wanted) -> MutexGuard<'a, State> {
        drop(state);
        let Wanted { node, path, start } = wanted;
        let size = u32::try_from(PIECE).expect("a payload's length fits");
        let fetched = self.guest.read_piece(path, start, size);
        let mut state = self.lock();
        state.arrived(node, start, fetched.ok());
        self.changed.notify_all();
        state
    }
}

impl State {
    /// Takes note of a request. Returns from where on a piece should be fetched, if one should.
    fn note(&mut self, node: NodeId, offset: u64, size: u64) -> Option<u64> {
        let known = self.runs.iter().position(|run| run.node == node);
        let mut run = match known {
            Some(index) => self.runs.remove(index),
            None => Run::at(node, offset),
        };
        if !run.sequence.note(offset, size, 0) {
            (run.ahead, run.ended) = (0, false);
        }
        let Sequence { next, length, .. } = run.sequence;
        let start = run.ahead.max(next.next_multiple_of(ALIGNMENT));
        let worth = length >= MIN_RUN && !run.ended && start < next + AHEAD;
        if self.runs.len() == MAX_RUNS {
            self.runs.remove(0);
        }
        self.runs.push(run);
        worth.then_some(start)
    }

    /// Wants the pieces of a run from `start` on. False where there is no room for one.
    fn want(&mut self, node: NodeId, path: GuestPath, mut start: u64) -> bool {
        let Some(run) = self.runs.iter_mut().find(|run| run.node == node) else { return false };
        let mut wanted = false;
        while start < run.sequence.next + AHEAD {
            if self.pieces.len() == MAX_PIECES {
                // The oldest that somebody has not read to its end; he will not any more.
                let Some(idle) = self.pieces.iter().position(Ahead::is_idle) else { break };
                self.pieces.remove(idle);
            }
            // It may be there from an earlier beginning of the run.
            if !self.pieces.iter().any(|ahead| ahead.node == node && ahead.start == start) {
                self.pieces.push(Ahead { node, start, piece: None, left: PIECE });
                self.wanted.push_back(Wanted { node, path: path.clone(), start });
            }
            start += PIECE;
            run.ahead = start;
            wanted = true;
        }
        wanted
    }

    /// The piece that all of a request is in, if there is one.
    fn covering(&self, node: NodeId, offset: u64, size: u64) -> Option<usize> {
        self.pieces.iter().position(|ahead| {
            ahead.node == node
                && ahead.start <= offset
                && offset.saturating_add(size) <= ahead.start + PIECE
        })
    }

    /// A piece that is wanted and not being fetched yet, to be fetched by who needs it now.
    fn take_back(&mut self, index: usize) -> Option<Wanted> {
        let Ahead { node, start, .. } = self.pieces[index];
        let is_it = |wanted: &Wanted| wanted.node == node && wanted.start == start;
        let place = self.wanted.iter().position(is_it)?;
        self.wanted.remove(place)
    }

    /// Notes that `size` bytes of a piece that is here were asked for.
    fn hand_out(&mut self, index: usize, size: u64) {
        let ahead = &mut self.pieces[index];
        ahead.left = ahead.left.saturating_sub(size);
        if ahead.left == 0 {
            self.pieces.remove(index);
        }
    }

    /// Takes a piece that has come, or could not be had: then the next request for it asks the
    /// guest again, and fails itself if it must.
    fn arrived(&mut self, node: NodeId, start: u64, piece: Option<Piece>) {
        let length = piece.as_ref().map_or(0, |piece| piece.bytes().len() as u64);
        if length < PIECE {
            let run = self.runs.iter_mut().find(|run| run.node == node);
            if let Some(run) = run {
                run.ended = true;
            }
        }
        let is_it =
            |ahead: &Ahead| ahead.node == node && ahead.start == start && ahead.piece.is_none();
        let Some(index) = self.pieces.iter().position(is_it) else { return };
        match piece {
            Some(piece) if length > 0 => {
                let ahead = &mut self.pieces[index];
                ahead.piece = Some(Arc::new(piece));
                ahead.left = length;
            }
            _ => drop(self.pieces.remove(index)),
        }
    }

    fn forget_wanted(&mut self) {
        self.wanted.clear();
        self.pieces.retain(|ahead| ahead.piece.is_some());
    }
}

impl Run {
    fn at(node: NodeId, offset: u64) -> Self {
        Self { node, sequence: Sequence::at(offset), ahead: 0, ended: false }
    }
}

impl Ahead {
    fn is_idle(&self) -> bool {
        self.piece.is_some()
    }
}

/// Where a request that begins `at` bytes into a piece of `length` bytes finds its bytes. It is in
/// the piece as far as the file goes.
fn within(at: u64, size: u32, length: usize) -> Range<usize> {
    let start = usize::try_from(at).map_or(length, |at| at.min(length));
    start..start.saturating_add(size as usize).min(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);
    const REQUEST: u64 = 128 << 10;
    const NONE: [u64; 0] = [];

    fn path() -> GuestPath {
        GuestPath::parse(b"/f").unwrap()
    }

    /// Takes note of a request and wants what it is worth; gives the starts of the new pieces.
    fn request(state: &mut State, node: NodeId, offset: u64, size: u64) -> Vec<u64> {
        let before = state.wanted.len();
        if let Some(start) = state.note(node, offset, size) {
            state.want(node, path(), start);
        }
        state.wanted.iter().skip(before).map(|wanted| wanted.start).collect()
    }

    #[test]
    fn pieces_are_wanted_once_a_file_is_read_in_sequence() {
        let mut state = State::default();
        assert_eq!(request(&mut state, NODE, 0, REQUEST), NONE);
        let first = 2 * REQUEST;
        let expected = [first, first + PIECE, first + 2 * PIECE];
        assert_eq!(request(&mut state, NODE, REQUEST, REQUEST), expected);
        assert_eq!(request(&mut state, NODE, 2 * REQUEST, REQUEST), [first + 3 * PIECE]);
    }

    #[test]
    fn requests_that_overtake_each_other_are_a_sequence() {
        let mut state = State::default();
        request(&mut state, NODE, 0, REQUEST);
        request(&mut state, NODE, REQUEST, REQUEST);
        state.wanted.clear();
        let ahead = state.runs[0].ahead;
        request(&mut state, NODE, 2 * REQUEST, 3 * REQUEST);
        request(&mut state, NODE, 3 * REQUEST, REQUEST);
        assert!(state.wanted.iter().all(|wanted| wanted.start >= ahead));
        assert_eq!(state.runs.len(), 1);
    }

    #[test]
    fn who_reads_here_and_there_gets_nothing_ahead() {
        let mut state = State::default();
        for n in 0..1000u64 {
            let offset = n * 7_919 % 1000 * (1 << 20);
            assert_eq!(request(&mut state, NODE, offset, 4096), NONE, "request {n}");
        }
    }

    #[test]
    fn who_takes_a_little_at_every_step_gets_nothing_ahead() {
        let mut state = State::default();
        for n in 0..1000u64 {
            assert_eq!(request(&mut state, NODE, n << 18, 4096), NONE, "request {n}");
        }
    }

    #[test]
    fn no_piece_is_on_its_way_twice() {
        let mut state = State::default();
        for offset in [0, 8 << 20, 0, 0] {
            request(&mut state, NODE, offset, REQUEST);
            request(&mut state, NODE, offset + REQUEST, REQUEST);
        }
        let mut starts: Vec<u64> = state.pieces.iter().map(|ahead| ahead.start).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), state.pieces.len());
        assert_eq!(state.wanted.len(), state.pieces.len());
    }

    #[test]
    fn readers_of_many_files_stay_within_the_bounds() {
        let mut state = State::default();
        for n in 0..1000 {
            for at in 0..4 {
                request(&mut state, NodeId(n + 2), at * REQUEST, REQUEST);
            }
        }
        assert!(state.pieces.len() <= MAX_PIECES);
        assert!(state.runs.len() <= MAX_RUNS);
        assert_eq!(state.wanted.len(), state.pieces.len());
    }

    #[test]
    fn the_end_of_a_file_ends_reading_ahead() {
        let mut state = State::default();
        request(&mut state, NODE, 0, REQUEST);
        request(&mut state, NODE, REQUEST, REQUEST);
        let Some(Wanted { start, .. }) = state.wanted.pop_front() else { panic!() };
        state.arrived(NODE, start, Some(Piece::Bytes(vec![1; 100].into())));
        state.wanted.clear();
        assert_eq!(request(&mut state, NODE, 2 * REQUEST, REQUEST), NONE);
        let index = state.covering(NODE, start, REQUEST).unwrap();
        assert_eq!(within(0, 128 << 10, 100), 0..100);
        assert_eq!(within(200, 128 << 10, 100), 100..100);
        state.hand_out(index, REQUEST);
        assert_eq!(state.covering(NODE, start, REQUEST), None);
    }

    #[test]
    fn a_piece_that_could_not_be_had_is_asked_for_again() {
        let mut state = State::default();
        request(&mut state, NODE, 0, REQUEST);
        request(&mut state, NODE, REQUEST, REQUEST);
        let Some(Wanted { start, .. }) = state.wanted.pop_front() else { panic!() };
        assert!(state.covering(NODE, start, REQUEST).is_some());
        state.arrived(NODE, start, None);
        assert_eq!(state.covering(NODE, start, REQUEST), None);
    }

    #[test]
    fn a_piece_that_is_not_being_fetched_is_taken_back_once_and_is_on_its_way_then() {
        let mut state = State::default();
        request(&mut state, NODE, 0, REQUEST);
        request(&mut state, NODE, REQUEST, REQUEST);
        let begun = state.wanted.pop_front().unwrap().start;
        let [first, second] =
            [begun, begun + PIECE].map(|start| state.covering(NODE, start, REQUEST).unwrap());
        assert!(state.take_back(first).is_none(), "a thread fetches it");
        assert_eq!(state.take_back(second).map(|wanted| wanted.start), Some(begun + PIECE));
        assert!(state.take_back(second).is_none());
        assert_eq!(state.wanted.len(), 1);
        state.arrived(NODE, begun + PIECE, Some(Piece::Bytes(vec![1; 1 << 20].into())));
        assert!(state.pieces[second].piece.is_some());
    }

    #[test]
    fn requests_find_their_bytes_in_a_piece_whatever_the_numbers() {
        let starts = [0, 1, 9, 10, 11, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        for (at, size) in
            starts.into_iter().flat_map(|at| [0, 1, 9, 10, u32::MAX].map(|size| (at, size)))
        {
            let end = u128::from(at) + u128::from(size);
            let expected = (0..10u128).filter(|n| (u128::from(at)..end).contains(n));
            let found = within(at, size, 10).map(|n| n as u128);
            assert!(found.eq(expected), "{size} bytes at {at}");
        }
    }
}
