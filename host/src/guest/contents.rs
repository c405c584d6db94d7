//! What regular files hold: read into a slot of bulk memory, or by the lane where there is none.

use std::sync::Arc;

use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::{Answer, Request};
use guestmnt_protocol::path::GuestPath;
use log::info;
use nix::errno::Errno;

use super::Guest;
use super::bulk::{Bulk, SharedMemory, Slot};
use super::requests::{Landed, Room};
use crate::counts::{Counts, kinds};

kinds! {
    /// Where contents of a file arrived.
    Landing {
        /// In a slot.
        Slot = "slot",
        /// In the lane's own memory.
        Lane = "lane",
    }
}

/// A part of a file's contents, kept as it came.
pub enum Piece {
    /// So many bytes, in a slot.
    Slot(Slot, usize),
    /// These.
    Bytes(Box<[u8]>),
}

impl Piece {
    /// The bytes, to be passed on and not to be looked at.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Slot(slot, length) => slot.lend(*length),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Guest {
    /// Where contents arrived so far, and how many bytes.
    #[must_use]
    pub fn landed(&self) -> &Arc<Counts<Landing>> {
        &self.landed
    }

    /// Reads up to `size` bytes at byte `offset` and hands them to `take` where they lie,
    /// without a copy; `take` passes them on and does not look at them. Fewer come only at the
    /// file's end.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read<T>(
        &self,
        path: GuestPath,
        offset: u64,
        size: u32,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Errno> {
        let size = size.min(u32::try_from(MAX_PAYLOAD).expect("a payload fits 32 bits"));
        self.read_request(&Request::Read { path, offset, size }, size, take)
    }

    /// Makes a request whose answer is at most `size` bytes, and hands them to `take` where they
    /// lie.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub(super) fn read_request<T>(
        &self,
        request: &Request,
        size: u32,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Errno> {
        self.read_into(request, size, |payload| match payload {
            Landed::Slot(slot, length) => take(slot.lend(length)),
            Landed::Port(bytes) => take(bytes),
        })
    }

    /// Reads up to `size` bytes at byte `offset`, to be kept. Fewer come only at the file's end.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn read_piece(&self, path: GuestPath, offset: u64, size: u32) -> Result<Piece, Errno> {
        let size = size.min(u32::try_from(MAX_PAYLOAD).expect("a payload fits 32 bits"));
        let request = Request::Read { path, offset, size };
        self.read_into(&request, size, |contents| match contents {
            Landed::Slot(slot, length) => Piece::Slot(slot, length),
            Landed::Port(bytes) => Piece::Bytes(bytes.into()),
        })
    }

    fn read_into<T>(
        &self,
        request: &Request,
        size: u32,
        take: impl FnOnce(Landed<'_>) -> T,
    ) -> Result<T, Errno> {
        self.ask(request, size as usize, Room::Slot, |_, answer, contents| {
            let (landing, length) = match &contents {
                Landed::Slot(_, length) => (Landing::Slot, *length),
                Landed::Port(bytes) => (Landing::Lane, bytes.len()),
            };
            self.landed.request(landing);
            self.landed.bytes(length);
            (answer == Answer::Payload).then(|| take(contents))
        })
    }
}

/// The slots that the guest says to have. Where that cannot be, contents come by the lanes.
pub(super) fn slots_in(memory: &SharedMemory, addresses: &[u64]) -> Option<Arc<Bulk>> {
    match Bulk::new(memory, addresses) {
        Ok(Some(bulk)) => return Some(Arc::new(bulk)),
        Ok(None) => info!("no bulk memory: the guest has no good slots"),
        Err(error) => info!("no bulk memory: {error}"),
    }
    None
}
