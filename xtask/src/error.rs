//! Why a chore stopped, in words for the person who started it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use guestmnt_protocol::path::Printable;

/// Why a chore stopped.
#[derive(Debug)]
pub enum Error {
    /// The file system refused something.
    File {
        /// What was tried, as in "cannot `tried` PATH".
        tried: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// A program could not be started.
    Start {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A program ended with a failure.
    Program {
        /// The whole command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it printed.
        tail: Vec<u8>,
    },
    /// Something that we were given or found does not serve.
    Unfit {
        /// What, and why.
        what: String,
        /// What the user can do.
        hint: String,
    },
    /// A step failed.
    Step {
        /// The step's title.
        step: String,
        /// Its error.
        source: Box<Error>,
    },
}

impl Error {
    /// Wraps an I/O error: `fs::read(path).map_err(Error::file("read", path))`.
    pub fn file(tried: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { tried, path, source }
    }

    /// An [`Error::Unfit`].
    pub fn unfit(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unfit { what: what.into(), hint: hint.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { tried, path, source } => {
                write!(f, "cannot {tried} {}: {source}", path.display())
            }
            Self::Start { program, source } if source.kind() == io::ErrorKind::NotFound => {
                write!(f, "{program} is not installed\n  hint: cargo xtask setup")
            }
            Self::Start { program, source } => write!(f, "cannot start {program}: {source}"),
            Self::Program { command, status, tail } => {
                write!(f, "{command}: {status}")?;
                for line in tail.split(|&b| b == b'\n') {
                    write!(f, "\n  | {}", Printable(line))?;
                }
                Ok(())
            }
            Self::Unfit { what, hint } => write!(f, "{what}\n  hint: {hint}"),
            Self::Step { step, source } => write!(f, "{step}: {source}"),
        }
    }
}

impl std::error::Error for Error {}
