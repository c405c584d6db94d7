//! Reading directories in pages: each entry with its attributes, and with the place where the
//! next page goes on.
//!
//! Follows getdents64(2).

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::{Whence, lseek};

use guestmnt_protocol::attr::{Attr, DirEntry, push_entry};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::path::{EntryName, GuestPath, Printable};

use crate::kmsg;
use crate::payload::Payload;
use crate::resolve;
use crate::sys;
use crate::tree::Tree;

/// Bytes of records that are taken from the kernel at once: some 800 entries.
const RECORDS_MAX: usize = 32 * 1024;

/// An open directory. It has one position, so lanes that read it take turns.
pub struct Directory(Mutex<Reader>);

struct Reader {
    directory: OwnedFd,
    /// Records from the kernel; those from `consumed` to `filled` have not been sent.
    records: Vec<u8>,
    consumed: usize,
    filled: usize,
    /// The position right before the record at `consumed`.
    position: u64,
}

impl Tree {
    /// Puts a page of the directory at `path` into `payload`: from the start for `from` 0, else
    /// behind the entry that had `from` as its `next`. The page has at most `size` bytes and is
    /// empty at the directory's end only.
    ///
    /// # Errors
    /// As [`resolve::open_directory`] and getdents64(2); `EINVAL` where not even one entry fits
    /// into `size`.
    pub fn read_dir(
        &self,
        path: &GuestPath,
        from: u64,
        size: usize,
        payload: &mut Payload,
    ) -> nix::Result<()> {
        let size = size.min(MAX_PAYLOAD);
        let directory = self
            .directories
            .get_or_open(path, || resolve::open_directory(self.root(), path).map(Directory::new))?;
        // If a lane panicked in the middle of a page, at worst that page's entries are missing.
        let mut reader = directory.0.lock().unwrap_or_else(PoisonError::into_inner);
        payload.append_with(|page| {
            let limit = page.len() + size;
            reader.fill(self, from, page, limit)
        })
    }
}

impl Directory {
    fn new(directory: OwnedFd) -> Self {
        Self(Mutex::new(Reader {
            directory,
            records: vec![0; RECORDS_MAX],
            consumed: 0,
            filled: 0,
            position: 0,
        }))
    }
}

impl Reader {
    /// Appends entries to `page` until the next one would make it longer than `limit`.
    fn fill(
        &mut self,
        tree: &Tree,
        from: u64,
        page: &mut Vec<u8>,
        limit: usize,
    ) -> nix::Result<()> {
        self.go_to(from)?;
        let empty = page.len();
        loop {
            match self.fetch() {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // Like getdents64(2): first what could be read, the error with the next page.
                Err(_) if page.len() > empty => return Ok(()),
                Err(errno) => return Err(errno),
            }
            let record = Record::parse(&self.records[self.consumed..self.filled])?;
            if let Some(name) = presentable(record.name) {
                let entry =
                    DirEntry { next: record.next, name, attr: self.attr(tree, record.name) };
                if !push_entry(page, &entry, limit) {
                    return if page.len() == empty { Err(Errno::EINVAL) } else { Ok(()) };
                }
            }
            self.consumed += record.length;
            self.position = record.next;
        }
    }

    /// Stands before the entry behind position `from`, without a seek where it stands there
    /// already: on some filesystems a seek reads the directory from its start.
    fn go_to(&mut self, from: u64) -> nix::Result<()> {
        if from == 0 || from != self.position {
            let target = i64::try_from(from).map_err(|_| Errno::EINVAL)?;
            lseek(&self.directory, target, Whence::SeekSet)?;
            self.consumed = 0;
            self.filled = 0;
            self.position = from;
        }
        Ok(())
    }

    /// Makes sure that there is a record at `consumed`; false at the directory's end.
    fn fetch(&mut self) -> nix::Result<bool> {
        if self.consumed == self.filled {
            self.consumed = 0;
            self.filled = 0;
            self.filled = sys::getdents(self.directory.as_fd(), &mut self.records)?;
        }
        Ok(self.filled > 0)
    }

    fn attr(&self, tree: &Tree, name: &CStr) -> Option<Attr> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
        let stat = fstatat(&self.directory, name, flags).ok()?;
        tree.attr(&stat).ok()
    }
}

/// The name as it goes to the host. `None` for `.` and `..`, and for what no file of the host
/// could be called: a broken filesystem can hold a name with a slash in it.
fn presentable(name: &CStr) -> Option<EntryName> {
    /// An image can hold millions of such names; one line is enough to know of it.
    static LOGGED: AtomicBool = AtomicBool::new(false);

    let bytes = name.to_bytes();
    if matches!(bytes, b"." | b"..") {
        return None;
    }
    EntryName::new(bytes)
        .inspect_err(|error| {
            if !LOGGED.swap(true, Ordering::Relaxed) {
                kmsg::warn(format_args!("left out of a directory: {}: {error}", Printable(bytes)));
            }
        })
        .ok()
}

/// One `linux_dirent64`.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    /// `d_off`: the position behind this entry.
    next: u64,
    /// `d_reclen`
    length: usize,
    name: &'a CStr,
}

impl<'a> Record<'a> {
    /// Bytes before the name: d_ino, d_off, d_reclen, d_type.
    const NAME_AT: usize = 8 + 8 + 2 + 1;

    /// Reads the first record of `bytes`; `EIO` where that is none.
    fn parse(bytes: &'a [u8]) -> nix::Result<Self> {
        let record = || {
            let next = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
            let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
            let name = CStr::from_bytes_until_nul(bytes.get(Self::NAME_AT..length)?).ok()?;
            Some(Self { next, length, name })
        };
        record().ok_or(Errno::EIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_getdents_writes_it() {
        // d_ino 1, d_off 7, d_reclen 24, d_type 8, "ab", padding.
        let bytes = *b"\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x18\0\x08ab\0\0\0rest";
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record, Record { next: 7, length: 24, name: c"ab" });
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let whole = *b"\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x18\0\x08ab\0\0\0";
        for length in 0..whole.len() {
            assert_eq!(Record::parse(&whole[..length]), Err(Errno::EIO), "{length}");
        }
        let without_nul = *b"\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x18\0\x08abcde";
        assert_eq!(Record::parse(&without_nul), Err(Errno::EIO));
    }

    #[test]
    fn names_that_could_mislead_are_left_out() {
        assert_eq!(presentable(c"."), None);
        assert_eq!(presentable(c".."), None);
        assert_eq!(presentable(c"a/b"), None);
        assert_eq!(presentable(c"a"), Some(EntryName::new(b"a").unwrap()));
    }
}
