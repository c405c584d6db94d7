//! Ctrl-C and its like while files are put into an image: noticed between two steps, so that the
//! file under way is not left half, and the filesystem is unmounted.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use crate::ending::take_signals;

/// Whether the user wants it to end.
pub struct Interruption(SignalFd);

/// The user wants it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Interruption {
    /// From now on, signals that would end this process are noticed here instead. Whatever thread
    /// there is beside the caller's must let none of them through.
    ///
    /// # Errors
    /// As signalfd(2).
    pub fn expect() -> io::Result<Self> {
        Ok(Self(take_signals()?))
    }

    /// Goes on, unless the user wants it to end.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        let mut event = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut event, PollTimeout::ZERO) {
            Ok(1..) => Err(Interrupted),
            _ => Ok(()),
        }
    }

    /// `stream`, of which no more is read, or waited for, once the user wants it to end.
    pub fn reader<S: Read + AsFd>(&self, stream: S) -> impl Read {
        Interruptible { stream, interruption: self }
    }
}

struct Interruptible<'a, S> {
    stream: S,
    interruption: &'a Interruption,
}

impl<S: Read + AsFd> Read for Interruptible<'_, S> {
    /// As the stream's, and with an error that holds [`Interrupted`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut events = [
            PollFd::new(self.interruption.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
        ];
        while let Err(errno) = poll(&mut events, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        if events[0].any() == Some(true) {
            return Err(io::Error::other(Interrupted));
        }
        self.stream.read(buffer)
    }
}
