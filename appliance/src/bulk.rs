//! Bulk memory: slots in the guest's second NUMA node, which the host maps as well. What a file
//! holds goes from the disk into a slot without a copy by guest instructions, and from there to
//! its reader without having been through a port.
//!
//! **Invariant:** a slot is in one block of memory, so that its first byte's address says where
//! the others are.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guestmnt_protocol::limits::{MAX_PAYLOAD, SLOTS};
use nix::errno::Errno;

use crate::failure::errno_of;
use crate::sys;

/// The node that the host gives the machine for this.
const NODE: u32 = 1;

/// How many huge pages the kernel shall keep on the node (Documentation/admin-guide/mm/hugetlbpage.rst).
const HUGE_PAGES: &str = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";

const HUGE_PAGE: usize = 2 << 20;

/// What the kernel says of the pages of this process (Documentation/admin-guide/mm/pagemap.rst).
const PAGEMAP: &str = "/proc/self/pagemap";

const PAGE: usize = 4096;

/// All slots.
pub struct Bulk {
    slots: Box<[Mutex<&'static mut [u8]>]>,
    addresses: Vec<u64>,
}

/// A slot in use.
pub type Slot<'a> = MutexGuard<'a, &'static mut [u8]>;

impl Bulk {
    /// Takes the slots, which the process then keeps to its end. All else that is free on the node
    /// is overwritten with zeros: a template does not keep them, and the node once held the
    /// initramfs.
    ///
    /// # Errors
    /// `ENOENT` where the machine has no second node, `ENOMEM` where there is no room for huge pages
    /// on it; as open(2) for `/proc/self/pagemap`.
    pub fn take() -> nix::Result<Self> {
        let set_pages = |count: usize| fs::write(HUGE_PAGES, count.to_string());
        // The kernel sets as many aside as it can.
        set_pages(usize::MAX >> 32).map_err(|error| errno_of(&error))?;
        let pages = fs::read_to_string(HUGE_PAGES).ok().and_then(|text| text.trim().parse().ok());
        let pages: usize = pages.ok_or(Errno::EIO)?;
        // Unmapped at once, which leaves them as they are: zeroed.
        drop(sys::HugePages::of_node(NODE, pages * HUGE_PAGE)?);
        set_pages(SLOTS * MAX_PAYLOAD / HUGE_PAGE).map_err(|error| errno_of(&error))?;
        let memory = sys::HugePages::of_node(NODE, SLOTS * MAX_PAYLOAD)?.keep();
        let slots: Vec<_> = memory.chunks_exact_mut(MAX_PAYLOAD).collect();
        let pagemap = File::open(PAGEMAP).map_err(|error| errno_of(&error))?;
        let addresses = slots.iter().map(|slot| physical_address(&pagemap, slot.as_ptr().addr()));
        let addresses = addresses.collect::<io::Result<_>>().map_err(|error| errno_of(&error))?;
        Ok(Self { slots: slots.into_iter().map(Mutex::new).collect(), addresses })
    }

    /// Where in the guest's memory each slot begins.
    #[must_use]
    pub fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// The slot with this number. A host that uses one for two requests at once waits.
    #[must_use]
    pub fn slot(&self, number: u8) -> Option<Slot<'_>> {
        let slot = self.slots.get(usize::from(number))?;
        // Bytes of a file, whole or torn: what was left by a lane that panicked does no harm.
        Some(slot.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where the page at `address` of this process is in the machine's memory.
fn physical_address(pagemap: &File, address: usize) -> io::Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    let at = address / PAGE * entry.len();
    pagemap.read_exact_at(&mut entry, u64::try_from(at).expect("addresses fit"))?;
    let entry = u64::from_le_bytes(entry);
    // Without CAP_SYS_ADMIN the kernel says frame 0.
    if entry & PRESENT == 0 || entry & FRAME == 0 {
        return Err(Errno::EFAULT.into());
    }
    Ok((entry & FRAME) * u64::try_from(PAGE).expect("a page's size fits"))
}
