//! Tells a guest that is slow from one that is gone. A disk may be slow, and a request take a
//! minute; but a guest that runs answers a greeting, which touches no file, on a lane kept for that.
//!
//! Nothing is asked of a guest that answers in time, nor of an idle one.

use std::time::Duration;

use guestmnt_protocol::message::{Answer, Request};
use log::debug;

use super::lane::Lane;

/// How long an answer may take before the guest is asked whether it runs, and how long it may take
/// to say so. A guest on a machine with many other things to do needs a second.
const LONGEST: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_secs(2);

/// The lane that is kept for greetings, and which VM's it is.
pub struct Pulse {
    pub vm: u64,
    lane: Lane,
}

impl Pulse {
    /// Over a lane that nothing else uses.
    pub fn on(lane: Lane) -> Self {
        Self { vm: 0, lane }
    }

    /// Whether the guest answers within `patience`.
    pub fn beats(&mut self, patience: Duration) -> bool {
        match self.lane.call(&Request::Hello, 0, patience) {
            Ok((Ok(Answer::Hello { .. }), _)) => true,
            Ok(_) => false,
            Err(error) => {
                debug!("no sign of the guest for {} s: {error}", patience.as_secs());
                false
            }
        }
    }
}

/// How long to wait for a sign of the guest where a request may take `timeout`. A verdict takes
/// twice that.
pub fn patience(timeout: Duration) -> Duration {
    (timeout / 6).clamp(SHORTEST, LONGEST)
}
