//! An answer that was given up, and is thrown away as it comes: without waiting, and however much of
//! it there is.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use guestmnt_protocol::frame::{HEADER_LEN, Header, Place};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::lane::LaneError;

/// The answer to the request with this number, and how much of it has come.
pub struct Owed {
    seq: u32,
    slot: Option<u8>,
    header: [u8; HEADER_LEN],
    /// Bytes of the header that have come.
    filled: usize,
    /// Bytes behind the header that have not, once that is whole.
    rest: usize,
}

impl Owed {
    /// None of it has come. The payload may be in `slot`.
    pub fn new(seq: u32, slot: Option<u8>) -> Self {
        Self { seq, slot, header: [0; HEADER_LEN], filled: 0, rest: 0 }
    }

    /// Throws away what of it is there. Whether that was the last of it.
    ///
    /// # Errors
    /// [`LaneError`] where it is no such answer, or the guest is gone.
    pub fn discard(&mut self, stream: &UnixStream) -> Result<bool, LaneError> {
        while self.filled < HEADER_LEN {
            let Some(count) = receive(stream, &mut self.header[self.filled..])? else {
                return Ok(false);
            };
            self.filled += count;
            if self.filled == HEADER_LEN {
                self.rest = self.behind_header()?;
            }
        }
        let mut bytes = [0; 4096];
        while self.rest > 0 {
            let most = self.rest.min(bytes.len());
            let Some(count) = receive(stream, &mut bytes[..most])? else { return Ok(false) };
            self.rest -= count;
        }
        Ok(true)
    }

    fn behind_header(&self) -> Result<usize, LaneError> {
        let header = Header::decode(&self.header)
            .map_err(|_| LaneError::Malformed("a header out of bounds"))?;
        if header.seq != self.seq {
            return Err(LaneError::Malformed("an answer to no request"));
        }
        match header.place {
            Place::Port => Ok(header.body_len + header.payload_len),
            Place::Slot(number) if self.slot == Some(number) => Ok(header.body_len),
            Place::Slot(_) => Err(LaneError::Malformed("a payload in a slot that was not offered")),
        }
    }
}

/// Some bytes, if there are any now.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> Result<Option<usize>, LaneError> {
    loop {
        match recv(stream.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(LaneError::Dead),
            Ok(count) => return Ok(Some(count)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(LaneError::from(std::io::Error::from(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use guestmnt_protocol::frame;
    use guestmnt_protocol::message::{Answer, Outcome, Request};

    use super::super::lane::{Lane, Standing};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const INSTANT: Duration = Duration::from_millis(30);

    fn answer(seq: u32, outcome: &Outcome, payload: &[u8], place: Place) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, seq, outcome, payload.len(), place).unwrap();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// A lane that owes the answer to request 1, whose payload may be in slot 3.
    fn owing_lane() -> (Lane, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut lane = Lane::over(ours);
        let late = lane.call_with_slot(&Request::Hello, 5, Some(3), INSTANT);
        assert!(matches!(late, Err(LaneError::Late)));
        (lane, theirs)
    }

    #[test]
    fn a_lane_is_of_use_again_when_the_last_byte_of_a_late_answer_has_come() {
        let (mut lane, mut peer) = owing_lane();
        for byte in answer(1, &Ok(Answer::Payload), b"late", Place::Port) {
            assert_eq!(lane.settle().unwrap(), Standing::Owing);
            // Nothing is sent: it would not be looked at.
            assert!(matches!(lane.call(&Request::Hello, 9, SECOND), Err(LaneError::Late)));
            peer.write_all(&[byte]).unwrap();
        }
        assert_eq!(lane.settle().unwrap(), Standing::Ready);
        peer.write_all(&answer(2, &Ok(Answer::Payload), b"mine", Place::Port)).unwrap();
        let (_, payload) = lane.call(&Request::Hello, 9, SECOND).unwrap();
        assert_eq!(payload, b"mine");
    }

    #[test]
    fn a_late_answer_that_the_protocol_forbids_ends_the_lane() {
        let table: &[(&str, Vec<u8>)] = &[
            ("an answer to another request", answer(2, &Ok(Answer::Done), b"", Place::Port)),
            ("a payload in another slot", answer(1, &Ok(Answer::Payload), b"", Place::Slot(4))),
            ("garbage", vec![0xaa; 64]),
        ];
        for (what, bytes) in table {
            let (mut lane, mut peer) = owing_lane();
            peer.write_all(bytes).unwrap();
            assert!(matches!(lane.settle(), Err(LaneError::Malformed(_))), "{what}");
            assert_eq!(lane.standing(), Standing::Broken, "{what}");
        }
    }
}
