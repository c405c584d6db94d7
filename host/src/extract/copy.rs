//! Copies files of an image into a folder of the host.
//!
//! Every step is made from the descriptor of the folder that was made for it, by one name that
//! holds no slash, and follows no link: whatever names and links an image holds, and whatever
//! happens beside, nothing is written outside of the folder that the user named.
//!
//! Kept are permissions, times, holes, `user.` attributes, hard links and symbolic links as they are
//! stored. Owners and the set-user-id and set-group-id bits are not: an image's files are nobody's
//! here. Devices and sockets are left out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::path::GuestPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, mkfifoat, symlinkat, unlinkat};
use xattr::FileExt as _;

use super::{Complain, Progress};
use crate::files::{Contents, Item, Sink, Trouble};

/// Extended attributes that are kept: those of other kinds mean something to the host.
const KEPT_XATTRS: &[u8] = b"user.";

/// What is done with a file of the host that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the image's file is not copied.
    Keep,
    /// It is replaced. Folders are filled.
    Replace,
}

/// A folder that is being filled.
pub struct Copy<'a> {
    /// The folders that were entered, the one that the user named first.
    folders: Vec<OwnedFd>,
    /// What the file that the walk began with is called.
    name: Vec<u8>,
    /// The path in the image of that file.
    start: GuestPath,
    existing: Existing,
    /// Names from the folder that the user named of files that have other links.
    copied: HashMap<GuestPath, Vec<u8>>,
    progress: Progress<'a>,
    complain: Complain<'a>,
}

impl<'a> Copy<'a> {
    /// One that puts the file `start` of the image into `folder`, where it is called `name`. With
    /// an empty name, what is in the folder `start` goes into `folder` itself.
    ///
    /// # Errors
    /// As open(2) for the directory `folder`.
    pub fn into(
        folder: &Path,
        name: &[u8],
        start: GuestPath,
        existing: Existing,
        progress: Progress<'a>,
        complain: Complain<'a>,
    ) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folders = vec![open(folder, flags, Mode::empty())?];
        let name = name.to_vec();
        let copied = HashMap::new();
        Ok(Self { folders, name, start, existing, copied, progress, complain })
    }

    /// The folder that is being filled.
    fn here(&self) -> &OwnedFd {
        self.folders.last().expect("the user's is never left")
    }

    /// What a file is called in the current folder.
    fn name_of<'i>(&'i self, item: &'i Item) -> &'i OsStr {
        let bytes = if *item.path == self.start {
            self.name.as_slice()
        } else {
            item.path.as_bytes().rsplit(|&byte| byte == b'/').next().unwrap_or_default()
        };
        OsStr::from_bytes(bytes)
    }

    /// The name of a file from the folder that the user named.
    fn way_to(&self, path: &GuestPath) -> Vec<u8> {
        let below = path.as_bytes().strip_prefix(self.start.as_bytes()).unwrap_or_default();
        [self.name.as_slice(), below].concat()
    }

    /// Removes what is in the way of a file that is no folder, if it may.
    fn make_room(&self, name: &OsStr) -> nix::Result<()> {
        match self.existing {
            Existing::Keep => Ok(()),
            Existing::Replace => match unlinkat(self.here(), name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::ENOENT) => Ok(()),
                removed => removed,
            },
        }
    }

    fn write(&mut self, file: &File, contents: &Contents) -> Result<(), Trouble> {
        let stretches = contents.stretches()?;
        // A hole at the end needs a length; all others come by themselves.
        file.set_len(contents.size())?;
        for stretch in stretches {
            contents.read(stretch, |at, bytes| {
                file.write_all_at(bytes, at)?;
                (self.progress)(bytes.len() as u64);
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Sink for Copy<'_> {
    const XATTRS: bool = true;
    const CONTENTS: bool = true;

    fn enter(&mut self, item: &Item) -> Result<(), Trouble> {
        let name = self.name_of(item);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let folder = if name.is_empty() {
            self.here().try_clone()?
        } else {
            match mkdirat(self.here(), name, Mode::S_IRWXU) {
                Err(Errno::EEXIST) if self.existing == Existing::Replace => {}
                made => made.map_err(io::Error::from)?,
            }
            openat(self.here(), name, flags, Mode::empty()).map_err(io::Error::from)?
        };
        self.folders.push(folder);
        Ok(())
    }

    fn leave(&mut self, item: &Item) -> Result<(), Trouble> {
        let folder = self.folders.pop().expect("it was entered");
        if self.folders.len() == 1 && self.name.is_empty() {
            // The user's own folder stays as it is.
            return Ok(());
        }
        Ok(finish(&File::from(folder), item)?)
    }

    fn file(&mut self, item: &Item, contents: &Contents) -> Result<(), Trouble> {
        let name = self.name_of(item).to_owned();
        self.make_room(&name).map_err(io::Error::from)?;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(self.here(), name.as_os_str(), flags, mode).map_err(io::Error::from)?;
        let file = File::from(file);
        let done = self.write(&file, contents).and_then(|()| Ok(finish(&file, item)?));
        if done.is_err() {
            // Half a file would pass for a whole one.
            let _ = unlinkat(self.here(), name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        } else if item.attr.nlink > 1 {
            self.copied.insert(item.path.clone(), self.way_to(item.path));
        }
        done
    }

    fn link(&mut self, item: &Item, first: &GuestPath) -> Result<(), Trouble> {
        let way = self.copied.get(first).ok_or(Trouble::LeftOut("a link to what is not copied"))?;
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let original = openat2(&self.folders[0], way.as_slice(), how).map_err(io::Error::from)?;
        let name = self.name_of(item);
        self.make_room(name).map_err(io::Error::from)?;
        let original = format!("/proc/self/fd/{}", original.as_raw_fd());
        let follow = LinkatFlags::AT_SYMLINK_FOLLOW;
        linkat(nix::fcntl::AT_FDCWD, original.as_str(), self.here(), name, follow)
            .map_err(io::Error::from)?;
        Ok(())
    }

    fn other(&mut self, item: &Item) -> Result<(), Trouble> {
        let name = self.name_of(item);
        let what = match item.attr.mode & libc::S_IFMT {
            libc::S_IFLNK | libc::S_IFIFO => "",
            libc::S_IFCHR | libc::S_IFBLK => "a device",
            _ => "a socket",
        };
        if !what.is_empty() {
            return Err(Trouble::LeftOut(what));
        }
        self.make_room(name).map_err(io::Error::from)?;
        let made = match item.target {
            Some(target) => symlinkat(OsStr::from_bytes(target.as_bytes()), self.here(), name),
            None => mkfifoat(self.here(), name, permissions(item.attr)),
        };
        made.map_err(io::Error::from)?;
        let (accessed, modified) = times(item.attr);
        let nofollow = UtimensatFlags::NoFollowSymlink;
        utimensat(self.here(), name, &accessed, &modified, nofollow).map_err(io::Error::from)?;
        if item.attr.nlink > 1 {
            self.copied.insert(item.path.clone(), self.way_to(item.path));
        }
        Ok(())
    }

    fn trouble(&mut self, path: &GuestPath, trouble: &Trouble) {
        (self.complain)(path, trouble);
    }
}

/// Sets attributes, permissions and times of a file that is complete.
fn finish(file: &File, item: &Item) -> io::Result<()> {
    for (name, value) in item.xattrs {
        if name.starts_with(KEPT_XATTRS) {
            match file.set_xattr(OsStr::from_bytes(name), value) {
                // The host's filesystem has none, or no room for more.
                Err(error) if is_without_xattrs(&error) => {}
                set => set?,
            }
        }
    }
    fchmod(file.as_fd(), permissions(item.attr))?;
    let (accessed, modified) = times(item.attr);
    Ok(futimens(file.as_fd(), &accessed, &modified)?)
}

fn is_without_xattrs(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::ENOSPC | Errno::E2BIG | Errno::ERANGE))
}

/// The permissions that a file has on the host: nobody's rights but the copying user's.
fn permissions(attr: &Attr) -> Mode {
    Mode::from_bits_truncate(attr.mode & 0o777)
}

fn times(attr: &Attr) -> (TimeSpec, TimeSpec) {
    let time = |Time { secs, nanos }: Time| TimeSpec::new(secs, nanos.into());
    (time(attr.accessed), time(attr.modified))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use guestmnt_protocol::path::LinkTarget;

    use super::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::parse(text.as_bytes()).unwrap()
    }

    fn attr(kind: u32) -> Attr {
        Attr { mode: kind | 0o755, nlink: 1, ..Attr::default() }
    }

    /// A folder to copy to, and one beside it that nothing may come into.
    fn folders() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        (folder, inside, outside)
    }

    #[test]
    fn an_image_that_has_a_link_and_a_folder_of_one_name_writes_nothing_outside() {
        for existing in [Existing::Keep, Existing::Replace] {
            let (_folder, inside, outside) = folders();
            let (mut progress, mut complain) = (|_| (), |_: &GuestPath, _: &Trouble| ());
            let root = GuestPath::root();
            let mut copy =
                Copy::into(&inside, b"", root.clone(), existing, &mut progress, &mut complain)
                    .unwrap();
            let none = Vec::new();
            let target = LinkTarget::new(outside.as_os_str().as_bytes()).unwrap();
            let (at, folder, link) = (path("/a"), attr(libc::S_IFDIR), attr(libc::S_IFLNK));
            let item = |attr, target| Item { path: &at, attr, target, xattrs: &none };
            let top = Item { path: &root, attr: &folder, target: None, xattrs: &none };
            copy.enter(&top).unwrap();
            copy.other(&item(&link, Some(&target))).unwrap();
            assert!(copy.enter(&item(&folder, None)).is_err(), "a link was entered");
            let file = attr(libc::S_IFREG);
            let wrote = copy.file(&item(&file, None), &Contents::here(b"new"));
            assert_eq!(wrote.is_ok(), existing == Existing::Replace);
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
            let replaced = inside.join("a").symlink_metadata().unwrap().is_file();
            assert_eq!(replaced, existing == Existing::Replace);
        }
    }

    #[test]
    fn a_link_that_stands_in_the_folder_already_is_not_followed() {
        let (_folder, inside, outside) = folders();
        symlink(&outside, inside.join("a")).unwrap();
        fs::write(outside.join("file"), "theirs").unwrap();
        symlink(outside.join("file"), inside.join("f")).unwrap();
        let (mut progress, mut complain) = (|_| (), |_: &GuestPath, _: &Trouble| ());
        let replace = Existing::Replace;
        let mut copy =
            Copy::into(&inside, b"", GuestPath::root(), replace, &mut progress, &mut complain)
                .unwrap();
        let none = Vec::new();
        let folder = attr(libc::S_IFDIR);
        let at = path("/a");
        let item = Item { path: &at, attr: &folder, target: None, xattrs: &none };
        assert!(copy.enter(&item).is_err());
        let (at, file) = (path("/f"), attr(libc::S_IFREG));
        let item = Item { path: &at, attr: &file, target: None, xattrs: &none };
        copy.file(&item, &Contents::here(b"ours")).unwrap();
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(inside.join("f")).unwrap(), "ours");
    }
}
