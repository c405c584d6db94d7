//! What is kept of the folders that the kernel reads, so that a question about one file brings
//! the answers for its neighbours: their contents where they are small, their extended attributes.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use guestmnt_protocol::batch::Wanted;
use guestmnt_protocol::path::{EntryName, GuestPath};
use guestmnt_protocol::xattr::XattrName;
use log::debug;
use nix::errno::Errno;

use super::directory::Page;
use super::listing::Listing;
use super::nodes::{Entry, Lifetime};
use super::recent::Recent;
use super::small_files::{SmallFiles, Source, wanted};
use super::xattrs::{Absences, Known, Place, Xattrs};
use crate::guest::Guest;

/// Bytes that all that is kept may take.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// All folders of a mount.
pub struct Folders {
    shared: Arc<Shared>,
    /// Batches that nobody waits for yet; `None` where there is no thread to fetch them.
    background: Option<Sender<Batch>>,
}

struct Shared {
    guest: Arc<Guest>,
    state: Mutex<State>,
    /// Signalled when contents have arrived.
    arrived: Condvar,
}

struct State {
    folders: Recent<Lifetime, Folder>,
    absences: Absences,
}

struct Folder {
    path: GuestPath,
    listing: Listing,
    files: SmallFiles,
    xattrs: Xattrs,
}

/// Files whose contents are fetched together.
struct Batch {
    key: Lifetime,
    path: GuestPath,
    files: Vec<Wanted>,
}

impl Folders {
    /// Those of `guest`, nothing known yet.
    pub fn new(guest: Arc<Guest>) -> Self {
        let state = State { folders: Recent::new(MAX_BYTES), absences: Absences::default() };
        let shared = Shared { guest, state: Mutex::new(state), arrived: Condvar::new() };
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

    /// Notes the page of a folder that begins at the position `from`.
    pub fn note(&self, folder: Lifetime, path: &GuestPath, from: u64, page: &Page) {
        let mut state = self.shared.lock();
        if state.folders.get(&folder).is_none() {
            if from != 0 {
                return;
            }
            state.folders.insert(folder, Folder::new(path.clone()));
        }
        let (entries, following) = page;
        state.change(folder, |folder| folder.listing.add(from, entries, *following));
    }

    /// All contents of a file of which the kernel reads `size` bytes from `offset` on, if it is one
    /// that is fetched with others. Waits for them if they are on their way.
    pub fn contents(&self, file: &Entry, offset: u64, size: u32) -> Option<Arc<[u8]>> {
        let key = file.folder;
        let end = usize::try_from(offset.saturating_add(size.into())).unwrap_or(usize::MAX);
        let mut state = self.shared.lock();
        loop {
            let folder = state.folders.get(&key)?;
            let index = folder.listing.find(&file.name)?;
            match folder.files.source(&mut folder.listing, index, offset) {
                Source::Guest => return None,
                Source::Coming => {
                    state = self.shared.arrived.wait(state).expect(Shared::UNPOISONED);
                }
                Source::Batch(batch) => {
                    let batch = folder.batch(key, &batch);
                    drop(state);
                    self.shared.fetch(batch);
                    state = self.shared.lock();
                }
                Source::Here(bytes) => {
                    folder.files.given(index, end);
                    if let Some(background) = &self.background
                        && let Some(next) = folder.files.next_batch(&mut folder.listing)
                    {
                        // The thread that takes it lives as long as this sender.
                        let _ = background.send(folder.batch(key, &next));
                    }
                    return Some(bytes);
                }
            }
        }
    }

    /// The names of a file's extended attributes, each with a NUL behind it. `None` where they
    /// have to be asked for by themselves.
    pub fn list_xattr(&self, file: &Entry) -> Option<Result<Vec<u8>, Errno>> {
        self.with_xattrs(file, Xattrs::list)
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
        match self.with_xattrs(file, |xattrs, index| Some(xattrs.find(index, &name))) {
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
        file: &Entry,
        look: impl FnOnce(&Xattrs, usize) -> Option<T>,
    ) -> Option<T> {
        let key = file.folder;
        let mut state = self.shared.lock();
        let folder = state.folders.get(&key)?;
        let index = folder.listing.find(&file.name)?;
        if !folder.xattrs.is_known(index) {
            let batch = folder.xattrs.batch(index, folder.listing.len());
            let batch = folder.listing.nameable(batch);
            let names: Vec<EntryName> =
                batch.into_iter().map(|index| folder.listing.name(index).clone()).collect();
            let path = folder.path.clone();
            drop(state);
            let files = self.shared.guest.read_xattrs(path, names.clone()).ok()?;
            state = self.shared.lock();
            state.change(key, |folder| {
                for (name, xattrs) in names.iter().zip(files) {
                    // What was kept of the folder may be another listing by now.
                    if let Some(index) = folder.listing.find(name) {
                        folder.xattrs.arrived(index, xattrs);
                    }
                }
            });
        }
        let folder = state.folders.get(&key)?;
        look(&folder.xattrs, folder.listing.find(&file.name)?)
    }
}

impl Shared {
    const UNPOISONED: &str = "nothing panics while it holds the folders";

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(Self::UNPOISONED)
    }

    /// Has the guest read a batch, and wakes those who wait for its files.
    fn fetch(&self, batch: Batch) {
        let Batch { key, path, files } = batch;
        let names: Vec<EntryName> = files.iter().map(|wanted| wanted.name.clone()).collect();
        let result = self.guest.read_files(path, files, |index, bytes| {
            self.lock().change(key, |Folder { listing, files, .. }| {
                // What was kept of the folder may be another listing by now.
                if let Some(index) = listing.find(&names[index]) {
                    files.arrived(listing, index, bytes);
                }
            });
        });
        if result.is_err() {
            self.lock().change(key, |Folder { listing, files, .. }| {
                names.iter().filter_map(|name| listing.find(name)).for_each(|n| files.failed(n));
            });
        }
        self.arrived.notify_all();
    }
}

impl State {
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
            listing: Listing::default(),
            files: SmallFiles::default(),
            xattrs: Xattrs::default(),
        }
    }

    fn batch(&self, key: Lifetime, files: &[usize]) -> Batch {
        Batch { key, path: self.path.clone(), files: wanted(&self.listing, files) }
    }

    /// Bytes that it takes, roughly.
    fn bytes(&self) -> usize {
        let own = 1024 + self.path.as_bytes().len();
        own + self.listing.bytes() + self.files.bytes() + self.xattrs.bytes()
    }
}
