//! Bays: the virtio-blk devices that every machine has from its start, and into which the first
//! disks are put. A template has seen them empty, so that a guest restored from it only learns of
//! a new size, where a disk that is plugged in would have to be found and registered first.
//!
//! Disk `n` is in bay `n`; what has no bay, or does not fit one, is a LUN of the SCSI controller.

/// Number of bays.
pub const BAYS: u8 = 2;

/// The PCI slot of bay 0 on bus 0; the others are in the slots behind it.
pub const FIRST_SLOT: u8 = 0x10;

/// Size of an empty bay in sectors of 512 bytes. Not zero, since the kernel does not announce a
/// device that grows from nothing. A disk of just this size does not fit a bay.
pub const EMPTY_SECTORS: u64 = 3;
