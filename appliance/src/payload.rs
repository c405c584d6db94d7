//! The bytes that go with an answer: in a lane's buffer, or in a slot of bulk memory.

use guestmnt_protocol::frame::Place;
use guestmnt_protocol::limits::MAX_PAYLOAD;

use crate::bulk::Slot;

/// Bytes kept free before the payload, so that the header and the body of an answer can be put
/// there and both leave in one write. Answers with a payload have a body of two bytes.
pub const HEADROOM: usize = 64;

/// One lane's payload. The buffer grows to the largest one so far and is used again for all
/// that follow: reading allocates and clears nothing in the steady state.
pub struct Payload<'a> {
    /// [`HEADROOM`], then the payload's bytes, then what an earlier, longer one left.
    buffer: Vec<u8>,
    length: usize,
    /// The slot that the host would like to have the payload in, with its number.
    offered: Option<(u8, Slot<'a>)>,
    place: Place,
}

impl Default for Payload<'_> {
    fn default() -> Self {
        Self { buffer: vec![0; HEADROOM], length: 0, offered: None, place: Place::Port }
    }
}

impl<'a> Payload<'a> {
    /// Begins a new payload, which may be put into the slot `offered`.
    pub fn begin(&mut self, offered: Option<(u8, Slot<'a>)>) {
        self.clear();
        self.offered = offered;
    }

    /// Makes the payload `length` bytes long and lends them to be overwritten, in the slot that
    /// was offered or else in the buffer; they hold what was there before.
    ///
    /// # Panics
    /// Where `length` is beyond [`MAX_PAYLOAD`]; requests are checked before.
    pub fn bulk_space(&mut self, length: usize) -> &mut [u8] {
        if self.offered.is_none() {
            return self.space(length);
        }
        let (number, slot) = self.offered.as_mut().expect("seen above");
        (self.length, self.place) = (length, Place::Slot(*number));
        &mut slot[..length]
    }

    /// Makes the payload `length` bytes long and lends them to be overwritten; they hold
    /// what was there before.
    ///
    /// # Panics
    /// Where `length` is beyond [`MAX_PAYLOAD`]; requests are checked before.
    pub fn space(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= MAX_PAYLOAD);
        if self.buffer.len() < HEADROOM + length {
            self.buffer.resize(HEADROOM + length, 0);
        }
        (self.length, self.place) = (length, Place::Port);
        &mut self.buffer[HEADROOM..HEADROOM + length]
    }

    /// Keeps the first `length` bytes only.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Replaces the payload by what `append` adds to the end of the vector that it gets.
    /// `append` must not touch what the vector holds already, [`HEADROOM`] bytes.
    pub fn append_with<R>(&mut self, append: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.buffer.truncate(HEADROOM);
        let result = append(&mut self.buffer);
        (self.length, self.place) = (self.buffer.len() - HEADROOM, Place::Port);
        result
    }

    /// Replaces the payload by a copy of `bytes`.
    pub fn set(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Empties the payload, and gives the slot back.
    pub fn clear(&mut self) {
        (self.length, self.place, self.offered) = (0, Place::Port, None);
    }

    /// Where the payload is.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// What is to be sent: `head`, with the payload right behind it unless it is in a slot. The
    /// slot is given back: the host may ask for it again as soon as it has the answer.
    ///
    /// # Panics
    /// Where `head` is longer than [`HEADROOM`].
    pub fn behind<'b>(&'b mut self, head: &'b [u8]) -> &'b [u8] {
        self.offered = None;
        if self.length == 0 || self.place != Place::Port {
            return head;
        }
        let start = HEADROOM.checked_sub(head.len()).expect("the head of a payload is short");
        self.buffer[start..HEADROOM].copy_from_slice(head);
        &self.buffer[start..HEADROOM + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_stands_right_before_the_payload() {
        let mut payload = Payload::default();
        payload.set(b"payload");
        assert_eq!(payload.behind(b"head "), b"head payload");
        payload.truncate(3);
        assert_eq!(payload.behind(b"a "), b"a pay");
        payload.append_with(|bytes| bytes.extend_from_slice(b"page"));
        assert_eq!(payload.behind(b"another "), b"another page");
        payload.clear();
        assert_eq!(payload.behind(b"nothing"), b"nothing");
    }
}
