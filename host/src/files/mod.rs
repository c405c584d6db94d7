//! The files of a guest for programs of ours, without FUSE: found by path, walked in an order that
//! is the same each time, read in large pieces while the next ones are under way.
//!
//! Whatever the guest answers was checked by its client. Nothing here writes, and nothing is
//! opened: what is done with the files is the [`Sink`]'s business.

mod contents;
mod folder;
mod pool;
mod resolve;
mod walk;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use guestmnt_protocol::attr::{Attr, DirEntry, Following};
use guestmnt_protocol::path::{GuestPath, LinkTarget};
use nix::errno::Errno;

pub use self::contents::{Contents, Stretch};
use self::pool::Pool;
pub use self::resolve::Follow;
pub use self::walk::{Item, Sink, Walked, Xattrs};
use crate::disk::DiskReader;
use crate::fs::layouts::{Disks, Layouts};
use crate::guest::Guest;

/// Bytes of one page of a directory.
const PAGE: u32 = 256 * 1024;

/// Entries of one directory. More would be the guest's joke: they are all kept in memory.
const MAX_ENTRIES: usize = 1 << 22;

/// Why something could not be done with a file.
#[derive(Debug)]
pub enum Trouble {
    /// The guest could not do its part.
    Guest(Errno),
    /// The host could not do its part.
    Host(io::Error),
    /// It is of a kind that is left out; the text says which.
    LeftOut(&'static str),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(errno) => f.write_str(errno.desc()),
            Self::Host(error) => match error.raw_os_error() {
                Some(errno) => write!(f, "cannot write: {}", Errno::from_raw(errno).desc()),
                None => write!(f, "cannot write: {error}"),
            },
            Self::LeftOut(what) => write!(f, "left out: it is {what}"),
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
        Self::Host(error)
    }
}

impl Trouble {
    /// Whether it will meet every file that follows as well.
    #[must_use]
    pub fn is_final(&self) -> bool {
        let errno = match self {
            Self::Host(error) => error.raw_os_error().map(Errno::from_raw),
            Self::Guest(_) | Self::LeftOut(_) => None,
        };
        matches!(
            errno,
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EPIPE | Errno::EIO)
        )
    }
}

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path; no link is on the way.
    pub path: GuestPath,
    /// What is known of it.
    pub attr: Attr,
    /// Where it leads, if it is a symbolic link.
    pub target: Option<LinkTarget>,
}

/// What could be read of a directory.
#[derive(Debug)]
pub struct Entries {
    /// By name.
    pub all: Vec<DirEntry>,
    /// The error that ended it; names may be missing then.
    pub error: Option<Errno>,
}

/// The files of one guest.
pub struct Files {
    shared: Arc<Shared>,
    pool: Pool,
}

/// What the threads share.
struct Shared {
    guest: Arc<Guest>,
    disks: Disks,
    layouts: Layouts,
    /// Whether what the guest says of small files' places on the disk was seen to be right, by the
    /// volume.
    believed: Mutex<HashMap<u16, bool>>,
}

impl Files {
    /// Those of `guest`. What lies open on one of `disks` need not go through the guest.
    ///
    /// # Errors
    /// Where there can be no threads.
    pub fn of(guest: Arc<Guest>, disks: Vec<Option<DiskReader>>) -> io::Result<Self> {
        let disks: Disks = disks.into();
        let pool = Pool::start(guest.lanes())?;
        let layouts = Layouts::of(Arc::clone(&guest), Arc::clone(&disks));
        let believed = Mutex::default();
        Ok(Self { shared: Arc::new(Shared { guest, disks, layouts, believed }), pool })
    }

    /// The entries of a directory, by name: all of them, or those that could be read before an
    /// error, with that.
    ///
    /// # Errors
    /// The guest's error, `EIO`, or `EOVERFLOW` for too many, where there is not even one.
    pub fn entries(&self, folder: &GuestPath) -> Result<Entries, Errno> {
        self.shared.entries(folder)
    }
}

impl Shared {
    fn entries(&self, folder: &GuestPath) -> Result<Entries, Errno> {
        let mut all: Vec<DirEntry> = Vec::new();
        let error = loop {
            let from = all.last().map_or(0, |entry| entry.next);
            match self.guest.read_dir(folder.clone(), from, PAGE) {
                Ok((page, following)) => {
                    let is_last = following == Following::Nothing || page.is_empty();
                    all.extend(page);
                    if all.len() > MAX_ENTRIES {
                        return Err(Errno::EOVERFLOW);
                    }
                    if is_last {
                        break None;
                    }
                }
                Err(errno) if all.is_empty() => return Err(errno),
                Err(errno) => break Some(errno),
            }
        };
        all.sort_by(|one, other| one.name.as_bytes().cmp(other.name.as_bytes()));
        Ok(Entries { all, error })
    }
}
