//! The signals by which a user or the system ends a process, where they are waited for.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// From now on, signals that would end this process wait here instead. Threads that are started
/// later let none of them through either; others must not, since the kernel gives a signal to any
/// thread that does.
///
/// # Errors
/// As sigprocmask(2) and signalfd(2).
pub fn take_signals() -> nix::Result<SignalFd> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}
