//! Symbolic links that WSL and Interix keep on NTFS, which ntfs3 shows as regular files: the one in
//! a reparse point of an empty file, the other in a file of the system.
//!
//! Follows \[MS-FSCC\] 2.1.2.7 for WSL, and libfuse-lite's reparse handling in ntfs-3g for Interix.

use std::os::fd::BorrowedFd;

use nix::sys::stat::FileStat;

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::limits::MAX_LINK;

use crate::inodes::Volume;
use crate::little_endian::u32_at;
use crate::ntfs::DATA;
use crate::placeholders::{self, REPARSE_POINT, SYSTEM};
use crate::reparse;
use crate::resolve;
use crate::tree::Tree;

/// What the file of an Interix link begins with.
const INTERIX: &[u8] = b"IntxLNK\x01";

/// Bytes of the largest such file.
const INTERIX_MAX: u64 = INTERIX.len() as u64 + 2 * MAX_LINK as u64;

impl Tree {
    /// Where the link leads that `stat`, of the file at `path` on the filesystem of `near`, is of;
    /// `None` for what is no link of this kind.
    pub(crate) fn posix_link(
        &self,
        near: BorrowedFd,
        stat: &FileStat,
        path: impl FnOnce() -> String,
    ) -> Option<Vec<u8>> {
        let size = u64::try_from(stat.st_size).ok()?;
        if resolve::file_type(stat) != libc::S_IFREG || size > INTERIX_MAX {
            return None;
        }
        let (volume, of) = self.ahead.volume(near)?;
        let bits = placeholders::attributes(&path()).filter(|_| of.st_dev == stat.st_dev)?;
        if size == 0 && bits & REPARSE_POINT != 0 {
            let data = value(&volume, stat.st_ino, reparse::ATTRIBUTE, reparse::MAX_LEN)?;
            return of_wsl(&data);
        }
        if size > INTERIX.len() as u64 && bits & SYSTEM != 0 {
            return of_interix(&value(&volume, stat.st_ino, DATA, INTERIX_MAX)?);
        }
        None
    }

    /// Attributes as [`Tree::attr`] gives them, of the link where the file is one.
    ///
    /// # Errors
    /// As [`Tree::attr`].
    pub(crate) fn shown(
        &self,
        near: BorrowedFd,
        stat: &FileStat,
        path: impl FnOnce() -> String,
    ) -> nix::Result<Attr> {
        let attr = self.attr(stat)?;
        Ok(match self.posix_link(near, stat, path) {
            Some(target) => Attr { mode: libc::S_IFLNK | 0o777, size: target.len() as u64, ..attr },
            None => attr,
        })
    }
}

fn value(volume: &Volume, number: u64, kind: u32, max: u64) -> Option<Vec<u8>> {
    let stream = volume.records.stream(number, kind, "").filter(|stream| stream.size <= max)?;
    let mut bytes = vec![0; usize::try_from(stream.size).ok()?];
    stream.read(&volume.records, 0, &mut bytes).ok()?;
    Some(bytes)
}

/// The target in the reparse point of a link of WSL.
fn of_wsl(data: &[u8]) -> Option<Vec<u8>> {
    /// `IO_REPARSE_TAG_LX_SYMLINK`
    const TAG: u32 = 0xa000_001d;
    /// The one that has the target in it.
    const VERSION: u32 = 2;
    let is_one = u32_at(data, 0)? == TAG && u32_at(data, 8)? == VERSION;
    good(data.get(12..)?.to_vec()).filter(|_| is_one)
}

/// The target in the file of a link of Interix.
fn of_interix(bytes: &[u8]) -> Option<Vec<u8>> {
    let target = bytes.strip_prefix(INTERIX)?;
    let text = reparse::text(target).filter(|_| target.len().is_multiple_of(2))?;
    good(text.trim_end_matches('\0').as_bytes().to_vec())
}

fn good(target: Vec<u8>) -> Option<Vec<u8>> {
    let fits = (1..=MAX_LINK).contains(&target.len()) && !target.contains(&0);
    fits.then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_where_each_keeps_them() {
        let wsl = [&0xa000_001d_u32.to_le_bytes()[..], &[7, 0, 0, 0, 2, 0, 0, 0], b"a/b"].concat();
        assert_eq!(of_wsl(&wsl).as_deref(), Some(&b"a/b"[..]));
        assert_eq!(of_wsl(&wsl[..12]), None);
        let first = [&wsl[..8], &[1, 0, 0, 0], b"a/b"].concat();
        assert_eq!(of_wsl(&first), None);
        let utf16: Vec<u8> = "../ä".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let interix = [INTERIX, &utf16].concat();
        assert_eq!(of_interix(&interix).as_deref(), Some("../ä".as_bytes()));
        assert_eq!(of_interix(&interix[..interix.len() - 1]), None);
        assert_eq!(of_interix(b"IntxLNK\x02a\0"), None);
        assert_eq!(of_interix(INTERIX), None);
    }
}
