//! Changing what files hold and what is known of them.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, copy_file_range, fallocate};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::sys::uio::pwrite;
use nix::unistd::{Gid, Uid, fchownat, truncate};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::change::{
    Afterwards, FileAt, HeldFile, NewAttributes, NewTime, Owner, XattrMode,
};
use guestmnt_protocol::message::Answer;
use guestmnt_protocol::xattr::XattrName;

use crate::clock::Moment;
use crate::resolve;
use crate::sys;
use crate::tree::Tree;

/// A piece of a file that is copied, by its place in the two files.
pub struct Copied {
    /// The file that is read, and where.
    pub from: (HeldFile, u64),
    /// The file that is written, and where.
    pub to: (HeldFile, u64),
    /// Bytes.
    pub length: u64,
}

impl Tree {
    /// Writes all of `bytes` from byte `offset` on.
    ///
    /// # Errors
    /// As pwrite(2); `EBADF` for a file that is not held for writing. Some of the bytes may have
    /// been written then.
    pub fn write(&self, file: HeldFile, offset: u64, mut bytes: &[u8]) -> nix::Result<()> {
        let contents = self.held.get(file)?;
        let mut at = signed(offset)?;
        while !bytes.is_empty() {
            match pwrite(contents.file(), bytes, at) {
                Ok(0) => return Err(Errno::EIO),
                Ok(count) => {
                    bytes = &bytes[count..];
                    at += i64::try_from(count).expect("a payload's length fits");
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Changes attributes, and tells them all.
    ///
    /// # Errors
    /// As truncate(2), chown(2), chmod(2), utimensat(2). What comes first in this order may have
    /// been changed then.
    pub fn set_attr(&self, file: &FileAt, new: &NewAttributes) -> nix::Result<Attr> {
        let found = self.found(file)?;
        set(found.as_fd(), new)?;
        self.attr(&resolve::attributes(found.as_fd())?)
    }

    /// As [`Tree::set_attr`], of a file that was changed at a moment, if one is given.
    ///
    /// # Errors
    /// As [`Tree::set_attr`].
    pub fn set_attr_at(
        &self,
        file: &FileAt,
        new: &NewAttributes,
        at: Option<Moment<'_>>,
    ) -> nix::Result<Attr> {
        let found = self.found(file)?;
        set(found.as_fd(), new)?;
        stamp(found.as_fd(), at)?;
        self.attr(&resolve::attributes(found.as_fd())?)
    }

    /// As [`Tree::write_and_set`], of a file that was changed at a moment, if one is given; then lets
    /// the file go, or tells what it is.
    ///
    /// # Errors
    /// As [`Tree::write_and_set`].
    pub fn finish(
        &self,
        file: HeldFile,
        offset: u64,
        bytes: &[u8],
        new: &NewAttributes,
        at: Option<Moment<'_>>,
        afterwards: Afterwards,
    ) -> nix::Result<Answer> {
        let written = self.write_and_set(file, offset, bytes, new);
        let written = written.and_then(|()| stamp(self.held.get(file)?.file(), at));
        match afterwards {
            Afterwards::Held => written.and_then(|()| self.stat_held(file)).map(Answer::Attr),
            Afterwards::Released => self.held.release(file).and(written).map(|()| Answer::Done),
        }
    }

    /// Writes all of `bytes` from byte `offset` on, then changes attributes.
    ///
    /// # Errors
    /// As [`Tree::write`] and [`Tree::set_attr`].
    pub fn write_and_set(
        &self,
        file: HeldFile,
        offset: u64,
        bytes: &[u8],
        new: &NewAttributes,
    ) -> nix::Result<()> {
        self.write(file, offset, bytes)?;
        set(self.held.get(file)?.file(), new)
    }

    /// Allocates or frees space.
    ///
    /// # Errors
    /// As fallocate(2).
    pub fn allocate(&self, file: HeldFile, offset: u64, length: u64, mode: i32) -> nix::Result<()> {
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::EOPNOTSUPP)?;
        fallocate(self.held.get(file)?.file(), mode, signed(offset)?, signed(length)?)
    }

    /// Copies a piece of a file. Returns how many bytes were copied; fewer than asked for at the
    /// file's end, and where the filesystem likes.
    ///
    /// # Errors
    /// As copy_file_range(2).
    pub fn copy_range(&self, piece: &Copied) -> nix::Result<u64> {
        let (from, to) = (self.held.get(piece.from.0)?, self.held.get(piece.to.0)?);
        let (mut from_at, mut to_at) = (signed(piece.from.1)?, signed(piece.to.1)?);
        let length = usize::try_from(piece.length).map_err(|_| Errno::EINVAL)?;
        let copied =
            copy_file_range(from.file(), Some(&mut from_at), to.file(), Some(&mut to_at), length)?;
        u64::try_from(copied).map_err(|_| Errno::EIO)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As setxattr(2).
    pub fn set_xattr(
        &self,
        file: &FileAt,
        name: &XattrName,
        value: &[u8],
        how: XattrMode,
    ) -> nix::Result<()> {
        let flags = match how {
            XattrMode::Set => 0,
            XattrMode::Create => libc::XATTR_CREATE,
            XattrMode::Replace => libc::XATTR_REPLACE,
        };
        let found = self.found(file)?;
        sys::setxattr(&xattr_path(&found), &c_name(name), value, flags)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As removexattr(2).
    pub fn remove_xattr(&self, file: &FileAt, name: &XattrName) -> nix::Result<()> {
        let found = self.found(file)?;
        sys::removexattr(&xattr_path(&found), &c_name(name))
    }
}

/// Changes attributes of the very file that `found` names, a symbolic link too.
fn set(found: BorrowedFd, new: &NewAttributes) -> nix::Result<()> {
    if *new == NewAttributes::default() {
        return Ok(());
    }
    let path = resolve::proc_path(found);
    if let Some(size) = new.size {
        resolve::check_regular(found)?;
        truncate(path.as_str(), signed(size)?)?;
    }
    if let Owner { uid, gid } = new.owner
        && new.owner != Owner::default()
    {
        let (user, group) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        fchownat(found, "", user, group, AtFlags::AT_EMPTY_PATH)?;
    }
    if let Some(mode) = new.mode {
        let mode = Mode::from_bits_truncate(mode);
        fchmodat(AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink)?;
    }
    if new.accessed.is_some() || new.modified.is_some() {
        let (accessed, modified) = (time(new.accessed)?, time(new.modified)?);
        let follow = UtimensatFlags::FollowSymlink;
        utimensat(AT_FDCWD, path.as_str(), &accessed, &modified, follow)?;
    }
    Ok(())
}

/// Makes this moment the time of the file's last change. Where the clock cannot show it, the time
/// stays that of the guest's own changes.
fn stamp(found: BorrowedFd, at: Option<Moment>) -> nix::Result<()> {
    let Some(Moment { clock, time }) = at else { return Ok(()) };
    let stat = resolve::attributes(found)?;
    let path = resolve::proc_path(found);
    match clock.stamp(&path, &stat, time, || resolve::attributes(found)) {
        Err(Errno::EINVAL) => Ok(()),
        done => done,
    }
}

fn xattr_path(found: &impl AsFd) -> CString {
    CString::new(resolve::proc_path(found.as_fd())).expect("a number has no NUL")
}

fn c_name(name: &XattrName) -> CString {
    CString::new(name.as_bytes()).expect("a name has no NUL")
}

fn signed(number: u64) -> nix::Result<i64> {
    i64::try_from(number).map_err(|_| Errno::EINVAL)
}

fn time(new: Option<NewTime>) -> nix::Result<TimeSpec> {
    Ok(match new {
        None => TimeSpec::UTIME_OMIT,
        Some(NewTime::Now) => TimeSpec::UTIME_NOW,
        Some(NewTime::At(time)) if time.nanos < 1_000_000_000 => {
            TimeSpec::new(time.secs, time.nanos.into())
        }
        Some(NewTime::At(_)) => return Err(Errno::EINVAL),
    })
}
