//! What may at most be in one message. Both sides check before they allocate.

/// Bytes of an encoded [`crate::message::Request`] or answer, without its payload.
/// Holds the longest path several times.
pub const MAX_BODY: usize = 64 * 1024;

/// Bytes of a payload: one read, one page of a directory.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// Slots of bulk memory, each of [`MAX_PAYLOAD`] bytes.
pub const SLOTS: usize = 16;

/// Bytes of a file that come with its layout.
pub const MAX_SAMPLE: usize = 4096;

/// Runs of one [`crate::message::Layout`].
pub const MAX_RUNS: usize = 256;

/// Bytes of one name in a directory. NTFS names have up to 255 UTF-16 units, hence up to 765
/// bytes here; the kernel's FUSE accepts 1024 (`FUSE_NAME_MAX` in fs/fuse/fuse_i.h).
pub const MAX_NAME: usize = 1024;

/// Bytes of a path from the mounted root. Longer than `PATH_MAX`, since a caller on the host
/// can walk deeper than that with `openat(2)`.
pub const MAX_PATH: usize = 48 * 1024;

/// Bytes of a symbolic link's target: `PATH_MAX` without the NUL.
pub const MAX_LINK: usize = 4095;

/// Bytes of an extended attribute's value, and of a list of their names: `XATTR_SIZE_MAX` and
/// `XATTR_LIST_MAX` of linux/limits.h.
pub const MAX_XATTR: usize = 65536;

/// Bytes of an extended attribute's name: `XATTR_NAME_MAX` of linux/limits.h.
pub const MAX_XATTR_NAME: usize = 255;

/// Bytes of a value that [`crate::message::Request::ReadXattrs`] brings; larger ones are asked for
/// one by one. Access control lists and capabilities have some dozens.
pub const MAX_SMALL_XATTR: usize = 1024;

/// Bytes of a file that is worth being read together with others. Larger ones keep a lane busy by
/// themselves.
pub const MAX_SMALL_FILE: usize = 64 * 1024;

/// Bytes of the text that explains a failure.
pub const MAX_DETAIL: usize = 4096;

/// Remarks on one mount.
pub const MAX_REMARKS: usize = 16;

/// Lanes, that is requests in flight, between one host process and its guest.
pub const MAX_LANES: usize = 16;

/// Bytes of a [`crate::volume::PlainName`]: what LVM allows (NAME_LEN in its lib/misc) fits.
pub const MAX_PLAIN_NAME: usize = 127;

/// Bytes of a [`crate::secret::Secret`]; leaves room in a body. Passphrases have at most 512.
pub const MAX_SECRET: usize = 32 * 1024;

/// Disks of one VM: LUNs of one virtio-scsi target stay below 16384, names stay readable.
pub const MAX_DISKS: usize = 255;
