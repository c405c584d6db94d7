//! Asks for the key of an encrypted volume on the terminal, and launches once more with it.
//!
//! The VM that found the volume locked has too little memory to try a key of LUKS2, so it is
//! followed by one that has enough: the key then counts as if it had been given with `--key`.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use guestmnt_protocol::limits::MAX_SECRET;
use guestmnt_protocol::volume::VolumeName;
use log::debug;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::read;

use super::keys::{self, Key, KeyError};
use super::launch::{LaunchError, Launched, launch};
use super::plan::{DEFAULT_MEMORY_MIB, Plan};
use super::timings::Timings;

/// How often a key is asked for.
const ATTEMPTS: usize = 3;

/// Launches what `plan` says. Where a volume that it names is encrypted and has no key, and standard
/// input is a terminal, asks for one there and keeps it in the plan.
///
/// # Errors
/// [`LaunchError`]; nothing runs then.
pub fn launch_asking(plan: &mut Plan, timings: &Timings) -> Result<Launched, LaunchError> {
    let mut typed = false;
    for _ in 0..ATTEMPTS {
        let error = match launch(plan, timings) {
            Ok(launched) => return Ok(launched),
            Err(error) => error,
        };
        let volume = match &error {
            LaunchError::Mount { locked: Some(volume), .. } => volume,
            LaunchError::Key(KeyError::Refused(volume, _)) if typed => {
                eprintln!("guestmnt: the key does not open {volume}");
                volume
            }
            _ => return Err(error),
        };
        let stdin = io::stdin();
        let Ok(shown) = tcgetattr(&stdin) else { return Err(error) };
        let key = ask(stdin.as_fd(), shown, volume)
            .and_then(|secret| Key::of_volume(volume.clone(), secret).map_err(io::Error::other));
        let key = match key {
            Ok(key) => key,
            Err(reason) => {
                debug!("no key was typed: {reason}");
                return Err(error);
            }
        };
        if std::mem::replace(&mut typed, true) {
            plan.keys.pop();
        }
        plan.keys.push(key);
        // What the user asked for stays.
        if plan.memory_mib == DEFAULT_MEMORY_MIB {
            plan.memory_mib = keys::MEMORY_MIB;
        }
    }
    launch(plan, timings)
}

/// What is typed on `terminal` in one line while it shows nothing. Signals that end a process
/// wait until it shows again what is typed, as it did by `shown`.
fn ask(terminal: BorrowedFd, shown: Termios, volume: &VolumeName) -> io::Result<Vec<u8>> {
    let ends: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
    let before = ends.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let line = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|signals| read_unseen(terminal, &shown, &signals, volume));
    let restored = tcsetattr(terminal, SetArg::TCSAFLUSH, &shown);
    eprintln!();
    before.thread_set_mask()?;
    restored?;
    let line = line?;
    if line.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(line) }
}

fn read_unseen(
    terminal: BorrowedFd,
    shown: &Termios,
    signals: &SignalFd,
    volume: &VolumeName,
) -> io::Result<Vec<u8>> {
    let mut unseen = shown.clone();
    unseen.local_flags.remove(LocalFlags::ECHO);
    // What was typed before was typed for all to see.
    tcsetattr(terminal, SetArg::TCSAFLUSH, &unseen)?;
    eprint!("guestmnt: key of {volume}: ");
    io::stderr().flush()?;
    let mut line = Vec::new();
    let mut piece = [0; 512];
    loop {
        let mut events = [
            PollFd::new(terminal, PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut events, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if events[1].any() == Some(true) {
            // It is taken, or it would end this process once it is let through.
            let _ = signals.read_signal();
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = read(terminal, &mut piece)?;
        line.extend_from_slice(&piece[..count]);
        if count == 0 || line.ends_with(b"\n") || line.len() > MAX_SECRET {
            return Ok(keys::without_line_break(line));
        }
    }
}
