//! What is asked of single files: attributes, contents, link targets, and the size of the
//! filesystem that a file is on.
//!
//! **Invariant:** nothing is opened but regular files, and nothing for writing.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::limits::MAX_LINK;
use guestmnt_protocol::message::{Extent, StatFs};
use guestmnt_protocol::path::GuestPath;

use crate::payload::Payload;
use crate::resolve;
use crate::tree::Tree;

impl Tree {
    /// Attributes of the file at `path`; symbolic links are not followed.
    ///
    /// # Errors
    /// As [`resolve::locate`] and fstatat(2).
    pub fn stat(&self, path: &GuestPath) -> nix::Result<Attr> {
        let located = resolve::locate(self.root(), path)?;
        self.attr(&resolve::attributes(located.as_fd())?)
    }

    /// Puts the target of a symbolic link into `payload`.
    ///
    /// # Errors
    /// `EINVAL` where `path` is no symbolic link, `ENAMETOOLONG` for a target beyond [`MAX_LINK`].
    pub fn read_link(&self, path: &GuestPath, payload: &mut Payload) -> nix::Result<()> {
        let located = resolve::locate(self.root(), path)?;
        let target = readlinkat(&located, "").map_err(|errno| match errno {
            // With an empty path the kernel says so of anything that is no link.
            Errno::ENOENT => Errno::EINVAL,
            other => other,
        })?;
        if target.len() > MAX_LINK {
            return Err(Errno::ENAMETOOLONG);
        }
        payload.set(target.as_bytes());
        Ok(())
    }

    /// Fills `destination` from byte `offset` of a regular file. Returns how many bytes there
    /// were; fewer than it holds only at the file's end.
    ///
    /// # Errors
    /// As [`resolve::open_regular`] and pread(2); `EINVAL` for an offset beyond 2^63.
    pub fn read(
        &self,
        path: &GuestPath,
        offset: u64,
        destination: &mut [u8],
    ) -> nix::Result<usize> {
        let start = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let file = self.regular_file(path)?;
        // The kernel refuses a range that passes 2^63, where it could give the part before.
        let room = usize::try_from(i64::MAX - start).unwrap_or(usize::MAX);
        let length = destination.len().min(room);
        let mut filled = 0;
        while filled < length {
            let at = start + i64::try_from(filled).expect("filled is at most i64::MAX - start");
            match pread(&file, &mut destination[filled..length], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }

    /// Where the next data or hole is at or behind byte `offset`.
    ///
    /// # Errors
    /// `ENXIO` where there is none, and as [`resolve::open_regular`].
    pub fn seek(&self, path: &GuestPath, offset: u64, what: Extent) -> nix::Result<u64> {
        let start = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let whence = match what {
            Extent::Data => Whence::SeekData,
            Extent::Hole => Whence::SeekHole,
        };
        // This moves the descriptor's position under the feet of other lanes, which don't use it.
        let found = lseek(self.regular_file(path)?, start, whence)?;
        u64::try_from(found).map_err(|_| Errno::EIO)
    }

    /// Size and usage of the filesystem that `path` is on.
    ///
    /// # Errors
    /// As [`resolve::locate`] and fstatvfs(3).
    pub fn stat_fs(&self, path: &GuestPath) -> nix::Result<StatFs> {
        let fs = fstatvfs(resolve::locate(self.root(), path)?)?;
        let word = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            // The unit of the counts is f_frsize; f_bsize is the preferred transfer.
            block_size: word(fs.fragment_size()),
            blocks: fs.blocks(),
            free: fs.blocks_free(),
            available: fs.blocks_available(),
            files: fs.files(),
            free_files: fs.files_free(),
            name_len: word(fs.name_max()),
        })
    }

    fn regular_file(&self, path: &GuestPath) -> nix::Result<Arc<OwnedFd>> {
        self.files.get_or_open(path, || resolve::open_regular(self.root(), path))
    }
}
