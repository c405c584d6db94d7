//! Files that were just made: what is kept of them, and when the guest gets it. See
//! [`crate::fs::new_files`].
//!
//! **Invariant:** what the guest did not take is told to who closes or syncs the file.

use std::sync::RwLockReadGuard;
use std::time::Instant;

use fuser::FileAttr;
use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::path::EntryName;
use nix::errno::Errno;

use super::Changes;
use crate::fs::new_files::{Kept, NewFile};
use crate::fs::nodes::NodeId;
use crate::fs::open_nodes::OpenFile;
use crate::guest::Update;

/// What became of bytes that were written.
pub(super) enum Written {
    /// They are kept here.
    Kept,
    /// The guest has to write them.
    Not,
}

impl Changes {
    /// Has the guest take what is kept of a file, of which something is to be asked that depends on
    /// it. From now on nothing is kept of it.
    pub(super) fn complete(&self, node: NodeId) {
        let Some(file) = self.open.get(node) else { return };
        let mut new = file.new_file();
        if let Some(kept) = new.take().map(NewFile::into_kept) {
            self.hand_over(node, &file, &kept);
        }
    }

    /// The same for the file that has this name.
    pub(super) fn complete_at(&self, parent: NodeId, name: &EntryName) {
        if let Some(node) = self.nodes().at(parent, name) {
            self.complete(node);
        }
    }

    /// As long as this is there, names stay where they are, and files in folders have in the guest
    /// the attributes that the kernel was told of.
    pub fn settled_for_listing(&self) -> RwLockReadGuard<'_, ()> {
        let settled = self.settled();
        self.open.all().into_iter().for_each(|node| self.complete(node));
        settled
    }

    /// A process closes a file: has the guest take what is kept of it, and let it go, as it is the
    /// last one most of the time. If it is not, the guest holds it again when it has to.
    ///
    /// # Errors
    /// What the guest did not take, now or before, unless the kernel knows.
    pub fn flush(&self, node: NodeId) -> Result<(), Errno> {
        let Some(file) = self.open.get(node) else { return Ok(()) };
        let _settled = self.settled();
        let mut new = file.new_file();
        let kept = new.take_if(|new| new.keeps_something()).map(NewFile::into_kept);
        let done = kept.map_or(Ok(()), |kept| self.finish(node, &file, &kept));
        drop(new);
        // The kernel has written all that it had before, and tells what failed of that.
        let mut errors = file.errors();
        errors.reported_by_kernel();
        if done.is_err() {
            errors.reported_by_close();
        }
        errors.take_deferred().and(done)
    }

    fn finish(&self, node: NodeId, file: &OpenFile, kept: &Kept) -> Result<(), Errno> {
        let Some(held) = file.take_unused() else {
            self.hand_over(node, file, kept);
            return Ok(());
        };
        // It has a name: a file that loses its last one is completed before.
        self.nodes().pin(node, false);
        let finished = self.guest.finish(held, &kept.bytes, kept.update);
        self.operations.changed();
        finished
    }

    /// Keeps bytes that are written to a new file, or has the guest take those that were kept
    /// before them.
    pub(super) fn write_new(
        &self,
        node: NodeId,
        file: &OpenFile,
        offset: u64,
        bytes: &[u8],
    ) -> Written {
        let mut guard = file.new_file();
        let Some(new) = guard.as_mut() else { return Written::Not };
        if new.keep_bytes(offset, bytes, Instant::now()) {
            return Written::Kept;
        }
        self.hand_over(node, file, &new.take());
        Written::Not
    }

    /// Changes attributes of a new file, here or together with what is kept. `None` where it is no
    /// new one, or not any more.
    pub(super) fn set_new(&self, node: NodeId, update: Update) -> Option<Result<FileAttr, Errno>> {
        let file = self.open.get(node)?;
        let mut guard = file.new_file();
        let new = guard.as_mut()?;
        if let Some(attr) = new.keep_attributes(update, Instant::now()) {
            self.operations.changed();
            return Some(Ok(self.operations.shown(node, &attr)));
        }
        let held = file.held();
        let together = held.zip(new.together_with(update));
        let Some((held, update)) = together else {
            let kept = guard.take().map(NewFile::into_kept)?;
            self.hand_over(node, &file, &kept);
            return None;
        };
        let kept = new.take();
        let changed = self.guest.write_and_set(held.file(), &kept.bytes, update);
        self.operations.changed();
        match changed {
            Ok(attr) => {
                new.told(attr);
                Some(Ok(self.operations.shown(node, &attr)))
            }
            Err(errno) => {
                // Such as an owner on a filesystem that knows none. The rest was answered for.
                *guard = None;
                self.hand_over(node, &file, &kept);
                Some(Err(errno))
            }
        }
    }

    /// Attributes of a new file of which the guest has written nothing.
    pub(super) fn new_attr(&self, node: NodeId) -> Option<Attr> {
        self.open.get(node)?.new_file().as_ref()?.attr()
    }

    fn hand_over(&self, node: NodeId, file: &OpenFile, kept: &Kept) {
        if kept.is_empty() {
            return;
        }
        let taken = match file.held() {
            Some(held) => self.guest.write_and_set(held.file(), &kept.bytes, kept.update),
            None => Err(Errno::EBADF),
        };
        self.operations.changed();
        if let Err(errno) = taken {
            self.defer(node, file, errno);
        }
    }
}
