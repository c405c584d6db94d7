//! The lanes of a guest, and how a request finds one that can serve it: its thread's own, or any
//! other, or the first that comes free. A lane that owes an answer is left alone until that has come,
//! since whoever serves it in the guest is still busy; a broken one for good.
//!
//! **Invariant:** no request is queued. Who finds no lane waits for one, and may find none in time.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::bulk::{Bulk, Slot};
use super::lane::{Lane, LaneError, Standing};

/// How often those who wait look whether an answer that a lane owes has come: nobody tells them.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A lane with what else belongs to the VM that it leads to.
pub struct Link {
    pub lane: Lane,
    /// Where contents of files come, unless there is none: then they come by the lane.
    pub bulk: Option<Arc<Bulk>>,
    /// The VM's number.
    pub vm: u64,
    /// What the guest may still write to or read: it is lent to nobody else before the answer has
    /// come, or another VM.
    owed: Option<Slot>,
}

/// All lanes of a guest.
pub struct Lanes {
    links: Box<[Mutex<Link>]>,
    /// Threads that wait for a lane.
    waiting: AtomicUsize,
    /// Held by who looks for a lane before it waits, and by who tells it that one is free.
    turn: Mutex<()>,
    freed: Condvar,
}

/// A lane in use. When this is dropped, others can use it.
pub struct Held<'a> {
    link: MutexGuard<'a, Link>,
    /// Dropped after it.
    _freeing: Freeing<'a>,
}

/// Tells somebody who waits, when this is dropped.
struct Freeing<'a>(&'a Lanes);

/// Is told of the VM whose lane is found to be broken by what came instead of an owed answer, and of
/// what that was.
pub type Broke<'a> = &'a dyn Fn(u64, &LaneError);

/// What is to be had of the lanes.
enum Found<'a> {
    /// One that can be used, or, where none ever can, one that is broken.
    Lane(Held<'a>),
    /// Nothing before somebody lets one go.
    Busy,
    /// The same, or before an answer that is owed has come.
    Owing,
}

impl Link {
    /// The lane to the VM with this number.
    pub fn new(lane: Lane, bulk: Option<Arc<Bulk>>, vm: u64) -> Self {
        Self { lane, bulk, vm, owed: None }
    }

    /// Takes back the slot that was lent for a request that got no answer. It is free, unless the
    /// guest may still use it.
    pub fn take_back(&mut self, slot: Option<Slot>) {
        if self.owed.is_none() && self.lane.standing() != Standing::Ready {
            self.owed = slot;
        }
    }

    fn settle(&mut self, broke: Broke<'_>) -> Standing {
        let standing = self.lane.settle().unwrap_or_else(|error| {
            broke(self.vm, &error);
            Standing::Broken
        });
        if standing == Standing::Ready {
            self.owed = None;
        }
        standing
    }
}

impl Lanes {
    /// These.
    pub fn new(links: impl Iterator<Item = Link>) -> Self {
        Self {
            links: links.map(Mutex::new).collect(),
            waiting: AtomicUsize::new(0),
            turn: Mutex::new(()),
            freed: Condvar::new(),
        }
    }

    /// Their number.
    pub fn count(&self) -> usize {
        self.links.len()
    }

    /// A lane that can be used: this thread's own, or another, or the first that can be before
    /// `deadline`. Where all are broken, a broken one. `None` where there is none in time.
    pub fn take(&self, deadline: Instant, broke: Broke<'_>) -> Option<Held<'_>> {
        match self.find(broke) {
            Found::Lane(held) => Some(held),
            Found::Busy | Found::Owing => self.await_one(deadline, broke),
        }
    }

    fn await_one(&self, deadline: Instant, broke: Broke<'_>) -> Option<Held<'_>> {
        let mut turn = self.turn();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let found = loop {
            // With the fence of who lets a lane go: either it is seen here that the lane is free, or
            // there that somebody waits.
            fence(Ordering::SeqCst);
            let look_again = match self.find(broke) {
                Found::Lane(held) => break Some(held),
                Found::Owing => LOOK_AGAIN,
                Found::Busy => Duration::MAX,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break None;
            }
            let waited = self.freed.wait_timeout(turn, left.min(look_again));
            turn = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        drop(turn);
        if found.is_none() {
            // Another one may have taken a lane for busy that was only looked at here.
            self.freed.notify_one();
        }
        found
    }

    /// Replaces each by another.
    pub fn replace(&self, by: Self, vm: u64) {
        for (link, other) in self.links.iter().zip(by.links) {
            let Link { lane, bulk, .. } =
                other.into_inner().unwrap_or_else(PoisonError::into_inner);
            let link = link.lock().unwrap_or_else(PoisonError::into_inner);
            *self.held(link) = Link::new(lane, bulk, vm);
        }
    }

    fn find(&self, broke: Broke<'_>) -> Found<'_> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static OWN: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        let own = OWN.get();
        let (mut broken, mut otherwise) = (None, None);
        for n in own..own + self.links.len() {
            let mut link = match self.links[n % self.links.len()].try_lock() {
                Ok(link) => link,
                // A lane that somebody panicked over has its buffers and its place in the stream all
                // the same: it panics before or after a call, not in it.
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    otherwise.get_or_insert(Found::Busy);
                    continue;
                }
            };
            match link.settle(broke) {
                Standing::Ready => return Found::Lane(self.held(link)),
                Standing::Owing => otherwise = Some(Found::Owing),
                Standing::Broken => broken = Some(link),
            }
        }
        otherwise
            .or_else(|| broken.map(|link| Found::Lane(self.held(link))))
            .expect("there is at least one lane")
    }

    fn held<'a>(&'a self, link: MutexGuard<'a, Link>) -> Held<'a> {
        Held { link, _freeing: Freeing(self) }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Freeing<'_> {
    fn drop(&mut self) {
        let Self(lanes) = self;
        fence(Ordering::SeqCst);
        if lanes.waiting.load(Ordering::Relaxed) > 0 {
            // Whoever looked before the lane was free has begun to wait when this is had.
            drop(lanes.turn());
            lanes.freed.notify_one();
        }
    }
}

impl Deref for Held<'_> {
    type Target = Link;

    fn deref(&self) -> &Link {
        &self.link
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Link {
        &mut self.link
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use guestmnt_protocol::VERSION;
    use guestmnt_protocol::frame::{self, HEADER_LEN, Header, Place};
    use guestmnt_protocol::limits::MAX_PAYLOAD;
    use guestmnt_protocol::message::{Answer, Outcome};
    use guestmnt_protocol::path::GuestPath;
    use nix::errno::Errno;

    use super::super::Guest;
    use super::super::bulk::SharedMemory;
    use super::*;

    /// Passes on the number of the lane and the header of each request that comes by it.
    fn listen(lane: usize, mut stream: UnixStream, heard: &Sender<(usize, Header)>) -> Option<()> {
        loop {
            let mut header = [0; HEADER_LEN];
            stream.read_exact(&mut header).ok()?;
            let header = Header::decode(&header).unwrap();
            stream.read_exact(&mut vec![0; header.body_len]).ok()?;
            heard.send((lane, header)).ok()?;
        }
    }

    fn say(mut stream: &UnixStream, seq: u32, outcome: &Outcome, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, seq, outcome, payload.len(), Place::Port).unwrap();
        stream.write_all(&[&bytes, payload].concat()).unwrap();
    }

    #[test]
    fn a_slot_whose_answer_is_owed_is_lent_again_once_that_has_come() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAX_PAYLOAD as u64).unwrap();
        let memory = SharedMemory { file, address: 0, length: MAX_PAYLOAD as u64 };
        let (hosts, guests): (Vec<_>, Vec<_>) =
            [(); 2].map(|()| UnixStream::pair().unwrap()).into_iter().unzip();
        let (sender, heard) = channel();
        for (lane, stream) in guests.iter().enumerate() {
            let (stream, sender) = (stream.try_clone().unwrap(), sender.clone());
            thread::spawn(move || listen(lane, stream, &sender));
        }
        let answer = |outcome: &Outcome| {
            let (lane, header) = heard.recv().unwrap();
            say(&guests[lane], header.seq, outcome, b"");
            header.place
        };
        // One thread asks all the time, so that the lane that owes is its own.
        let asking = thread::spawn(move || {
            let timeout = Duration::from_secs(2);
            let guest = Guest::connect(hosts, Some(&memory), 10 * timeout, timeout).unwrap();
            let read = || guest.read(GuestPath::root(), 0, 4096, <[u8]>::len);
            [read(), read(), read()]
        });
        answer(&Ok(Answer::Hello { version: VERSION, slots: vec![0] }));
        let (stuck, late) = heard.recv().unwrap();
        assert_eq!(late.place, Place::Slot(0));
        let (other, next) = heard.recv().unwrap();
        assert_eq!(next.place, Place::Port, "the guest may still write to the slot");
        assert_ne!(other, stuck);
        say(&guests[stuck], late.seq, &Ok(Answer::Payload), b"late");
        say(&guests[other], next.seq, &Ok(Answer::Payload), b"");
        assert_eq!(answer(&Ok(Answer::Payload)), Place::Slot(0));
        assert_eq!(asking.join().unwrap(), [Err(Errno::EIO), Ok(0), Ok(0)]);
    }
}
