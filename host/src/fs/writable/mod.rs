//! The FUSE face of a mount that can be written.
//!
//! Nobody but this mount changes the filesystem, so that the kernel can keep here too what it
//! learnt: it knows of each change, since it asked for it. It also keeps what is written, and writes
//! it in large pieces (`FUSE_WRITEBACK_CACHE`). Where a file can be found by names that it does
//! not have, such as in other case, the kernel could take one file for two: then it keeps nothing.

mod requests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{FileAttr, FopenFlags, INodeNo, ReplyEntry};
use guestmnt_protocol::change::Owner;
use guestmnt_protocol::message::NameMatching;
use nix::errno::Errno;

use super::changes::Changes;
use super::crew::Crew;
use super::operations::Operations;
use super::stats::{Asked, Stats};
use super::view::{Targets, View};
use super::{FOR_EVER, GENERATION, GuestFs, Of, fuse};
use crate::guest::Guest;

/// The mounted filesystem.
pub struct WritableFs {
    reading: GuestFs,
    changes: Arc<Changes>,
    names: NameMatching,
    targets: Targets,
}

impl WritableFs {
    /// The files of `guest`, which compares names like that, shown as `view` says. New files
    /// belong to whom `view` shows as the owner of all, else to root.
    #[must_use]
    pub fn new(guest: Arc<Guest>, view: View, names: NameMatching) -> Self {
        // Nothing is stored ahead of what may change.
        let crew = Crew::of(guest.lanes(), 0);
        let operations = Arc::new(Operations::changing(Arc::clone(&guest), view));
        let owner = Owner { uid: view.uid, gid: view.gid };
        let changes = Arc::new(Changes::new(guest, Arc::clone(&operations), owner, names));
        let lifetime = match names {
            NameMatching::Exact => FOR_EVER,
            NameMatching::Loose => Duration::ZERO,
        };
        let reading = GuestFs { operations, crew, opens_directories: true, lifetime };
        Self { reading, changes, names, targets: view.targets }
    }

    /// What is counted.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        self.reading.stats()
    }

    /// What changes the files.
    #[must_use]
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// What the kernel is told of an open file.
    fn opened(&self) -> FopenFlags {
        match self.names {
            NameMatching::Exact => FopenFlags::FOPEN_KEEP_CACHE,
            NameMatching::Loose => FopenFlags::empty(),
        }
    }

    /// Carries out a request, and tells `-x` of it.
    fn run<T>(
        &self,
        what: Asked,
        node: INodeNo,
        of: Of<'_>,
        call: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, fuser::Errno> {
        let started = Instant::now();
        let result = call();
        self.reading.note(started, what, node, of, &result);
        result.map_err(fuse)
    }

    fn made(&self, made: Result<FileAttr, fuser::Errno>, reply: ReplyEntry) {
        match made {
            Ok(attr) => reply.entry(&self.reading.lifetime, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }
}
