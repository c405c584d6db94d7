//! One lane: a socket on which one request at a time goes to the guest and its answer comes
//! back. Everything that arrives is untrusted.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guestmnt_protocol::frame::{self, HEADER_LEN, Header, Place};
use guestmnt_protocol::limits::{MAX_BODY, MAX_PAYLOAD};
use guestmnt_protocol::message::{Answer, Outcome, Request};

use super::owed::Owed;

/// Why an answer cannot be used.
#[derive(Debug)]
pub enum LaneError {
    /// The guest is gone.
    Dead,
    /// It did not answer in time, or still owes an earlier answer. The lane is of use again once that
    /// has come, and was thrown away.
    Late,
    /// It does not answer, and gives no other sign either; the lane is of no use any more.
    Silent,
    /// It answered something that the protocol does not allow; the lane is of no use any more.
    Malformed(&'static str),
    /// The socket failed otherwise.
    Io(io::Error),
}

impl fmt::Display for LaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead => f.write_str("the guest is gone"),
            Self::Late => f.write_str("the guest did not answer in time"),
            Self::Silent => f.write_str("the guest does not run any more"),
            Self::Malformed(what) => write!(f, "the guest sent a malformed answer: {what}"),
            Self::Io(error) => write!(f, "a lane failed: {error}"),
        }
    }
}

impl std::error::Error for LaneError {}

/// How an answer is waited for.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// Until when.
    pub deadline: Instant,
    /// How long at a time before `runs` is asked.
    pub patience: Duration,
    /// Whether the guest still runs. It may take as long as the patience to say so.
    pub runs: &'a dyn Fn() -> bool,
}

impl From<Duration> for Wait<'static> {
    fn from(timeout: Duration) -> Self {
        Self::from(Instant::now() + timeout)
    }
}

impl From<Instant> for Wait<'static> {
    fn from(deadline: Instant) -> Self {
        Self { deadline, patience: Duration::MAX, runs: &|| true }
    }
}

/// Whether a lane is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Ready,
    /// Not before an answer has come that was given up: until then the guest is busy with that.
    Owing,
    /// It will not be any more.
    Broken,
}

/// What came with an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// These bytes, by the port.
    Port(&'a [u8]),
    /// So many bytes, in the slot that was offered.
    Slot(usize),
}

/// What goes with a request.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// These bytes, by the port.
    Port(&'a [u8]),
    /// So many bytes, in the slot with this number.
    Slot(u8, usize),
}

/// The host's end of a lane, with its buffers. They grow to the largest message once and are
/// used again.
pub struct Lane {
    stream: UnixStream,
    next_seq: u32,
    /// What may still come of a request that was given up.
    owed: Option<Owed>,
    broken: bool,
    outgoing: Vec<u8>,
    body: Vec<u8>,
    payload: Vec<u8>,
}

impl Lane {
    /// A lane over a connected socket.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            next_seq: 1,
            owed: None,
            broken: false,
            outgoing: Vec::new(),
            body: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// Whether it is of use, as far as is known.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.owed {
            _ if self.broken => Standing::Broken,
            Some(_) => Standing::Owing,
            None => Standing::Ready,
        }
    }

    /// Whether it is of use, after a look whether what it owes has come. Does not wait.
    ///
    /// # Errors
    /// [`LaneError`] where something else has come. The lane is broken then.
    pub fn settle(&mut self) -> Result<Standing, LaneError> {
        if let (Some(owed), false) = (&mut self.owed, self.broken) {
            match owed.discard(&self.stream) {
                Ok(true) => self.owed = None,
                Ok(false) => {}
                Err(error) => {
                    self.broken = true;
                    return Err(error);
                }
            }
        }
        Ok(self.standing())
    }

    /// Sends `request` and waits for its answer. Its payload, at most
    /// `payload_limit` bytes, is valid until the next call.
    ///
    /// # Errors
    /// [`LaneError`]. A failure that the guest reports properly is part of the [`Outcome`].
    pub fn call<'w>(
        &mut self,
        request: &Request,
        payload_limit: usize,
        wait: impl Into<Wait<'w>>,
    ) -> Result<(Outcome, &[u8]), LaneError> {
        match self.call_with_slot(request, payload_limit, None, wait)? {
            (outcome, Payload::Port(bytes)) => Ok((outcome, bytes)),
            (_, Payload::Slot(_)) => unreachable!("no slot was offered"),
        }
    }

    /// As [`Lane::call`], with a slot where the guest may put the payload.
    ///
    /// # Errors
    /// As [`Lane::call`]. After [`LaneError::Late`] the guest may still write to the slot.
    pub fn call_with_slot<'w>(
        &mut self,
        request: &Request,
        payload_limit: usize,
        slot: Option<u8>,
        wait: impl Into<Wait<'w>>,
    ) -> Result<(Outcome, Payload<'_>), LaneError> {
        let seq = self.begin(request, 0, slot.map_or(Place::Port, Place::Slot))?;
        match self.exchange(&Expected { seq, payload_limit, slot }, &wait.into())? {
            (outcome, None) => Ok((outcome, Payload::Port(&self.payload))),
            (outcome, Some(length)) => Ok((outcome, Payload::Slot(length))),
        }
    }

    /// As [`Lane::call`], with bytes that the guest takes and an answer that brings none.
    ///
    /// # Errors
    /// As [`Lane::call`]. After [`LaneError::Late`] the guest may still read the slot.
    pub fn call_with(
        &mut self,
        request: &Request,
        given: Given,
        deadline: Instant,
    ) -> Result<Outcome, LaneError> {
        let seq = match given {
            Given::Slot(number, length) => self.begin(request, length, Place::Slot(number))?,
            Given::Port(bytes) => {
                let seq = self.begin(request, bytes.len(), Place::Port)?;
                self.outgoing.extend_from_slice(bytes);
                seq
            }
        };
        let expected = Expected { seq, payload_limit: 0, slot: None };
        self.exchange(&expected, &deadline.into()).map(|(outcome, _)| outcome)
    }

    /// Prepares a request to be sent, and gives its number.
    fn begin(
        &mut self,
        request: &Request,
        payload_len: usize,
        place: Place,
    ) -> Result<u32, LaneError> {
        match self.settle()? {
            Standing::Ready => {}
            Standing::Owing => return Err(LaneError::Late),
            Standing::Broken => return Err(LaneError::Dead),
        }
        let seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(1);
        frame::encode(&mut self.outgoing, seq, request, payload_len, place)
            .map_err(|_| LaneError::Malformed("a request longer than the protocol allows"))?;
        Ok(seq)
    }

    /// Sends the request that was prepared, and waits for its answer.
    fn exchange(
        &mut self,
        expected: &Expected,
        wait: &Wait,
    ) -> Result<(Outcome, Option<usize>), LaneError> {
        let result = self.send(wait.deadline).and_then(|()| self.receive(expected, wait));
        self.broken |= !matches!(result, Ok(_) | Err(LaneError::Late));
        result
    }

    fn send(&mut self, deadline: Instant) -> Result<(), LaneError> {
        self.stream.set_write_timeout(Some(left(deadline)?)).map_err(LaneError::Io)?;
        // A request that was sent in part cannot be taken back: the lane ends with it.
        self.stream.write_all(&self.outgoing).map_err(|error| match LaneError::from(error) {
            LaneError::Late => LaneError::Dead,
            other => other,
        })
    }

    /// The outcome, and the payload's length where it is in the slot.
    fn receive(
        &mut self,
        expected: &Expected,
        wait: &Wait,
    ) -> Result<(Outcome, Option<usize>), LaneError> {
        let deadline = wait.deadline;
        let mut header = [0; HEADER_LEN];
        if let Err(error) = self.read_exact_from_start(&mut header, wait) {
            if matches!(error, LaneError::Late) {
                self.owed = Some(Owed::new(expected.seq, expected.slot));
            }
            return Err(error);
        }
        let header =
            Header::decode(&header).map_err(|_| LaneError::Malformed("a header out of bounds"))?;
        debug_assert!(header.body_len <= MAX_BODY && header.payload_len <= MAX_PAYLOAD);
        if header.seq != expected.seq {
            return Err(LaneError::Malformed("an answer to no request"));
        }
        if header.payload_len > expected.payload_limit {
            return Err(LaneError::Malformed("more data than was asked for"));
        }
        let by_port = match header.place {
            Place::Port => header.payload_len,
            Place::Slot(number) if expected.slot == Some(number) => 0,
            Place::Slot(_) => {
                return Err(LaneError::Malformed("a payload in a slot that was not offered"));
            }
        };
        self.body.resize(header.body_len, 0);
        self.payload.resize(by_port, 0);
        read_rest(&mut self.stream, &mut self.body, deadline)?;
        read_rest(&mut self.stream, &mut self.payload, deadline)?;
        let outcome: Outcome = frame::decode_body(&self.body)
            .map_err(|_| LaneError::Malformed("a body that is no answer"))?;
        if header.payload_len > 0 && !matches!(outcome, Ok(Answer::Payload)) {
            return Err(LaneError::Malformed("a payload that was not announced"));
        }
        let in_slot = matches!(header.place, Place::Slot(_)).then_some(header.payload_len);
        Ok((outcome, in_slot))
    }

    /// Fills `buffer`; late is only late where nothing of it has come yet.
    fn read_exact_from_start(&mut self, buffer: &mut [u8], wait: &Wait) -> Result<(), LaneError> {
        let first = loop {
            let at_a_time = left(wait.deadline)?.min(wait.patience);
            self.stream.set_read_timeout(Some(at_a_time)).map_err(LaneError::Io)?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(LaneError::Dead),
                Ok(n) => break n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => match LaneError::from(error) {
                    // Where there is no time for an answer, it is late either way.
                    LaneError::Late if left(wait.deadline)? <= wait.patience => {}
                    LaneError::Late if (wait.runs)() => {}
                    LaneError::Late => return Err(LaneError::Silent),
                    other => return Err(other),
                },
            }
        };
        read_rest(&mut self.stream, &mut buffer[first..], wait.deadline)
    }
}

/// What the answer to a request has to be like.
struct Expected {
    seq: u32,
    payload_limit: usize,
    slot: Option<u8>,
}

/// Fills `buffer` with what belongs to a frame that has begun. A frame that stops in its middle
/// ends the lane, since nothing says where the next one begins.
fn read_rest(
    stream: &mut UnixStream,
    buffer: &mut [u8],
    deadline: Instant,
) -> Result<(), LaneError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let left = left(deadline).map_err(|_| LaneError::Malformed("half a frame"))?;
        stream.set_read_timeout(Some(left)).map_err(LaneError::Io)?;
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => return Err(LaneError::Dead),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(match LaneError::from(error) {
                    LaneError::Late => LaneError::Malformed("half a frame"),
                    other => other,
                });
            }
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> Result<Duration, LaneError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(LaneError::Late) } else { Ok(left) }
}

impl From<io::Error> for LaneError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => Self::Dead,
            _ => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use guestmnt_protocol::message::Failure;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const INSTANT: Duration = Duration::from_millis(30);

    fn answer(seq: u32, outcome: &Outcome, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, seq, outcome, payload.len(), Place::Port).unwrap();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A lane whose peer has already sent `bytes` and keeps the socket open.
    fn lane_with(bytes: &[u8]) -> (Lane, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        (Lane::over(ours), theirs)
    }

    #[test]
    fn a_payload_comes_with_its_answer() {
        let (mut lane, _peer) = lane_with(&answer(1, &Ok(Answer::Payload), b"bytes"));
        let (outcome, payload) = lane.call(&Request::Hello, 5, SECOND).unwrap();
        assert_eq!((outcome, payload), (Ok(Answer::Payload), b"bytes".as_slice()));
    }

    #[test]
    fn an_answer_byte_by_byte_is_put_together() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = thread::spawn(move || {
            for byte in answer(1, &Ok(Answer::Payload), b"bytes") {
                theirs.write_all(&[byte]).unwrap();
            }
            theirs
        });
        let mut lane = Lane::over(ours);
        let (_, payload) = lane.call(&Request::Hello, 5, SECOND).unwrap();
        assert_eq!(payload, b"bytes");
        writer.join().unwrap();
    }

    #[test]
    fn a_payload_may_be_in_the_slot_that_was_offered_and_in_no_other() {
        let in_slot = |number| {
            let mut bytes = Vec::new();
            let outcome: Outcome = Ok(Answer::Payload);
            frame::encode(&mut bytes, 1, &outcome, 5, Place::Slot(number)).unwrap();
            bytes
        };
        let (mut lane, _peer) = lane_with(&in_slot(3));
        let (_, payload) = lane.call_with_slot(&Request::Hello, 5, Some(3), SECOND).unwrap();
        assert_eq!(payload, Payload::Slot(5));
        for (offered, limit) in [(Some(4), 5), (None, 5), (Some(3), 4)] {
            let (mut lane, _peer) = lane_with(&in_slot(3));
            let error = lane.call_with_slot(&Request::Hello, limit, offered, SECOND).unwrap_err();
            assert!(matches!(error, LaneError::Malformed(_)), "{offered:?}: {error}");
        }
    }

    #[test]
    fn a_late_answer_is_thrown_away() {
        let (mut lane, mut peer) = lane_with(b"");
        assert!(matches!(lane.call(&Request::Hello, 9, INSTANT), Err(LaneError::Late)));
        peer.write_all(&answer(1, &Ok(Answer::Payload), b"late")).unwrap();
        peer.write_all(&answer(2, &Ok(Answer::Payload), b"mine")).unwrap();
        let (_, payload) = lane.call(&Request::Hello, 9, SECOND).unwrap();
        assert_eq!(payload, b"mine");
    }

    #[test]
    fn a_guest_that_is_silent_is_asked_whether_it_runs() {
        let waited = |answers: &[bool], longest| {
            let (mut lane, _peer) = lane_with(b"");
            let asked = std::cell::Cell::new(0);
            let runs = || {
                asked.set(asked.get() + 1);
                answers[asked.get() - 1]
            };
            let wait = Wait { deadline: Instant::now() + longest, patience: INSTANT, runs: &runs };
            let error = lane.call(&Request::Hello, 0, wait).unwrap_err();
            (error, asked.get(), lane.broken)
        };
        let (error, asked, broken) = waited(&[true, false], 60 * SECOND);
        assert!(matches!(error, LaneError::Silent) && broken, "{error}");
        assert_eq!(asked, 2);
        let (error, asked, broken) = waited(&[true; 5], 5 * INSTANT);
        assert!(matches!(error, LaneError::Late) && !broken, "{error}");
        assert!(asked < 5, "{asked}: the last would be too late");
    }

    #[test]
    fn what_the_protocol_forbids_ends_the_lane() {
        let half = &answer(1, &Ok(Answer::Payload), b"bytes")[..HEADER_LEN + 3];
        let mut huge = answer(1, &Ok(Answer::Done), b"");
        huge[8..12].fill(0xff);
        let table: &[(&str, Vec<u8>)] = &[
            ("an answer to a request that was never sent", answer(7, &Ok(Answer::Done), b"")),
            ("more data than was asked for", answer(1, &Ok(Answer::Payload), b"123456")),
            ("data behind an answer that has none", answer(1, &Ok(Answer::Done), b"1")),
            ("data behind a failure", answer(1, &Err(Failure::new(5)), b"1")),
            ("a length of 4 GiB", huge),
            ("half a frame", half.to_vec()),
            ("garbage", vec![0xaa; 64]),
        ];
        for (what, bytes) in table {
            let (mut lane, _peer) = lane_with(bytes);
            let error = lane.call(&Request::Hello, 5, INSTANT).unwrap_err();
            assert!(matches!(error, LaneError::Malformed(_)), "{what}: {error}");
            assert!(matches!(lane.call(&Request::Hello, 5, INSTANT), Err(LaneError::Dead)));
        }
    }

    #[test]
    fn a_closed_socket_is_noticed_at_once() {
        let (mut lane, peer) = lane_with(b"");
        drop(peer);
        assert!(matches!(lane.call(&Request::Hello, 0, SECOND), Err(LaneError::Dead)));
    }
}
