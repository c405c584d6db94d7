//! All that is needed of a folder, fetched with as few requests as it takes: its entries, their
//! extended attributes, what its small files hold.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};

use guestmnt_protocol::attr::{Attr, DirEntry};
use guestmnt_protocol::batch::{Numbered, Plain, Planned, Stored, Wanted};
use guestmnt_protocol::limits::MAX_SMALL_FILE;
use guestmnt_protocol::path::{EntryName, GuestPath, LinkTarget};
use guestmnt_protocol::xattr::Xattr;
use log::debug;
use nix::errno::Errno;

use super::pool::{Awaited, Pool};
use super::{Entries, Files, Shared};
use crate::fs::layouts::varies;
use crate::guest::Contents;

/// Files whose extended attributes are asked for at once.
const XATTRS_AT_ONCE: usize = 256;

/// Small files that are asked for at once.
const FILES_AT_ONCE: usize = 512;

/// What is wanted beside the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Extended attributes.
    pub xattrs: bool,
    /// What files hold.
    pub contents: bool,
}

/// A folder.
pub struct Folder {
    /// By name.
    pub entries: Vec<DirEntry>,
    /// The error that ended the listing; names may be missing then.
    pub error: Option<Errno>,
    /// Of each entry; `None` where they were not wanted or could not be had together.
    pub xattrs: Vec<Option<Vec<Xattr>>>,
    /// What is in the small ones.
    pub small: SmallFiles,
}

/// Bytes of files, by their places among the entries.
type Batch = Vec<(usize, Box<[u8]>)>;

/// Files to be asked for at once, by their places among the entries. All are on one volume.
type Asked = Vec<(usize, Wanted, u16)>;

/// What small files hold: the batch that is being used, and those that follow.
pub struct SmallFiles {
    path: GuestPath,
    here: VecDeque<(usize, Box<[u8]>)>,
    /// The next one, and the place of its first file.
    coming: Option<(usize, Awaited<Batch>)>,
    later: VecDeque<Asked>,
}

impl Files {
    /// Begins to fetch the folder at `path`.
    pub(super) fn fetch_folder(
        &self,
        path: GuestPath,
        wants: Wants,
    ) -> Awaited<Result<Folder, Errno>> {
        let shared = Arc::clone(&self.shared);
        self.pool.run(move || shared.folder(path, wants))
    }

    /// What the entry `index` holds, if it was fetched with others. Entries are asked for in their
    /// order.
    pub(super) fn small(&self, small: &mut SmallFiles, index: usize) -> Option<Box<[u8]>> {
        if small.coming.is_none() {
            small.ask(&self.shared, &self.pool);
        }
        loop {
            while small.here.front().is_some_and(|(at, _)| *at <= index) {
                let (at, bytes) = small.here.pop_front()?;
                if at == index {
                    return Some(bytes);
                }
            }
            let (_, coming) = small.coming.take_if(|(first, _)| *first <= index)?;
            small.here.extend(coming.wait().unwrap_or_default());
            small.ask(&self.shared, &self.pool);
        }
    }
}

impl SmallFiles {
    /// Has the next batch fetched.
    fn ask(&mut self, shared: &Arc<Shared>, pool: &Pool) {
        let Some(asked) = self.later.pop_front() else { return };
        let Some(&(first, ..)) = asked.first() else { return };
        let (shared, path) = (Arc::clone(shared), self.path.clone());
        self.coming = Some((first, pool.run(move || shared.batch(&path, &asked))));
    }
}

impl Shared {
    fn folder(&self, path: GuestPath, wants: Wants) -> Result<Folder, Errno> {
        let Entries { all: mut entries, error } = self.entries(&path)?;
        self.add_targets(&path, &mut entries);
        let files = || entries.iter().map(numbered).collect();
        let xattrs = if wants.xattrs { self.xattrs(&path, files()) } else { Vec::new() };
        let mut later = if wants.contents { batches(&entries) } else { VecDeque::new() };
        let here = later.pop_front().map(|asked| self.batch(&path, &asked)).unwrap_or_default();
        let small = SmallFiles { path, here: here.into(), coming: None, later };
        Ok(Folder { entries, error, xattrs, small })
    }

    /// Asks for the targets that the folder did not bring along: of links of Windows.
    fn add_targets(&self, folder: &GuestPath, entries: &mut [DirEntry]) {
        let is_link = |attr: Attr| attr.mode & libc::S_IFMT == libc::S_IFLNK;
        let lacking =
            |entry: &&mut DirEntry| entry.target.is_none() && entry.attr.is_some_and(is_link);
        for entry in entries.iter_mut().filter(lacking) {
            let target = folder.join(&entry.name).ok().map(|path| self.guest.read_link(path));
            entry.target = target.and_then(|target| LinkTarget::new(&target.ok()?).ok());
        }
    }

    /// The extended attributes of all files of a folder.
    fn xattrs(&self, folder: &GuestPath, files: Vec<Numbered>) -> Vec<Option<Vec<Xattr>>> {
        let mut all = Vec::with_capacity(files.len());
        while all.len() < files.len() {
            let rest = &files[all.len()..];
            let asked = rest[..rest.len().min(XATTRS_AT_ONCE)].to_vec();
            match self.guest.read_xattrs(folder.clone(), asked) {
                Ok(found) => all.extend(found.into_iter().map(Result::ok)),
                Err(errno) => {
                    debug!("attributes have to be asked for one by one: {errno}");
                    break;
                }
            }
        }
        all
    }

    /// What small files of a folder hold. Those that cannot be had together are left out.
    fn batch(&self, folder: &GuestPath, wanted: &[(usize, Wanted, u16)]) -> Batch {
        let Some(&(_, _, volume)) = wanted.first() else { return Vec::new() };
        let doubted = self.believed().get(&volume) == Some(&false);
        let plain = if doubted || self.disks.is_empty() { Plain::Bytes } else { Plain::Places };
        let mut arrived = Vec::with_capacity(wanted.len());
        let files = wanted.iter().map(|(_, wanted, _)| wanted.clone()).collect();
        let done = self.guest.read_files(folder.clone(), plain, files, |n, contents| {
            let (index, wanted, _) = &wanted[n];
            match contents {
                // A file that is not as long as its attributes say is read by itself.
                Ok(Contents::Bytes(bytes)) if bytes.len() == wanted.size as usize => {
                    arrived.push((*index, Arrived::Bytes(bytes.into())));
                }
                Ok(Contents::Stored(stored)) => {
                    arrived.push((*index, Arrived::Stored(wanted.file.name.clone(), stored)));
                }
                Ok(Contents::Bytes(_)) | Err(_) => {}
            }
        });
        if let Err(errno) = done {
            debug!("small files have to be read one by one: {errno}");
        }
        let bytes = arrived.into_iter().filter_map(|(index, arrived)| {
            let bytes = match arrived {
                Arrived::Bytes(bytes) => bytes,
                Arrived::Stored(name, stored) => self.stored(folder, &name, &stored, volume)?,
            };
            Some((index, bytes))
        });
        bytes.collect()
    }

    /// The bytes of a small file on a disk; the first of a volume that tell something of their place
    /// must be those that the guest gives.
    fn stored(
        &self,
        folder: &GuestPath,
        name: &EntryName,
        stored: &Stored,
        volume: u16,
    ) -> Option<Box<[u8]>> {
        let known = self.believed().get(&volume).copied();
        if known == Some(false) {
            return None;
        }
        let disk = self.disks.get(usize::from(stored.disk))?.as_ref()?;
        let mut bytes = vec![0; stored.length as usize];
        disk.read(&mut bytes, stored.place).ok()?;
        if known.is_none() {
            let path = folder.join(name).ok()?;
            // A copy: what is looked at must not change meanwhile.
            let theirs = self.guest.read(path, 0, stored.length, <[u8]>::to_vec).ok()?;
            let same = theirs == bytes;
            if !same {
                debug!("small files are not where the guest says");
            }
            if !same || varies(&bytes) {
                self.believed().insert(volume, same);
            }
            return Some(theirs.into());
        }
        Some(bytes.into())
    }

    fn believed(&self) -> MutexGuard<'_, HashMap<u16, bool>> {
        // An insertion is all or nothing.
        self.believed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Arrived {
    Bytes(Box<[u8]>),
    Stored(EntryName, Stored),
}

/// The size of a file that is fetched with others.
fn small(attr: &Attr) -> Option<u32> {
    let size = u32::try_from(attr.size).ok()?;
    let is_small = (1..=MAX_SMALL_FILE).contains(&(size as usize));
    (attr.mode & libc::S_IFMT == libc::S_IFREG && is_small).then_some(size)
}

/// An entry, to be asked about.
fn numbered(entry: &DirEntry) -> Numbered {
    Numbered { name: entry.name.clone(), number: entry.attr.map_or(0, |attr| attr.ino) }
}

/// The entries, put into batches.
fn batches(entries: &[DirEntry]) -> VecDeque<Asked> {
    let mut batches: VecDeque<Asked> = VecDeque::new();
    let mut planned = Planned::default();
    for (index, entry) in entries.iter().enumerate() {
        let Some((attr, size)) = entry.attr.and_then(|attr| Some((attr, small(&attr)?))) else {
            continue;
        };
        let wanted = (index, Wanted { file: numbered(entry), size }, attr.volume);
        match batches.back_mut().filter(|batch| batch.len() < FILES_AT_ONCE && planned.add(size)) {
            Some(batch) => batch.push(wanted),
            None => {
                planned = Planned::default();
                // It fits by itself.
                planned.add(size);
                batches.push_back(vec![wanted]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: usize, size: u64, kind: u32) -> DirEntry {
        DirEntry {
            next: 0,
            name: EntryName::new(format!("{n:05}").as_bytes()).unwrap(),
            attr: Some(Attr { size, mode: kind, ..Attr::default() }),
            target: None,
        }
    }

    #[test]
    fn every_small_file_is_in_one_batch_and_none_is_too_large_for_a_payload() {
        let sizes = [0, 1, 512, 65_536, 65_537, 1 << 40];
        let file = |n| entry(n, sizes[n % sizes.len()], libc::S_IFREG);
        let mut entries: Vec<DirEntry> = (0..3000).map(file).collect();
        entries.extend((3000..3010).map(|n| entry(n, 100, libc::S_IFDIR)));
        let batches = batches(&entries);
        let mut all = Vec::new();
        for batch in &batches {
            let mut planned = Planned::default();
            assert!(batch.iter().all(|(_, wanted, _)| planned.add(wanted.size)));
            all.extend(batch.iter().map(|(index, ..)| *index));
        }
        let expected: Vec<usize> =
            (0..3000).filter(|n| (1..=3).contains(&(n % sizes.len()))).collect();
        assert_eq!(all, expected);
        assert!(batches.len() > 30);
    }

    #[test]
    fn a_folder_without_small_files_has_no_batches() {
        assert!(super::batches(&[]).is_empty());
        assert!(super::batches(&[entry(0, 0, libc::S_IFREG)]).is_empty());
    }
}
