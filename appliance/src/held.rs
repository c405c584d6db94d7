//! Files that are held open for the host: those that it writes to, and those that lost their name
//! while the host had them open. On a read-only mount there are none.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::change::{Access, FileAt, HeldFile};

use crate::contents::Contents;
use crate::placeholders;
use crate::resolve;
use crate::tree::Tree;

/// Files held at once. Each pins its inode in the guest's memory, some KiB.
pub const MAX_HELD: usize = 8192;

/// The files that are held, by number.
#[derive(Default)]
pub struct HeldFiles(Mutex<Table>);

#[derive(Default)]
struct Table {
    files: BTreeMap<HeldFile, Arc<Contents>>,
    last: u64,
}

impl HeldFiles {
    /// Holds an open file until it is released.
    ///
    /// # Errors
    /// `ENFILE` where [`MAX_HELD`] are.
    pub fn insert(&self, file: Contents) -> nix::Result<HeldFile> {
        let mut table = self.lock();
        if table.files.len() >= MAX_HELD {
            return Err(Errno::ENFILE);
        }
        table.last += 1;
        let number = HeldFile(table.last);
        table.files.insert(number, Arc::new(file));
        Ok(number)
    }

    /// A file that is held.
    ///
    /// # Errors
    /// `EBADF` where none has this number.
    pub fn get(&self, file: HeldFile) -> nix::Result<Arc<Contents>> {
        self.lock().files.get(&file).cloned().ok_or(Errno::EBADF)
    }

    /// Holds a file no longer. It is closed when no lane uses it any more.
    ///
    /// # Errors
    /// `EBADF` where none has this number.
    pub fn release(&self, file: HeldFile) -> nix::Result<()> {
        // Closed without the lock: that may take the time of a write.
        let released = self.lock().files.remove(&file);
        released.map(drop).ok_or(Errno::EBADF)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A number without its file is the worst that a panic could leave.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that was found: named, or held.
pub enum FoundFile {
    /// Named only, not open.
    Named(OwnedFd),
    /// Held.
    Held(Arc<Contents>),
}

impl AsFd for FoundFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Named(located) => located.as_fd(),
            Self::Held(contents) => contents.file(),
        }
    }
}

impl Tree {
    /// Holds a regular file.
    ///
    /// # Errors
    /// As open(2); `EISDIR`, `ELOOP` or `EINVAL` for what is no regular file, `ENFILE`.
    pub fn hold(&self, file: &FileAt, access: Access) -> nix::Result<HeldFile> {
        let found = self.found(file)?;
        resolve::check_regular(found.as_fd())?;
        let flags = OFlag::O_CLOEXEC
            | match access {
                Access::Read => OFlag::O_RDONLY,
                Access::Write => OFlag::O_RDWR,
            };
        let opened = open(resolve::proc_path(found.as_fd()).as_str(), flags, Mode::empty())?;
        let contents = match self.ahead.volume(opened.as_fd()) {
            Some((volume, _)) => match placeholders::behind(&volume, opened.as_fd())? {
                Some(packed) if access == Access::Read => Contents::of_packed(opened, packed),
                Some(_) => return Err(Errno::EOPNOTSUPP),
                None => Contents::of(opened),
            },
            None => Contents::of(opened),
        };
        self.held.insert(contents)
    }

    /// Attributes of a file that is held.
    ///
    /// # Errors
    /// `EBADF`, and as fstat(2).
    pub fn stat_held(&self, file: HeldFile) -> nix::Result<Attr> {
        self.attr(&resolve::attributes(self.held.get(file)?.file())?)
    }

    /// The file that is meant.
    ///
    /// # Errors
    /// As [`resolve::locate`]; `EBADF`.
    pub(crate) fn found(&self, file: &FileAt) -> nix::Result<FoundFile> {
        match file {
            FileAt::Path(path) => self.locate(path).map(FoundFile::Named),
            FileAt::Held(held) => self.held.get(*held).map(FoundFile::Held),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        Contents::of(tempfile::tempfile().unwrap().into())
    }

    #[test]
    fn a_number_is_good_until_its_file_is_released_and_never_given_again() {
        let held = HeldFiles::default();
        let first = held.insert(contents()).unwrap();
        assert!(held.get(first).is_ok());
        held.release(first).unwrap();
        assert_eq!(held.get(first).err(), Some(Errno::EBADF));
        assert_eq!(held.release(first), Err(Errno::EBADF));
        assert_ne!(held.insert(contents()).unwrap(), first);
    }
}
