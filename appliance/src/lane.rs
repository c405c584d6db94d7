//! A lane as a stream of bytes: where frames begin and end, and how they get through a
//! virtio-serial port.
//!
//! The port's driver (drivers/char/virtio_console.c) hands out what one of its buffers of 4 KiB
//! holds, takes at most 32 KiB in one write, and returns 0 from a read while nobody is connected
//! on the host. A socket behaves well enough like that to stand in for it.

use std::fmt;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use guestmnt_protocol::frame::{FrameError, HEADER_LEN, Header, Place};

/// Holds most requests whole; what the port's driver gives at once.
const BUFFER_START: usize = 4096;

/// Why a lane can't be served any longer.
#[derive(Debug)]
pub enum LaneError {
    /// What arrived is no frame. Where the next one begins cannot be known.
    Frame(FrameError),
    /// The port failed.
    Port(Errno),
    /// The host hung up while an answer was on its way.
    Disconnected,
}

impl fmt::Display for LaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(error) => error.fmt(f),
            Self::Port(errno) => f.write_str(errno.desc()),
            Self::Disconnected => f.write_str("the host hung up before it had its answer"),
        }
    }
}

impl std::error::Error for LaneError {}

/// One end of a lane, with what has been read from it and not yet been used.
pub struct Lane<P> {
    port: P,
    /// The bytes from `start` to `end` wait to be used.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes still to come of the last frame's payload. Unless they are taken, they are skipped.
    unwanted: usize,
}

impl<P: AsFd> Lane<P> {
    /// A lane over a port or socket in blocking mode.
    pub fn new(port: P) -> Self {
        Self { port, buffer: vec![0; BUFFER_START], start: 0, end: 0, unwanted: 0 }
    }

    /// Waits for the next frame: its header and its body. `None` when the host has hung up,
    /// in the middle of a frame as well.
    ///
    /// # Errors
    /// [`LaneError::Frame`] for a header that is none, [`LaneError::Port`].
    pub fn receive(&mut self) -> Result<Option<(Header, &[u8])>, LaneError> {
        if !self.skip_unwanted()? || !self.fetch(HEADER_LEN)? {
            return Ok(None);
        }
        let bytes = self.buffer[self.start..].first_chunk().expect("a header was fetched");
        let header = Header::decode(bytes).map_err(LaneError::Frame)?;
        self.start += HEADER_LEN;
        if !self.fetch(header.body_len)? {
            return Ok(None);
        }
        let body = self.start..self.start + header.body_len;
        self.start = body.end;
        if header.place == Place::Port {
            self.unwanted = header.payload_len;
        }
        Ok(Some((header, &self.buffer[body])))
    }

    /// Replaces `payload` by the payload of the frame that was received last, if it comes by the
    /// port; false at the stream's end.
    ///
    /// # Errors
    /// [`LaneError::Port`].
    pub fn take_payload(&mut self, payload: &mut Vec<u8>) -> Result<bool, LaneError> {
        payload.clear();
        while self.unwanted > 0 {
            if !self.fetch(1)? {
                return Ok(false);
            }
            let here = self.unwanted.min(self.end - self.start);
            payload.extend_from_slice(&self.buffer[self.start..self.start + here]);
            self.start += here;
            self.unwanted -= here;
        }
        Ok(true)
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// [`LaneError::Disconnected`], [`LaneError::Port`].
    pub fn send(&mut self, mut bytes: &[u8]) -> Result<(), LaneError> {
        while !bytes.is_empty() {
            match write(&self.port, bytes) {
                // The driver says 0 when its queue has no room although it had seemed to.
                Ok(0) | Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLOUT)?,
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE) => return Err(LaneError::Disconnected),
                Err(errno) => return Err(LaneError::Port(errno)),
            }
        }
        Ok(())
    }

    /// Uses up what is unwanted; false at the stream's end.
    fn skip_unwanted(&mut self) -> Result<bool, LaneError> {
        while self.unwanted > 0 {
            if !self.fetch(1)? {
                return Ok(false);
            }
            let here = self.unwanted.min(self.end - self.start);
            self.start += here;
            self.unwanted -= here;
        }
        Ok(true)
    }

    /// Makes sure that at least `wanted` bytes wait in the buffer; false at the stream's end.
    /// The caller has checked `wanted` against the protocol's limits.
    fn fetch(&mut self, wanted: usize) -> Result<bool, LaneError> {
        if self.start + wanted > self.buffer.len() || self.start == self.end {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if wanted > self.buffer.len() {
                self.buffer.resize(wanted, 0);
            }
        }
        while self.end - self.start < wanted {
            match read(&self.port, &mut self.buffer[self.end..]) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(false),
                Ok(count) => self.end += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_for(PollFlags::POLLIN)?,
                Err(errno) => return Err(LaneError::Port(errno)),
            }
        }
        Ok(true)
    }

    fn wait_for(&self, what: PollFlags) -> Result<(), LaneError> {
        let mut polled = [PollFd::new(self.port.as_fd(), what)];
        match poll(&mut polled, PollTimeout::NONE) {
            // Without a look at this flag the loop around would spin until the host is back.
            Ok(_) if polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP)) => {
                Err(LaneError::Disconnected)
            }
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(LaneError::Port(errno)),
        }
    }
}
