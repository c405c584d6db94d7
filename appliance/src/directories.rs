//! Reading directories in pages: each entry with its attributes, a link's target, and the place
//! where the next page goes on.
//!
//! Follows getdents64(2).

use std::cell::OnceCell;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstatat};
use nix::sys::statfs::fstatfs;
use nix::unistd::{Whence, lseek};

use guestmnt_protocol::attr::{DirEntry, Following, push_entry};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::path::{EntryName, GuestPath, LinkTarget, Printable};

use crate::inodes::Inodes;
use crate::kmsg;
use crate::ordinary::Facts;
use crate::payload::Payload;
use crate::readdir_errors;
use crate::resolve;
use crate::sys;
use crate::tree::Tree;
use crate::windows_links;

/// Bytes of records that are taken from the kernel at once: some 800 entries.
const RECORDS_MAX: usize = 32 * 1024;

/// Names that make no sense, one behind the other, that are gone past.
const MAX_SKIPPED: usize = 256;

/// An open directory.
pub struct Directory {
    folder: OwnedFd,
    /// Its device's and its inode's.
    number: (u64, u64),
    /// The inodes of its files, where these can be read ahead.
    inodes: Option<Inodes>,
    /// It has one position, so lanes that read it take turns.
    reader: Mutex<Reader>,
}

struct Reader {
    /// Records from the kernel; those from `consumed` to `filled` have not been sent.
    records: Vec<u8>,
    consumed: usize,
    filled: usize,
    /// The position right before the record at `consumed`.
    position: u64,
    /// What can be told of the files in `records` without asking for it, in their order.
    facts: Vec<Option<Facts>>,
    /// How many of them are before `consumed`.
    passed: usize,
    /// Whether targets of links go with them, once there was a link. Those of Windows take too long
    /// for that, and are seldom wanted.
    with_targets: OnceCell<bool>,
}

impl Tree {
    /// Puts a page of the directory at `path` into `payload`: from the start for `from` 0, else
    /// behind the entry that had `from` as its `next`. The page has at most `size` bytes, and
    /// entries unless it is the last.
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
        let directory = self.directory(path)?;
        // If a lane panicked in the middle of a page, at worst that page's entries are missing.
        let mut reader = directory.reader.lock().unwrap_or_else(PoisonError::into_inner);
        payload.append_with(|page| {
            let start = page.len();
            page.push(Following::More.byte());
            let following = reader.fill(self, &directory, from, page, start + size)?;
            page[start] = following.byte();
            Ok(())
        })
    }

    /// The directory at `path`, opened or found open.
    ///
    /// # Errors
    /// As [`resolve::open_directory`].
    pub(crate) fn directory(&self, path: &GuestPath) -> nix::Result<Arc<Directory>> {
        self.directories.get_or_open(path, || {
            let (start, path) = self.start(path);
            let folder = resolve::open_directory(start, &path)?;
            let inodes = self.ahead.directory(folder.as_fd());
            let stat = resolve::attributes(folder.as_fd())?;
            Ok(Directory::new(folder, (stat.st_dev, stat.st_ino), inodes))
        })
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Directory {
    fn new(folder: OwnedFd, number: (u64, u64), inodes: Option<Inodes>) -> Self {
        let records = vec![0; RECORDS_MAX];
        let reader = Reader {
            records,
            consumed: 0,
            filled: 0,
            position: 0,
            facts: Vec::new(),
            passed: 0,
            with_targets: OnceCell::new(),
        };
        Self { folder, number, inodes, reader: Mutex::new(reader) }
    }

    /// The inodes of its files, where these can be read ahead.
    pub(crate) fn inodes(&self) -> Option<&Inodes> {
        self.inodes.as_ref()
    }
}

impl Reader {
    /// Appends entries to `page` until the next one would make it longer than `limit`, or the
    /// directory ends.
    fn fill(
        &mut self,
        tree: &Tree,
        directory: &Directory,
        from: u64,
        page: &mut Vec<u8>,
        limit: usize,
    ) -> nix::Result<Following> {
        self.go_to(directory.as_fd(), from)?;
        let empty = page.len();
        loop {
            match self.fetch(tree, directory) {
                Ok(true) => {}
                Ok(false) => return Ok(Following::Nothing),
                // Like getdents64(2): first what could be read, the error with the next page.
                Err(_) if page.len() > empty => return Ok(Following::More),
                Err(errno) => return Err(errno),
            }
            let record = Record::parse(&self.records[self.consumed..self.filled])?;
            if let Some(name) = presentable(record.name) {
                let facts = self.facts.get(self.passed).and_then(Option::as_ref);
                let entry = entry(tree, directory, &record, name, facts, &self.with_targets);
                if !push_entry(page, &entry, limit) {
                    let nothing = page.len() == empty;
                    return if nothing { Err(Errno::EINVAL) } else { Ok(Following::More) };
                }
            } else if !is_dots(record.name) {
                tree.damaged.note(directory.number);
            }
            self.consumed += record.length;
            self.passed += 1;
            self.position = record.next;
        }
    }

    /// Stands before the entry behind position `from`, without a seek where it stands there
    /// already: on some filesystems a seek reads the directory from its start.
    fn go_to(&mut self, folder: BorrowedFd, from: u64) -> nix::Result<()> {
        if from == 0 || from != self.position {
            let target = i64::try_from(from).map_err(|_| Errno::EINVAL)?;
            lseek(folder, target, Whence::SeekSet)?;
            self.consumed = 0;
            self.filled = 0;
            self.position = from;
        }
        Ok(())
    }

    /// Makes sure that there is a record at `consumed`; false at the directory's end.
    fn fetch(&mut self, tree: &Tree, directory: &Directory) -> nix::Result<bool> {
        if self.consumed == self.filled {
            self.consumed = 0;
            self.filled = 0;
            self.passed = 0;
            self.filled = self.read_records(tree, directory)?;
            if let Some(inodes) = &directory.inodes {
                let files = Record::all(&self.records[..self.filled]);
                let files: Vec<_> =
                    files.map(|record| (record.inode, record.name.to_bytes())).collect();
                self.facts = inodes.facts(&files);
            }
        }
        Ok(self.filled > 0)
    }

    /// Takes the next records from the kernel; 0 bytes at the directory's end, or the error that kept
    /// it from giving some of them.
    fn read_records(&mut self, tree: &Tree, directory: &Directory) -> nix::Result<usize> {
        for _ in 0..=MAX_SKIPPED {
            let records = &mut self.records;
            let read = || sys::getdents(directory.as_fd(), records);
            let (read, noted) = readdir_errors::watch(read);
            // ntfs3 also logs what it notices of files while it lists them.
            let failed = noted.error || noted.message && directory.inodes.is_none();
            if failed {
                tree.damaged.note(directory.number);
            }
            match read {
                Ok(0) if tree.damaged.holds(directory.number) => return Err(Errno::EIO),
                // The name makes no sense, which the kernel says without asking the driver.
                Err(Errno::EIO) if !failed => {
                    tree.damaged.note(directory.number);
                    skip_name(directory.as_fd())?;
                }
                // What drivers say of damage.
                Err(Errno::EPERM | Errno::EINVAL) if failed => return Err(Errno::EIO),
                other => return other,
            }
        }
        Err(Errno::EIO)
    }
}

/// Goes past the entry that comes next. Positions are opaque, but a larger one is further on.
fn skip_name(directory: BorrowedFd) -> nix::Result<()> {
    /// `MSDOS_SUPER_MAGIC` and `EXFAT_SUPER_MAGIC`, where positions are multiples of an entry.
    const FAT: [i64; 2] = [0x4d44, 0x2011_bab0];
    const FAT_ENTRY: i64 = 32;
    let position = lseek(directory, 0, Whence::SeekCur)?;
    let is_fat = fstatfs(directory).is_ok_and(|fs| FAT.contains(&fs.filesystem_type().0));
    let next = if is_fat { (position / FAT_ENTRY + 1) * FAT_ENTRY } else { position + 1 };
    lseek(directory, next, Whence::SeekSet).map(drop)
}

/// The entry of `record` with what is known of its file.
fn entry(
    tree: &Tree,
    directory: &Directory,
    record: &Record,
    name: EntryName,
    facts: Option<&Facts>,
    with_targets: &OnceCell<bool>,
) -> DirEntry {
    let folder = directory.as_fd();
    if let Some((facts, inodes)) = facts.zip(directory.inodes.as_ref()) {
        let ask = || asked(tree, folder, record.name).and_then(|stat| tree.attr(&stat).ok());
        return DirEntry { next: record.next, name, attr: inodes.attr(facts, ask), target: None };
    }
    let stat = asked(tree, folder, record.name);
    let is_link = stat.is_some_and(|stat| resolve::file_type(&stat) == libc::S_IFLNK);
    let of_windows = || windows_links::may_be_on_filesystem_of(folder);
    let has_target = is_link && *with_targets.get_or_init(|| !of_windows());
    let target = if has_target { target(folder, record.name) } else { None };
    let path = || format!("{}/{}", resolve::proc_path(folder), record.name.to_string_lossy());
    let attr = stat.and_then(|stat| tree.shown(folder, &stat, path).ok());
    DirEntry { next: record.next, name, attr, target }
}

/// What the filesystem's driver says of a file, or of what is shown in its place.
fn asked(tree: &Tree, folder: BorrowedFd, name: &CStr) -> Option<FileStat> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
    let stat = fstatat(folder, name, flags).ok()?;
    let instead = tree.grafts.instead_of(&stat);
    Some(instead.and_then(|root| resolve::attributes(root).ok()).unwrap_or(stat))
}

/// Where a symbolic link leads, if that can be read and sent.
fn target(folder: BorrowedFd, name: &CStr) -> Option<LinkTarget> {
    LinkTarget::new(readlinkat(folder, name).ok()?.as_bytes()).ok()
}

/// The name as it goes to the host. `None` for `.` and `..`, and for what no file of the host
/// could be called: a broken filesystem can hold a name with a slash in it.
fn presentable(name: &CStr) -> Option<EntryName> {
    /// An image can hold millions of such names; one line is enough to know of it.
    static LOGGED: AtomicBool = AtomicBool::new(false);

    let bytes = name.to_bytes();
    if is_dots(name) {
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

/// Whether it is the directory itself or the one that it is in.
fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// One `linux_dirent64`.
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    /// `d_ino`
    inode: u64,
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
            let inode = u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?);
            let next = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
            let length = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
            let name = CStr::from_bytes_until_nul(bytes.get(Self::NAME_AT..length)?).ok()?;
            Some(Self { inode, next, length, name })
        };
        record().ok_or(Errno::EIO)
    }

    /// All records of `bytes`.
    fn all(mut bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let record = Self::parse(bytes).ok()?;
            bytes = &bytes[record.length..];
            Some(record)
        })
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
        assert_eq!(record, Record { inode: 1, next: 7, length: 24, name: c"ab" });
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
