//! What is kept of the folders that the kernel reads, so that a question about one file brings
//! the answers for its neighbours: their contents where they are small, their extended attributes.
//! Who goes from folder to folder finds the next ones listed.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use guestmnt_protocol::attr::Following;
use guestmnt_protocol::batch::{Numbered, Plain, Stored, Wanted};
use guestmnt_protocol::path::{EntryName, GuestPath};
use guestmnt_protocol::xattr::XattrName;
use log::debug;
use nix::errno::Errno;

use super::directory::{FIRST_PAGE, Page};
use super::layouts::Disks;
use super::listing::{Listing, ORDERS, Order};
use super::nodes::{Entry, Lifetime};
use super::recent::Recent;
use super::small_files::{Arrived, Habit, SmallFiles, Source, wanted};
use super::stats::Way;
use super::walk::{FirstPage, Spot, Walk};
use super::xattrs::{Absences, Known, Place, Xattrs};
use crate::guest::{Contents, Guest};

/// Bytes that all that is kept may take.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Folders that are listed ahead: while the kernel takes one, the guest is busy with the next.
const LISTED_AHEAD: usize = 2;

/// All folders of a mount.
pub struct Folders {
    shared: Arc<Shared>,
    /// Batches that nobody waits for yet; `None` where there is no thread to fetch them.
    background: Option<Sender<Batch>>,
}

struct Shared {
    guest: Arc<Guest>,
    disks: Disks,
    state: Mutex<State>,
    /// Signalled when contents or pages have arrived.
    arrived: Condvar,
}

struct State {
    folders: Recent<Lifetime, Folder>,
    habit: Habit,
    walk: Walk,
    /// Whether a thread lists what the walk wants.
    is_listing: bool,
    absences: Absences,
    /// Whether files of a volume are where the guest says.
    believed: HashMap<u16, bool>,
}

struct Folder {
    path: GuestPath,
    /// Where it is; `None` for the root.
    spot: Option<Spot>,
    listing: Listing,
    files: SmallFiles,
    xattrs: Xattrs,
}

/// Files whose contents are fetched together.
struct Batch {
    key: Lifetime,
    volume: u16,
    path: GuestPath,
    files: Vec<Wanted>,
}

impl Folders {
    /// Those of `guest`, whose disks are `disks`; nothing known yet.
    pub fn new(guest: Arc<Guest>, disks: Disks) -> Self {
        let state = State {
            folders: Recent::new(MAX_BYTES),
            habit: None,
            walk: Walk::default(),
            is_listing: false,
            absences: Absences::default(),
            believed: HashMap::new(),
        };
        let shared = Shared { guest, disks, state: Mutex::new(state), arrived: Condvar::new() };
        let shared = Arc::new(shared);
        let background = Arc::clone(&shared);
        let (sender, batches) = channel::<Batch>();
        // It ends when the sender is dropped, and nobody waits for that: a batch that no longer
        // interests anyone may take as long as the guest does.
        let started = thread::Builder::new().name("batches".to_owned()).spawn(move || {
            batches.into_iter().for_each(|batch| background.fetch(batch));
        });
        let sender = match started {
            Ok(_) => Some(sender),
            Err(error) => {
                debug!("small files are not read ahead: {error}");
                None
            }
        };
        Self { shared, background: sender }
    }

    /// The page of the folder at `path` that begins at the position `from`, of at most `size` bytes.
    /// `entry` is the folder itself in the one that it is in, unless it is the root.
    ///
    /// # Errors
    /// As [`Guest::read_dir`].
    pub fn page(
        &self,
        folder: Lifetime,
        path: &GuestPath,
        entry: Option<Entry>,
        from: u64,
        size: u32,
    ) -> Result<Page, Errno> {
        let spot = entry.map(|entry| Spot { folder: entry.folder, name: entry.name });
        let begun = spot.as_ref().filter(|_| from == 0);
        let page = match begun.and_then(|spot| self.shared.listed_ahead(spot)) {
            Some(page) => page,
            None => self.shared.guest.read_dir(path.clone(), from, size)?,
        };
        self.note(folder, path, spot, from, &page);
        Ok(page)
    }

    fn note(
        &self,
        key: Lifetime,
        path: &GuestPath,
        spot: Option<Spot>,
        from: u64,
        (entries, following): &Page,
    ) {
        let mut state = self.shared.lock();
        state.folder(key, path);
        state.change(key, |folder| {
            folder.spot = spot;
            folder.listing.add(from, entries, *following);
        });
        if *following == Following::Nothing {
            state.plan(key);
        }
        if state.walk.is_wanting() && !state.is_listing {
            let shared = Arc::clone(&self.shared);
            let lister = thread::Builder::new().name("lister".to_owned());
            // Where there is no thread, who comes to these folders has them listed.
            state.is_listing = lister.spawn(move || shared.list_wanted()).is_ok();
        }
    }

    /// Replaces `buffer` by up to `size` bytes at `offset` of a file, fewer only at its end, if it
    /// is one that is fetched with others, and tells the way that they took. Waits for it if it is
    /// on its way. `None` where it has to be read by itself; `buffer` holds nothing of use then.
    pub fn read(&self, file: &Entry, offset: u64, size: u32, buffer: &mut Vec<u8>) -> Option<Way> {
        match self.contents(file, offset, size)? {
            Arrived::Bytes(bytes) => {
                buffer.clear();
                buffer.extend_from_slice(&bytes[part(bytes.len(), offset, size)]);
                Some(Way::Batch)
            }
            Arrived::Stored(stored) => {
                let done = self.shared.read_stored(&stored, offset, size, buffer);
                if let Err(error) = &done {
                    debug!("a small file is not where the guest says: {error}");
                    self.shared.lock().change(file.folder, |folder| {
                        let index = folder.listing.find(&file.name);
                        index.into_iter().for_each(|index| folder.files.misplaced(index));
                    });
                }
                done.is_ok().then_some(Way::Disk)
            }
        }
    }

    /// All of a file of which the kernel reads `size` bytes from `offset` on.
    fn contents(&self, file: &Entry, offset: u64, size: u32) -> Option<Arrived> {
        let (key, volume) = (file.folder, file.volume);
        let end = usize::try_from(offset.saturating_add(size.into())).unwrap_or(usize::MAX);
        let mut state = self.shared.lock();
        loop {
            let State { folders, habit, .. } = &mut *state;
            let folder = folders.get(&key)?;
            let index = folder.listing.find(&file.name)?;
            let found = match folder.files.source(&mut folder.listing, index, offset, habit) {
                Source::Guest => return None,
                Source::Coming => {
                    state = self.shared.arrived.wait(state).expect(Shared::UNPOISONED);
                    continue;
                }
                Source::Batch(batch) => {
                    let batch = folder.batch(key, volume, &batch);
                    drop(state);
                    self.shared.fetch(batch);
                    state = self.shared.lock();
                    continue;
                }
                Source::Stored(stored) => Arrived::Stored(stored),
                Source::Here(bytes) => {
                    folder.files.given(index, end);
                    Arrived::Bytes(bytes)
                }
            };
            if let Some(background) = &self.background
                && let Some(next) = folder.files.next_batch(&mut folder.listing)
            {
                // The thread that takes it lives as long as this sender.
                let _ = background.send(folder.batch(key, volume, &next));
            }
            return Some(found);
        }
    }

    /// The names of a file's extended attributes, each with a NUL behind it. `None` where they
    /// have to be asked for by themselves.
    pub fn list_xattr(&self, file: &Entry) -> Option<Result<Vec<u8>, Errno>> {
        self.with_xattrs(file, |xattrs| xattrs.list(&file.name))
    }

    /// The value of a file's extended attribute; `alone` asks for it by itself.
    ///
    /// # Errors
    /// Those of `alone`.
    pub fn get_xattr(
        &self,
        file: &Entry,
        name: XattrName,
        alone: impl FnOnce() -> Result<Vec<u8>, Errno>,
    ) -> Result<Vec<u8>, Errno> {
        match self.with_xattrs(file, |xattrs| Some(xattrs.find(&file.name, &name))) {
            Some(Known::Value(value)) => Ok(value),
            Some(Known::Absent) => {
                let place = Place { volume: file.volume, kind: file.kind, name };
                let known = self.shared.lock().absences.get(&place);
                match known {
                    Some(errno) => Err(errno),
                    None => {
                        alone().inspect_err(|errno| self.shared.lock().absences.note(place, *errno))
                    }
                }
            }
            Some(Known::Nothing) | None => alone(),
        }
    }

    /// Looks at the attributes of a file, after fetching those of its neighbours with them if
    /// need be. `None` where that is not possible.
    fn with_xattrs<T>(&self, file: &Entry, look: impl FnOnce(&Xattrs) -> Option<T>) -> Option<T> {
        let key = file.folder;
        let mut state = self.shared.lock();
        let folder = state.folder(key, &file.folder_path);
        if !folder.xattrs.is_known(&file.name) {
            let asked = folder.xattrs.batch(&file.name, &folder.listing);
            drop(state);
            let path = file.folder_path.clone();
            let files = self.shared.guest.read_xattrs(path, asked.clone()).ok()?;
            state = self.shared.lock();
            state.folder(key, &file.folder_path);
            state.change(key, |folder| {
                for (Numbered { name, .. }, xattrs) in asked.into_iter().zip(files) {
                    folder.xattrs.arrived(name, xattrs);
                }
            });
        }
        look(&state.folders.get(&key)?.xattrs)
    }
}

impl Shared {
    const UNPOISONED: &str = "nothing panics while it holds the folders";

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(Self::UNPOISONED)
    }

    /// The first page of a folder that somebody begins to read, if it was listed ahead. Waits for it
    /// if it is on its way.
    fn listed_ahead(&self, spot: &Spot) -> Option<Page> {
        let mut state = self.lock();
        loop {
            match state.walk.first_page(spot) {
                FirstPage::Here(page) => return Some(page),
                FirstPage::Guest => return None,
                FirstPage::Coming if !state.is_listing => return None,
                FirstPage::Coming => state = self.arrived.wait(state).expect(Self::UNPOISONED),
            }
        }
    }

    /// Lists what is wanted, until nothing is.
    fn list_wanted(&self) {
        let mut state = self.lock();
        while let Some((spot, path)) = state.walk.next_wanted() {
            drop(state);
            let page = self.guest.read_dir(path, 0, FIRST_PAGE).ok();
            state = self.lock();
            state.walk.listed(&spot, page);
            self.arrived.notify_all();
        }
        state.is_listing = false;
        // Whoever waits for a page that is not kept any more asks for it.
        self.arrived.notify_all();
    }

    /// Has the guest read a batch, and wakes those who wait for its files.
    fn fetch(&self, batch: Batch) {
        let Batch { key, volume, path, files } = batch;
        let names: Vec<EntryName> = files.iter().map(|wanted| wanted.file.name.clone()).collect();
        let believed = self.lock().believed.get(&volume).copied();
        let readable = self.disks.iter().any(Option::is_some) && believed != Some(false);
        let plain = if readable { Plain::Places } else { Plain::Bytes };
        let mut arrived: Vec<Result<Arrived, Errno>> = Vec::with_capacity(names.len());
        let result = self.guest.read_files(path.clone(), plain, files, |_, contents| {
            arrived.push(contents.map(|contents| match contents {
                Contents::Bytes(bytes) => Arrived::Bytes(bytes.into()),
                Contents::Stored(stored) => Arrived::Stored(stored),
            }));
        });
        let believed = believed.or_else(|| self.judge(&path, &names, &arrived));
        let mut state = self.lock();
        state.believed.extend(believed.map(|believed| (volume, believed)));
        state.change(key, |Folder { listing, files, .. }| {
            let mut arrived = arrived.into_iter();
            for name in &names {
                let file = arrived.next();
                // What was kept of the folder may be another listing by now.
                let Some(index) = listing.find(name) else { continue };
                match file {
                    Some(Ok(Arrived::Stored(_))) if believed != Some(true) => files.failed(index),
                    Some(file) => files.arrived(listing, index, file),
                    None => files.failed(index),
                }
            }
        });
        drop(state);
        if let Err(errno) = result {
            debug!("a batch of small files failed: {errno}");
        }
        self.arrived.notify_all();
    }

    /// Whether the first of these files that is said to be on a disk has the same bytes there as
    /// the guest gives. `None` where there is none.
    fn judge(
        &self,
        folder: &GuestPath,
        names: &[EntryName],
        files: &[Result<Arrived, Errno>],
    ) -> Option<bool> {
        let mut files = names.iter().zip(files);
        let (name, stored) = files.find_map(|(name, file)| match file {
            Ok(Arrived::Stored(stored)) => Some((name, stored)),
            _ => None,
        })?;
        let path = folder.join(name).ok()?;
        let mut here = Vec::new();
        let read = self.read_stored(stored, 0, stored.length, &mut here);
        // A copy: what is looked at must not change meanwhile.
        let theirs = self.guest.read(path, 0, stored.length, <[u8]>::to_vec).ok()?;
        let same = read.is_ok() && here == theirs;
        if !same {
            debug!("small files are not where the guest says");
        }
        Some(same)
    }

    /// Replaces `buffer` by up to `size` bytes at `offset` of a file that is on a disk.
    fn read_stored(
        &self,
        stored: &Stored,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let disk = self.disks.get(usize::from(stored.disk)).and_then(Option::as_ref);
        let disk = disk.ok_or(io::ErrorKind::Unsupported)?;
        let part = part(stored.length as usize, offset, size);
        let start = stored.place.checked_add(part.start as u64);
        buffer.resize(part.len(), 0);
        disk.read(buffer, start.ok_or(io::ErrorKind::InvalidInput)?)
    }
}

/// The part of a file of `length` bytes that `size` bytes from `offset` on are.
fn part(length: usize, offset: u64, size: u32) -> Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(length);
    start..length.min(start.saturating_add(size as usize))
}

impl State {
    /// What is kept of a folder, nothing yet where it is new.
    fn folder(&mut self, key: Lifetime, path: &GuestPath) -> &mut Folder {
        if self.folders.get(&key).is_none() {
            self.folders.insert(key, Folder::new(path.clone()));
        }
        self.folders.get(&key).expect("put there if it was not")
    }

    /// All that is in the folder `key` is known: notes where programs come to next from there, and
    /// has that listed for who goes through the tree.
    fn plan(&mut self, key: Lifetime) {
        for order in ORDERS {
            let next = self.next_folders(key, order, 1).pop();
            self.walk.expect(order, next.map(|(spot, _)| spot));
        }
        if let Some(order) = self.walk.order() {
            for (spot, path) in self.next_folders(key, order, LISTED_AHEAD) {
                self.walk.want(spot, path);
            }
        }
    }

    /// The folders that come after `key` in a walk in this order, at most `count`: those in it, then
    /// those behind it, then those behind the one that it is in.
    fn next_folders(
        &mut self,
        key: Lifetime,
        order: Order,
        count: usize,
    ) -> Vec<(Spot, GuestPath)> {
        let mut next = Vec::new();
        let (mut key, mut behind) = (key, None);
        // A folder is known before those in it, so this ends.
        while let Some(Folder { path, spot, listing, .. }) = self.folders.get(&key) {
            let indices = listing.folders(order, behind.as_ref());
            let indices: Vec<usize> = indices.iter().copied().take(count - next.len()).collect();
            for name in indices.into_iter().map(|index| listing.name(index)) {
                let spot = Spot { folder: key, name: name.clone() };
                next.extend(path.join(name).ok().map(|path| (spot, path)));
            }
            match spot {
                Some(spot) if next.len() < count => {
                    behind = Some(spot.name.clone());
                    key = spot.folder;
                }
                _ => break,
            }
        }
        next
    }

    /// Changes what is kept of a folder, if it is kept, and makes room for what that takes.
    fn change(&mut self, key: Lifetime, change: impl FnOnce(&mut Folder)) {
        let Some(folder) = self.folders.get(&key) else { return };
        change(folder);
        let bytes = folder.bytes();
        self.folders.weigh(&key, bytes);
    }
}

impl Folder {
    fn new(path: GuestPath) -> Self {
        Self {
            path,
            spot: None,
            listing: Listing::default(),
            files: SmallFiles::default(),
            xattrs: Xattrs::default(),
        }
    }

    fn batch(&self, key: Lifetime, volume: u16, files: &[usize]) -> Batch {
        Batch { key, volume, path: self.path.clone(), files: wanted(&self.listing, files) }
    }

    /// Bytes that it takes, roughly.
    fn bytes(&self) -> usize {
        let own = 1024 + self.path.as_bytes().len();
        own + self.listing.bytes() + self.files.bytes() + self.xattrs.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_within_the_file_whatever_the_numbers() {
        for offset in [0, 1, 9, 10, 11, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            for size in [0, 1, 9, 10, u32::MAX] {
                let end = u128::from(offset) + u128::from(size);
                let expected = (0..10u128).filter(|n| (u128::from(offset)..end).contains(n));
                let found = part(10, offset, size).map(|n| n as u128);
                assert!(found.eq(expected), "{size} bytes at {offset}");
            }
        }
    }
}
