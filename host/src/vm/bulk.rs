//! The memory that QEMU maps as the guest's second NUMA node, and this process as well: bulk
//! memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};

use guestmnt_protocol::limits::{MAX_PAYLOAD, SLOTS};

/// MiB: the slots, and what the kernel keeps on each node. The initramfs is loaded here as well,
/// and gone when the slots are taken.
pub const SIZE_MIB: u32 = 32;
/// The same in bytes.
pub const SIZE: u64 = (SIZE_MIB as u64) << 20;
const _: () = assert!(SIZE >= 2 * (SLOTS * MAX_PAYLOAD) as u64);

/// The most MiB that the guest's other memory may have. Beyond, there is a hole for devices in its
/// addresses, and bulk memory does not begin where the other ends.
pub const MAX_MEMORY_MIB: u32 = 3072 - SIZE_MIB;

/// New memory of that size, for one VM. Nobody can change its length: an access behind the end
/// of a file that got shorter would kill us.
///
/// # Errors
/// As memfd_create(2).
pub fn new_memory() -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let memory = File::from(memfd_create("bulk", flags)?);
    memory.set_len(SIZE)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory)
}

/// Puts into new memory what `saved` holds: what the guest's kernel keeps on the node, some MiB.
///
/// # Errors
/// Where `saved` cannot be read, or there is no memory left.
pub fn load(saved: &File, memory: &File) -> io::Result<()> {
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut at = 0;
    while let Some(data) = next(saved, at, Whence::SeekData)? {
        at = next(saved, data, Whence::SeekHole)?.unwrap_or(SIZE).min(SIZE);
        let mut done = data;
        while done < at {
            let size = usize::try_from(at - done).unwrap_or(MAX_PAYLOAD).min(MAX_PAYLOAD);
            saved.read_exact_at(&mut buffer[..size], done)?;
            memory.write_all_at(&buffer[..size], done)?;
            done += size as u64;
        }
    }
    Ok(())
}

/// Frees the pages of saved memory that hold nothing but zeros, the slots among them, so that no
/// mount has to copy them.
///
/// # Errors
/// As read(2) and fallocate(2).
pub fn forget_zeros(saved: &File) -> io::Result<()> {
    const PAGE: usize = 4096;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut buffer = vec![0; MAX_PAYLOAD];
    for at in (0..SIZE).step_by(MAX_PAYLOAD) {
        saved.read_exact_at(&mut buffer, at)?;
        for (page, start) in buffer.chunks(PAGE).zip((at..).step_by(PAGE)) {
            if page.iter().all(|&byte| byte == 0) {
                let start = i64::try_from(start).expect("it is within SIZE");
                fallocate(saved, hole, start, PAGE as i64)?;
            }
        }
    }
    Ok(())
}

/// Where the next data or hole of a file is; `None` behind the last.
fn next(file: &File, from: u64, what: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    match lseek(file, from, what) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn memory_holds_what_was_saved_and_keeps_its_length() {
        let saved = tempfile::tempfile().unwrap();
        saved.set_len(SIZE).unwrap();
        saved.write_all_at(b"near the start", 5000).unwrap();
        saved.write_all_at(&[0; 5 << 20], 8 << 20).unwrap();
        saved.write_all_at(b"the end", SIZE - 7).unwrap();
        let before = saved.metadata().unwrap().blocks();
        forget_zeros(&saved).unwrap();
        assert!(saved.metadata().unwrap().blocks() + (5 << 11) <= before);

        let memory = new_memory().unwrap();
        load(&saved, &memory).unwrap();

        let mut expected = vec![0; usize::try_from(SIZE).unwrap()];
        expected[5000..5014].copy_from_slice(b"near the start");
        let end = expected.len() - 7;
        expected[end..].copy_from_slice(b"the end");
        let mut found = vec![0; expected.len()];
        memory.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
        assert!(memory.set_len(0).is_err());
        assert!(memory.set_len(SIZE + 1).is_err());
    }
}
