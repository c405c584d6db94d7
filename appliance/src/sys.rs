//! The few system calls that nix has no safe face for.
//!
//! **Invariant:** with `aio.rs` and `blkid.rs` the only file of this crate with unsafe code; nothing
//! here decides anything.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Has the heap be one for all threads, begin with a MiB, and keep what was freed.
///
/// What the kernel does to enlarge a heap would be the larger part of many a request: a template
/// that was restored has translated none of it.
pub fn keep_heap() {
    const HEAP: libc::c_int = 1 << 20;
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TOP_PAD, HEAP),
        (libc::M_TRIM_THRESHOLD, 16 * HEAP),
        (libc::M_MMAP_THRESHOLD, 4 * HEAP),
    ] {
        // SAFETY: takes numbers, and touches nothing but the allocator's own settings.
        let _ = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Fills `buffer` with the next `linux_dirent64` records of a directory; 0 bytes at its end.
///
/// # Errors
/// As getdents64(2): `EINVAL` where `buffer` is too small for the next record.
pub fn getdents(directory: BorrowedFd, buffer: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the pointer and the length are those of one slice that is writable for the call; the
    // kernel writes at most that many bytes and wants no alignment.
    let count = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    length(count)
}

/// Reads the value of an extended attribute of the file that `path` leads to.
///
/// # Errors
/// As getxattr(2): `ERANGE` where the value is longer than `value`.
pub fn getxattr(path: &CStr, name: &CStr, value: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: both strings end in NUL; the pointer and the length are those of one writable slice.
    let count = unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    length(count)
}

/// Reads the names of the extended attributes of the file that `path` leads to.
///
/// # Errors
/// As listxattr(2): `ERANGE` where they are longer than `names`.
pub fn listxattr(path: &CStr, names: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the string ends in NUL; the pointer and the length are those of one writable slice.
    let count = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    length(count)
}

/// As [`getxattr`], of the very file at `path` where that is a symbolic link.
///
/// # Errors
/// As getxattr(2).
pub fn lgetxattr(path: &CStr, name: &CStr, value: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: both strings end in NUL; the pointer and the length are those of one writable slice.
    let count = unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    length(count)
}

/// As [`listxattr`], of the very file at `path` where that is a symbolic link.
///
/// # Errors
/// As listxattr(2).
pub fn llistxattr(path: &CStr, names: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the string ends in NUL; the pointer and the length are those of one writable slice.
    let count = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    length(count)
}

/// Sets an extended attribute of the file that `path` leads to; `flags` are setxattr(2)'s.
///
/// # Errors
/// As setxattr(2).
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: both strings end in NUL; the pointer and the length are those of one slice, which
    // the kernel only reads.
    let done = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    };
    Errno::result(done).map(drop)
}

/// Removes an extended attribute of the file that `path` leads to.
///
/// # Errors
/// As removexattr(2).
pub fn removexattr(path: &CStr, name: &CStr) -> nix::Result<()> {
    // SAFETY: both strings end in NUL.
    let done = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Loads the kernel module in `file`, without parameters.
///
/// # Errors
/// As finit_module(2): `EEXIST` where it is loaded already.
pub fn finit_module(file: BorrowedFd) -> nix::Result<()> {
    let no_flags: libc::c_int = 0;
    // SAFETY: the parameters are a string that ends in NUL; the kernel only reads them.
    let done =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), no_flags) };
    Errno::result(done).map(drop)
}

/// Memory in huge pages of one NUMA node, present and zeroed.
pub struct HugePages {
    start: *mut libc::c_void,
    length: usize,
}

impl HugePages {
    /// Maps `length` bytes in huge pages of the node `node`.
    ///
    /// # Errors
    /// As mmap(2), mbind(2) and mlock(2): `EINVAL` without such a node, `ENOMEM` or `EAGAIN` where
    /// it has too few huge pages.
    pub fn of_node(node: u32, length: usize) -> nix::Result<Self> {
        /// From linux/mempolicy.h.
        const MPOL_BIND: libc::c_ulong = 2;
        const BITS: libc::c_ulong = libc::c_ulong::BITS as libc::c_ulong;
        let nodes: libc::c_ulong = 1 << node;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let pages = Self { start, length };
        // SAFETY: the range is the mapping just made, which nothing refers to yet; the kernel reads
        // one word of node numbers.
        let bound = unsafe {
            libc::syscall(libc::SYS_mbind, start, length, MPOL_BIND, &raw const nodes, BITS, 0)
        };
        Errno::result(bound)?;
        // SAFETY: as above.
        Errno::result(unsafe { libc::mlock(start, length) })?;
        Ok(pages)
    }

    /// The memory, for as long as the process lives.
    pub fn keep(self) -> &'static mut [u8] {
        let Self { start, length } = *std::mem::ManuallyDrop::new(self);
        // SAFETY: the mapping is readable, writable, zeroed, `length` bytes long, locked, and never
        // unmapped from here on; nothing else in this process refers to it. What the host does
        // with the memory it does between requests.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), length) }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// `struct fiemap_extent` of linux/fiemap.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FiemapExtent {
    /// Its first byte's place in the file.
    pub logical: u64,
    /// Its first byte's place on the device.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    reserved64: [u64; 2],
    /// `FIEMAP_EXTENT_…`
    pub flags: u32,
    reserved: [u32; 3],
}

impl FiemapExtent {
    /// The place in the file of the first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.logical.saturating_add(self.length)
    }
}

/// Fills `extents` with those of a file from byte `from` on. Returns how many there are, at most as
/// many as there is room for.
///
/// # Errors
/// As ioctl(2) with `FS_IOC_FIEMAP`: `EOPNOTSUPP` where the filesystem does not tell.
pub fn fiemap<const N: usize>(
    file: BorrowedFd,
    from: u64,
    extents: &mut [FiemapExtent; N],
) -> nix::Result<usize> {
    /// `struct fiemap`, with room behind it.
    #[repr(C)]
    struct Fiemap<const N: usize> {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [FiemapExtent; N],
    }
    /// `_IOWR('f', 11, struct fiemap)`
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    let mut map = Box::new(Fiemap {
        start: from,
        length: u64::MAX - from,
        flags: 0,
        mapped: 0,
        count: u32::try_from(N).map_err(|_| Errno::EINVAL)?,
        reserved: 0,
        extents: *extents,
    });
    // SAFETY: the kernel reads the head and writes at most `count` extents behind it, for which there
    // is room.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *map) };
    Errno::result(done)?;
    *extents = map.extents;
    Ok(N.min(map.mapped as usize))
}

/// Bytes of a block of the filesystem that an open file is on.
///
/// # Errors
/// As ioctl(2) with `FIGETBSZ`.
pub fn block_size(file: BorrowedFd) -> nix::Result<u32> {
    /// `_IO(0x00, 2)`
    const FIGETBSZ: libc::c_ulong = 2;
    let mut size: libc::c_int = 0;
    // SAFETY: the kernel writes one int, to `size`.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FIGETBSZ, &raw mut size) };
    Errno::result(done)?;
    u32::try_from(size).map_err(|_| Errno::EIO)
}

/// The block of the device that the block `block` of an open file is in; 0 where it has none.
///
/// # Errors
/// As ioctl(2) with `FIBMAP`; `ERANGE` for a block beyond 2^31.
pub fn block_place(file: BorrowedFd, block: u64) -> nix::Result<u64> {
    /// `_IO(0x00, 1)`
    const FIBMAP: libc::c_ulong = 1;
    let mut place = libc::c_int::try_from(block).map_err(|_| Errno::ERANGE)?;
    // SAFETY: the kernel reads and writes one int, `place`.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FIBMAP, &raw mut place) };
    Errno::result(done)?;
    u64::try_from(place).map_err(|_| Errno::ERANGE)
}

/// Has the kernel read a disk's partition table again. Its partitions are there when this returns.
///
/// # Errors
/// As ioctl(2) with `BLKRRPART`: `EBUSY` while a partition is in use.
pub fn read_partition_table(disk: BorrowedFd) -> nix::Result<()> {
    /// `_IO(0x12, 95)`
    const BLKRRPART: libc::c_ulong = 0x125f;
    // SAFETY: this request has no argument.
    let done = unsafe { libc::ioctl(disk.as_raw_fd(), BLKRRPART) };
    Errno::result(done).map(drop)
}

/// Adds a partition of `length` bytes from byte `start` on to those that the kernel knows of a disk. It is
/// there when this returns.
///
/// # Errors
/// As ioctl(2) with `BLKPG`: `EBUSY` where it overlaps another one or there is one with this number,
/// `EINVAL` where it is not one of whole sectors of the disk.
pub fn add_partition(disk: BorrowedFd, number: u16, start: u64, length: u64) -> nix::Result<()> {
    const BLKPG_ADD_PARTITION: libc::c_int = 1;
    let signed = |bytes: u64| libc::c_longlong::try_from(bytes).map_err(|_| Errno::EINVAL);
    change_partition(disk, BLKPG_ADD_PARTITION, number, [signed(start)?, signed(length)?])
}

/// Has the kernel forget a partition of a disk.
///
/// # Errors
/// As ioctl(2) with `BLKPG`: `ENXIO` where there is none, `EBUSY` while it is in use.
pub fn remove_partition(disk: BorrowedFd, number: u16) -> nix::Result<()> {
    const BLKPG_DEL_PARTITION: libc::c_int = 2;
    change_partition(disk, BLKPG_DEL_PARTITION, number, [0, 0])
}

fn change_partition(
    disk: BorrowedFd,
    operation: libc::c_int,
    number: u16,
    [start, length]: [libc::c_longlong; 2],
) -> nix::Result<()> {
    /// `struct blkpg_partition` of linux/blkpg.h.
    #[repr(C)]
    struct Partition {
        start: libc::c_longlong,
        length: libc::c_longlong,
        number: libc::c_int,
        names: [[libc::c_char; 64]; 2],
    }
    /// `struct blkpg_ioctl_arg`
    #[repr(C)]
    struct Argument {
        operation: libc::c_int,
        flags: libc::c_int,
        length: libc::c_int,
        data: *mut Partition,
    }
    /// `_IO(0x12, 105)`
    const BLKPG: libc::c_ulong = 0x1269;
    let mut partition = Partition { start, length, number: number.into(), names: [[0; 64]; 2] };
    let size = libc::c_int::try_from(size_of::<Partition>()).map_err(|_| Errno::EINVAL)?;
    let argument = Argument { operation, flags: 0, length: size, data: &raw mut partition };
    // SAFETY: the kernel reads the argument and the partition that it points to, both of which live
    // until the call has returned, and writes nothing.
    let done = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const argument) };
    Errno::result(done).map(drop)
}

/// Where a partition begins on its disk, in sectors of 512 bytes; 0 for a whole disk.
///
/// # Errors
/// As ioctl(2) with `HDIO_GETGEO`: `ENOTTY` for a device that is neither.
pub fn first_sector(device: BorrowedFd) -> nix::Result<u64> {
    /// `struct hd_geometry`
    #[derive(Default)]
    #[repr(C)]
    struct Geometry {
        heads: u8,
        sectors: u8,
        cylinders: u16,
        start: libc::c_ulong,
    }
    const HDIO_GETGEO: libc::c_ulong = 0x0301;
    let mut geometry = Geometry::default();
    // SAFETY: the kernel writes one of these, for which there is room.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), HDIO_GETGEO, &raw mut geometry) };
    Errno::result(done)?;
    Ok(geometry.start)
}

/// The number of a loop device that is free, made if need be. `control` is `/dev/loop-control`.
///
/// # Errors
/// As ioctl(2) with `LOOP_CTL_GET_FREE`.
pub fn free_loop(control: BorrowedFd) -> nix::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
    // SAFETY: this request has no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(Errno::result(number)?).map_err(|_| Errno::EIO)
}

/// Makes a file the contents of a loop device.
///
/// # Errors
/// As ioctl(2) with `LOOP_SET_FD`: `EBUSY` where it has some.
pub fn attach_loop(device: BorrowedFd, file: BorrowedFd) -> nix::Result<()> {
    const LOOP_SET_FD: libc::c_ulong = 0x4c00;
    // SAFETY: the argument is a descriptor's number, which the kernel looks up and holds by itself.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) };
    Errno::result(done).map(drop)
}

/// Mixes `seed` into the random pool, counts all its bits as entropy, and reseeds the generator
/// at once. `random` is `/dev/random`, open for writing.
///
/// # Errors
/// As ioctl(2) on random(4): `EPERM` without `CAP_SYS_ADMIN`.
pub fn add_entropy(random: BorrowedFd, seed: &[u8; 32]) -> nix::Result<()> {
    /// `struct rand_pool_info` of linux/random.h with a buffer of 32 bytes.
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        buffer_bytes: libc::c_int,
        buffer: [u8; 32],
    }
    /// `_IOW('R', 0x03, int[2])`
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    /// `_IO('R', 0x07)`
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

    let info = PoolInfo { entropy_bits: 256, buffer_bytes: 32, buffer: *seed };
    // SAFETY: the kernel reads the two numbers and then `buffer_bytes` bytes behind them, all of
    // them within `info`, and writes nothing.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    Errno::result(added)?;
    // SAFETY: this request has no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) };
    Errno::result(reseeded).map(drop)
}

/// Fills `bytes` from the random pool.
///
/// # Errors
/// As getrandom(2).
pub fn get_random(bytes: &mut [u8; 16]) -> nix::Result<()> {
    // SAFETY: the kernel writes at most as many bytes as there are. So few come whole.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    Errno::result(count).map(drop)
}

/// What a call returned that gives a length, or -1 and `errno`.
fn length<N: nix::errno::ErrnoSentinel + PartialEq + TryInto<usize>>(
    returned: N,
) -> nix::Result<usize> {
    let count = Errno::result(returned)?;
    count.try_into().map_err(|_| Errno::EIO)
}
