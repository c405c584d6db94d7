//! What is known of a file, and how a directory's page is laid out.

use serde::{Deserialize, Serialize};

use crate::path::{EntryName, LinkTarget};

/// A moment: seconds since 1970, which may be negative, and nanoseconds below 10^9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub secs: i64,
    /// The rest, 0 to 999,999,999.
    pub nanos: u32,
}

/// What stat(2) says of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// The filesystem's own number of the file.
    pub ino: u64,
    /// Which of the mounted filesystems it is on: 0 for the one at `/`, then as they were met.
    pub volume: u16,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner in the image.
    pub uid: u32,
    /// Group in the image.
    pub gid: u32,
    /// Device number of a device node, as the guest's `st_rdev`.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes that are stored; fewer than `size` for sparse files.
    pub blocks: u64,
    /// Bytes of the preferred transfer.
    pub block_size: u32,
    /// Last access.
    pub accessed: Time,
    /// Last change of the contents.
    pub modified: Time,
    /// Last change of the attributes.
    pub changed: Time,
}

/// One line of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Where the reading goes on behind this entry; opaque, from the guest's filesystem.
    pub next: u64,
    /// The name. `.` and `..` are never sent.
    pub name: EntryName,
    /// Attributes, or `None` where the guest could not read them.
    pub attr: Option<Attr>,
    /// A symbolic link's target; `None` for other files, and where the guest could not read it.
    pub target: Option<LinkTarget>,
}

/// Whether a page is a directory's last one: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Following {
    /// There may be more entries behind it.
    More,
    /// There are none.
    Nothing,
}

impl Following {
    /// The byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::More => 0,
            Self::Nothing => 1,
        }
    }

    /// Takes the first byte off `page`; `None` where it is not one of these.
    pub fn pop(page: &mut &[u8]) -> Option<Self> {
        let (&byte, rest) = page.split_first()?;
        *page = rest;
        [Self::More, Self::Nothing].into_iter().find(|following| following.byte() == byte)
    }
}

/// Appends `entry` to a directory page unless that made it longer than `limit` bytes.
/// Returns whether it fitted.
///
/// A page is a [`Following`] and then the entries' postcard forms, one behind the other.
pub fn push_entry(page: &mut Vec<u8>, entry: &DirEntry, limit: usize) -> bool {
    let before = page.len();
    let written = postcard::to_io(entry, &mut *page).is_ok();
    let fits = written && page.len() <= limit;
    if !fits {
        page.truncate(before);
    }
    fits
}

/// Takes the first entry off `page`.
///
/// # Errors
/// The page is not in the form that [`push_entry`] writes.
pub fn pop_entry(page: &mut &[u8]) -> Result<DirEntry, postcard::Error> {
    let (entry, rest) = postcard::take_from_bytes(page)?;
    *page = rest;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8]) -> DirEntry {
        DirEntry {
            next: 7,
            name: EntryName::new(name).unwrap(),
            attr: Some(Attr::default()),
            target: None,
        }
    }

    #[test]
    fn a_page_gives_back_its_entries_in_order() {
        let mut page = Vec::new();
        assert!(push_entry(&mut page, &entry(b"a"), 4096));
        assert!(push_entry(&mut page, &entry(b"\xff"), 4096));
        let mut rest = page.as_slice();
        assert_eq!(pop_entry(&mut rest).unwrap(), entry(b"a"));
        assert_eq!(pop_entry(&mut rest).unwrap(), entry(b"\xff"));
        assert!(rest.is_empty());
    }

    #[test]
    fn an_entry_that_does_not_fit_leaves_the_page_as_it_was() {
        let mut page = Vec::new();
        assert!(push_entry(&mut page, &entry(b"a"), 4096));
        let before = page.clone();
        assert!(!push_entry(&mut page, &entry(b"b"), before.len() + 3));
        assert_eq!(page, before);
    }

    #[test]
    fn names_are_checked_when_a_page_is_read() {
        // next = 7, a name of one byte, no attributes, no target.
        for (bytes, good) in
            [([7, 1, b'a', 0, 0], true), ([7, 1, b'/', 0, 0], false), ([7, 1, b'.', 0, 0], false)]
        {
            assert_eq!(pop_entry(&mut bytes.as_slice()).is_ok(), good, "{bytes:?}");
        }
    }

    #[test]
    fn targets_are_checked_when_a_page_is_read() {
        for (target, good) in
            [(&b"\x01\x02/x"[..], true), (b"\x01\x00", false), (b"\x01\x01\0", false)]
        {
            let bytes = [b"\x07\x01a\x00", target].concat();
            assert_eq!(pop_entry(&mut bytes.as_slice()).is_ok(), good, "{bytes:?}");
        }
    }

    #[test]
    fn a_page_says_whether_it_is_the_last() {
        for following in [Following::More, Following::Nothing] {
            let bytes = [following.byte(), 9];
            let mut page = bytes.as_slice();
            assert_eq!((Following::pop(&mut page), page), (Some(following), &[9][..]));
        }
        assert_eq!(Following::pop(&mut &[2][..]), None);
        assert_eq!(Following::pop(&mut &[][..]), None);
    }
}
