//! How one message lies on a lane: a header of 16 bytes, the postcard body, the payload.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..4 | sequence number, little-endian; an answer carries its request's |
//! | 4..8 | length of the body |
//! | 8..12 | length of the payload |
//! | 12 | where the payload is: 0 behind the body, 1 in a slot of bulk memory |
//! | 13 | the slot's number, or zero |
//! | 14..16 | zero |
//!
//! In a request, the place is the one where the host would like the answer's payload to be. It
//! may come behind the answer all the same.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{MAX_BODY, MAX_PAYLOAD, SLOTS};

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;

/// Where a frame's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind the body, on the port.
    Port,
    /// At the start of this slot of bulk memory, below [`SLOTS`].
    Slot(u8),
}

/// A frame's first bytes, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the host, one more for each request on the lane; wraps.
    pub seq: u32,
    /// Bytes of the body, at most [`MAX_BODY`].
    pub body_len: usize,
    /// Bytes of the payload, at most [`MAX_PAYLOAD`].
    pub payload_len: usize,
    /// Where they are.
    pub place: Place,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A length beyond the limits.
    TooLong,
    /// An unknown place, or a reserved byte that is not zero.
    Reserved,
    /// A body that is not one whole message of the expected type.
    Body,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "frame longer than the protocol allows",
            Self::Reserved => "frame header with unknown fields",
            Self::Body => "frame body that is not a message",
        })
    }
}

impl std::error::Error for FrameError {}

impl Header {
    /// The header's bytes.
    ///
    /// # Panics
    /// Where a length is beyond the limits, which only our own code can bring about.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        assert!(self.body_len <= MAX_BODY && self.payload_len <= MAX_PAYLOAD);
        let len = |n: usize| u32::try_from(n).expect("checked above").to_le_bytes();
        let mut bytes = [0; HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.seq.to_le_bytes());
        bytes[4..8].copy_from_slice(&len(self.body_len));
        bytes[8..12].copy_from_slice(&len(self.payload_len));
        (bytes[12], bytes[13]) = match self.place {
            Place::Port => (0, 0),
            Place::Slot(number) => (1, number),
        };
        bytes
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] or [`FrameError::Reserved`].
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let len = |at: usize, max: usize| {
            usize::try_from(word(at)).ok().filter(|&n| n <= max).ok_or(FrameError::TooLong)
        };
        let place = match bytes[12..] {
            [0, 0, 0, 0] => Place::Port,
            [1, number, 0, 0] if usize::from(number) < SLOTS => Place::Slot(number),
            _ => return Err(FrameError::Reserved),
        };
        Ok(Self {
            seq: word(0),
            body_len: len(4, MAX_BODY)?,
            payload_len: len(8, MAX_PAYLOAD)?,
            place,
        })
    }
}

/// Replaces `frame` by the header and body of `message`, ready to be sent, with `payload_len`
/// bytes to follow at `place`.
///
/// # Errors
/// [`FrameError::TooLong`] where the body or the payload is beyond the limits; `frame` is empty then.
pub fn encode<M: Serialize>(
    frame: &mut Vec<u8>,
    seq: u32,
    message: &M,
    payload_len: usize,
    place: Place,
) -> Result<(), FrameError> {
    frame.clear();
    frame.resize(HEADER_LEN, 0);
    let written = postcard::to_io(message, &mut *frame).is_ok();
    let body_len = frame.len() - HEADER_LEN;
    if !written || body_len > MAX_BODY || payload_len > MAX_PAYLOAD {
        frame.clear();
        return Err(FrameError::TooLong);
    }
    let header = Header { seq, body_len, payload_len, place };
    frame[..HEADER_LEN].copy_from_slice(&header.encode());
    Ok(())
}

/// The body of `message` as a payload, for one that is too long for a body.
///
/// # Errors
/// [`FrameError::TooLong`] where it is too long for a payload as well.
pub fn payload_of<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_stdvec(message).map_err(|_| FrameError::TooLong)?;
    if bytes.len() <= MAX_PAYLOAD { Ok(bytes) } else { Err(FrameError::TooLong) }
}

/// Reads a frame's body.
///
/// # Errors
/// [`FrameError::Body`] where it is not one message, or more than one.
pub fn decode_body<M: DeserializeOwned>(body: &[u8]) -> Result<M, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Body),
    }
}
