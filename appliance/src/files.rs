//! What is asked of single files: attributes, contents, link targets, and the size of the
//! filesystem that a file is on.
//!
//! **Invariant:** nothing is opened but regular files and the devices that are shown as such, and
//! nothing for writing.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::statvfs::fstatvfs;

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::limits::MAX_LINK;
use guestmnt_protocol::message::{Extent, StatFs};
use guestmnt_protocol::path::GuestPath;

use crate::contents::Contents;
use crate::payload::Payload;
use crate::resolve;
use crate::tree::Tree;

impl Tree {
    /// Attributes of the file at `path`; symbolic links are not followed.
    ///
    /// # Errors
    /// As [`resolve::locate`] and fstatat(2).
    pub fn stat(&self, path: &GuestPath) -> nix::Result<Attr> {
        let located = self.locate(path)?;
        let stat = resolve::attributes(located.as_fd())?;
        self.shown(located.as_fd(), &stat, || resolve::proc_path(located.as_fd()))
    }

    /// Puts the target of a symbolic link into `payload`: what `other` makes of the link and of the
    /// target that its driver shows, or that.
    ///
    /// # Errors
    /// `EINVAL` where `path` is no symbolic link, `ENAMETOOLONG` for a target beyond [`MAX_LINK`].
    pub fn read_link(
        &self,
        path: &GuestPath,
        other: impl FnOnce(BorrowedFd, &nix::Result<OsString>) -> Option<Vec<u8>>,
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let located = self.locate(path)?;
        let own = resolve::attributes(located.as_fd()).ok();
        let path = || resolve::proc_path(located.as_fd());
        if let Some(target) = own.and_then(|stat| self.posix_link(located.as_fd(), &stat, path)) {
            payload.set(&target);
            return Ok(());
        }
        let shown = readlinkat(&located, "").map_err(|errno| match errno {
            // With an empty path the kernel says so of anything that is no link.
            Errno::ENOENT => Errno::EINVAL,
            other => other,
        });
        let target = match other(located.as_fd(), &shown) {
            Some(target) => OsString::from_vec(target),
            None => shown?,
        };
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
        self.regular_file(path)?.read(offset, destination)
    }

    /// Where the next data or hole is at or behind byte `offset`.
    ///
    /// # Errors
    /// `ENXIO` where there is none, and as [`resolve::open_regular`].
    pub fn seek(&self, path: &GuestPath, offset: u64, what: Extent) -> nix::Result<u64> {
        self.regular_file(path)?.seek(offset, what)
    }

    /// Size and usage of the filesystem that `path` is on.
    ///
    /// # Errors
    /// As [`resolve::locate`] and fstatvfs(3).
    pub fn stat_fs(&self, path: &GuestPath) -> nix::Result<StatFs> {
        let fs = fstatvfs(self.locate(path)?)?;
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

    /// The open file at `path`.
    ///
    /// # Errors
    /// As [`resolve::open_regular`].
    pub(crate) fn regular_file(&self, path: &GuestPath) -> nix::Result<Arc<Contents>> {
        self.files.get_or_open(path, || self.contents(self.open_shown(path)?, path))
    }
}
