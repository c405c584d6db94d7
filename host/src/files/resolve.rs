//! From a path that a person writes to a file of the image. Symbolic links lead inside the image,
//! as in a chroot.

use std::collections::VecDeque;

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::path::{EntryName, GuestPath, LinkTarget};
use nix::errno::Errno;

use super::{Files, Found};

/// Links that are followed on the way; Linux' own limit.
const MAX_FOLLOWED: usize = 40;

/// Whether a link at a path's end is followed as those before it are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// What it leads to is meant.
    Last,
    /// The link itself is meant.
    NotLast,
}

impl Files {
    /// The file at `path`, from the root of what is mounted.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ELOOP` as openat2(2) with `RESOLVE_IN_ROOT`; the guest's error, or `EIO`.
    pub fn find(&self, path: &[u8], follow: Follow) -> Result<Found, Errno> {
        let stat = |path: &GuestPath| self.shared.guest.stat(path.clone());
        let read_link = |path: &GuestPath| self.shared.guest.read_link(path.clone());
        resolve(path, follow, stat, read_link)
    }
}

fn resolve(
    path: &[u8],
    follow: Follow,
    stat: impl Fn(&GuestPath) -> Result<Attr, Errno>,
    read_link: impl Fn(&GuestPath) -> Result<Vec<u8>, Errno>,
) -> Result<Found, Errno> {
    let names = |path: &[u8]| -> VecDeque<Vec<u8>> {
        let names = path.split(|&byte| byte == b'/');
        names.filter(|name| !matches!(name, [] | [b'.'])).map(<[u8]>::to_vec).collect()
    };
    let mut ahead = names(path);
    let mut must_be_folder = path.ends_with(b"/") || path.ends_with(b"/.");
    // The folders that were come through, the current one last.
    let mut way = vec![(GuestPath::root(), stat(&GuestPath::root())?)];
    let mut followed = 0;
    while let Some(name) = ahead.pop_front() {
        let (at, attr) = way.last().expect("the root is never left");
        if attr.mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        if name == b".." {
            if way.len() > 1 {
                way.pop();
            }
            continue;
        }
        let name = EntryName::new(&name).map_err(|_| Errno::ENOENT)?;
        let next = at.join(&name).map_err(|_| Errno::ENAMETOOLONG)?;
        let attr = stat(&next)?;
        if attr.mode & libc::S_IFMT != libc::S_IFLNK {
            way.push((next, attr));
            continue;
        }
        let target = read_link(&next)?;
        if ahead.is_empty() && follow == Follow::NotLast && !must_be_folder {
            let target = LinkTarget::new(&target).map_err(|_| Errno::EIO)?;
            return Ok(Found { path: next, attr, target: Some(target) });
        }
        followed += 1;
        if followed > MAX_FOLLOWED {
            return Err(Errno::ELOOP);
        }
        if ahead.is_empty() {
            must_be_folder |= target.ends_with(b"/");
        }
        if target.starts_with(b"/") {
            way.truncate(1);
        }
        let mut before = names(&target);
        before.append(&mut ahead);
        ahead = before;
    }
    let (path, attr) = way.pop().expect("the root is never left");
    if must_be_folder && attr.mode & libc::S_IFMT != libc::S_IFDIR {
        return Err(Errno::ENOTDIR);
    }
    Ok(Found { path, attr, target: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree: folders end with a slash, links are followed by where they lead.
    fn find(path: &str, follow: Follow) -> Result<String, Errno> {
        const TREE: [(&str, &str); 9] = [
            ("/", ""),
            ("/a", "dir"),
            ("/a/b", "dir"),
            ("/a/b/file", "file"),
            ("/a/up", "../../../a/b"),
            ("/absolute", "/a/b/"),
            ("/to-file", "a/b/file"),
            ("/loop", "loop"),
            ("/out", "../../etc/passwd"),
        ];
        let kind = |path: &GuestPath| {
            let found = TREE.iter().find(|(name, _)| *name == path.to_string());
            found.map(|(_, kind)| *kind).ok_or(Errno::ENOENT)
        };
        let stat = |path: &GuestPath| {
            let mode = match kind(path)? {
                "" | "dir" => libc::S_IFDIR,
                "file" => libc::S_IFREG,
                _ => libc::S_IFLNK,
            };
            Ok(Attr { mode, ..Attr::default() })
        };
        let link = |path: &GuestPath| kind(path).map(|target| target.as_bytes().to_vec());
        resolve(path.as_bytes(), follow, stat, link).map(|found| found.path.to_string())
    }

    #[test]
    fn links_are_followed_inside_the_image() {
        let table = [
            ("", Ok("/")),
            ("/../..", Ok("/")),
            ("a//./b/file", Ok("/a/b/file")),
            ("/a/up/file", Ok("/a/b/file")),
            ("/absolute/../b/file", Ok("/a/b/file")),
            ("/to-file", Ok("/a/b/file")),
            ("/to-file/", Err(Errno::ENOTDIR)),
            ("/a/b/file/x", Err(Errno::ENOTDIR)),
            ("/nothing", Err(Errno::ENOENT)),
            ("/loop", Err(Errno::ELOOP)),
            ("/out", Err(Errno::ENOENT)),
        ];
        for (path, expected) in table {
            assert_eq!(find(path, Follow::Last), expected.map(str::to_owned), "{path}");
        }
    }

    #[test]
    fn a_link_may_be_meant_itself() {
        let table = [("/to-file", "/to-file"), ("/a/up", "/a/up"), ("/a/up/", "/a/b")];
        for (path, expected) in table {
            assert_eq!(find(path, Follow::NotLast), Ok(expected.to_owned()), "{path}");
        }
        assert_eq!(find("/absolute/file", Follow::NotLast), Ok("/a/b/file".to_owned()));
    }
}
