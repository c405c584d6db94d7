//! Filesystems that are shown in the place of links: Windows mounts volumes into folders that the
//! kernel's driver shows as links without a target, on which nothing can be mounted. So they are
//! mounted elsewhere, and put into the tree here.
//!
//! A tree without any, as nearly all are, only finds an empty list.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::stat::FileStat;

use guestmnt_protocol::path::GuestPath;

use crate::resolve;

/// One filesystem in the place of a link.
pub struct Graft {
    /// Its path in the tree.
    at: GuestPath,
    /// Device and inode of the link.
    link: (u64, u64),
    /// The filesystem's root.
    root: OwnedFd,
}

impl Graft {
    /// The filesystem with the root directory `root` in the place of the link `link`, which is at
    /// the path `at`.
    ///
    /// # Errors
    /// As fstatat(2).
    pub fn new(at: GuestPath, link: BorrowedFd, root: OwnedFd) -> nix::Result<Self> {
        let stat = resolve::attributes(link)?;
        Ok(Self { at, link: (stat.st_dev, stat.st_ino), root })
    }
}

/// All of them.
#[derive(Default)]
pub struct Grafts(Vec<Graft>);

impl Extend<Graft> for Grafts {
    fn extend<T: IntoIterator<Item = Graft>>(&mut self, grafts: T) {
        self.0.extend(grafts);
    }
}

impl Grafts {
    /// Where the way to `path` begins, and what of it is left from there; the tree's root is `root`.
    pub fn start<'t, 'p>(
        &'t self,
        root: BorrowedFd<'t>,
        path: &'p GuestPath,
    ) -> (BorrowedFd<'t>, Cow<'p, GuestPath>) {
        let within = |graft: &'t Graft| Some((graft, below(path, &graft.at)?));
        // One may be in another.
        let innermost = self.0.iter().filter_map(within).max_by_key(|(graft, _)| graft.at.depth());
        match innermost {
            Some((graft, rest)) => (graft.root.as_fd(), Cow::Owned(rest)),
            None => (root, Cow::Borrowed(path)),
        }
    }

    /// The root of the filesystem that is at the path `at` itself.
    pub fn at(&self, at: &GuestPath) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|graft| graft.at == *at).map(|graft| graft.root.as_fd())
    }

    /// Whether there is one at the path `folder` or below.
    pub fn any_below(&self, folder: &GuestPath) -> bool {
        self.0.iter().any(|graft| below(&graft.at, folder).is_some())
    }

    /// What is shown in the place of the file that has these attributes.
    pub fn instead_of(&self, stat: &FileStat) -> Option<BorrowedFd<'_>> {
        let link = (stat.st_dev, stat.st_ino);
        let found = self.0.iter().find(|graft| graft.link == link);
        found.map(|graft| graft.root.as_fd())
    }
}

/// What is left of `path` behind `folder`, if it leads there.
fn below(path: &GuestPath, folder: &GuestPath) -> Option<GuestPath> {
    let rest = path.as_bytes().strip_prefix(folder.as_bytes())?;
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(b"/")? };
    GuestPath::new(rest.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::parse(text.as_bytes()).unwrap()
    }

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn ways_begin_at_the_innermost_filesystem() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["root", "one", "two"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        symlink("nowhere", folder.path().join("root/m")).unwrap();
        symlink("nowhere", folder.path().join("one/n")).unwrap();
        let root = open(&folder.path().join("root"));
        let mut grafts = Grafts::default();
        for (at, link, inside) in [("/m", "root", "one"), ("/m/n", "one", "two")] {
            let parent = open(&folder.path().join(link));
            let name = path(at.rsplit_once('/').unwrap().1);
            let link = resolve::locate(parent.as_fd(), &name).unwrap();
            let inside = open(&folder.path().join(inside));
            grafts.extend([Graft::new(path(at), link.as_fd(), inside).unwrap()]);
        }
        let number = |fd: BorrowedFd| resolve::attributes(fd).unwrap().st_ino;
        let expect = |text: &str, start: &str, rest: &str| {
            let way = path(text);
            let (fd, left) = grafts.start(root.as_fd(), &way);
            assert_eq!(number(fd), number(open(&folder.path().join(start)).as_fd()), "{text}");
            assert_eq!(*left, path(rest), "{text}");
        };
        expect("/", "root", "/");
        expect("/mm", "root", "/mm");
        expect("/m", "one", "/");
        expect("/m/x/y", "one", "/x/y");
        expect("/m/n/z", "two", "/z");
    }
}
