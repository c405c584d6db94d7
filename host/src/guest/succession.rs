//! What becomes of requests when the VM behind the lanes is gone: whether another one will follow,
//! who waits for it, and how a guest is given up that still runs.
//!
//! A guest whose files may be written to has no keeper: what its VM had not written back is gone
//! with it, and to go on without would be a lie.
//!
//! **Invariant:** knows neither what a VM is nor how one is started; its keeper does.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use guestmnt_protocol::message::{Answer, Request};
use log::debug;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Guest;
use super::volumes::Unlike;

/// The VMs behind one set of lanes, by their numbers from 0 on.
pub struct Succession {
    state: Mutex<State>,
    changed: Condvar,
    /// Readable while the present VM is given up.
    given_up: EventFd,
}

struct State {
    /// The VM that the lanes lead to.
    present: u64,
    /// Whether somebody will bring another one when it dies.
    has_keeper: bool,
    /// Why it was given up.
    why: Option<String>,
}

impl Succession {
    /// The first VM, after which none follows unless [`Succession::expect_another`] is called.
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let state = State { present: 0, has_keeper: false, why: None };
        let given_up = EventFd::from_flags(flags)?;
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), given_up })
    }

    /// From now on, those whose VM is gone wait for the next one.
    pub fn expect_another(&self) {
        self.lock().has_keeper = true;
    }

    /// No other VM will come: those who wait need not any more.
    pub fn expect_none(&self) {
        self.lock().has_keeper = false;
        self.changed.notify_all();
    }

    /// Whether another VM will come when the present one is gone.
    pub fn is_expected(&self) -> bool {
        self.lock().has_keeper
    }

    /// The number of the VM that the lanes lead to.
    pub fn present(&self) -> u64 {
        self.lock().present
    }

    /// The next VM is the present one.
    pub fn proceed(&self) {
        let mut state = self.lock();
        state.present += 1;
        state.why = None;
        // With the lock held: nobody gives up the one before any more. `EAGAIN` says that nobody had.
        let _ = self.given_up.read();
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until another VM has followed `vm`. False where none does before `deadline`.
    pub fn await_after(&self, vm: u64, deadline: Instant) -> bool {
        let mut state = self.lock();
        while state.present == vm && state.has_keeper {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.expect(NO_PANIC).0;
        }
        state.present > vm
    }

    /// Gives up `vm`, which may still run, for the reason `why`: its keeper is to end it.
    pub fn give_up(&self, vm: u64, why: &dyn fmt::Display) {
        let mut state = self.lock();
        if state.present == vm && state.has_keeper && state.why.is_none() {
            state.why = Some(why.to_string());
            if let Err(errno) = self.given_up.write(1) {
                debug!("the VM's keeper cannot be called: {}", errno.desc());
            }
        }
    }

    /// Readable while the present VM is given up.
    pub fn given_up(&self) -> BorrowedFd<'_> {
        self.given_up.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }
}

/// What the keeper of the VM does.
impl Guest {
    /// From now on, requests whose VM is gone wait for the next one, as long as they may take, and
    /// are made again.
    pub fn expect_another(&self) {
        self.succession.expect_another();
    }

    /// No other VM will come: requests whose VM is gone fail at once, those that wait as well.
    pub fn expect_none(&self) {
        self.succession.expect_none();
    }

    /// Readable while the guest is given up: it broke the protocol, or does not run any more. Its
    /// VM has to be ended then.
    #[must_use]
    pub fn given_up(&self) -> BorrowedFd<'_> {
        self.succession.given_up()
    }

    /// Why the guest was given up, if it was.
    #[must_use]
    pub fn why_given_up(&self) -> Option<String> {
        self.succession.lock().why.clone()
    }

    /// Goes on with `next`, the guest of another VM that has the same disks and mounts. The VM before
    /// has to be gone.
    ///
    /// # Errors
    /// [`Unlike`] where it is not the same; nothing has changed then.
    pub fn go_on_with(&self, next: Self) -> Result<(), Unlike> {
        let vm = self.succession.present() + 1;
        let volume = |path| {
            next.call(&Request::Stat(path), 0, |answer, _| match answer {
                Answer::Attr(attr) => Some(attr.volume),
                _ => None,
            })
        };
        self.volumes.learn(vm, volume)?;
        self.lanes.replace(next.lanes, vm);
        if let (Some(pulse), Some(other)) = (&self.pulse, next.pulse) {
            let mut other = other.into_inner().unwrap_or_else(PoisonError::into_inner);
            other.vm = vm;
            *pulse.lock().unwrap_or_else(PoisonError::into_inner) = other;
        }
        self.succession.proceed();
        Ok(())
    }
}

const NO_PANIC: &str = "nothing panics while it holds the succession";

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn is_given_up(succession: &Succession) -> bool {
        let mut events = [PollFd::new(succession.given_up(), PollFlags::POLLIN)];
        poll(&mut events, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn who_waits_goes_on_with_the_next_vm_or_without_hope() {
        let succession = Succession::new().unwrap();
        assert!(!succession.await_after(0, later()), "nobody will bring another");
        succession.expect_another();
        assert!(!succession.await_after(0, Instant::now()), "too late");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| succession.await_after(0, later()));
            succession.proceed();
            assert!(waiting.join().unwrap());
            assert!(succession.await_after(0, later()), "it has come already");
            let waiting = scope.spawn(|| succession.await_after(1, later()));
            succession.expect_none();
            assert!(!waiting.join().unwrap());
        });
    }

    #[test]
    fn only_the_present_vm_can_be_given_up() {
        let succession = Succession::new().unwrap();
        succession.give_up(0, &"why");
        assert!(!is_given_up(&succession), "there is nobody who would end it");
        succession.expect_another();
        succession.give_up(0, &"why");
        assert!(is_given_up(&succession));
        succession.proceed();
        assert!(!is_given_up(&succession));
        succession.give_up(0, &"why");
        assert!(!is_given_up(&succession), "it is gone");
        succession.give_up(1, &"why");
        assert!(is_given_up(&succession));
    }
}
