//! Puts files into an image: files of the host, or those of a tar stream. The counterpart of
//! [`crate::extract`].
//!
//! The guest makes each step from a folder that it finds without following links: neither a link
//! that stands in the image nor one that a tar stream brings has anything written elsewhere.

pub mod from_host;
pub mod from_tar;
pub mod interruption;
mod pax;
pub mod tar_reader;
mod writer;

use std::fmt;
use std::io;

use guestmnt_protocol::path::GuestPath;
use nix::errno::Errno;

use self::interruption::Interrupted;
pub use self::writer::{Metadata, Target, Writer};

/// What is done with a file of the image that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays.
    Keep,
    /// It is replaced. Folders are filled.
    Replace,
}

/// Why something could not be done with a file.
#[derive(Debug)]
pub enum Trouble {
    /// The guest could not do its part.
    Guest(Errno),
    /// What was to be written cannot be read.
    Source(io::Error),
    /// It is of a kind that is left out; the text says which.
    LeftOut(&'static str),
    /// The user wants it to end.
    Interrupted,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(Errno::EEXIST) => {
                f.write_str("it is there already\n  hint: --force replaces it")
            }
            Self::Guest(Errno::ELOOP | Errno::ENOTDIR) => {
                f.write_str("a symbolic link or a file of the image is on the way")
            }
            Self::Guest(errno) => f.write_str(errno.desc()),
            Self::Source(error) => match error.raw_os_error() {
                Some(errno) => write!(f, "cannot read: {}", Errno::from_raw(errno).desc()),
                None => write!(f, "cannot read: {error}"),
            },
            Self::LeftOut(what) => write!(f, "left out: it is {what}"),
            Self::Interrupted => Interrupted.fmt(f),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self::Guest(errno)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.get_ref() {
            Some(inner) if inner.is::<Interrupted>() => Self::Interrupted,
            _ => Self::Source(error),
        }
    }
}

impl From<Interrupted> for Trouble {
    fn from(Interrupted: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl Trouble {
    /// Whether it will meet every file that follows as well.
    #[must_use]
    pub fn is_final(&self) -> bool {
        use Errno::{EDQUOT, EIO, ENOSPC, EROFS};
        matches!(self, Self::Interrupted | Self::Guest(ENOSPC | EDQUOT | EROFS | EIO))
    }
}

/// Called with the bytes that were written since it was called last.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// Called with each file that there was trouble with, and the reason.
pub type Complain<'a> = &'a mut dyn FnMut(&[u8], &Trouble);

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inserted {
    /// Files, folders and links that are in the image now.
    pub files: u64,
    /// Those that there was trouble with.
    pub troubles: u64,
}

impl Inserted {
    /// Counts what became of one file.
    ///
    /// # Errors
    /// The trouble, where all others would have it too.
    fn count(
        &mut self,
        path: &[u8],
        done: Result<(), Trouble>,
        complain: Complain,
    ) -> Result<(), Trouble> {
        match done {
            Ok(()) => self.files += 1,
            Err(trouble) if trouble.is_final() => return Err(trouble),
            Err(trouble) => {
                complain(path, &trouble);
                self.troubles += 1;
            }
        }
        Ok(())
    }
}

/// `path` below `folder`.
fn below(folder: &GuestPath, path: &GuestPath) -> Result<GuestPath, Trouble> {
    if folder.is_root() || path.is_root() {
        return Ok(if folder.is_root() { path.clone() } else { folder.clone() });
    }
    let bytes = [folder.as_bytes(), path.as_bytes()].join(&b'/');
    GuestPath::new(bytes).map_err(|_| Errno::ENAMETOOLONG.into())
}
