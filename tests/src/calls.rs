//! System calls that no crate of ours wraps safely: mapping a file, and reading a directory by its
//! positions.
#![expect(unsafe_code, reason = "this file is the only one here with any")]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The bytes of a file, mapped for reading.
pub struct Mapped {
    start: NonNull<nix::libc::c_void>,
    length: NonZeroUsize,
}

impl Mapped {
    /// Maps `length` bytes at the beginning of `file`, which nobody may change or shorten
    /// meanwhile: files of a read-only mount.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn of(file: &File, length: NonZeroUsize, flags: MapFlags) -> nix::Result<Self> {
        // SAFETY: no address is given, so that nothing else is mapped over, and the kernel checks
        // the rest; what is returned is ours until it is unmapped.
        let start = unsafe { mmap(None, length, ProtFlags::PROT_READ, flags, file, 0)? };
        Ok(Self { start, length })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped for reading as long as `self` lives, and no one changes
        // them, as who mapped the file has promised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length.get()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and no slice of it outlives `self`.
        unsafe { munmap(self.start, self.length.get()) }.expect("it is mapped");
    }
}

/// An entry of a directory: its name, and the position behind it, for lseek(2).
pub type Entry = (OsString, i64);

/// The next entries of a directory, as many as fit into `size` bytes; none at its end.
///
/// # Errors
/// As getdents64(2).
///
/// # Panics
/// Where the kernel gives no proper records.
pub fn entries(folder: &File, size: usize) -> nix::Result<Vec<Entry>> {
    const NAME_AT: usize = 8 + 8 + 2 + 1;

    let mut records = vec![0u8; size];
    let (descriptor, start) = (folder.as_raw_fd(), records.as_mut_ptr());
    // SAFETY: the kernel writes at most `size` bytes, which the buffer has.
    let filled = unsafe { nix::libc::syscall(nix::libc::SYS_getdents64, descriptor, start, size) };
    let filled = usize::try_from(Errno::result(filled)?).expect("it is no error");
    let mut rest = &records[..filled];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let behind = i64::from_ne_bytes(rest[8..16].try_into().expect("8 bytes"));
        let length = u16::from_ne_bytes(rest[16..18].try_into().expect("2 bytes"));
        let (record, others) = rest.split_at(length.into());
        let name = record[NAME_AT..].split(|&byte| byte == 0).next().unwrap_or_default();
        entries.push((OsStr::from_bytes(name).to_owned(), behind));
        rest = others;
    }
    Ok(entries)
}
