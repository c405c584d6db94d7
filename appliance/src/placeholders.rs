//! Regular files of NTFS whose bytes are not where the driver reads them: in the cloud, on a tape, in
//! another file. Windows marks them with a reparse point; ntfs3 shows zeros for what is not there.
//!
//! What was brought back is in the file, and is read: there is nothing missing, and Windows does not
//! say that it would fetch some first. Files that WOF compressed are decompressed. Whatever else has
//! a reparse point is an error that names its tag, never made-up content.
//!
//! Follows \[MS-FSCC\] 2.1.2.1 and 2.6.

use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use guestmnt_protocol::path::GuestPath;

use crate::contents::Contents;
use crate::inodes::Volume;
use crate::little_endian::u32_at;
use crate::ntfs::DATA;
use crate::reparse;
use crate::resolve;
use crate::sys;
use crate::tree::Tree;
use crate::wof::{Algorithm, WofFile};

/// `$STANDARD_INFORMATION`
const STANDARD: u32 = 0x10;

/// `FILE_ATTRIBUTE_SYSTEM`, `_REPARSE_POINT`, `_OFFLINE`, `_RECALL_ON_OPEN`, `_RECALL_ON_DATA_ACCESS`
pub const SYSTEM: u32 = 0x4;
pub const REPARSE_POINT: u32 = 0x400;
const OFFLINE: u32 = 0x1000;
const RECALL_ON_OPEN: u32 = 0x4_0000;
const RECALL_ON_DATA_ACCESS: u32 = 0x40_0000;

/// What is behind a reparse point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// Nothing that the file itself does not have.
    Itself,
    /// The file, as soon as it was fetched.
    Elsewhere(&'static str),
    /// Something else than the file, which it has no bytes of.
    NoContent,
    /// The file in a compressed stream.
    Compressed(Algorithm),
    /// Never the file.
    Never(&'static str),
}

impl Behind {
    /// By the whole value of the reparse point.
    fn of(reparse: &[u8]) -> Self {
        /// The nibble in which the tags of the Cloud Files API differ.
        const CLOUD_NUMBER: u32 = 0xf000;
        let Some(tag) = u32_at(reparse, 0) else {
            return Self::Never("an unreadable reparse point");
        };
        match tag {
            // ntfs3 shows links as such; what it does not, it has no other way to show.
            0xa000_0003 | 0xa000_000c => Self::Itself,
            0x8000_0017 => match Algorithm::of(reparse) {
                Some(algorithm) => Self::Compressed(algorithm),
                None if u32_at(reparse, 12) == Some(1) => Self::Never("in a WIM image"),
                None => Self::Never("compressed in a way that is not known"),
            },
            0x8000_0008 => Self::Never("in a WIM image"),
            0x8000_0013 => Self::Never("deduplicated"),
            0x8000_0007 => Self::Never("in the single instance store"),
            _ if tag & !CLOUD_NUMBER == 0x9000_001a => Self::Elsewhere("in the cloud"),
            0x8000_0015 | 0x8000_0021 => Self::Elsewhere("in the cloud"),
            0xc000_0004 | 0x8000_0006 => Self::Elsewhere("in hierarchical storage"),
            0x8000_001e => Self::Elsewhere("in Azure File Sync"),
            _ if tag & !CLOUD_NUMBER == 0x9000_001c => {
                Self::Elsewhere("at a projection's provider")
            }
            0x8000_0018 | 0x9000_1018 => Self::Elsewhere("in a container's layer"),
            // An app's alias; links, sockets, FIFOs and devices of WSL.
            0x8000_001b | 0xa000_001d | 0x8000_0023..=0x8000_0026 => Self::NoContent,
            _ => Self::Never("kept in a way that is not known"),
        }
    }
}

thread_local! {
    /// Why the last file was refused, for the failure that the host is told.
    static WHY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Why a file was refused since this was last asked for, on this thread.
pub fn take_reason() -> Option<String> {
    WHY.take()
}

/// What is to be read in the place of the bytes of `file`, a regular file on `volume`; `None` for
/// those themselves.
///
/// # Errors
/// `EOPNOTSUPP` where they are not there, `EIO` where they are damaged.
pub fn behind(volume: &Arc<Volume>, file: BorrowedFd) -> nix::Result<Option<WofFile>> {
    if attributes(&resolve::proc_path(file)).is_some_and(|bits| bits & REPARSE_POINT == 0) {
        return Ok(None);
    }
    let stat = resolve::attributes(file)?;
    let (number, size) = (stat.st_ino, u64::try_from(stat.st_size).map_err(|_| Errno::EIO)?);
    let records = &volume.records;
    let data = |kind, max: u64| {
        let stream = records.stream(number, kind, "").filter(|stream| stream.size <= max)?;
        let mut bytes = vec![0; usize::try_from(stream.size).ok()?];
        stream.read(records, 0, &mut bytes).ok()?;
        Some(bytes)
    };
    let reparse = data(reparse::ATTRIBUTE, reparse::MAX_LEN).unwrap_or_default();
    let refuse = |what: &str| {
        let tag = u32_at(&reparse, 0).unwrap_or(0);
        WHY.set(Some(format!("it is {what} (reparse tag {tag:#010x}), not on this disk")));
        Err(Errno::EOPNOTSUPP)
    };
    match Behind::of(&reparse) {
        Behind::Itself => Ok(None),
        Behind::NoContent if size == 0 => Ok(None),
        Behind::NoContent => refuse("what an app or WSL made of it"),
        Behind::Never(what) => refuse(what),
        Behind::Compressed(algorithm) => {
            WofFile::open(Arc::clone(volume), number, size, algorithm).map(Some)
        }
        Behind::Elsewhere(what) => {
            let standard = data(STANDARD, 0x100).unwrap_or_default();
            let bits = u32_at(&standard, 0x20).unwrap_or(OFFLINE);
            let is_to_be_fetched = bits & (OFFLINE | RECALL_ON_OPEN | RECALL_ON_DATA_ACCESS) != 0;
            let own = records.stream(number, DATA, "");
            if is_to_be_fetched || own.is_none_or(|stream| stream.has_holes()) {
                return refuse(what);
            }
            Ok(None)
        }
    }
}

/// The attributes that Windows keeps of the file that `path` leads to, as ntfs3 says.
pub fn attributes(path: &str) -> Option<u32> {
    let mut bits = [0; 4];
    let path = CString::new(path).ok()?;
    let count = sys::getxattr(&path, c"system.ntfs_attrib", &mut bits).ok()?;
    (count == bits.len()).then_some(u32::from_le_bytes(bits))
}

impl Tree {
    /// What is read of `file`, a regular file that is open at `path`.
    ///
    /// # Errors
    /// As [`behind`].
    pub(crate) fn contents(&self, file: OwnedFd, path: &GuestPath) -> nix::Result<Contents> {
        let Some((volume, _)) = self.ahead.volume(file.as_fd()) else {
            return Ok(Contents::of(file));
        };
        let found = behind(&volume, file.as_fd()).inspect_err(|_| {
            WHY.with_borrow_mut(|why| {
                *why = why.take().map(|why| format!("cannot read {path}: {why}"));
            });
        });
        Ok(match found? {
            Some(packed) => Contents::of_packed(file, packed),
            None => Contents::of(file),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_say_whether_a_file_can_have_its_bytes() {
        let behind = |tag: u32, words: &[u32]| {
            let words = words.iter().flat_map(|word| word.to_le_bytes());
            let head = tag.to_le_bytes().into_iter().chain([0; 4]);
            Behind::of(&head.chain(words).collect::<Vec<u8>>())
        };
        for tag in [0x9000_001a, 0x9000_601a, 0x9000_f01a, 0xc000_0004, 0x8000_0006, 0x8000_001e] {
            assert!(matches!(behind(tag, &[]), Behind::Elsewhere(_)), "{tag:#x}");
        }
        for tag in [0x8000_0008, 0x8000_0013, 0x8000_0007, 0x1234, 0x9000_001b] {
            assert!(matches!(behind(tag, &[]), Behind::Never(_)), "{tag:#x}");
        }
        assert_eq!(behind(0x8000_0017, &[1, 1, 1, 0]), Behind::Never("in a WIM image"));
        let compressed = Behind::Compressed(Algorithm::Xpress(4096));
        assert_eq!(behind(0x8000_0017, &[1, 2, 1, 0]), compressed);
        assert_eq!(behind(0x8000_001b, &[]), Behind::NoContent);
        assert_eq!(behind(0xa000_000c, &[]), Behind::Itself);
        assert!(matches!(Behind::of(&[]), Behind::Never(_)));
    }
}
