//! Extended attributes, as the filesystem has them.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::lstat;
use nix::sys::statfs::fstatfs;

use guestmnt_protocol::batch::Numbered;
use guestmnt_protocol::change::HeldFile;
use guestmnt_protocol::limits::{MAX_PAYLOAD, MAX_SMALL_XATTR, MAX_XATTR};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::xattr::{FileXattrs, SmallValue, Xattr, XattrName, push_file};

use crate::failure;
use crate::hfsplus;
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
        let Some(volume) = HfsPlus::of(self, file.open.as_fd()) else {
            return whole(payload, |names| sys::listxattr(&file.path, names));
        };
        let mut listed = vec![0; MAX_XATTR];
        let length = sys::listxattr(&file.path, &mut listed).or_else(none_listed)?;
        let number = resolve::attributes(file.open.as_fd())?.st_ino;
        let read = |name: &CStr| sys::getxattr(&file.path, name, &mut []);
        payload.set(&volume.names(number, &listed[..length], read)?);
        Ok(())
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
        match whole(payload, |value| sys::getxattr(&file.path, &name, value)) {
            Err(Errno::ENODATA) => {
                let volume = HfsPlus::of(self, file.open.as_fd()).ok_or(Errno::ENODATA)?;
                let number = resolve::attributes(file.open.as_fd())?.st_ino;
                payload.set(&volume.value(number, &name)?);
                Ok(())
            }
            done => done,
        }
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
        let volume = HfsPlus::of(self, directory.as_fd());
        let mut space = Space { list: vec![0; MAX_XATTR], value: [0; MAX_SMALL_XATTR] };
        // Ordinary files have none.
        let mut have_none = vec![false; files.len()];
        if let Some(inodes) = directory.inodes() {
            let named = files.iter().map(|file| (file.number, file.name.as_bytes()));
            inodes.each(&named.collect::<Vec<_>>(), |index, _| have_none[index] = true);
        }
        payload.append_with(|page| {
            let limit = page.len() + MAX_PAYLOAD;
            for (Numbered { name, number }, has_none) in files.iter().zip(have_none) {
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
                let volume = volume.as_ref().filter(|_| graft.is_none());
                if !push_file(page, &space.read(&path, volume, *number), limit) {
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
        Ok(Located { path, open: fd })
    }
}

/// The path of an open file, good as long as it is open.
fn held_path(file: BorrowedFd) -> CString {
    CString::new(resolve::proc_path(file)).expect("a number has no NUL")
}

/// A file's path under `/proc/self/fd`, good as long as the descriptor is open.
struct Located {
    path: CString,
    open: OwnedFd,
}

/// An HFS+, whose driver does not list names as they are.
struct HfsPlus {
    /// Of its device; `None` where that is not known.
    node: Option<PathBuf>,
}

impl HfsPlus {
    /// The one that `file` is on, if it is on one.
    fn of(tree: &Tree, file: BorrowedFd) -> Option<Self> {
        if fstatfs(file).ok()?.filesystem_type().0 != hfsplus::MAGIC {
            return None;
        }
        let device = resolve::attributes(file).ok()?.st_dev;
        Some(Self { node: tree.ahead.node_of(device) })
    }

    /// The names of the attributes of the file `number`, each with a NUL behind it; the driver has
    /// `listed` them. `read` asks it for one.
    ///
    /// # Errors
    /// `EIO` where one cannot be told or read, `E2BIG` for more than [`MAX_XATTR`] bytes.
    fn names(
        &self,
        number: u64,
        listed: &[u8],
        read: impl Fn(&CStr) -> nix::Result<usize>,
    ) -> nix::Result<Vec<u8>> {
        if listed.is_empty() {
            return Ok(Vec::new());
        }
        let node = self.node.as_ref().ok_or(Errno::EIO)?;
        let mut all = Vec::new();
        for name in hfsplus::names(node, number, listed).ok_or(Errno::EIO)? {
            let name = CString::new(name).map_err(|_| Errno::EIO)?;
            let value = read(&name).or_else(|_| self.value(number, &name).map(|value| value.len()));
            value.map_err(|_| Errno::EIO)?;
            all.extend(name.as_bytes_with_nul());
        }
        if all.len() > MAX_XATTR { Err(Errno::E2BIG) } else { Ok(all) }
    }

    /// The value of an attribute of the file `number` that the driver does not find by its name.
    ///
    /// # Errors
    /// `ENODATA` where there is none, `E2BIG` for more than [`MAX_XATTR`] bytes.
    fn value(&self, number: u64, name: &CStr) -> nix::Result<Vec<u8>> {
        let name = name.to_str().map_err(|_| Errno::ENODATA)?;
        let node = self.node.as_ref().ok_or(Errno::ENODATA)?;
        let value = hfsplus::value(node, number, name).ok_or(Errno::ENODATA)?;
        if value.len() > MAX_XATTR { Err(Errno::E2BIG) } else { Ok(value) }
    }
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
    fn read(&mut self, path: &CString, volume: Option<&HfsPlus>, number: u64) -> FileXattrs {
        // The kernel takes memory for as much as it is offered, and few files have many.
        let length = match sys::llistxattr(path, &mut self.list[..FEW_NAMES]) {
            Err(Errno::ERANGE) => sys::llistxattr(path, &mut self.list),
            done => done,
        };
        let mut length = length.or_else(none_listed).map_err(failure::number)?;
        if let Some(volume) = volume {
            // The host may not know the number.
            let number = match number {
                0 => lstat(path.as_c_str()).map_err(failure::number)?.st_ino,
                known => known,
            };
            let read = |name: &CStr| sys::lgetxattr(path, name, &mut []);
            let names =
                volume.names(number, &self.list[..length], read).map_err(failure::number)?;
            self.list[..names.len()].copy_from_slice(&names);
            length = names.len();
        }
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

/// What a list that could not be read stands for: hfsplus calls it an error that a file has none.
fn none_listed(errno: Errno) -> nix::Result<usize> {
    if errno == Errno::ENODATA { Ok(0) } else { Err(too_long(errno)) }
}

/// What does not fit into the largest space cannot be sent.
fn too_long(errno: Errno) -> Errno {
    match errno {
        Errno::ERANGE => Errno::E2BIG,
        other => other,
    }
}
