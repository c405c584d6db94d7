//! A guest that is nothing but a script on the other end of a socket: it says what a daemon would
//! never say.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
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

/// A guest that says hello properly, and then what `script` has it say. Requests may take `timeout`.
///
/// # Panics
/// Where there can be none.
#[must_use]
pub fn guest(
    timeout: Duration,
    script: impl Fn(&Request, u32) -> Said + Send + Sync + 'static,
) -> Guest {
    let lane = lane(Arc::new(script));
    Guest::connect(vec![lane], None, Duration::from_secs(20), timeout).expect("it says hello")
}

/// The host's end of a lane on which hellos are answered, and all else by `script`.
///
/// # Panics
/// Where there can be none.
#[must_use]
pub fn lane(script: Arc<Script>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().expect("sockets are to be had");
    // It ends when the host hangs up.
    thread::spawn(move || serve(theirs, &*script));
    ours
}

fn serve(mut lane: UnixStream, script: &Script) -> Option<()> {
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
