//! Tells the kernel that what it caches of a file is not what the guest has.
//!
//! Attributes can be invalidated while the kernel waits for an answer. Contents and names cannot: the
//! kernel then waits for pages and directories that it may have locked until it is answered. So those
//! are queued for a thread of their own, which answers nothing.
//! Source: `fuse_reverse_inval_inode()` in fs/fuse/inode.c, `fuse_reverse_inval_entry()` in
//! fs/fuse/dir.c.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use fuser::{INodeNo, Notifier};
use guestmnt_protocol::path::EntryName;
use log::debug;

use super::nodes::NodeId;

/// The way to the kernel's caches, and what is queued for them.
#[derive(Default)]
pub struct Invalidations {
    notifier: OnceLock<Notifier>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Bytes by file. Several ranges of one file become one that holds them all.
    contents: HashMap<NodeId, Range<u64>>,
    names: BTreeSet<(u64, EntryName)>,
    has_ended: bool,
}

/// What is invalidated next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Contents(NodeId, Range<u64>),
    Name(NodeId, EntryName),
}

impl Invalidations {
    /// Sends them by `notifier` from now on; before, nothing is cached.
    pub fn connect(&self, notifier: Notifier) {
        // It is connected once.
        let _ = self.notifier.set(notifier);
    }

    /// The kernel asks for the attributes of a file before it uses them again. Done when this returns.
    pub fn attributes(&self, node: NodeId) {
        // A negative offset leaves the contents alone.
        self.send("attributes", |notifier| notifier.inval_inode(INodeNo(node.0), -1, 0));
    }

    /// The kernel asks for these bytes of a file, and for its attributes, before it uses them again;
    /// soon.
    pub fn contents(&self, node: NodeId, range: Range<u64>) {
        self.queue().add(node, range);
        self.changed.notify_one();
    }

    /// The kernel looks up a name before it uses it again, and forgets the file if nothing else uses
    /// it; soon.
    pub fn name(&self, parent: NodeId, name: EntryName) {
        self.queue().names.insert((parent.0, name));
        self.changed.notify_one();
    }

    /// Sends what is queued, until [`Invalidations::end`].
    pub fn run(&self) {
        while let Some(next) = self.next() {
            match next {
                Next::Contents(node, range) => self.send("contents", |notifier| {
                    let (offset, length) = (signed(range.start), signed(range.end - range.start));
                    notifier.inval_inode(INodeNo(node.0), offset, length)
                }),
                Next::Name(parent, name) => self.send("a name", |notifier| {
                    notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name.as_bytes()))
                }),
            }
        }
    }

    /// Has [`Invalidations::run`] return.
    pub fn end(&self) {
        self.queue().has_ended = true;
        self.changed.notify_all();
    }

    /// Waits for what is queued. `None` at the end.
    fn next(&self) -> Option<Next> {
        let mut queue = self.queue();
        loop {
            if queue.has_ended {
                return None;
            }
            if let Some(next) = queue.take() {
                return Some(next);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send(&self, what: &str, send: impl FnOnce(&Notifier) -> io::Result<()>) {
        if let Some(Err(error)) = self.notifier.get().map(send) {
            debug!("the kernel keeps {what} that changed: {error}");
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No step leaves it half-changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn add(&mut self, node: NodeId, range: Range<u64>) {
        let all = self.contents.entry(node).or_insert_with(|| range.clone());
        *all = all.start.min(range.start)..all.end.max(range.end);
    }

    /// Contents go first: a file whose name is invalidated may be forgotten with all that is cached of
    /// it.
    fn take(&mut self) -> Option<Next> {
        if let Some(&node) = self.contents.keys().next() {
            return self
                .contents
                .remove_entry(&node)
                .map(|(node, range)| Next::Contents(node, range));
        }
        self.names.pop_first().map(|(parent, name)| Next::Name(NodeId(parent), name))
    }
}

/// Offsets of the kernel are below 2^63.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_ranges_of_one_file_and_sends_contents_before_names() {
        let invalidations = Invalidations::default();
        let name = EntryName::new(b"name").unwrap();
        invalidations.name(NodeId(1), name.clone());
        invalidations.contents(NodeId(7), 4096..8192);
        invalidations.contents(NodeId(7), 0..512);
        assert_eq!(invalidations.next(), Some(Next::Contents(NodeId(7), 0..8192)));
        assert_eq!(invalidations.next(), Some(Next::Name(NodeId(1), name)));
        invalidations.end();
        assert_eq!(invalidations.next(), None);
        invalidations.run();
    }
}
