//! Goes on in the background, and lets the caller's terminal go only when the mount answers.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, pipe, setsid};

use crate::sys;

/// Which of the two processes we are after [`split`].
pub enum Side {
    /// The caller's: it ends with this status.
    Foreground(ExitCode),
    /// The one that serves.
    Background(Release),
}

/// What the mount that answers shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// All that was asked for.
    Whole,
    /// Not all of it.
    InPart,
}

/// The byte that says each of these.
const WHOLE: u8 = 1;
const IN_PART: u8 = 2;

/// Lets the caller go.
pub struct Release(OwnedFd);

/// Forks; in the caller's process waits until the other calls [`Release::release`] or ends.
/// Must be called before there are threads.
///
/// # Errors
/// Where there can be no pipe or process.
pub fn split() -> io::Result<Side> {
    let (reader, writer) = pipe()?;
    match sys::fork()? {
        None => {
            drop(reader);
            Ok(Side::Background(Release(writer)))
        }
        Some(child) => {
            drop(writer);
            let mut byte = [0];
            let ready = File::from(reader).read(&mut byte)? == 1;
            Ok(Side::Foreground(match (ready, byte) {
                (true, [IN_PART]) => ExitCode::FAILURE,
                (true, _) => ExitCode::SUCCESS,
                (false, _) => status_of(child),
            }))
        }
    }
}

/// The status of a child that ended before it was ready. It has said why.
fn status_of(child: Pid) -> ExitCode {
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 0)) => ExitCode::SUCCESS,
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            eprintln!("guestmnt: ended by {signal} before the mount was ready");
            ExitCode::FAILURE
        }
        _ => ExitCode::FAILURE,
    }
}

impl Release {
    /// Leaves the caller's terminal, session and folder, and lets the caller go, with status 1 where
    /// something is missing.
    ///
    /// # Errors
    /// Where one of the steps fails.
    pub fn release(self, ready: Ready) -> io::Result<()> {
        setsid()?;
        chdir("/")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        let byte = match ready {
            Ready::Whole => WHOLE,
            Ready::InPart => IN_PART,
        };
        File::from(self.0).write_all(&[byte])
    }
}
