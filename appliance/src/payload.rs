//! A lane's buffer for the bytes that follow an answer.

use guestmnt_protocol::limits::MAX_PAYLOAD;

/// Bytes kept free before the payload, so that the header and the body of an answer can be put
/// there and both leave in one write. Answers with a payload have a body of two bytes.
pub const HEADROOM: usize = 64;

/// One lane's payload. The buffer grows to the largest one so far and is used again for all
/// that follow: reading allocates and clears nothing in the steady state.
pub struct Payload {
    /// [`HEADROOM`], then the payload's bytes, then what an earlier, longer one left.
    buffer: Vec<u8>,
    length: usize,
}

impl Default for Payload {
    fn default() -> Self {
        Self { buffer: vec![0; HEADROOM], length: 0 }
    }
}

impl Payload {
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
        self.length = length;
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
        self.length = self.buffer.len() - HEADROOM;
        result
    }

    /// Replaces the payload by a copy of `bytes`.
    pub fn set(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Empties the payload.
    pub fn clear(&mut self) {
        self.length = 0;
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// `head` with the payload behind it, in one piece.
    ///
    /// # Panics
    /// Where `head` is longer than [`HEADROOM`].
    pub fn behind(&mut self, head: &[u8]) -> &[u8] {
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
