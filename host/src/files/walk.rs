//! Goes through a tree in an order that is the same each time, by name and folders before what is
//! in them, while the folders that come next are being fetched.

use std::collections::HashMap;

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::path::{GuestPath, LinkTarget};
use guestmnt_protocol::xattr::Xattr;
use nix::errno::Errno;

use super::contents::Contents;
use super::folder::{Folder, Wants};
use super::pool::Awaited;
use super::{Files, Found, Trouble};

/// Folders that are fetched ahead.
const AHEAD: usize = 4;

/// One file on the way.
pub struct Item<'a> {
    /// Its path from the root of what is mounted.
    pub path: &'a GuestPath,
    /// What is known of it.
    pub attr: &'a Attr,
    /// Where it leads, if it is a symbolic link.
    pub target: Option<&'a LinkTarget>,
    /// Its extended attributes, if they were wanted.
    pub xattrs: &'a Xattrs,
}

/// Extended attributes of one file: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What is done with the files. Trouble with one of them is told, and the walk goes on with the
/// next; after trouble with a folder, with what is behind that.
pub trait Sink {
    /// Whether extended attributes are wanted.
    const XATTRS: bool;
    /// Whether what files hold is wanted.
    const CONTENTS: bool;

    /// A folder, before what is in it.
    ///
    /// # Errors
    /// [`Trouble`].
    fn enter(&mut self, item: &Item) -> Result<(), Trouble>;

    /// The same folder, after what is in it.
    ///
    /// # Errors
    /// [`Trouble`].
    fn leave(&mut self, item: &Item) -> Result<(), Trouble>;

    /// A regular file, if it is the first of its hard links.
    ///
    /// # Errors
    /// [`Trouble`].
    fn file(&mut self, item: &Item, contents: &Contents) -> Result<(), Trouble>;

    /// Another link to the file that was met at `first`.
    ///
    /// # Errors
    /// [`Trouble`].
    fn link(&mut self, item: &Item, first: &GuestPath) -> Result<(), Trouble>;

    /// A symbolic link, device, FIFO or socket.
    ///
    /// # Errors
    /// [`Trouble`].
    fn other(&mut self, item: &Item) -> Result<(), Trouble>;

    /// There was trouble with the file at a path.
    fn trouble(&mut self, path: &GuestPath, trouble: &Trouble);
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Files and folders that were gone through.
    pub files: u64,
    /// Those with trouble.
    pub troubles: u64,
}

impl Files {
    /// Goes through `start` and all that is below it.
    ///
    /// # Errors
    /// Trouble that would meet all further files as well.
    pub fn walk<S: Sink>(&self, start: &Found, sink: &mut S) -> Result<Walked, Trouble> {
        let wants = Wants { xattrs: S::XATTRS, contents: S::CONTENTS };
        let walk = Walk { files: self, sink, wants, links: HashMap::new() };
        walk.all(start)
    }
}

struct Walk<'a, S> {
    files: &'a Files,
    sink: &'a mut S,
    wants: Wants,
    /// Files that have other hard links, where they were met.
    links: HashMap<(u16, u64), GuestPath>,
}

/// What is still to be done.
enum Step {
    Enter(Waiting),
    Leave(Entered),
}

/// A folder whose turn has not come.
struct Waiting {
    entered: Entered,
    fetched: Option<Awaited<Result<Folder, Errno>>>,
}

/// A folder with what is needed of it until it is left.
struct Entered {
    path: GuestPath,
    attr: Attr,
    xattrs: Xattrs,
}

impl Entered {
    fn item(&self) -> Item<'_> {
        Item { path: &self.path, attr: &self.attr, target: None, xattrs: &self.xattrs }
    }
}

impl<S: Sink> Walk<'_, S> {
    fn all(mut self, start: &Found) -> Result<Walked, Trouble> {
        let mut walked = Walked::default();
        let xattrs = self.xattrs(&mut walked, &start.path, None)?;
        let mut steps = Vec::new();
        if is_folder(&start.attr) {
            let (path, attr) = (start.path.clone(), start.attr);
            let entered = Entered { path, attr, xattrs };
            steps.push(Step::Enter(Waiting { entered, fetched: None }));
        } else {
            let item = Item {
                path: &start.path,
                attr: &start.attr,
                target: start.target.as_ref(),
                xattrs: &xattrs,
            };
            let done = self.one(&item, None);
            self.note(&mut walked, &start.path, done)?;
        }
        while let Some(step) = steps.pop() {
            match step {
                Step::Leave(entered) => {
                    let done = self.sink.leave(&entered.item());
                    if let Err(trouble) = done {
                        self.tell(&mut walked, &entered.path, trouble)?;
                    }
                }
                Step::Enter(Waiting { entered, .. }) if is_in_itself(&entered.attr, &steps) => {
                    self.tell(&mut walked, &entered.path, Errno::ELOOP.into())?;
                }
                Step::Enter(Waiting { entered, fetched }) => {
                    let fetched = fetched.unwrap_or_else(|| self.fetch(&entered.path));
                    self.fetch_ahead(&mut steps);
                    let entering = self.sink.enter(&entered.item());
                    let is_entered = entering.is_ok();
                    self.note(&mut walked, &entered.path, entering)?;
                    if !is_entered {
                        continue;
                    }
                    let path = entered.path.clone();
                    steps.push(Step::Leave(entered));
                    match fetched.wait().unwrap_or(Err(Errno::EIO)) {
                        Ok(folder) => self.folder(&path, folder, &mut steps, &mut walked)?,
                        Err(errno) => self.tell(&mut walked, &path, errno.into())?,
                    }
                }
            }
        }
        Ok(walked)
    }

    fn fetch(&self, path: &GuestPath) -> Awaited<Result<Folder, Errno>> {
        self.files.fetch_folder(path.clone(), self.wants)
    }

    /// Has the folders fetched whose turn comes next.
    fn fetch_ahead(&self, steps: &mut [Step]) {
        let waiting = steps.iter_mut().rev().filter_map(|step| match step {
            Step::Enter(waiting) => Some(waiting),
            Step::Leave(_) => None,
        });
        for Waiting { entered, fetched } in waiting.take(AHEAD) {
            if fetched.is_none() {
                *fetched = Some(self.files.fetch_folder(entered.path.clone(), self.wants));
            }
        }
    }

    /// The files of a folder; its folders become further steps.
    fn folder(
        &mut self,
        at: &GuestPath,
        folder: Folder,
        steps: &mut Vec<Step>,
        walked: &mut Walked,
    ) -> Result<(), Trouble> {
        let Folder { entries, error, xattrs, mut small } = folder;
        if let Some(errno) = error {
            self.tell(walked, at, errno.into())?;
        }
        let mut folders = Vec::new();
        let mut xattrs = xattrs.into_iter();
        for (index, entry) in entries.iter().enumerate() {
            let together = xattrs.next().flatten();
            let path = match at.join(&entry.name) {
                Ok(path) => path,
                Err(_) => {
                    self.tell(walked, at, Errno::ENAMETOOLONG.into())?;
                    continue;
                }
            };
            let Some(attr) = entry.attr else {
                self.tell(walked, &path, Errno::EIO.into())?;
                continue;
            };
            let xattrs = self.xattrs(walked, &path, together)?;
            if is_folder(&attr) {
                let entered = Entered { path, attr, xattrs };
                folders.push(Step::Enter(Waiting { entered, fetched: None }));
                continue;
            }
            let here = self.files.small(&mut small, index);
            let target = entry.target.as_ref();
            let item = Item { path: &path, attr: &attr, target, xattrs: &xattrs };
            let done = self.one(&item, here);
            self.note(walked, &path, done)?;
        }
        steps.extend(folders.into_iter().rev());
        Ok(())
    }

    /// Anything but a folder; of a small file what it holds may be `here`.
    fn one(&mut self, item: &Item, here: Option<Box<[u8]>>) -> Result<(), Trouble> {
        let kind = item.attr.mode & libc::S_IFMT;
        let number = (item.attr.volume, item.attr.ino);
        if item.attr.nlink > 1
            && let Some(first) = self.links.get(&number)
        {
            return self.sink.link(item, first);
        }
        match kind {
            libc::S_IFREG if self.wants.contents => match here {
                Some(bytes) => self.sink.file(item, &Contents::here(&bytes))?,
                None => self.sink.file(item, &self.files.contents(item.path, item.attr))?,
            },
            libc::S_IFREG => self.sink.file(item, &Contents::here(&[]))?,
            libc::S_IFLNK if item.target.is_none() => return Err(Errno::EIO.into()),
            _ => self.sink.other(item)?,
        }
        if item.attr.nlink > 1 {
            self.links.insert(number, item.path.clone());
        }
        Ok(())
    }

    /// The extended attributes of a file, those among them that did not come `together` with
    /// others'. What cannot be had is left out: they are of many kinds, and few count. That they
    /// cannot be listed is told, unless there are none on such a filesystem.
    fn xattrs(
        &mut self,
        walked: &mut Walked,
        path: &GuestPath,
        together: Option<Vec<Xattr>>,
    ) -> Result<Xattrs, Trouble> {
        if !self.wants.xattrs {
            return Ok(Vec::new());
        }
        let mut trouble = None;
        let guest = &self.files.shared.guest;
        let alone = |name: &[u8]| guest.get_xattr(path.clone(), name).ok();
        let mut xattrs: Xattrs = match together {
            Some(xattrs) => {
                let values = xattrs.into_iter().filter_map(|Xattr { name, value }| {
                    let name = name.as_bytes().to_vec();
                    let value = match value {
                        Some(value) => value.as_bytes().to_vec(),
                        None => alone(&name)?,
                    };
                    Some((name, value))
                });
                values.collect()
            }
            None => {
                let names = guest.list_xattr(path.clone()).unwrap_or_else(|errno| {
                    trouble = Some(errno).filter(|errno| *errno != Errno::EOPNOTSUPP);
                    Vec::new()
                });
                let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
                names.filter_map(|name| Some((name.to_vec(), alone(name)?))).collect()
            }
        };
        xattrs.sort();
        if let Some(errno) = trouble {
            self.tell(walked, path, errno.into())?;
        }
        Ok(xattrs)
    }

    fn note(
        &mut self,
        walked: &mut Walked,
        path: &GuestPath,
        done: Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        walked.files += 1;
        match done {
            Ok(()) => Ok(()),
            Err(trouble) => self.tell(walked, path, trouble),
        }
    }

    fn tell(
        &mut self,
        walked: &mut Walked,
        path: &GuestPath,
        trouble: Trouble,
    ) -> Result<(), Trouble> {
        if trouble.is_final() {
            return Err(trouble);
        }
        walked.troubles += 1;
        self.sink.trouble(path, &trouble);
        Ok(())
    }
}

/// Whether a folder is one of those that it is in, as a damaged filesystem can have it. There would
/// be no end to it.
fn is_in_itself(attr: &Attr, steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Leave(above) => {
            attr.ino != 0 && (above.attr.volume, above.attr.ino) == (attr.volume, attr.ino)
        }
        Step::Enter(_) => false,
    })
}

fn is_folder(attr: &Attr) -> bool {
    attr.mode & libc::S_IFMT == libc::S_IFDIR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_itself_is_known_from_its_neighbours() {
        let folder = |volume, ino| Attr { volume, ino, ..Attr::default() };
        let entered = |attr| Entered { path: GuestPath::root(), attr, xattrs: Vec::new() };
        let waiting = |attr| Waiting { entered: entered(attr), fetched: None };
        let steps = [Step::Leave(entered(folder(0, 2))), Step::Enter(waiting(folder(0, 5)))];
        let table = [((0, 2), true), ((1, 2), false), ((0, 5), false), ((0, 9), false)];
        for ((volume, ino), expected) in table {
            assert_eq!(is_in_itself(&folder(volume, ino), &steps), expected);
        }
    }
}
