//! Bringing to the disk what was written.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{fdatasync, fsync};

use guestmnt_protocol::change::{FileAt, Synced};

use crate::held::FoundFile;
use crate::resolve;
use crate::tree::Tree;

impl Tree {
    /// Returns when the file or directory is on the disk, and the disk has said that it keeps it.
    ///
    /// # Errors
    /// As fsync(2): that of an earlier write too, once; `EINVAL` for what is neither file nor
    /// directory.
    pub fn sync(&self, file: &FileAt, what: Synced) -> nix::Result<()> {
        let found = self.found(file)?;
        let opened;
        let file = match &found {
            FoundFile::Held(contents) => contents.file(),
            FoundFile::Named(located) => {
                let stat = resolve::attributes(located.as_fd())?;
                if ![libc::S_IFREG, libc::S_IFDIR].contains(&resolve::file_type(&stat)) {
                    return Err(Errno::EINVAL);
                }
                let path = resolve::proc_path(located.as_fd());
                let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
                opened = open(path.as_str(), flags, Mode::empty())?;
                opened.as_fd()
            }
        };
        match what {
            Synced::Data => fdatasync(file),
            Synced::All => fsync(file),
        }
    }
}
