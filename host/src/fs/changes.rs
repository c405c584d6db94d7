//! What each request means that changes something, or that is about a file which may have changed:
//! nodes become paths or files that the guest holds, the guest is asked, what it made becomes
//! nodes. Testable without a mount.
//!
//! **Invariant:** while a request names a file by its path, no name on that path moves: requests
//! that move names wait for all others and run alone.

mod access_lists;
mod contents;
mod failed_writes;
mod new_files;
mod xattrs;

use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fuser::FileAttr;
use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::change::{
    Access, EntryPath, Existing, FileAt, NewNode, Owner, Removed, Renaming,
};
use guestmnt_protocol::message::{NameMatching, StatFs};
use guestmnt_protocol::path::{EntryName, GuestPath};
use log::debug;
use nix::errno::Errno;

use super::access_lists::Plain;
use super::invalidation::Invalidations;
use super::new_folders::NewFolders;
use super::nodes::{NodeId, Nodes, ROOT};
use super::open_nodes::{Lease, LetGo, OpenFile, OpenNodes};
use super::operations::{Found, Operations, entry_name};
use crate::guest::{Guest, Update};

/// A mount that can be written, without its FUSE clothes.
pub struct Changes {
    operations: Arc<Operations>,
    guest: Arc<Guest>,
    open: OpenNodes,
    new_folders: NewFolders,
    /// Directories in which the umask applies.
    plain: Plain,
    let_go: LetGo,
    /// Taken by who names a file by its path, and exclusively by who moves names.
    names: RwLock<()>,
    /// Who new files belong to.
    owner: Owner,
    /// How names are compared. Where they match loosely the kernel keeps nothing that is written,
    /// and nothing is kept here either.
    matching: NameMatching,
    lost: Mutex<Option<Lost>>,
    invalidations: Arc<Invalidations>,
}

/// Something that was written and that the guest did not take, when nobody was there any more to be
/// told so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The file, as far as it has a name.
    pub path: GuestPath,
    /// Why.
    pub errno: Errno,
}

/// Nothing that holds a lock panics.
const NO_PANIC: &str = "nothing panics while it holds the names";

impl Changes {
    /// Those of the files of `guest`, which compares names like that, shown by `operations`. New
    /// files belong to `owner`.
    pub fn new(
        guest: Arc<Guest>,
        operations: Arc<Operations>,
        owner: Owner,
        matching: NameMatching,
    ) -> Self {
        let (open, names, lost) = (OpenNodes::default(), RwLock::default(), Mutex::default());
        let holder = Arc::clone(&guest);
        let let_go: LetGo = Arc::new(move |held| {
            if let Err(errno) = holder.release(held) {
                debug!("a file cannot be closed in the guest: {errno}");
            }
        });
        let new_folders = NewFolders::default();
        let invalidations = Arc::default();
        Self {
            operations,
            guest,
            open,
            new_folders,
            plain: Plain::default(),
            let_go,
            names,
            owner,
            matching,
            lost,
            invalidations,
        }
    }

    /// As long as this is there, names stay where they are.
    pub fn settled(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read().expect(NO_PANIC)
    }

    /// What was lost so far without anybody having been told; the first of it.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        let still_open = || {
            let (node, errno) = self.open.failed()?;
            Some(Lost { path: self.nodes().path(node).unwrap_or_default(), errno })
        };
        self.lost.lock().expect(NO_PANIC).clone().or_else(still_open)
    }

    /// The files that are open for writing, by their paths; those without a name are gone when they
    /// are closed.
    #[must_use]
    pub fn being_written(&self) -> Vec<GuestPath> {
        let _settled = self.settled();
        self.open.nodes().into_iter().filter_map(|node| self.nodes().path(node).ok()).collect()
    }

    /// Finds the file `name` in `parent`.
    ///
    /// # Errors
    /// `ENOENT` where there is none, which may change; the guest's error, or `EIO`.
    pub fn look_up(&self, parent: NodeId, name: &[u8]) -> Result<FileAttr, Errno> {
        let _settled = self.settled();
        if let Ok(name) = entry_name(name) {
            if self.matching == NameMatching::Exact && self.new_folders.lacks(parent, &name) {
                return Err(Errno::ENOENT);
            }
            self.complete_at(parent, &name);
        }
        match self.operations.look_up(parent, name)? {
            Found::File(attr) => Ok(attr),
            Found::Nothing => Err(Errno::ENOENT),
        }
    }

    /// Makes a regular file, or takes the one that is there unless `flags` forbid that, and opens
    /// it.
    ///
    /// # Errors
    /// The guest's error, or `EIO`; nothing is open then.
    pub fn create(
        &self,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<FileAttr, Errno> {
        let name = entry_name(name)?;
        let exclusive = flags & libc::O_EXCL != 0;
        let existing = if exclusive { Existing::Refuse } else { Existing::Open };
        let _settled = self.settled();
        let entry = self.entry(parent, &name)?;
        let (held, attr) = self.guest.create(entry, mode & 0o7777, self.owner, existing)?;
        let lease = Lease::new(held, &self.let_go);
        let found = self.operations.found(parent, name, &attr);
        self.operations.changed();
        let shown = found?;
        let node = NodeId(shown.ino.0);
        let file = match self.matching {
            NameMatching::Exact => self.open.open_new(node, attr),
            NameMatching::Loose => self.open.open(node),
        };
        file.hold(Access::Write, |_| Ok(lease))?;
        if exclusive {
            // It is new, and nobody has given it any.
            file.set_without_capabilities(true);
        }
        self.nodes().pin(node, true);
        Ok(shown)
    }

    /// Opens a file; for writing, the guest holds it from now on.
    ///
    /// # Errors
    /// The guest's error, or `EIO`; it is not open then.
    pub fn open(&self, node: NodeId, flags: i32) -> Result<(), Errno> {
        let file = self.open.open(node);
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Ok(());
        }
        let _settled = self.settled();
        self.hold(node, &file, Access::Write).map(drop).inspect_err(|_| self.close(node))
    }

    /// Closes a file once.
    pub fn close(&self, node: NodeId) {
        self.complete(node);
        let Some(closed) = self.open.close(node) else { return };
        self.closed(node, &closed);
        // Before the guest lets it go, and may give its number to another file.
        if self.open.held(node).is_none() {
            self.nodes().pin(node, false);
        }
        drop(closed);
    }

    /// As [`Operations::get_attr`].
    ///
    /// # Errors
    /// As [`Operations::get_attr`].
    pub fn get_attr(&self, node: NodeId) -> Result<FileAttr, Errno> {
        let _settled = self.settled();
        if let Some(gone) = self.gone(node) {
            return Ok(gone);
        }
        if let Some(attr) = self.new_attr(node) {
            return Ok(self.operations.shown(node, &attr));
        }
        self.complete(node);
        match self.nameless(node) {
            Some(held) => {
                let attr = self.guest.stat_held(held.file())?;
                Ok(self.operations.shown(node, &attr))
            }
            None => self.operations.get_attr(node),
        }
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn set_attr(&self, node: NodeId, update: impl Into<Update>) -> Result<FileAttr, Errno> {
        let update = update.into();
        let _settled = self.settled();
        if let Some(gone) = self.gone(node) {
            return Ok(gone);
        }
        if let Some(kept) = self.set_new(node, update) {
            return kept;
        }
        let (place, _lease) = self.place(node)?;
        let changed = self.guest.set_attr(place, update);
        self.operations.changed();
        Ok(self.operations.shown(node, &changed?))
    }

    /// Makes a directory, link or special file.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn make(&self, parent: NodeId, name: &[u8], node: NewNode) -> Result<FileAttr, Errno> {
        let name = entry_name(name)?;
        let _settled = self.settled();
        let is_folder = matches!(node, NewNode::Directory(_));
        let made = self.guest.make(self.entry(parent, &name)?, node, self.owner);
        self.operations.changed();
        let shown = self.operations.found(parent, name, &made?)?;
        if is_folder {
            self.new_folders.made(NodeId(shown.ino.0));
            self.inherits_access_list(parent, NodeId(shown.ino.0));
        }
        Ok(shown)
    }

    /// Forgets a node that the kernel does not know any more.
    pub fn forget(&self, node: NodeId) {
        self.new_folders.forget(node);
        self.plain.forget(node);
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<FileAttr, Errno> {
        let name = entry_name(name)?;
        let _settled = self.settled();
        self.complete(node);
        let linked = self.guest.hard_link(self.nodes().path(node)?, self.entry(parent, &name)?);
        self.operations.changed();
        let attr = linked?;
        self.nodes().linked(node, parent, name);
        Ok(self.operations.shown(node, &attr))
    }

    /// Takes a name away. A file that is open can be used all the same.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn remove(&self, parent: NodeId, name: &[u8], kind: Removed) -> Result<(), Errno> {
        let name = entry_name(name)?;
        let _alone = self.alone();
        let entry = self.entry(parent, &name)?;
        if kind == Removed::File {
            self.complete_at(parent, &name);
            self.keep_open(parent, &name)?;
        }
        let removed = self.guest.remove(entry, kind);
        self.operations.changed();
        removed?;
        self.nodes().removed(parent, &name);
        Ok(())
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn rename(
        &self,
        (parent, name): (NodeId, &[u8]),
        (new_parent, new_name): (NodeId, &[u8]),
        how: Renaming,
    ) -> Result<(), Errno> {
        let (name, new_name) = (entry_name(name)?, entry_name(new_name)?);
        let _alone = self.alone();
        let (from, to) = (self.entry(parent, &name)?, self.entry(new_parent, &new_name)?);
        self.complete_at(parent, &name);
        self.complete_at(new_parent, &new_name);
        if matches!(how, Renaming::Replace | Renaming::Whiteout) {
            self.keep_open(new_parent, &new_name)?;
        }
        let renamed = self.guest.rename(from, to, how);
        self.operations.changed();
        renamed?;
        let (from, to) = ((parent, &name), (new_parent, &new_name));
        match how {
            Renaming::Replace
            | Renaming::NoReplace
            | Renaming::Whiteout
            | Renaming::WhiteoutNoReplace => self.nodes().renamed(from, to),
            Renaming::Exchange => self.nodes().exchanged(from, to),
        }
        Ok(())
    }

    /// As [`Operations::stat_fs`].
    ///
    /// # Errors
    /// As [`Operations::stat_fs`].
    pub fn stat_fs(&self, node: NodeId) -> Result<StatFs, Errno> {
        let _settled = self.settled();
        let node = if self.nodes().is_named(node) { node } else { ROOT };
        self.operations.stat_fs(node)
    }

    /// Has the guest hold what is about to lose a name, if a process has it open.
    fn keep_open(&self, parent: NodeId, name: &EntryName) -> Result<(), Errno> {
        let Some(node) = self.nodes().at(parent, name) else { return Ok(()) };
        match self.open.get(node) {
            Some(file) => self.hold(node, &file, Access::Read).map(drop),
            None => Ok(()),
        }
    }

    /// Has the guest hold a file that is open. Names must be settled.
    fn hold(&self, node: NodeId, file: &OpenFile, access: Access) -> Result<Arc<Lease>, Errno> {
        let held = file.hold(access, |former| {
            let place = match former {
                Some(held) => FileAt::Held(held),
                None => FileAt::Path(self.nodes().path(node)?),
            };
            Ok(Lease::new(self.guest.hold(place, access)?, &self.let_go))
        })?;
        self.nodes().pin(node, true);
        Ok(held)
    }

    /// What the guest holds of a node that has no name any more.
    fn nameless(&self, node: NodeId) -> Option<Arc<Lease>> {
        if self.nodes().is_named(node) { None } else { self.open.held(node) }
    }

    /// What is left of a file that is gone, or of a folder: the kernel may know it still, and hands
    /// over the times when it changed last.
    fn gone(&self, node: NodeId) -> Option<FileAttr> {
        let mode =
            self.nodes().kind_of_nameless(node).filter(|_| self.open.held(node).is_none())?;
        Some(self.operations.shown(node, &Attr { mode, ..Attr::default() }))
    }

    /// Where a node is: at its path, or held, as long as the lease is.
    fn place(&self, node: NodeId) -> Result<(FileAt, Option<Arc<Lease>>), Errno> {
        match self.open.held(node) {
            Some(held) => Ok((FileAt::Held(held.file()), Some(held))),
            None => Ok((FileAt::Path(self.nodes().path(node)?), None)),
        }
    }

    /// The place `name` in `parent`, where something may be from now on.
    fn entry(&self, parent: NodeId, name: &EntryName) -> Result<EntryPath, Errno> {
        self.new_folders.named(parent, name);
        Ok(EntryPath { folder: self.nodes().path(parent)?, name: name.clone() })
    }

    fn nodes(&self) -> &Nodes {
        &self.operations.nodes
    }

    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write().expect(NO_PANIC)
    }
}
