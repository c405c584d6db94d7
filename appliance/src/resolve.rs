//! From a path in the mounted tree to a descriptor, without ever leaving the tree: neither
//! through `..`, which a [`GuestPath`] cannot hold, nor through a symbolic link. The host resolves
//! links; a path that has one in its middle is refused.
//!
//! Follows openat2(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, fstatat};

use guestmnt_protocol::path::GuestPath;

/// Longest path that one system call takes: `PATH_MAX` without the NUL.
const PIECE_MAX: usize = 4095;

/// What holds for every step from the root on. Mounts may be crossed: nested filesystems are.
pub const RESOLVE: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// A descriptor that names a file without having opened it (`O_PATH`): no driver and no FIFO
/// notices. A symbolic link at the path's end is named itself.
///
/// # Errors
/// As openat2(2): `ENOENT`, `ENOTDIR`, `ELOOP` for a symbolic link before the path's end.
pub fn locate(root: BorrowedFd, path: &GuestPath) -> nix::Result<OwnedFd> {
    open_below(root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW)
}

/// Opens a directory for reading.
///
/// # Errors
/// As [`locate`], and `ENOTDIR` for anything else than a directory.
pub fn open_directory(root: BorrowedFd, path: &GuestPath) -> nix::Result<OwnedFd> {
    // With O_DIRECTORY the kernel checks the type before the file's own open function runs, so
    // that a FIFO does not block here and no device is touched.
    open_below(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)
}

/// Opens a regular file for reading.
///
/// # Errors
/// As [`locate`]; `EISDIR` for a directory, `ELOOP` for a symbolic link, `EINVAL` for anything
/// else.
pub fn open_regular(root: BorrowedFd, path: &GuestPath) -> nix::Result<OwnedFd> {
    // Opening by path could open a device or a FIFO, and notice afterwards. So the file is named
    // first, and its type looked at.
    let located = locate(root, path)?;
    let expected = regular(located.as_fd())?;
    // The way by /proc is sure to lead to exactly this file, and three times as long.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match open_below(root, path, flags) {
        Ok(file) if attributes(file.as_fd()).is_ok_and(|stat| is_same(&stat, &expected)) => {
            Ok(file)
        }
        _ => {
            let path = proc_path(located.as_fd());
            open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        }
    }
}

/// Whether these are of the same file.
fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Opens a block device for reading, by a node that the daemon made.
///
/// # Errors
/// As [`locate`] and open(2); `EINVAL` for anything else.
pub fn open_device(root: BorrowedFd, path: &GuestPath) -> nix::Result<OwnedFd> {
    let located = locate(root, path)?;
    if file_type(&attributes(located.as_fd())?) != libc::S_IFBLK {
        return Err(Errno::EINVAL);
    }
    open(proc_path(located.as_fd()).as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Checks that what `located` names is a regular file.
///
/// # Errors
/// `EISDIR` for a directory, `ELOOP` for a symbolic link, `EINVAL` for anything else.
pub fn check_regular(located: BorrowedFd) -> nix::Result<()> {
    regular(located).map(drop)
}

/// Attributes of what `located` names, as [`check_regular`].
fn regular(located: BorrowedFd) -> nix::Result<FileStat> {
    let stat = attributes(located)?;
    match file_type(&stat) {
        libc::S_IFREG => Ok(stat),
        libc::S_IFDIR => Err(Errno::EISDIR),
        libc::S_IFLNK => Err(Errno::ELOOP),
        _ => Err(Errno::EINVAL),
    }
}

/// As [`locate`], with symbolic links followed as the image's own system would follow them: inside.
///
/// # Errors
/// As openat2(2).
pub fn locate_following(root: BorrowedFd, path: &str) -> nix::Result<OwnedFd> {
    let inside = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(root, path, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(inside))
}

/// Opens a regular file, links followed as by [`locate_following`].
///
/// # Errors
/// As openat2(2); `EINVAL` for anything but a regular file.
pub fn open_regular_following(root: BorrowedFd, path: &str) -> nix::Result<OwnedFd> {
    let located = locate_following(root, path)?;
    match file_type(&attributes(located.as_fd())?) {
        libc::S_IFREG => {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            open(proc_path(located.as_fd()).as_str(), flags, Mode::empty())
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Attributes of the very file that `located` names, symbolic links included.
///
/// # Errors
/// As fstatat(2).
pub fn attributes(located: BorrowedFd) -> nix::Result<FileStat> {
    fstatat(located, "", AtFlags::AT_EMPTY_PATH)
}

/// The type bits of a mode.
pub fn file_type(stat: &FileStat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// A path that leads the kernel to the very file that `located` names, for calls that take no
/// `O_PATH` descriptor. It needs `/proc`.
pub fn proc_path(located: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", located.as_raw_fd())
}

fn open_below(root: BorrowedFd, path: &GuestPath, flags: OFlag) -> nix::Result<OwnedFd> {
    let mut rest: &[u8] = if path.is_root() { b"." } else { path.as_bytes() };
    let mut walked: Option<OwnedFd> = None;
    while rest.len() > PIECE_MAX {
        let (piece, behind) = split_piece(rest).ok_or(Errno::ENAMETOOLONG)?;
        let start = walked.as_ref().map_or(root, AsFd::as_fd);
        walked = Some(open_piece(start, piece, OFlag::O_PATH | OFlag::O_DIRECTORY)?);
        rest = behind;
    }
    open_piece(walked.as_ref().map_or(root, AsFd::as_fd), rest, flags)
}

fn open_piece(start: BorrowedFd, piece: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    openat2(start, piece, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(RESOLVE))
}

/// Splits `path` at the last slash that leaves a first piece of at most [`PIECE_MAX`] bytes.
fn split_piece(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = path[..=PIECE_MAX].iter().rposition(|&b| b == b'/')?;
    Some((&path[..slash], &path[slash + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_split_between_names() {
        let name = [b'x'; 1000];
        let path = [name; 6].join(&b'/');
        let (piece, rest) = split_piece(&path).unwrap();
        assert_eq!(piece, [name; 4].join(&b'/'));
        assert_eq!(rest, [name; 2].join(&b'/'));
    }

    #[test]
    fn a_piece_may_be_as_long_as_the_kernel_allows() {
        let path = [&[b'x'; PIECE_MAX][..], b"rest"].join(&b'/');
        let (piece, rest) = split_piece(&path).unwrap();
        assert_eq!((piece.len(), rest), (PIECE_MAX, &b"rest"[..]));
        assert_eq!(split_piece(&[b'x'; PIECE_MAX + 1]), None);
    }
}
