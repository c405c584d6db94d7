//! Extended attributes, as the filesystem has them.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use guestmnt_protocol::batch::Numbered;
use guestmnt_protocol::change::HeldFile;
use guestmnt_protocol::limits::{MAX_PAYLOAD, MAX_SMALL_XATTR, MAX_XATTR};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::xattr::{FileXattrs, SmallValue, Xattr, XattrName, push_file};

use crate::failure;
use crate::payload::Payload;
use crate::resolve;
use crate::sys;
use crate::tree::Tree;

impl Tree {
    /// Puts the names of a file's extended attributes into `payload`, each with a NUL behind it.
    ///
    /// # Errors
    /// As [`resolve::locate`] and listxattr(2); `E2BIG` for more than [`MAX_XATTR`] bytes.
    pub fn list_xattr(&self, path: &GuestPath, payload: &mut Payload) -> nix::Result<()> {
        let file = self.xattr_path(path)?;
        whole(payload, |names| sys::listxattr(&file.path, names))
    }

    /// Puts the value of an extended attribute into `payload`.
    ///
    /// # Errors
    /// As [`resolve::locate`] and getxattr(2); `ENODATA` where there is no such attribute, `E2BIG`
    /// for more than [`MAX_XATTR`] bytes, `EINVAL` for a name with a NUL.
    pub fn get_xattr(
        &self,
        path: &GuestPath,
        name: &[u8],
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let file = self.xattr_path(path)?;
        whole(payload, |value| sys::getxattr(&file.path, &name, value))
    }

    /// As [`Tree::list_xattr`], of a file that is held.
    ///
    /// # Errors
    /// As [`Tree::list_xattr`]; `EBADF` for a file that is not held.
    pub fn list_xattr_held(&self, file: HeldFile, payload: &mut Payload) -> nix::Result<()> {
        let contents = self.held.get(file)?;
        let path = held_path(contents.file());
        whole(payload, |names| sys::listxattr(&path, names))
    }

    /// As [`Tree::get_xattr`], of a file that is held.
    ///
    /// # Errors
    /// As [`Tree::get_xattr`]; `EBADF` for a file that is not held.
    pub fn get_xattr_held(
        &self,
        file: HeldFile,
        name: &XattrName,
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let name = CString::new(name.as_bytes()).expect("a name has no NUL");
        let contents = self.held.get(file)?;
        let path = held_path(contents.file());
        whole(payload, |value| sys::getxattr(&path, &name, value))
    }

    /// Puts the extended attributes of these files of one directory into `payload`: of as many as fit,
    /// from the first on, and of one at least.
    ///
    /// # Errors
    /// As [`resolve::open_directory`]. That a file's attributes cannot be listed is part of the
    /// answer.
    pub fn read_xattrs(
        &self,
        folder: &GuestPath,
        files: &[Numbered],
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let directory = self.directory(folder)?;
        // There are calls for a name in a directory, but only since Linux 6.13.
        let prefix = format!("{}/", resolve::proc_path(directory.as_fd())).into_bytes();
        let mut space = Space { list: vec![0; MAX_XATTR], value: [0; MAX_SMALL_XATTR] };
        // Ordinary files have none.
        let mut have_none = vec![false; files.len()];
        if let Some(inodes) = directory.inodes() {
            let named = files.iter().map(|file| (file.number, file.name.as_bytes()));
            inodes.each(&named.collect::<Vec<_>>(), |index, _| have_none[index] = true);
        }
        payload.append_with(|page| {
            let limit = page.len() + MAX_PAYLOAD;
            for (Numbered { name, .. }, has_none) in files.iter().zip(have_none) {
                if has_none {
                    if push_file(page, &Ok(Vec::new()), limit) {
                        continue;
                    }
                    break;
                }
                let graft = folder.join(name).ok().and_then(|path| self.grafts.at(&path));
                let path = match graft {
                    Some(root) => resolve::proc_path(root).into_bytes(),
                    None => [&prefix, name.as_bytes()].concat(),
                };
                let path = CString::new(path).expect("neither a number nor a name has a NUL");
                if !push_file(page, &space.read(&path), limit) {
                    break;
                }
            }
        });
        Ok(())
    }

    fn xattr_path(&self, path: &GuestPath) -> nix::Result<Located> {
        let fd = self.locate(path)?;
        // fgetxattr(2) refuses O_PATH descriptors. The detour by /proc ends at the file itself,
        // also where it is a symbolic link, so that the calls which follow links are the right
        // ones.
        let path = CString::new(resolve::proc_path(fd.as_fd())).expect("a number has no NUL");
        Ok(Located { path, _open: fd })
    }
}

/// The path of an open file, good as long as it is open.
fn held_path(file: BorrowedFd) -> CString {
    CString::new(resolve::proc_path(file)).expect("a number has no NUL")
}

/// A file's path under `/proc/self/fd`, good as long as the descriptor is open.
struct Located {
    path: CString,
    _open: OwnedFd,
}

/// Bytes of the names that most files have.
const FEW_NAMES: usize = 512;

/// Where lists and values are read to, for file after file.
struct Space {
    list: Vec<u8>,
    value: [u8; MAX_SMALL_XATTR],
}

impl Space {
    /// What the file at `path` has; where that is a link, the link itself. One file's answer
    /// always fits into a payload: its names take [`MAX_XATTR`] bytes at most, and its values as
    /// much as [`MAX_XATTR`] of names are worth, or else they are left out.
    fn read(&mut self, path: &CString) -> FileXattrs {
        // The kernel takes memory for as much as it is offered, and few files have many.
        let length = match sys::llistxattr(path, &mut self.list[..FEW_NAMES]) {
            Err(Errno::ERANGE) => sys::llistxattr(path, &mut self.list),
            done => done,
        };
        let length = length.map_err(|errno| failure::number(too_long(errno)))?;
        let mut room = MAX_XATTR;
        let names = self.list[..length].split(|&byte| byte == 0);
        let xattrs = names.filter_map(|name| XattrName::new(name).ok()).map(|name| {
            let key = CString::new(name.as_bytes()).expect("a name has no NUL");
            let value = sys::lgetxattr(path, &key, &mut self.value).ok();
            let value = value.filter(|&length| length <= room).and_then(|length| {
                room -= length;
                SmallValue::new(&self.value[..length]).ok()
            });
            Xattr { name, value }
        });
        Ok(xattrs.collect())
    }
}

/// Reads into the largest space that the protocol has for it, in one call: asking for the length
/// first would be a second one.
fn whole(
    payload: &mut Payload,
    read: impl FnOnce(&mut [u8]) -> nix::Result<usize>,
) -> nix::Result<()> {
    let length = read(payload.space(MAX_XATTR)).map_err(too_long)?;
    payload.truncate(length);
    Ok(())
}

/// What does not fit into the largest space cannot be sent.
fn too_long(errno: Errno) -> Errno {
    match errno {
        Errno::ERANGE => Errno::E2BIG,
        other => other,
    }
}
