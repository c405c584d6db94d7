//! What is kept of the folders that the kernel reads, so that a question about one file brings
//! the answers for its neighbours: their contents where they are small, their extended attributes.
//! Who goes from folder to folder finds the next ones listed.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use guestmnt_protocol::attr::Following;
use guestmnt_protocol::batch::Numbered;
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::xattr::XattrName;
use log::debug;
use nix::errno::Errno;

use super::batches::{self, Batch, Batches};
use super::directory::{FIRST_PAGE, Page};
use super::layouts::Disks;
use super::listing::{Listing, ORDERS, Order};
use super::nodes::{Entry, Lifetime};
use super::recent::Recent;
use super::small_files::{Arrived, Habit, SmallFiles, Source, wanted};
use super::stats::Way;
use super::walk::{FirstPage, Spot, Walk};
use super::xattrs::{Absences, Known, Place, Xattrs};
use crate::guest::Guest;

/// Bytes that all that is kept may take.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// Folders that are listed ahead: while the kernel takes one, the guest is busy with the next.
const LISTED_AHEAD: usize = 2;

/// All folders of a mount.
pub struct Folders {
    shared: Arc<Shared>,
    /// Whether a thread fetches batches that nobody waits for yet.
    in_background: bool,
}

pub(super) struct Shared {
    pub(super) guest: Arc<Guest>,
    pub(super) disks: Disks,
    state: Mutex<State>,
    /// Signalled when contents or pages have arrived.
    pub(super) arrived: Condvar,
    /// Signalled when a batch is planned, or none will be any more.
    pub(super) planned: Condvar,
}

pub(super) struct State {
    folders: Recent<Lifetime, Folder>,
    pub(super) batches: Batches,
    habit: Habit,
    walk: Walk,
    /// Whether a thread lists what the walk wants.
    is_listing: bool,
    absences: Absences,
    /// Whether files of a volume are where the guest says.
    pub(super) believed: HashMap<u16, bool>,
}

pub(super) struct Folder {
    path: GuestPath,
    /// Where it is; `None` for the root.
    spot: Option<Spot>,
    pub(super) listing: Listing,
    pub(super) files: SmallFiles,
    xattrs: Xattrs,
}

impl Folders {
    /// Those of `guest`, whose disks are `disks`; nothing known yet.
    pub fn new(guest: Arc<Guest>, disks: Disks) -> Self {
        let state = State {
            folders: Recent::new(MAX_BYTES),
            batches: Batches::default(),
            habit: None,
            walk: Walk::default(),
            is_listing: false,
            absences: Absences::default(),
            believed: HashMap::new(),
        };
        let (arrived, planned) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { guest, disks, state: Mutex::new(state), arrived, planned });
        let background = Arc::clone(&shared);
        // Nobody waits for its end: a batch that no longer interests anyone may take as long as the
        // guest does.
        let fetcher = thread::Builder::new().name("batches".to_owned());
        let started = fetcher.spawn(move || background.fetch_planned());
        if let Err(error) = &started {
            debug!("small files are not read ahead: {error}");
        }
        Self { shared, in_background: started.is_ok() }
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
                buffer.extend_from_slice(&bytes[batches::part(bytes.len(), offset, size)]);
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
            let State { folders, batches, habit, .. } = &mut *state;
            let folder = folders.get(&key)?;
            let index = folder.listing.find(&file.name)?;
            let found = match folder.files.source(&mut folder.listing, index, offset, habit) {
                Source::Guest => return None,
                Source::Coming => {
                    // What is fetched before it may be slow.
                    state = match state.batches.take_back(key, &file.name) {
                        Some(batch) => {
                            drop(state);
                            self.shared.fetch(batch);
                            self.shared.lock()
                        }
                        None => self.shared.arrived.wait(state).expect(Shared::UNPOISONED),
                    };
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
            if self.in_background
                && let Some(next) = folder.files.next_batch(&mut folder.listing)
            {
                batches.plan(folder.batch(key, volume, &next));
                self.shared.planned.notify_one();
            }
            return Some(found);
        }
    }

    /// The names of the extended attributes of a file of the folder at `path`, each with a NUL behind
    /// it. `None` where they have to be asked for by themselves.
    pub fn list_xattr(&self, path: &GuestPath, file: &Entry) -> Option<Result<Vec<u8>, Errno>> {
        self.with_xattrs(path, file, |xattrs| xattrs.list(&file.name))
    }

    /// The value of an extended attribute of a file of the folder at `path`; `alone` asks for it by
    /// itself.
    ///
    /// # Errors
    /// Those of `alone`.
    pub fn get_xattr(
        &self,
        path: &GuestPath,
        file: &Entry,
        name: XattrName,
        alone: impl FnOnce() -> Result<Vec<u8>, Errno>,
    ) -> Result<Vec<u8>, Errno> {
        match self.with_xattrs(path, file, |xattrs| Some(xattrs.find(&file.name, &name))) {
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
    fn with_xattrs<T>(
        &self,
        path: &GuestPath,
        file: &Entry,
        look: impl FnOnce(&Xattrs) -> Option<T>,
    ) -> Option<T> {
        let key = file.folder;
        let mut state = self.shared.lock();
        let folder = state.folder(key, path);
        if !folder.xattrs.is_known(&file.name) {
            let asked = folder.xattrs.batch(&file.name, &folder.listing);
            drop(state);
            let files = self.shared.guest.read_xattrs(path.clone(), asked.clone()).ok()?;
            state = self.shared.lock();
            state.folder(key, path);
            state.change(key, |folder| {
                for (Numbered { name, .. }, xattrs) in asked.into_iter().zip(files) {
                    folder.xattrs.arrived(name, xattrs);
                }
            });
        }
        look(&state.folders.get(&key)?.xattrs)
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        self.shared.lock().batches.end();
        self.shared.planned.notify_one();
    }
}

impl Shared {
    pub(super) const UNPOISONED: &str = "nothing panics while it holds the folders";

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
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
    pub(super) fn change(&mut self, key: Lifetime, change: impl FnOnce(&mut Folder)) {
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
