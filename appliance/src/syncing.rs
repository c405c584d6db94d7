//! Bringing to the disk what was written.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, MSDOS_SUPER_MAGIC, fstatfs};
use nix::unistd::{fdatasync, fsync, syncfs};

use guestmnt_protocol::change::{FileAt, Synced};

use crate::held::FoundFile;
use crate::ntfs;
use crate::resolve;
use crate::tree::Tree;

/// NTFS and FAT, whose fsync(2) leaves behind what it takes to find a file again (Linux 6.12): after
/// a kill, one that was synced, and its folder too, was not there, or empty. exFAT's does not.
const SYNCED_WHOLE: [FsType; 2] = [ntfs::MAGIC, MSDOS_SUPER_MAGIC];

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
        if SYNCED_WHOLE.contains(&fstatfs(file)?.filesystem_type()) {
            syncfs(file)?;
        }
        // Which has the disk keep all that was written before, too.
        match what {
            Synced::Data => fdatasync(file),
            Synced::All => fsync(file),
        }
    }
}
