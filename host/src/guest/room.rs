//! Room on the host for what the guest writes. A disk that takes what is written grows; when the
//! host's filesystem is full under it, the guest's sees a broken disk: its journal is given up, and
//! what it had in memory is lost. So nothing is handed to the guest that might not fit.
//!
//! What the guest has in memory it has not written yet, and nobody can tell how much it is. While
//! there is plenty of room that does not matter; where there is little, each piece is brought to the
//! disk before the next one, and what several threads bring there at once is counted together. A reserve is left for what a filesystem writes beside, and for what
//! makes room again: removing, cutting off.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use guestmnt_protocol::message::StatFs;
use nix::errno::Errno;
use nix::sys::statvfs::fstatvfs;

/// Bytes that are left alone: more than a journal takes of a disk at once.
pub const RESERVE: u64 = 16 << 20;

/// Bytes below which a filesystem counts as full.
const NOTHING: u64 = 1 << 20;

/// Room for what is written.
#[derive(Debug, Default)]
pub struct Room {
    /// Files that grow. Where there are none, there is always room.
    files: Vec<File>,
    reserve: u64,
    /// Bytes that the guest can have in memory.
    unwritten: u64,
    /// Bytes of all that was taken and is not yet dropped.
    taken: AtomicU64,
}

/// Room for some bytes, which is theirs until they are on the disk, where there is little, and this is
/// dropped.
#[derive(Debug)]
pub struct Taken<'room> {
    /// How much there is.
    pub space: Space,
    bytes: u64,
    room: &'room Room,
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Enough for all that the guest has in memory too.
    Plenty,
    /// Enough for what is asked for.
    Little,
}

impl Room {
    /// Where `files` grow by what a guest with so many bytes of memory writes, and `reserve` bytes
    /// are left alone.
    #[must_use]
    pub fn below(files: Vec<File>, reserve: u64, memory: u64) -> Self {
        Self { files, reserve, unwritten: memory, taken: AtomicU64::new(0) }
    }

    /// Room for `bytes` more.
    ///
    /// # Errors
    /// `ENOSPC` where there is none.
    pub fn take(&self, bytes: u64) -> Result<Taken<'_>, Errno> {
        // What others have taken is looked at before what is free: they may be done meanwhile.
        let others = self.taken.fetch_add(bytes, Ordering::AcqRel);
        let mut taken = Taken { space: Space::Plenty, bytes, room: self };
        if let Some(free) = self.free() {
            taken.space = self.space(free, others, bytes)?;
        }
        Ok(taken)
    }

    /// Whether there is plenty of room for `bytes` more, which are not taken.
    #[must_use]
    pub fn is_plenty_for(&self, bytes: u64) -> bool {
        let others = self.taken.load(Ordering::Acquire);
        let space = self.free().map(|free| self.space(free, others, bytes));
        space.is_none_or(|space| space == Ok(Space::Plenty))
    }

    /// How much there is for `bytes` with `free` bytes below the files, of which `others` are taken.
    fn space(&self, free: u64, others: u64, bytes: u64) -> Result<Space, Errno> {
        // A few sectors may take whole clusters of the overlay, and tables.
        let needed = bytes.saturating_mul(2);
        match free.saturating_sub(self.reserve).saturating_sub(others) {
            free if free < needed => Err(Errno::ENOSPC),
            free if free < needed.saturating_add(self.unwritten) => Ok(Space::Little),
            _ => Ok(Space::Plenty),
        }
    }

    /// What an error of the guest's disk means: that it cannot grow, where that is so.
    #[must_use]
    pub fn meaning(&self, errno: Errno) -> Errno {
        let is_full = || self.free().is_some_and(|free| free < NOTHING);
        if errno == Errno::EIO && is_full() { Errno::ENOSPC } else { errno }
    }

    /// What the guest's filesystem says of itself, as far as there is room for it.
    #[must_use]
    pub fn limit(&self, stat: StatFs) -> StatFs {
        let Some(free) = self.free() else { return stat };
        let blocks = free.saturating_sub(self.reserve) / u64::from(stat.block_size.max(1));
        let (free, available) = (stat.free.min(blocks), stat.available.min(blocks));
        StatFs { free, available, ..stat }
    }

    /// Bytes that are free below the files; `None` where nobody can tell.
    fn free(&self) -> Option<u64> {
        let free = |file: &File| {
            let stat = fstatvfs(file).ok()?;
            Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
        };
        self.files.iter().filter_map(free).min()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_grows_there_is_always_room_and_elsewhere_a_reserve_is_left() {
        let space = |room: &Room, bytes| room.take(bytes).map(|taken| taken.space);
        let none = Room::default();
        assert_eq!(space(&none, u64::MAX), Ok(Space::Plenty));
        assert_eq!(none.meaning(Errno::EIO), Errno::EIO);
        let below =
            |reserve, memory| Room::below(vec![tempfile::tempfile().unwrap()], reserve, memory);
        assert_eq!(space(&below(0, 0), 1), Ok(Space::Plenty));
        assert_eq!(space(&below(0, u64::MAX), 1), Ok(Space::Little));
        assert_eq!(space(&below(u64::MAX, 0), 1), Err(Errno::ENOSPC));
    }

    #[test]
    fn what_several_take_at_once_is_counted_together() {
        const MIB: u64 = 1 << 20;
        let room = Room::below(Vec::new(), 16 * MIB, 256 * MIB);
        let space = |others| room.space(23 * MIB, others, MIB);
        assert_eq!([space(0), space(5 * MIB)], [Ok(Space::Little); 2]);
        assert_eq!(space(6 * MIB), Err(Errno::ENOSPC));

        let taken = || room.taken.load(Ordering::Acquire);
        let both = [room.take(MIB).unwrap(), room.take(5).unwrap()];
        assert_eq!(taken(), MIB + 5);
        drop(both);
        assert_eq!(taken(), 0);
    }
}
