//! Bulk memory as the client of the guest has it: slots that are lent for one payload each.
//!
//! The guest can change a slot at any time. What a file holds is handed on as it lies there,
//! whole or torn; whatever else this process means to look at is copied out first.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guestmnt_protocol::limits::{MAX_PAYLOAD, SLOTS};

use crate::sys::SharedMap;

/// A piece of the guest's memory that this process can map.
pub struct SharedMemory {
    /// Its bytes; nobody may be able to change its length.
    pub file: File,
    /// The address in the guest of its first byte.
    pub address: u64,
    /// Bytes.
    pub length: u64,
}

/// The slots.
pub struct Bulk {
    map: SharedMap,
    /// Where in the map each slot begins.
    offsets: Box<[usize]>,
    free: Mutex<Vec<u8>>,
}

impl Bulk {
    /// The slots that the guest says to have at `addresses` of `memory`. `None` where it has none,
    /// or where one of them is not within the memory or is there twice.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(memory: &SharedMemory, addresses: &[u64]) -> io::Result<Option<Self>> {
        let Some(offsets) = offsets(memory, addresses) else { return Ok(None) };
        let length = usize::try_from(memory.length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let map = SharedMap::of(&memory.file, length)?;
        let count = u8::try_from(offsets.len()).expect("there are at most as many as slots");
        Ok(Some(Self { map, offsets, free: Mutex::new((0..count).collect()) }))
    }

    /// A slot that nobody uses.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let number = self.free().pop()?;
        Some(Slot { bulk: Arc::clone(self), number })
    }

    fn free(&self) -> MutexGuard<'_, Vec<u8>> {
        // A push or a pop is all or nothing.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn offsets(memory: &SharedMemory, addresses: &[u64]) -> Option<Box<[usize]>> {
    if addresses.is_empty() || addresses.len() > SLOTS {
        return None;
    }
    let payload = MAX_PAYLOAD as u64;
    let mut offsets = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let offset = address.checked_sub(memory.address)?;
        let fits = offset.checked_add(payload).is_some_and(|end| end <= memory.length);
        let offset = usize::try_from(offset).ok()?;
        if !fits || offset % MAX_PAYLOAD != 0 || offsets.contains(&offset) {
            return None;
        }
        offsets.push(offset);
    }
    Some(offsets.into())
}

/// A slot in use. It is free again when this is dropped.
pub struct Slot {
    bulk: Arc<Bulk>,
    number: u8,
}

impl Slot {
    /// Its number on the wire.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its first `length` bytes, to be handed to the kernel: nothing in this process may look at
    /// them, since they can change meanwhile.
    ///
    /// # Panics
    /// Where `length` is beyond [`MAX_PAYLOAD`]; the lane has checked it.
    #[must_use]
    pub fn lend(&self, length: usize) -> &[u8] {
        assert!(length <= MAX_PAYLOAD);
        self.bulk.map.lend(self.bulk.offsets[usize::from(self.number)], length)
    }

    /// Replaces its first bytes by `bytes`, for the guest to read.
    ///
    /// # Panics
    /// Where there are more than [`MAX_PAYLOAD`].
    pub fn fill(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= MAX_PAYLOAD);
        self.bulk.map.fill(self.bulk.offsets[usize::from(self.number)], bytes);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.bulk.free().push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const BASE: u64 = 256 << 20;
    const STEP: u64 = MAX_PAYLOAD as u64;

    fn memory() -> SharedMemory {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * STEP).unwrap();
        SharedMemory { file, address: BASE, length: 4 * STEP }
    }

    #[test]
    fn slots_lie_where_the_guest_says() {
        let memory = memory();
        let bulk = Bulk::new(&memory, &[BASE + 2 * STEP, BASE]).unwrap().unwrap();
        memory.file.write_all_at(b"first", 2 * STEP).unwrap();
        let bulk = Arc::new(bulk);
        let slots = [bulk.take().unwrap(), bulk.take().unwrap()];
        assert!(bulk.take().is_none());
        let first = slots.iter().find(|slot| slot.number() == 0).unwrap();
        assert_eq!(first.lend(5), b"first");
        drop(slots);
        assert!(bulk.take().is_some());
    }

    #[test]
    fn slots_that_cannot_be_are_refused() {
        let table: [&[u64]; 8] = [
            &[],
            &[BASE - STEP],
            &[BASE + 4 * STEP],
            &[BASE + 4 * STEP - 4096],
            &[BASE + 4096],
            &[u64::MAX],
            &[BASE, BASE],
            &[BASE; SLOTS + 1],
        ];
        for addresses in table {
            assert!(Bulk::new(&memory(), addresses).unwrap().is_none(), "{addresses:x?}");
        }
    }

    #[test]
    fn slots_are_reckoned_as_with_numbers_that_cannot_overflow() {
        let ends = [BASE, BASE + 4 * STEP, 1 << 63, u64::MAX];
        let about =
            |at: u64| [at, at.wrapping_sub(1), at.wrapping_sub(STEP), at.wrapping_add(STEP)];
        for address in ends.into_iter().flat_map(about) {
            let (base, step) = (u128::from(BASE), u128::from(STEP));
            let at = u128::from(address);
            let good = at >= base && at + step <= base + 4 * step && (at - base) % step == 0;
            assert_eq!(offsets(&memory(), &[address]).is_some(), good, "{address:x}");
        }
    }
}
