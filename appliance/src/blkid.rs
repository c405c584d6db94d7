//! libblkid's low-level probing, as far as it is needed here: one device at a time, no cache
//! file, nothing remembered.
//!
//! Follows blkid.h of util-linux 2.38. **Invariant:** with `sys.rs` the only file of this crate
//! with unsafe code; what the findings mean is decided in `volumes.rs`.

use std::ffi::{CStr, c_char, c_int};
use std::marker::{PhantomData, PhantomPinned};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::errno::Errno;

/// A probe of one device.
pub struct Probe<'device> {
    raw: NonNull<RawProbe>,
    /// libblkid keeps the descriptor's number for as long as the probe lives.
    _device: PhantomData<BorrowedFd<'device>>,
}

/// How a search for what the device holds went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// One thing; [`Probe::value`] says which.
    Something,
    /// Nothing that libblkid knows.
    Nothing,
    /// Signatures of several things that exclude each other.
    Ambivalent,
}

/// A partition as its table has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub number: u16,
    /// Whether it only holds others, as extended ones of an MBR do.
    pub extended: bool,
    /// Its type in an MBR; elsewhere 0.
    pub kind: u8,
    /// Its UUID, in lower case; in an MBR the disk's signature and the number, `1234abcd-02`.
    pub uuid: String,
    /// Its name in a GPT; empty elsewhere.
    pub name: String,
}

impl<'device> Probe<'device> {
    /// A probe of all of `device`, a block device or a file, open for reading.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` for what libblkid cannot take for a device.
    pub fn new(device: BorrowedFd<'device>) -> nix::Result<Self> {
        // SAFETY: has no precondition.
        let raw = NonNull::new(unsafe { blkid_new_probe() }).ok_or(Errno::ENOMEM)?;
        let probe = Self { raw, _device: PhantomData };
        let whole = 0;
        // SAFETY: the probe is live; the descriptor is open for longer than the probe lives, by
        // its lifetime, and libblkid does not close it.
        let done = unsafe { blkid_probe_set_device(raw.as_ptr(), device.as_raw_fd(), 0, whole) };
        if done == 0 { Ok(probe) } else { Err(Errno::EINVAL) }
    }

    /// Looks for everything that libblkid knows.
    ///
    /// # Errors
    /// `EIO` where the device could not be read.
    pub fn search(&mut self) -> nix::Result<Found> {
        let raw = self.raw.as_ptr();
        let flags = SUBLKS_LABEL | SUBLKS_UUID | SUBLKS_TYPE | SUBLKS_USAGE;
        // SAFETY: the probe is live; these calls only set what it looks for.
        unsafe {
            blkid_probe_enable_superblocks(raw, 1);
            blkid_probe_set_superblocks_flags(raw, flags);
            blkid_probe_enable_partitions(raw, 1);
        }
        // SAFETY: the probe is live and has its device.
        match unsafe { blkid_do_safeprobe(raw) } {
            0 => Ok(Found::Something),
            1 => Ok(Found::Nothing),
            -2 => Ok(Found::Ambivalent),
            _ => Err(Errno::EIO),
        }
    }

    /// One of the values that [`Probe::search`] found, such as `TYPE`. What is not UTF-8 in it is
    /// replaced.
    pub fn value(&self, name: &CStr) -> Option<String> {
        let mut data: *const c_char = std::ptr::null();
        // SAFETY: the probe is live, the name ends in NUL, `data` may be written; no length is
        // wanted.
        let done = unsafe {
            blkid_probe_lookup_value(
                self.raw.as_ptr(),
                name.as_ptr(),
                &raw mut data,
                std::ptr::null_mut(),
            )
        };
        if done != 0 || data.is_null() {
            return None;
        }
        // SAFETY: libblkid ends its values of text in NUL, and keeps them until the probe's next
        // search; they are copied before this function returns.
        Some(unsafe { text(data) })
    }

    /// The partitions in the table. Empty where there is none.
    pub fn partitions(&mut self) -> Vec<Entry> {
        // SAFETY: the probe is live and has its device. The list belongs to the probe and lives
        // until its next search or its end, which both need `self` as well.
        let list = unsafe { blkid_probe_get_partitions(self.raw.as_ptr()) };
        if list.is_null() {
            return Vec::new();
        }
        // SAFETY: the list is live.
        let count = unsafe { blkid_partlist_numof_partitions(list) };
        let entry = |index: c_int| {
            // SAFETY: the list is live and has more than `index` partitions.
            let partition = unsafe { blkid_partlist_get_partition(list, index) };
            if partition.is_null() {
                return None;
            }
            // SAFETY: the partition belongs to the list, which is live.
            let (extended, number, kind) = unsafe {
                (
                    blkid_partition_is_extended(partition),
                    blkid_partition_get_partno(partition),
                    blkid_partition_get_type(partition),
                )
            };
            // SAFETY: likewise.
            let (uuid, name) = unsafe {
                (blkid_partition_get_uuid(partition), blkid_partition_get_name(partition))
            };
            // SAFETY: both are null or texts that end in NUL and live as long as the list.
            let (uuid, name) = unsafe { (text(uuid), text(name)) };
            // SAFETY: likewise; the table lives as long as the list, its type is a constant text or null.
            let table = unsafe {
                let table = blkid_partition_get_table(partition);
                if table.is_null() { String::new() } else { text(blkid_parttable_get_type(table)) }
            };
            // A disklabel of BSD in one of its partitions has types of its own.
            let is_mbr = matches!(table.as_str(), "dos" | "minix");
            let number = u16::try_from(number).ok()?;
            let kind = u8::try_from(kind).ok().filter(|_| is_mbr).unwrap_or(0);
            Some(Entry { number, extended: extended == 1, kind, uuid, name })
        };
        (0..count).filter_map(entry).collect()
    }
}

/// A copy of one of libblkid's texts; what is not UTF-8 in it is replaced. Empty for null.
///
/// # Safety
/// `text` is null, or ends in NUL and is live.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        // SAFETY: the probe is live, and this is its end.
        unsafe { blkid_free_probe(self.raw.as_ptr()) }
    }
}

/// The flags of `blkid_probe_set_superblocks_flags`.
const SUBLKS_LABEL: c_int = 1 << 1;
const SUBLKS_UUID: c_int = 1 << 3;
const SUBLKS_TYPE: c_int = 1 << 5;
const SUBLKS_USAGE: c_int = 1 << 7;

/// Makes a type that only libblkid knows the inside of.
macro_rules! opaque {
    ($($name:ident),*) => {$(
        #[repr(C)]
        struct $name {
            _inside: [u8; 0],
            _not_send_sync_or_unpin: PhantomData<(*mut u8, PhantomPinned)>,
        }
    )*};
}

opaque!(RawProbe, RawPartitions, RawPartition, RawTable);

// SAFETY: the declarations are those of blkid.h.
unsafe extern "C" {
    fn blkid_new_probe() -> *mut RawProbe;
    fn blkid_free_probe(probe: *mut RawProbe);
    fn blkid_probe_set_device(probe: *mut RawProbe, fd: c_int, offset: i64, size: i64) -> c_int;
    fn blkid_probe_enable_superblocks(probe: *mut RawProbe, enable: c_int) -> c_int;
    fn blkid_probe_set_superblocks_flags(probe: *mut RawProbe, flags: c_int) -> c_int;
    fn blkid_probe_enable_partitions(probe: *mut RawProbe, enable: c_int) -> c_int;
    fn blkid_do_safeprobe(probe: *mut RawProbe) -> c_int;
    fn blkid_probe_lookup_value(
        probe: *mut RawProbe,
        name: *const c_char,
        data: *mut *const c_char,
        length: *mut usize,
    ) -> c_int;
    fn blkid_probe_get_partitions(probe: *mut RawProbe) -> *mut RawPartitions;
    fn blkid_partlist_numof_partitions(list: *mut RawPartitions) -> c_int;
    fn blkid_partlist_get_partition(list: *mut RawPartitions, index: c_int) -> *mut RawPartition;
    fn blkid_partition_is_extended(partition: *mut RawPartition) -> c_int;
    fn blkid_partition_get_table(partition: *mut RawPartition) -> *mut RawTable;
    fn blkid_parttable_get_type(table: *mut RawTable) -> *const c_char;
    fn blkid_partition_get_type(partition: *mut RawPartition) -> c_int;
    fn blkid_partition_get_partno(partition: *mut RawPartition) -> c_int;
    fn blkid_partition_get_uuid(partition: *mut RawPartition) -> *const c_char;
    fn blkid_partition_get_name(partition: *mut RawPartition) -> *const c_char;
}
