//! What each request of the kernel means: nodes become paths, the guest is asked, its files
//! become nodes. Testable without a mount.

use std::sync::Arc;

use fuser::FileAttr;
use guestmnt_protocol::attr::{Attr, DirEntry};
use guestmnt_protocol::limits::MAX_LINK;
use guestmnt_protocol::message::{Extent, StatFs};
use guestmnt_protocol::path::{EntryName, GuestPath, PathError};
use guestmnt_protocol::xattr::XattrName;
use nix::errno::Errno;

use super::Shows;
use super::access_lists;
use super::buffers::Buffers;
use super::cursors::Cursors;
use super::directory::Line;
use super::folders::Folders;
use super::layouts::{Disks, Layouts};
use super::nodes::{Entry, NodeId, Nodes, ROOT, natural_id};
use super::page_cache::PageCache;
use super::read_ahead::ReadAhead;
use super::stats::Stats;
use super::symlinks;
use super::view::{Targets, View};
use crate::disk::DiskReader;
use crate::guest::Guest;

/// What a look-up found.
pub enum Found {
    /// The file.
    File(FileAttr),
    /// That there is none, which stays so.
    Nothing,
}

/// What the kernel is told of a directory's entry.
pub enum Noted {
    /// The file with its attributes.
    File(FileAttr),
    /// That there is something of this name; the attributes mean nothing, the kernel has to ask.
    Name(FileAttr),
}

/// The filesystem without its FUSE clothes.
pub struct Operations {
    /// The nodes that the kernel knows.
    pub nodes: Nodes,
    /// What is counted.
    pub stats: Arc<Stats>,
    pub(super) page_cache: Arc<PageCache>,
    pub(super) guest: Arc<Guest>,
    /// What is kept on this side to spare the guest requests; `None` where files can change: then
    /// the kernel alone keeps something, which knows of each change.
    pub(super) kept: Option<Kept>,
    view: View,
    cursors: Cursors,
    /// What contents are read into here.
    pub(super) buffers: Buffers,
}

pub(super) struct Kept {
    pub(super) folders: Folders,
    pub(super) layouts: Layouts,
    pub(super) read_ahead: ReadAhead,
    shows: Shows,
}

impl Operations {
    /// The files of `guest` on `disks`, shown as `view` says.
    pub fn new(
        guest: Arc<Guest>,
        disks: Vec<Option<DiskReader>>,
        shows: Shows,
        view: View,
    ) -> Self {
        let disks: Disks = disks.into();
        let kept = Kept {
            folders: Folders::new(Arc::clone(&guest), Arc::clone(&disks)),
            layouts: Layouts::of(Arc::clone(&guest), disks),
            read_ahead: ReadAhead::of(Arc::clone(&guest)),
            shows,
        };
        Self { kept: Some(kept), nodes: Nodes::new(), ..Self::changing(guest, view) }
    }

    /// The files of `guest`, shown as `view` says, where they can change.
    pub fn changing(guest: Arc<Guest>, view: View) -> Self {
        Self {
            nodes: Nodes::with_names(),
            stats: Arc::new(Stats::of(&guest)),
            kept: None,
            page_cache: Arc::new(PageCache::of(guest.lanes())),
            guest,
            view,
            cursors: Cursors::default(),
            buffers: Buffers::default(),
        }
    }

    /// What the kernel is told of the file `name` in `parent`, which it asked for or made.
    ///
    /// # Errors
    /// `ESTALE` where `parent` is unknown.
    pub fn found(&self, parent: NodeId, name: EntryName, attr: &Attr) -> Result<FileAttr, Errno> {
        let id = self.nodes.look_up(parent, name, attr)?;
        Ok(self.view.of(id, attr))
    }

    /// What the kernel is told of a node that it knows.
    pub fn shown(&self, id: NodeId, attr: &Attr) -> FileAttr {
        // The root has a fixed number in FUSE, and its own in the filesystem.
        let shown = if id == ROOT { natural_id(attr).unwrap_or(ROOT) } else { id };
        self.view.of(shown, attr)
    }

    /// Forgets what was read of folders, since something changed.
    pub fn changed(&self) {
        self.cursors.forget();
    }

    /// Finds the file `name` in `parent`.
    ///
    /// # Errors
    /// The guest's error, or `EIO`; that there is no such file is none.
    pub fn look_up(&self, parent: NodeId, name: &[u8]) -> Result<Found, Errno> {
        let name = entry_name(name)?;
        let path = self.nodes.path(parent)?.join(&name).map_err(|_| Errno::ENAMETOOLONG)?;
        match self.guest.stat(path) {
            Ok(attr) => self.found(parent, name, &attr).map(Found::File),
            Err(Errno::ENOENT) => Ok(Found::Nothing),
            Err(errno) => Err(errno),
        }
    }

    /// Attributes of a node.
    ///
    /// # Errors
    /// `ESTALE` for an unknown node, the guest's error, or `EIO`.
    pub fn get_attr(&self, id: NodeId) -> Result<FileAttr, Errno> {
        let attr = self.guest.stat(self.nodes.path(id)?)?;
        Ok(self.shown(id, &attr))
    }

    /// The target of a symbolic link, as it is to be shown.
    ///
    /// # Errors
    /// `ELOOP` where too many links are on the way, else as [`Operations::get_attr`].
    pub fn read_link(&self, id: NodeId) -> Result<Vec<u8>, Errno> {
        let path = self.nodes.path(id)?;
        let known = self.nodes.target(id).map(|target| target.as_bytes().to_vec());
        match self.view.targets {
            Targets::Raw => known.map_or_else(|| self.guest.stored_target(path), Ok),
            // What is no link has no target, which is all that counts here.
            Targets::Inside => {
                let target = known.map_or_else(|| self.guest.read_link(path.clone()), Ok)?;
                symlinks::shown(&path, &target, |at| self.guest.read_link(at.clone()).ok())
                    .filter(|shown| shown.len() <= MAX_LINK)
                    .ok_or(Errno::ELOOP)
            }
        }
    }

    /// Takes back `count` look-ups of a node.
    pub fn forget(&self, id: NodeId, count: u64) {
        // Before its number can be another file's. The kernel reads nothing of it any more.
        if let Some(kept) = &self.kept {
            kept.read_ahead.forget(id);
            self.page_cache.forget(id);
            kept.layouts.forget(id);
        }
        self.nodes.forget(id, count);
    }

    /// Gives the lines of a directory from `from` on to `take`, until that says no.
    ///
    /// # Errors
    /// As [`Operations::get_attr`].
    pub fn read_directory(
        &self,
        id: NodeId,
        from: u64,
        take: impl FnMut(&Line, u64) -> bool,
    ) -> Result<(), Errno> {
        let folder = self.nodes.lifetime(id).ok_or(Errno::ESTALE)?;
        let path = self.nodes.path(id)?;
        let mut cursor = self.cursors.take(folder, from);
        let fetch = |at, size| match &self.kept {
            Some(kept) => kept.folders.page(folder, &path, self.nodes.entry(id), at, size),
            None => self.guest.read_dir(path.clone(), at, size),
        };
        let done = cursor.directory.read(from, fetch, take);
        self.cursors.give_back(folder, cursor);
        done
    }

    /// Notes that the kernel is told of `entry` of the directory `parent`. `None` where it does not
    /// know that directory any more.
    pub fn note(&self, parent: NodeId, entry: &DirEntry) -> Option<Noted> {
        // A file whose attributes the guest could not read has a name all the same. The kernel
        // needs a number for it: readers take a line with number 0 for a hole.
        let attr = entry.attr.unwrap_or(Attr { mode: libc::S_IFREG, ..Attr::default() });
        let id = self.nodes.look_up(parent, entry.name.clone(), &attr).ok()?;
        if let Some(target) = &entry.target {
            self.nodes.keep_target(id, target);
        }
        let shown = self.view.of(id, &attr);
        Some(if entry.attr.is_some() { Noted::File(shown) } else { Noted::Name(shown) })
    }

    /// Size and usage of the filesystem that a node is on.
    ///
    /// # Errors
    /// As [`Operations::get_attr`].
    pub fn stat_fs(&self, id: NodeId) -> Result<StatFs, Errno> {
        self.guest.stat_fs(self.nodes.path(id)?)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// As [`Operations::get_attr`]; `ENODATA` where there is none.
    pub fn get_xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let path = self.nodes.path(id)?;
        let alone = || self.guest.get_xattr(path, name);
        let value = match (&self.kept, self.entry_and_folder(id), XattrName::new(name)) {
            (Some(kept), Some((entry, folder)), Ok(name)) => {
                kept.folders.get_xattr(&folder, &entry, name, alone)
            }
            _ => alone(),
        };
        if self.enforces_access_lists() { access_lists::for_a_check(name, value) } else { value }
    }

    /// Whether the kernel checks access by the image's access control lists.
    #[must_use]
    pub fn enforces_access_lists(&self) -> bool {
        self.view.enforces_access_lists()
    }

    /// The names of the extended attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// As [`Operations::get_attr`].
    pub fn list_xattr(&self, id: NodeId) -> Result<Vec<u8>, Errno> {
        let path = self.nodes.path(id)?;
        let entry = self.kept.as_ref().zip(self.entry_and_folder(id));
        let known =
            entry.and_then(|(kept, (entry, folder))| kept.folders.list_xattr(&folder, &entry));
        known.unwrap_or_else(|| self.guest.list_xattr(path))
    }

    /// A node as an entry of its folder, and that one's path.
    fn entry_and_folder(&self, id: NodeId) -> Option<(Entry, GuestPath)> {
        let entry = self.nodes.entry(id)?;
        let folder = self.nodes.path(entry.parent).ok()?;
        Some((entry, folder))
    }

    /// Where the next data or hole is; the kernel itself serves the other kinds of lseek(2).
    ///
    /// # Errors
    /// `EINVAL` for those, `ENXIO` behind the end, else as [`Operations::get_attr`].
    pub fn seek(&self, id: NodeId, offset: i64, whence: i32) -> Result<i64, Errno> {
        let (offset, what) = sought(offset, whence)?;
        let path = || self.nodes.path(id);
        let found = match &self.kept {
            Some(Kept { shows: Shows::Devices, layouts, .. }) => {
                layouts.seek(id, path, offset, what)
            }
            _ => None,
        };
        let found = found.unwrap_or_else(|| self.guest.seek(path()?, offset, what))?;
        i64::try_from(found).map_err(|_| Errno::EIO)
    }
}

/// A name as the kernel gives it.
///
/// # Errors
/// `ENAMETOOLONG`; `EINVAL` for what is none.
pub fn entry_name(name: &[u8]) -> Result<EntryName, Errno> {
    EntryName::new(name).map_err(|error| match error {
        PathError::TooLong => Errno::ENAMETOOLONG,
        _ => Errno::EINVAL,
    })
}

/// What lseek(2) looks for, from where on.
///
/// # Errors
/// `EINVAL` where that is nothing to ask a filesystem, `ENXIO` for an offset before the file.
pub fn sought(offset: i64, whence: i32) -> Result<(u64, Extent), Errno> {
    let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
    match whence {
        libc::SEEK_DATA => Ok((offset, Extent::Data)),
        libc::SEEK_HOLE => Ok((offset, Extent::Hole)),
        _ => Err(Errno::EINVAL),
    }
}
