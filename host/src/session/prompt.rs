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

use super::arrangement::ArrangementError;
use super::keys::{self, Key, KeyError};
use super::launch::{LaunchError, Launched, launch};
use super::plan::{DEFAULT_MEMORY_MIB, Plan};
use super::timings::Timings;

/// How often a key is asked for.
const ATTEMPTS: usize = 3;

/// Launches what `plan` says. Where an encrypted volume has no key and holds what is wanted, or may
/// hold it, and standard input is a terminal, asks for one there and keeps it in the plan. What the
/// user names has to be opened; else an empty line leaves a volume closed.
///
/// # Errors
/// [`LaunchError`]; nothing runs then.
pub fn launch_asking(plan: &mut Plan, timings: &Timings) -> Result<Launched, LaunchError> {
    let stdin = io::stdin();
    plan.declined = tcgetattr(&stdin).is_ok().then(Vec::new);
    // The volume for which keys were typed last, and how many.
    let mut typed: Option<(VolumeName, usize)> = None;
    loop {
        let error = match launch(plan, timings) {
            Ok(launched) => return Ok(launched),
            Err(error) => error,
        };
        let tried = |volume| typed.as_ref().filter(|(last, _)| last == volume).map(|(_, n)| *n);
        let (volume, is_named) = match &error {
            LaunchError::Mount { locked: Some(volume), .. } => (volume.clone(), true),
            LaunchError::Arrangement(ArrangementError::Locked(volume)) => (volume.clone(), false),
            LaunchError::Key(KeyError::Refused(volume, _))
                if tried(volume).is_some_and(|count| count < ATTEMPTS) =>
            {
                eprintln!("guestmnt: the key does not open {volume}");
                plan.keys.pop();
                (volume.clone(), true)
            }
            _ => return Err(error),
        };
        let Ok(shown) = tcgetattr(&stdin) else { return Err(error) };
        let question = match is_named {
            true => format!("guestmnt: key of {volume}: "),
            false => format!("guestmnt: key of {volume}, or nothing to leave it closed: "),
        };
        match ask(stdin.as_fd(), shown, &question) {
            Ok(secret) => {
                let key = Key::of_volume(volume.clone(), secret).map_err(LaunchError::Key)?;
                plan.keys.push(key);
                typed = Some((volume.clone(), tried(&volume).unwrap_or(0) + 1));
                // What the user asked for stays.
                if plan.memory_mib == DEFAULT_MEMORY_MIB {
                    plan.memory_mib = keys::MEMORY_MIB;
                }
            }
            Err(reason) if reason.kind() == io::ErrorKind::UnexpectedEof && !is_named => {
                plan.declined.get_or_insert_default().push(volume);
            }
            Err(reason) => {
                debug!("no key was typed: {reason}");
                return Err(error);
            }
        }
    }
}

/// What is typed on `terminal` in one line while it shows nothing. Signals that end a process
/// wait until it shows again what is typed, as it did by `shown`.
fn ask(terminal: BorrowedFd, shown: Termios, question: &str) -> io::Result<Vec<u8>> {
    let ends: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
    let before = ends.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let line = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|signals| read_unseen(terminal, &shown, &signals, question));
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
    question: &str,
) -> io::Result<Vec<u8>> {
    let mut unseen = shown.clone();
    unseen.local_flags.remove(LocalFlags::ECHO);
    // What was typed before was typed for all to see.
    tcsetattr(terminal, SetArg::TCSAFLUSH, &unseen)?;
    eprint!("{question}");
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
