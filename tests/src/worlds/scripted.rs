//! A guest that is nothing but a script on the other end of some sockets: it says what a daemon
//! would never say, and when the test lets it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use guestmnt::guest::Guest;
use guestmnt_protocol::VERSION;
use guestmnt_protocol::frame::{self, HEADER_LEN, Header, Place};
use guestmnt_protocol::message::{Answer, Outcome, Request};

/// What comes back for a request: pieces of bytes, each after a pause.
pub type Said = Vec<(Duration, Vec<u8>)>;

/// What is said to a request with this sequence number.
pub type Script = dyn Fn(&Request, u32) -> Said + Send + Sync;

/// A guest of one lane that says hello properly, and then what `script` has it say. Requests may
/// take `timeout`.
///
/// # Panics
/// Where there can be none.
#[must_use]
pub fn guest(
    timeout: Duration,
    script: impl Fn(&Request, u32) -> Said + Send + Sync + 'static,
) -> Guest {
    guest_of(1, timeout, move |_, request, seq| script(request, seq))
}

/// The same with so many lanes, each of which is served by itself, as the daemon does; `script` gets
/// the lane's number.
///
/// # Panics
/// Where there can be none.
#[must_use]
pub fn guest_of(
    lanes: usize,
    timeout: Duration,
    script: impl Fn(usize, &Request, u32) -> Said + Send + Sync + 'static,
) -> Guest {
    let script = Arc::new(script);
    let lane_of = |number| {
        let script = Arc::clone(&script);
        lane(Arc::new(move |request: &Request, seq: u32| script(number, request, seq)))
    };
    let lanes = (0..lanes).map(lane_of).collect();
    Guest::connect(lanes, None, Duration::from_secs(20), timeout).expect("it says hello")
}

/// The host's end of a lane on which hellos are answered, and all else by `script`.
///
/// # Panics
/// Where there can be none.
#[must_use]
pub fn lane(script: Arc<Script>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("sockets are to be had");
    // It ends when the host hangs up.
    thread::spawn(move || serve(theirs, &*script, || true));
    ours
}

/// The host's end of a lane on which hellos are answered while the guest `runs`, and nothing else.
///
/// # Panics
/// Where there can be none.
#[must_use]
pub fn pulse(runs: Arc<AtomicBool>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("sockets are to be had");
    thread::spawn(move || serve(theirs, &|_, _| Vec::new(), || runs.load(Ordering::Relaxed)));
    ours
}

fn serve(mut lane: UnixStream, script: &Script, runs: impl Fn() -> bool) -> Option<()> {
    loop {
        let mut header = [0; HEADER_LEN];
        lane.read_exact(&mut header).ok()?;
        let header = Header::decode(&header).expect("the host sends frames");
        let mut body = vec![0; header.body_len];
        lane.read_exact(&mut body).ok()?;
        // There is no bulk memory: what is given comes by the lane.
        lane.read_exact(&mut vec![0; header.payload_len]).ok()?;
        let request = frame::decode_body(&body).expect("the host sends requests");
        let said = match request {
            Request::Hello if !runs() => Vec::new(),
            Request::Hello => {
                let hello = Ok(Answer::Hello { version: VERSION, slots: Vec::new() });
                at_once(answer(header.seq, &hello, b""))
            }
            request => script(&request, header.seq),
        };
        for (pause, bytes) in said {
            thread::sleep(pause);
            lane.write_all(&bytes).ok()?;
        }
    }
}

/// Bytes without a pause.
#[must_use]
pub fn at_once(bytes: Vec<u8>) -> Said {
    vec![(Duration::ZERO, bytes)]
}

/// A proper frame with an answer.
///
/// # Panics
/// Where it is longer than the protocol allows.
#[must_use]
pub fn answer(seq: u32, outcome: &Outcome, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, seq, outcome, payload.len(), Place::Port).expect("it is short");
    bytes.extend_from_slice(payload);
    bytes
}

/// What a script waits at until the test lets it go on: so a test can tell who waited for the slow
/// one from who did not, whatever else the machine does. It counts who has come.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    is_open: bool,
    come: usize,
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn closed() -> Self {
        Self::default()
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let mut state = self.lock();
        state.come += 1;
        self.0.1.notify_all();
        while !state.is_open {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets through who waits and who will come.
    pub fn open(&self) {
        self.lock().is_open = true;
        self.0.1.notify_all();
    }

    /// Waits until so many have come to it.
    pub fn await_comers(&self, count: usize) {
        let mut state = self.lock();
        while state.come < count {
            state = self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
