//! Files in memory that QEMU reads beside those of an image.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Makes a read-only file of `len` bytes without data; it takes no memory as long as it is
/// only read.
///
/// QEMU leaves ZERO lines of a descriptor out, and all that follows them slides forward. A
/// flat extent over such a file says the same in words that it reads.
///
/// # Errors
/// Those of memfd_create(2), ftruncate(2) and open(2).
pub fn zeros(len: u64) -> io::Result<File> {
    holding(|file| file.set_len(len))
}

/// Makes a read-only file of what `write` writes.
///
/// # Errors
/// Those of memfd_create(2), open(2) and of `write`.
pub fn holding(write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut writable = File::from(memfd_create("image", flags)?);
    write(&mut writable)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    fcntl(&writable, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    OpenOptions::new().read(true).open(format!("/proc/self/fd/{}", writable.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn the_largest_disk_of_zeros_takes_no_memory() {
        let zeros = zeros(crate::image::MAX_DISK_SIZE).unwrap();
        let mut bytes = [1; 4096];
        zeros.read_exact_at(&mut bytes, crate::image::MAX_DISK_SIZE - 4096).unwrap();
        assert_eq!(bytes, [0; 4096]);
        assert_eq!(zeros.metadata().unwrap().blocks(), 0);
        assert!(zeros.write_at(&[1], 0).is_err());
    }
}
