//! What files hold that are open: read, written, copied within the guest, brought to the disk.

use std::sync::Arc;

use guestmnt_protocol::change::{Access, FileAt, Synced};
use nix::errno::Errno;

use super::Changes;
use super::new_files::Written;
use crate::fs::nodes::NodeId;
use crate::fs::open_nodes::{Lease, OpenFile};
use crate::fs::operations::sought;
use crate::guest::CopiedRange;

/// Bytes that one request copies within the guest: as many as it manages in its time.
const MAX_COPIED: u64 = 256 << 20;

impl Changes {
    /// As [`crate::fs::operations::Operations::read`].
    ///
    /// # Errors
    /// As [`crate::fs::operations::Operations::read`].
    pub fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: u32,
        take: impl FnOnce(&[u8]),
    ) -> Result<(), Errno> {
        self.complete(node);
        if let Some(held) = self.open.held(node) {
            return self.guest.read_held(held.file(), offset, size, take);
        }
        let _settled = self.settled();
        self.operations.read(node, offset, size, take)?;
        Ok(())
    }

    /// Writes all of `bytes` to a file that is open for writing.
    ///
    /// # Errors
    /// `EBADF` where it is not, the guest's error, or `EIO`.
    pub fn write(&self, node: NodeId, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let file = self.open.get(node).ok_or(Errno::EBADF)?;
        if let Written::Kept = self.write_new(node, &file, offset, bytes) {
            return Ok(());
        }
        let held = self.held_for_writing(node, &file)?;
        let written = self.guest.write(held.file(), offset, bytes);
        self.operations.changed();
        written.inspect_err(|errno| file.errors().failed(*errno))
    }

    /// Allocates or frees space of a file that is open for writing.
    ///
    /// # Errors
    /// `EBADF` where it is not, the guest's error, or `EIO`.
    pub fn allocate(&self, node: NodeId, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let file = self.open.get(node).ok_or(Errno::EBADF)?;
        self.complete(node);
        let held = self.held_for_writing(node, &file)?;
        let allocated = self.guest.allocate(held.file(), offset, length, mode);
        self.operations.changed();
        allocated
    }

    /// Copies bytes between files that are open, within the guest; tells how many.
    ///
    /// # Errors
    /// `EBADF` where they are not open, the guest's error, or `EIO`.
    pub fn copy(
        &self,
        (from, from_offset): (NodeId, u64),
        (to, to_offset): (NodeId, u64),
        length: u64,
    ) -> Result<u32, Errno> {
        let open = |node| self.open.get(node).ok_or(Errno::EBADF);
        self.complete(from);
        self.complete(to);
        let source = {
            let _settled = self.settled();
            self.hold(from, &*open(from)?, Access::Read)?
        };
        let target = self.held_for_writing(to, &*open(to)?)?;
        let length = length.min(MAX_COPIED);
        let (from, to) = ((source.file(), from_offset), (target.file(), to_offset));
        let piece = CopiedRange { from, to, length };
        let copied = self.guest.copy_range(piece);
        self.operations.changed();
        copied.map(|bytes| u32::try_from(bytes).expect("no more than was asked for"))
    }

    /// As [`crate::fs::operations::Operations::seek`].
    ///
    /// # Errors
    /// As [`crate::fs::operations::Operations::seek`].
    pub fn seek(&self, node: NodeId, offset: i64, whence: i32) -> Result<i64, Errno> {
        let _settled = self.settled();
        self.complete(node);
        let Some(held) = self.open.held(node) else {
            return self.operations.seek(node, offset, whence);
        };
        let (offset, what) = sought(offset, whence)?;
        i64::try_from(self.guest.seek_held(held.file(), offset, what)?).map_err(|_| Errno::EIO)
    }

    /// Returns when a file or directory is on the disk.
    ///
    /// # Errors
    /// The guest's error, that of an earlier write too; or `EIO`.
    pub fn sync(&self, node: NodeId, what: Synced) -> Result<(), Errno> {
        self.complete(node);
        let file = self.open.get(node);
        match file.as_ref().and_then(|file| file.held()) {
            Some(held) => self.guest.sync(FileAt::Held(held.file()), what),
            None => {
                let _settled = self.settled();
                self.guest.sync(FileAt::Path(self.nodes().path(node)?), what)
            }
        }?;
        file.map_or(Ok(()), |file| {
            let mut errors = file.errors();
            errors.reported_by_kernel();
            errors.take_deferred()
        })
    }

    /// What the guest holds of a file that is open for writing. It was let go when a process closed
    /// the file that was not the last one.
    fn held_for_writing(&self, node: NodeId, file: &OpenFile) -> Result<Arc<Lease>, Errno> {
        if let Some(held) = file.held_for_writing() {
            return Ok(held);
        }
        let _settled = self.settled();
        self.hold(node, file, Access::Write)
    }
}
