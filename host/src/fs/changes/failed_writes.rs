//! What the guest did not write although the kernel has it in its cache: programs get the error, and
//! the kernel forgets what is not on the disk. See [`crate::fs::write_errors`].

use std::sync::Arc;

use guestmnt_protocol::message::NameMatching;
use log::warn;
use nix::errno::Errno;

use super::{Changes, Lost, NO_PANIC};
use crate::fs::invalidation::Invalidations;
use crate::fs::nodes::NodeId;
use crate::fs::open_nodes::OpenFile;

impl Changes {
    /// What the kernel is told of its caches.
    #[must_use]
    pub fn invalidations(&self) -> &Arc<Invalidations> {
        &self.invalidations
    }

    /// write(2) is about to put more into the kernel's cache.
    ///
    /// # Errors
    /// What an earlier write failed with, once.
    pub fn check_written(&self, node: NodeId) -> Result<(), Errno> {
        self.open.get(node).map_or(Ok(()), |file| file.errors().take_for_write())
    }

    /// The kernel was answered that these bytes of a file could not be written.
    pub fn not_written(&self, node: NodeId, offset: u64, length: usize) {
        // Elsewhere the kernel caches nothing, and write(2) has waited for the answer.
        if self.matching == NameMatching::Exact {
            self.invalidations.contents(node, offset..offset.saturating_add(length as u64));
        }
    }

    /// The guest did not take what was kept of a new file.
    pub(super) fn defer(&self, node: NodeId, file: &OpenFile, errno: Errno) {
        file.errors().defer(errno);
        self.invalidations.contents(node, 0..u64::MAX);
    }

    /// A file was closed for the last time, with this left that neither fsync(2) nor close(2) has
    /// reported.
    pub(super) fn closed(&self, node: NodeId, file: &OpenFile) {
        let errors = file.errors();
        if !errors.any() {
            return;
        }
        if let Some(errno) = errors.unreported() {
            let path = self.nodes().path(node).unwrap_or_default();
            warn!("{path}: what was written last is lost: {}", errno.desc());
            self.lost.lock().expect(NO_PANIC).get_or_insert(Lost { path, errno });
        }
        // The kernel goes by its own size of a file for as long as it remembers the file.
        if let Some(entry) = self.nodes().entry(node) {
            self.invalidations.name(entry.parent, entry.name);
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.invalidations.end();
    }
}
