//! Where in the tree a filesystem is mounted: on the root, on a directory of the image, or, where
//! Windows mounts a volume, in the place of a link.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlink, readlinkat};
use nix::sys::stat::Mode;

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::path::GuestPath;

use crate::failure::{errno_of, explained, plain};
use crate::grafts::Graft;
use crate::mounts::SYSROOT;
use crate::resolve;
use crate::tree::Tree;

/// Where filesystems are mounted that are shown in the place of links.
const VOLUMES: &str = "/run/volumes";

/// A place to mount on.
pub struct Place {
    kind: Kind,
    /// The path by which it is unmounted, with all links resolved.
    path: PathBuf,
}

enum Kind {
    Root,
    /// Keeps the directory that was found, whatever its path leads to later.
    Directory(OwnedFd),
    /// A link, and its path in the tree. The filesystem is mounted elsewhere.
    Link(OwnedFd, GuestPath),
}

impl Place {
    /// The place at the path `at` in `tree`, which is missing before anything is mounted.
    ///
    /// # Errors
    /// `EBUSY` for a second root; else as openat2(2), explained.
    pub fn find(at: &GuestPath, tree: Option<&Tree>) -> Result<Self, Failure> {
        match (at.is_root(), tree) {
            (true, None) => Ok(Self { kind: Kind::Root, path: SYSROOT.into() }),
            (true, Some(_)) => Err(explained(Errno::EBUSY, "something is mounted there already")),
            (false, None) => Err(explained(Errno::ENOENT, "nothing is mounted on / yet")),
            (false, Some(tree)) => Self::below(tree, at),
        }
    }

    /// A directory of the image. Here links are followed, as everybody who names a mountpoint
    /// expects; RESOLVE_IN_ROOT takes care that they end inside.
    fn below(tree: &Tree, at: &GuestPath) -> Result<Self, Failure> {
        let (start, rest) = tree.start(at);
        if rest.is_root() {
            return Err(explained(Errno::EBUSY, "something is mounted there already"));
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let directory = match openat2(start, rest.as_bytes(), how) {
            Ok(directory) => directory,
            Err(errno) => {
                let link =
                    resolve::locate(start, &rest).ok().filter(|link| is_mount_point(link.as_fd()));
                return match (link, errno) {
                    (Some(link), _) => Self::instead_of(link, at),
                    (None, Errno::ENOENT) => {
                        Err(explained(errno, "no such directory in the image"))
                    }
                    (None, Errno::ENOTDIR) => Err(explained(errno, "not a directory in the image")),
                    (None, other) => Err(explained(other, other.desc())),
                };
            }
        };
        let resolved: OsString =
            readlink(resolve::proc_path(directory.as_fd()).as_str()).map_err(plain)?;
        Ok(Self { kind: Kind::Directory(directory), path: resolved.into() })
    }

    fn instead_of(link: OwnedFd, at: &GuestPath) -> Result<Self, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(VOLUMES).join(number.to_string());
        std::fs::create_dir_all(&path).map_err(|error| plain(errno_of(&error)))?;
        Ok(Self { kind: Kind::Link(link, at.clone()), path })
    }

    /// The path to mount on.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        match &self.kind {
            Kind::Directory(directory) => resolve::proc_path(directory.as_fd()).into(),
            Kind::Root | Kind::Link(..) => self.path.clone(),
        }
    }

    /// The path to unmount.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is to be put into the tree now that a filesystem is mounted here.
    ///
    /// # Errors
    /// As open(2) and fstatat(2).
    pub fn into_graft(self) -> nix::Result<Option<Graft>> {
        let Kind::Link(link, at) = self.kind else { return Ok(None) };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(&self.path, flags, Mode::empty())?;
        Graft::new(at, link.as_fd(), root).map(Some)
    }
}

/// Whether a link is how the kernel shows a folder into which Windows mounts a volume: its target
/// cannot be read, or is the volume.
fn is_mount_point(link: BorrowedFd) -> bool {
    let is_link =
        resolve::attributes(link).is_ok_and(|stat| resolve::file_type(&stat) == libc::S_IFLNK);
    is_link
        && match readlinkat(link, "") {
            Ok(target) => target.to_string_lossy().contains("/Volume{"),
            Err(errno) => errno == Errno::EINVAL,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_comes_first_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::at(folder.path()).unwrap();
        let (top, below) = (GuestPath::root(), GuestPath::parse(b"/mnt").unwrap());
        let errno = |at, tree| {
            Place::find(at, tree).map(|_| ()).map_err(|failure| i32::from(failure.errno))
        };
        assert_eq!(errno(&top, None), Ok(()));
        assert_eq!(errno(&top, Some(&tree)), Err(libc::EBUSY));
        assert_eq!(errno(&below, None), Err(libc::ENOENT));
        assert_eq!(errno(&below, Some(&tree)), Err(libc::ENOENT));
    }

    #[test]
    fn links_to_a_mountpoint_are_followed_inside_the_image() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("mounts/mnt2")).unwrap();
        std::os::unix::fs::symlink("/mounts", folder.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../mounts", folder.path().join("climbing")).unwrap();
        std::fs::write(folder.path().join("file"), b"").unwrap();
        let tree = Tree::at(folder.path()).unwrap();
        let find = |at: &[u8]| {
            let at = GuestPath::parse(at).unwrap();
            let found = Place::find(&at, Some(&tree));
            found.map(|place| place.path).map_err(|failure| i32::from(failure.errno))
        };
        let expected = folder.path().canonicalize().unwrap().join("mounts/mnt2");
        assert_eq!(find(b"/mounts/mnt2"), Ok(expected.clone()));
        assert_eq!(find(b"/absolute/mnt2"), Ok(expected.clone()));
        assert_eq!(find(b"/climbing/mnt2"), Ok(expected));
        assert_eq!(find(b"/file"), Err(libc::ENOTDIR));
        assert_eq!(find(b"/mounts/mnt4"), Err(libc::ENOENT));
    }
}
