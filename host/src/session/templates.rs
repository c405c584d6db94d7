//! The user's templates: finds the one for a machine, makes it where there is none, removes
//! those that are not used any more.

use std::fmt;
use std::fs::{self, DirBuilder, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use log::{info, warn};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;

use super::boot::PORTS;
use super::launch::cache_folder;
use super::plan::DEFAULT_MEMORY_MIB;
use crate::guest::lane::Wait;
use crate::guest::{Guest, GuestError};
use crate::vm::accelerator::Accelerator;
use crate::vm::appliance::Appliance;
use crate::vm::confinement::Policy;
use crate::vm::processor::Processor;
use crate::vm::progress::Patience;
use crate::vm::template::{Publication, Template, TemplateError, TemplateKey};
use crate::vm::{Boot, Overlays, Started, Vm, VmConfig, VmError, bulk};

/// A template that was not used for so long is removed when a mount ends, or another one is made.
const EXPIRY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Templates that are kept, the ones used last: for some QEMUs, memory sizes and accelerators.
const KEPT: usize = 4;

/// Bytes that have to be free for another one; it takes some 150 MiB, and little less where the guest
/// has little memory. With less it is not even tried, since that would fail after seconds, and anew at
/// each mount.
const ROOM: u64 = 128 << 20;

/// Bytes that a disk which is not full takes.
const PROBE: usize = 1 << 20;

/// What all of them are in, in the cache folder.
const FOLDER: &str = "templates";

/// The bits of a mode by which others than the owner can write.
const OTHERS_WRITE: u32 = 0o022;

/// What the folders of templates that are being made begin with.
const UNFINISHED: &str = "making-";

/// Why there is no template.
#[derive(Debug)]
pub enum MakeError {
    /// The folder for it cannot be used, or there is no room in it. That says nothing of the machine.
    Folder(PathBuf, io::Error),
    /// QEMU failed.
    Vm(VmError),
    /// The guest did not get ready; with what was printed last.
    Guest(GuestError, Vec<String>),
}

impl fmt::Display for MakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder, error) => {
                write!(f, "cannot keep a template in {}: {error}", folder.display())
            }
            Self::Vm(error) => error.fmt(f),
            Self::Guest(error, last_words) => {
                error.fmt(f)?;
                last_words.iter().try_for_each(|line| write!(f, "\n    {line}"))
            }
        }
    }
}

impl std::error::Error for MakeError {}

impl From<VmError> for MakeError {
    fn from(error: VmError) -> Self {
        match error {
            VmError::Save(folder, error) => Self::Folder(folder, error),
            other => Self::Vm(other),
        }
    }
}

/// Whether a mount with `accelerator`, and else what is usual, would find a template.
#[must_use]
pub fn is_there(qemu: &Path, appliance: &Appliance, accelerator: Accelerator) -> bool {
    let config = VmConfig {
        qemu,
        appliance,
        accelerator,
        processor: &Processor::default(),
        memory_mib: DEFAULT_MEMORY_MIB,
        bulk: true,
        confinement: Policy::default(),
        lanes: PORTS,
    };
    let templates = cache_folder().and_then(|cache| Templates::in_cache(&cache).ok());
    let key = TemplateKey::of(&config).ok();
    templates.zip(key).is_some_and(|(templates, key)| templates.find(&key).is_ok())
}

/// Removes those in `cache` that have not been used for long, unless somebody makes one, who does so
/// as well. Where there are none, nothing is made for that.
pub fn remove_unused(cache: &Path) {
    if !cache.join(FOLDER).is_dir() {
        return;
    }
    let Ok(templates) = Templates::in_cache(cache) else { return };
    if let Some(_lock) = templates.lock_if_free() {
        templates.tidy(0);
    }
}

/// A folder of templates, the user's own.
pub struct Templates {
    folder: PathBuf,
}

impl Templates {
    /// Those in `templates` of the user's cache folder `cache`. What others could have put there is
    /// removed.
    ///
    /// # Errors
    /// [`MakeError::Folder`] where one of both is not a folder that only this user can change: what is
    /// restored from it runs, and reads the images.
    pub fn in_cache(cache: &Path) -> Result<Self, MakeError> {
        Self::of_user(cache, nix::unistd::geteuid())
    }

    fn of_user(cache: &Path, user: Uid) -> Result<Self, MakeError> {
        let refused = |folder: &Path, reason: &str| {
            MakeError::Folder(folder.to_owned(), io::Error::other(reason.to_owned()))
        };
        // Whoever can change this one can put another in the place of that in it, once it was looked at.
        let outer = fs::metadata(cache).map_err(|error| MakeError::Folder(cache.into(), error))?;
        if outer.uid() != user.as_raw() && outer.uid() != 0 {
            return Err(refused(cache, "it belongs to another user"));
        }
        if outer.mode() & OTHERS_WRITE != 0 {
            return Err(refused(cache, "others can write to it"));
        }
        let folder = cache.join(FOLDER);
        let failed = |error| MakeError::Folder(folder.clone(), error);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let stat = fs::symlink_metadata(&folder).map_err(failed)?;
        if !stat.is_dir() || stat.uid() != user.as_raw() {
            return Err(refused(&folder, "not a folder of this user"));
        }
        if stat.mode() & 0o077 != 0 {
            // First, so that nobody else can put anything there any more.
            fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        if stat.mode() & OTHERS_WRITE != 0 {
            warn!("others could write to {}: what is in there is removed", folder.display());
            empty(&folder).map_err(failed)?;
        }
        Ok(Self { folder })
    }

    /// The template for what `config` starts.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn find(&self, key: &TemplateKey) -> Result<Template, TemplateError> {
        let folder = self.place(key);
        let template = Template::open(&folder, key)?;
        // Says when it was used last. Where it cannot be said, it may be removed too early.
        let _ = File::open(&folder)
            .and_then(|open| open.set_times(FileTimes::new().set_modified(SystemTime::now())));
        Ok(template)
    }

    /// The template for what `config` starts, made if need be. Of several processes that
    /// need one at once, one makes it and the others wait.
    ///
    /// # Errors
    /// [`MakeError`].
    pub fn find_or_make(
        &self,
        key: &TemplateKey,
        config: &VmConfig,
    ) -> Result<Template, MakeError> {
        if let Ok(template) = self.find(key) {
            return Ok(template);
        }
        let lock = self.lock()?;
        // Somebody else may have made it while we waited.
        match self.find(key) {
            Ok(template) => return Ok(template),
            Err(error) => info!("{error}"),
        }
        // What is left of a damaged one.
        self.remove(key);
        self.make(key, config, lock)
    }

    /// Takes away `template`, which turned out to be of no use; another one that was made in its place
    /// stays. Where somebody is making one, nobody waits for that: it stays as well, for the next who
    /// has no use for it.
    pub fn discard(&self, key: &TemplateKey, mut template: Template) {
        // A new one has to be there before it can be removed.
        template.publication = None;
        let Some(_lock) = self.lock_if_free() else { return };
        if template.lies_in(&self.place(key)) {
            info!("removing the template in {}", self.place(key).display());
            self.remove(key);
        }
    }

    /// To be called with the lock held.
    fn remove(&self, key: &TemplateKey) {
        // The next attempt to make one tells if this was not possible.
        let _ = fs::remove_dir_all(self.place(key));
    }

    fn place(&self, key: &TemplateKey) -> PathBuf {
        self.folder.join(key.to_string())
    }

    /// Makes one. Others that wait for `lock` find it when they have it.
    fn make(
        &self,
        key: &TemplateKey,
        config: &VmConfig,
        lock: Flock<File>,
    ) -> Result<Template, MakeError> {
        let failed = |error| MakeError::Folder(self.folder.clone(), error);
        self.tidy(1);
        has_room(&self.folder).map_err(failed)?;
        warn!("preparing the VM for quick starts (once for this QEMU and appliance)");
        let started = Instant::now();
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.folder)
            .map_err(failed)?;
        if let Err(error) = boot_and_save(config, unfinished.path(), key) {
            // Without room for the guest's memory QEMU dies of it, or KVM does not go on.
            return Err(takes_more(unfinished.path()).map_or_else(failed, |()| error));
        }
        info!("the template was made in {} ms", started.elapsed().as_millis());
        let mut template = Template::open(unfinished.path(), key)
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        let place = self.place(key);
        let files = unfinished.path().to_owned();
        template.publication = Some(Publication::start(files, move |synced| {
            match synced.and_then(|()| fs::rename(unfinished.path(), &place)) {
                Ok(()) => drop(unfinished.keep()),
                Err(error) => warn!("cannot keep the template in {}: {error}", place.display()),
            }
            drop(lock);
        }));
        Ok(template)
    }

    /// Removes templates that nobody uses, and what a maker left that was killed. Called with
    /// the lock held, so nobody else is making one; `coming` are to be made now.
    fn tidy(&self, coming: usize) {
        let mut used: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|stat| stat.modified());
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(modified)) = (is_folder, modified) {
                let unfinished =
                    entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes());
                let when = if unfinished { SystemTime::UNIX_EPOCH } else { modified };
                used.push((when, entry.path()));
            }
        }
        used.sort();
        let now = SystemTime::now();
        let excess = (used.len() + coming).saturating_sub(KEPT);
        for (n, (when, folder)) in used.into_iter().enumerate() {
            let age = now.duration_since(when).unwrap_or_default();
            if n < excess || age > EXPIRY {
                info!(
                    "removing the template in {}, unused for {} days",
                    folder.display(),
                    age.as_secs() / 86400
                );
                if let Err(error) = fs::remove_dir_all(&folder) {
                    warn!("cannot remove {}: {error}", folder.display());
                }
            }
        }
    }

    /// Waits until nobody else makes or removes one.
    fn lock(&self) -> Result<Flock<File>, MakeError> {
        let failed = |error| MakeError::Folder(self.folder.clone(), error);
        let file = self.lock_file().map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
    }

    fn lock_if_free(&self) -> Option<Flock<File>> {
        Flock::lock(self.lock_file().ok()?, FlockArg::LockExclusiveNonblock).ok()
    }

    fn lock_file(&self) -> io::Result<File> {
        File::options().create(true).append(true).open(self.folder.join("lock"))
    }
}

/// Boots a machine that is as `config` says, and saves it in `folder`.
fn boot_and_save(config: &VmConfig, folder: &Path, key: &TemplateKey) -> Result<(), MakeError> {
    let boot = Boot::ToSave(folder);
    let Started { vm, lanes, memory, .. } =
        Vm::start(config, &boot, &[], Overlays::In(folder, &[]))?;
    let patience = Patience::with(config.accelerator);
    let connect = |wait: Wait<'_>| Guest::connect(lanes, memory.as_ref(), wait, patience.total);
    let prepared = vm
        .console()
        .while_printing(patience, connect)
        .and_then(|guest| guest.prepare().map(|()| guest));
    // The lanes stay open until the VM is saved, so that it does not see them close.
    let _guest = match prepared {
        Ok(guest) => guest,
        Err(error) => return Err(MakeError::Guest(error, vm.last_words())),
    };
    vm.save(folder, key)?;
    let forgotten = memory.map_or(Ok(()), |memory| bulk::forget_zeros(&memory.file));
    forgotten.map_err(|error| MakeError::Folder(folder.to_owned(), error))
}

/// # Errors
/// Where there is too little for a template.
fn has_room(folder: &Path) -> io::Result<()> {
    let stat = statvfs(folder)?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < ROOM {
        let (free, wanted) = (free >> 20, ROOM >> 20);
        let reason = format!("{free} MiB are free there, of {wanted} at least");
        return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
    }
    Ok(())
}

/// # Errors
/// Where nothing more can be written to files in `folder`; a quota is one reason, which what is free
/// tells nothing of.
fn takes_more(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("probe"), vec![1; PROBE])
}

fn empty(folder: &Path) -> io::Result<()> {
    fs::read_dir(folder)?.try_for_each(|entry| {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        if is_folder { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }
    })
}

#[cfg(test)]
#[path = "templates_tests.rs"]
mod tests;
