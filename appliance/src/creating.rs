//! Names: making files, giving them other names, taking names away.
//!
//! What is kept open by path is given up where the path may mean something else from now on.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, RenameFlags, openat2, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::change::{
    Access, EntryPath, Existing, FileAt, HeldFile, NewNode, Owner, Removed, Renaming,
};
use guestmnt_protocol::path::GuestPath;

use crate::contents::Contents;
use crate::resolve;
use crate::tree::Tree;

/// The bits that a change of the owner takes away.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

impl Tree {
    /// Makes a regular file and holds it for writing.
    ///
    /// # Errors
    /// As openat2(2) with `O_CREAT`, and as [`Tree::hold`] for one that is there.
    pub fn create(
        &self,
        entry: &EntryPath,
        mode: u32,
        owner: Owner,
        existing: Existing,
    ) -> nix::Result<(HeldFile, Attr)> {
        let folder = self.folder_of(entry)?;
        // Without O_EXCL this could open a FIFO or a device that is there.
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).mode(permissions(mode)).resolve(resolve::RESOLVE);
        let held = match openat2(&folder, entry.name.as_bytes(), how) {
            Ok(file) => {
                self.entry_changed(entry);
                give_file_to(&file, mode, owner)?;
                self.held.insert(Contents::of(file))?
            }
            Err(Errno::EEXIST) if existing == Existing::Open => {
                self.hold(&FileAt::Path(path_of(entry)?), Access::Write)?
            }
            Err(errno) => return Err(errno),
        };
        Ok((held, self.stat_held(held)?))
    }

    /// Makes something that is not opened.
    ///
    /// # Errors
    /// As mkdirat(2), symlinkat(2), mknodat(2).
    pub fn make(&self, entry: &EntryPath, node: &NewNode, owner: Owner) -> nix::Result<Attr> {
        let folder = self.folder_of(entry)?;
        let name = entry.name.as_bytes();
        let mode = match node {
            NewNode::Directory(mode) => {
                mkdirat(&folder, name, permissions(*mode))?;
                *mode
            }
            NewNode::Link(target) => {
                symlinkat(target.as_bytes(), &folder, name)?;
                0
            }
            NewNode::Special { mode, device } => {
                let kind = SFlag::from_bits_truncate(mode & libc::S_IFMT);
                mknodat(&folder, name, kind, permissions(*mode), *device)?;
                *mode
            }
        };
        self.entry_changed(entry);
        give_to(&folder, name, mode, owner)?;
        self.attr(&fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// As linkat(2).
    pub fn link(&self, file: &GuestPath, entry: &EntryPath) -> nix::Result<Attr> {
        let located = self.locate(file)?;
        let folder = self.folder_of(entry)?;
        // The detour by /proc ends at the very file, a symbolic link too, and takes no privilege.
        let from = resolve::proc_path(located.as_fd());
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        linkat(AT_FDCWD, from.as_str(), &folder, entry.name.as_bytes(), follow)?;
        self.entry_changed(entry);
        self.attr(&resolve::attributes(located.as_fd())?)
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// As unlinkat(2).
    pub fn remove(&self, entry: &EntryPath, kind: Removed) -> nix::Result<()> {
        let flag = match kind {
            Removed::File => UnlinkatFlags::NoRemoveDir,
            Removed::Directory => UnlinkatFlags::RemoveDir,
        };
        self.check_unmounted(entry)?;
        unlinkat(&self.folder_of(entry)?, entry.name.as_bytes(), flag)?;
        self.entry_changed(entry);
        Ok(())
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// As renameat2(2).
    pub fn rename(&self, from: &EntryPath, to: &EntryPath, how: Renaming) -> nix::Result<()> {
        let flags = match how {
            Renaming::Replace => RenameFlags::empty(),
            Renaming::NoReplace => RenameFlags::RENAME_NOREPLACE,
            Renaming::Exchange => RenameFlags::RENAME_EXCHANGE,
            Renaming::Whiteout => RenameFlags::RENAME_WHITEOUT,
            Renaming::WhiteoutNoReplace => {
                RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE
            }
        };
        self.check_unmounted(from)?;
        self.check_unmounted(to)?;
        let (old, new) = (self.folder_of(from)?, self.folder_of(to)?);
        renameat2(&old, from.name.as_bytes(), &new, to.name.as_bytes(), flags)?;
        // All paths below may mean something else.
        self.files.clear();
        self.directories.clear();
        Ok(())
    }

    /// Checks that nothing is mounted in the place of a link that is at `entry` or below: that would
    /// stay where it is.
    fn check_unmounted(&self, entry: &EntryPath) -> nix::Result<()> {
        if self.grafts.any_below(&path_of(entry)?) { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn folder_of(&self, entry: &EntryPath) -> nix::Result<OwnedFd> {
        self.locate(&entry.folder)
    }

    /// Gives up what is open by the paths that a change of `entry` concerns.
    fn entry_changed(&self, entry: &EntryPath) {
        // What was read of the folder, ahead of the host's wish, is old.
        self.directories.forget(&entry.folder);
        if let Ok(path) = path_of(entry) {
            self.directories.forget(&path);
            self.files.forget(&path);
        }
    }
}

fn path_of(entry: &EntryPath) -> nix::Result<GuestPath> {
    entry.folder.join(&entry.name).map_err(|_| Errno::ENAMETOOLONG)
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

/// Gives a new file to its owner. On a filesystem that knows no owners it stays as it is.
fn give_file_to(file: &OwnedFd, mode: u32, owner: Owner) -> nix::Result<()> {
    let given = owner != Owner::default() && tolerant(fchown(file, user(owner), group(owner)))?;
    if given && mode & SET_ID != 0 {
        fchmod(file, permissions(mode))?;
    }
    Ok(())
}

/// As [`give_file_to`], for what is called `name` in `folder`.
fn give_to(folder: &OwnedFd, name: &[u8], mode: u32, owner: Owner) -> nix::Result<()> {
    let changed = || {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        tolerant(fchownat(folder, name, user(owner), group(owner), flags))
    };
    // A link has no permissions, and none are taken away from it.
    if owner != Owner::default() && changed()? && mode & SET_ID != 0 {
        fchmodat(folder, name, permissions(mode), FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// Whether the owner was changed; that a filesystem knows none is no error.
fn tolerant(done: nix::Result<()>) -> nix::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(Errno::EPERM | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn user(owner: Owner) -> Option<Uid> {
    owner.uid.map(Uid::from_raw)
}

fn group(owner: Owner) -> Option<Gid> {
    owner.gid.map(Gid::from_raw)
}
