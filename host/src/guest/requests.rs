//! How one request finds a lane, and what becomes of it when it gets no usable answer.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Instant;

use guestmnt_protocol::message::{Answer, Failure, Outcome, Request};
use guestmnt_protocol::path::Printable;
use log::{debug, trace, warn};
use nix::errno::Errno;

use super::asked::Asked;
use super::bulk::{Bulk, Slot};
use super::error::errno_of;
use super::lane::{LaneError, Payload, Wait};
use super::lanes::Held;
use super::pulse;
use super::{Guest, TRACE};
use crate::counts::Kind;

/// A payload where it arrived.
pub enum Landed<'a> {
    /// So many bytes in a slot.
    Slot(Slot, usize),
    /// In the lane's own memory.
    Port(&'a [u8]),
}

/// Where a payload may arrive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// In the lane's own memory.
    Lane,
    /// In a slot, if one is free, or in the lane's memory.
    Slot,
}

impl Guest {
    /// One request on a file. `check` turns a proper answer into the result, or refuses it.
    pub(super) fn call<T>(
        &self,
        request: &Request,
        payload_limit: usize,
        check: impl FnOnce(Answer, &[u8]) -> Option<T>,
    ) -> Result<T, Errno> {
        self.call_vm(request, payload_limit, |_, answer, payload| check(answer, payload))
    }

    /// As [`Guest::call`]; `check` also gets the number of the VM that the answer is from.
    pub(super) fn call_vm<T>(
        &self,
        request: &Request,
        payload_limit: usize,
        check: impl FnOnce(u64, Answer, &[u8]) -> Option<T>,
    ) -> Result<T, Errno> {
        self.ask(request, payload_limit, Room::Lane, |vm, answer, landed| match landed {
            Landed::Port(payload) => check(vm, answer, payload),
            Landed::Slot(..) => unreachable!("no slot was offered"),
        })
    }

    /// Makes a request, and makes it once more where the VM dies over it and another one follows:
    /// nothing that is asked changes anything. `take` gets the VM's number and the answer, with its
    /// payload where it arrived, or refuses it.
    pub(super) fn ask<T>(
        &self,
        request: &Request,
        payload_limit: usize,
        room: Room,
        take: impl FnOnce(u64, Answer, Landed<'_>) -> Option<T>,
    ) -> Result<T, Errno> {
        self.count(request);
        let deadline = Instant::now() + self.timeout;
        let mut again = true;
        loop {
            let mut link = match self.link(deadline) {
                Ok(link) => link,
                Err(error) => {
                    self.refuse(&error);
                    return Err(Errno::EIO);
                }
            };
            let vm = link.vm;
            let bulk = link.bulk.as_ref().filter(|_| room == Room::Slot);
            let slot = bulk.and_then(Bulk::take);
            let offered = slot.as_ref().map(Slot::number);
            let runs = || self.runs(vm);
            let wait = Wait { deadline, patience: pulse::patience(self.timeout), runs: &runs };
            match link.lane.call_with_slot(request, payload_limit, offered, wait) {
                Ok((outcome, Payload::Port(bytes))) => {
                    self.counts.bytes(bytes.len());
                    return self.taken(outcome, |answer| take(vm, answer, Landed::Port(bytes)));
                }
                Ok((outcome, Payload::Slot(length))) => {
                    // The bytes are not in the lane: others can use it while they are passed on.
                    drop(link);
                    self.counts.bytes(length);
                    let slot = slot.expect("the lane takes no slot that was not offered");
                    let landed = Landed::Slot(slot, length);
                    return self.taken(outcome, |answer| take(vm, answer, landed));
                }
                Err(error) => {
                    link.take_back(slot);
                    drop(link);
                    if !(again && self.is_outlived(vm, &error, deadline)) {
                        self.refuse(&error);
                        return Err(Errno::EIO);
                    }
                    again = false;
                }
            }
        }
    }

    pub(super) fn taken<T>(
        &self,
        outcome: Outcome,
        take: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, Errno> {
        let answer = outcome.map_err(|failure| {
            self.explain(&failure);
            errno_of(failure.errno)
        })?;
        take(answer).ok_or_else(|| {
            self.refuse(&"an answer out of bounds");
            Errno::EIO
        })
    }

    /// Says why the guest could not do something, where it says more than an error's number: once
    /// for each of several requests for the same. A hostile guest shall not fill the log.
    fn explain(&self, failure: &Failure) {
        const MANY: u64 = 20;
        if failure.detail.is_empty() {
            return;
        }
        let mut said = self.explained.lock().expect("nothing panics with it");
        if said.1 == failure.detail {
            return;
        }
        let line = Printable(failure.detail.as_bytes());
        match said.0 {
            ..MANY => warn!("{line}"),
            MANY => warn!("{line}; further ones are told with -v"),
            _ => debug!("{line}"),
        }
        *said = (said.0 + 1, failure.detail.clone());
    }

    /// Whether the request that failed with `error` in `vm` can be made again in the VM after it. A
    /// VM that broke a lane is given up, whatever else still works in it.
    fn is_outlived(&self, vm: u64, error: &LaneError, deadline: Instant) -> bool {
        match error {
            LaneError::Late => false,
            LaneError::Malformed(_) | LaneError::Io(_) => {
                self.succession.give_up(vm, error);
                false
            }
            LaneError::Silent => {
                self.succession.give_up(vm, error);
                self.succession.await_after(vm, deadline)
            }
            // Its keeper sees that by itself, and has been told where a lane broke before.
            LaneError::Dead => self.succession.await_after(vm, deadline),
        }
    }

    /// Whether the guest in `vm` runs, as far as can be told. While somebody else asks, it does.
    fn runs(&self, vm: u64) -> bool {
        let Some(pulse) = self.pulse.as_ref().filter(|_| self.succession.is_expected()) else {
            return true;
        };
        match pulse.try_lock() {
            Ok(mut pulse) if pulse.vm == vm => pulse.beats(pulse::patience(self.timeout)),
            _ => true,
        }
    }

    /// Counts a request, and says for `-x` that it is made.
    pub(super) fn count(&self, request: &Request) {
        if let Some(asked) = Asked::of(request) {
            self.counts.request(asked);
            trace!(target: TRACE, "-> {}", asked.name());
        }
    }

    /// Counts an answer that cannot be used. The first is a warning; a hostile guest shall not
    /// fill the log.
    pub(super) fn refuse(&self, why: &dyn fmt::Display) {
        if self.refused_answers.fetch_add(1, Ordering::Relaxed) == 0 {
            warn!("{why}; such requests fail with EIO");
        } else {
            debug!("{why}");
        }
    }

    /// A lane for a request that may take until `deadline`.
    ///
    /// # Errors
    /// [`LaneError::Late`] where there is none by then; [`LaneError::Silent`] where the guest does
    /// not run any more, and no other one follows.
    pub(super) fn link(&self, deadline: Instant) -> Result<Held<'_>, LaneError> {
        let patience = pulse::patience(self.timeout);
        let broke = |vm, error: &LaneError| match error {
            LaneError::Malformed(_) | LaneError::Io(_) => self.succession.give_up(vm, error),
            LaneError::Dead | LaneError::Late | LaneError::Silent => {}
        };
        loop {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            // Where there is no time for an answer, it is late either way.
            let until = if left > patience { now + patience } else { deadline };
            if let Some(link) = self.lanes.take(until, &broke) {
                return Ok(link);
            }
            if until == deadline {
                return Err(LaneError::Late);
            }
            // Each lane may owe an answer that nobody waits for, who would ask.
            let vm = self.succession.present();
            if !self.runs(vm) {
                self.succession.give_up(vm, &LaneError::Silent);
                if !self.succession.await_after(vm, deadline) {
                    return Err(LaneError::Silent);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{fs, guest};

    #[test]
    fn warnings_of_a_module_are_not_filtered_with_the_trace_of_requests() {
        // A filter for a path is one for all paths that begin with it.
        let modules = [module_path!(), "guestmnt::fs", "guestmnt::guest"];
        for trace in [fs::TRACE, guest::TRACE] {
            assert!(modules.iter().all(|module| !module.starts_with(trace)), "{trace}");
        }
    }
}
