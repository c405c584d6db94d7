//! Makes single files in a guest, each with all that it is to have.

use guestmnt_protocol::attr::Time;
use guestmnt_protocol::change::{
    EntryPath, Existing as Taken, FileAt, HeldFile, NewAttributes, NewNode, NewTime, Owner,
    Removed, XattrMode,
};
use guestmnt_protocol::path::{EntryName, GuestPath, LinkTarget};
use guestmnt_protocol::xattr::XattrName;
use log::warn;
use nix::errno::Errno;

use super::interruption::Interruption;
use super::{Existing, Trouble};
use crate::guest::Guest;

/// What a file is to have beside its contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits.
    pub mode: u32,
    /// Who it belongs to: the image's root where nothing is said.
    pub owner: Owner,
    /// Last access.
    pub accessed: Time,
    /// Last change of the contents.
    pub modified: Time,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What is made, unless it is a folder or a file with contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A symbolic link.
    Link(Vec<u8>),
    /// A FIFO or device: type, and number as in `st_rdev`.
    Special(u32, u64),
}

/// Makes files in a guest.
pub struct Writer<'g> {
    guest: &'g Guest,
    existing: Existing,
    interruption: &'g Interruption,
    /// Whether it was told that the filesystem keeps no owners and permissions.
    without_owners: bool,
}

/// A file that is being written.
pub struct NewFile<'g> {
    guest: &'g Guest,
    held: HeldFile,
    interruption: &'g Interruption,
}

impl NewFile<'_> {
    /// Writes all of `bytes` at byte `offset`.
    ///
    /// # Errors
    /// The guest's, or [`Trouble::Interrupted`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Trouble> {
        self.interruption.check()?;
        Ok(self.guest.write(self.held, offset, bytes)?)
    }

    /// Makes the file `size` bytes long.
    ///
    /// # Errors
    /// The guest's.
    pub fn set_size(&self, size: u64) -> Result<(), Trouble> {
        let attributes = NewAttributes { size: Some(size), ..NewAttributes::default() };
        Ok(self.guest.set_attr(FileAt::Held(self.held), attributes).map(drop)?)
    }
}

impl<'g> Writer<'g> {
    /// One for the files of `guest`, which begins nothing more after `interruption`.
    #[must_use]
    pub fn of(guest: &'g Guest, existing: Existing, interruption: &'g Interruption) -> Self {
        Self { guest, existing, interruption, without_owners: false }
    }

    /// What it does not go on after.
    #[must_use]
    pub fn interruption(&self) -> &'g Interruption {
        self.interruption
    }

    /// Makes a folder, or takes the one that is there.
    ///
    /// # Errors
    /// The guest's, `EEXIST` where something else is there; or [`Trouble::Interrupted`].
    pub fn folder(&self, at: &GuestPath) -> Result<(), Trouble> {
        self.interruption.check()?;
        let Some(entry) = entry(at) else { return Ok(()) };
        match self.guest.make(entry, NewNode::Directory(0o700), Owner::default()) {
            Ok(_) => Ok(()),
            Err(Errno::EEXIST) => {
                let attr = self.guest.stat(at.clone())?;
                let is_folder = attr.mode & libc::S_IFMT == libc::S_IFDIR;
                if is_folder { Ok(()) } else { Err(Errno::EEXIST.into()) }
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes the folders that `at` is in and that are not there.
    ///
    /// # Errors
    /// The guest's.
    pub fn folders_of(&self, at: &GuestPath) -> Result<(), Trouble> {
        let bytes = at.as_bytes();
        for end in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at) {
            let Ok(folder) = GuestPath::new(bytes[..end].to_vec()) else { continue };
            let Some(entry) = entry(&folder) else { continue };
            match self.guest.make(entry, NewNode::Directory(0o755), Owner::default()) {
                Ok(_) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Makes a regular file of what `fill` writes. One that cannot be completed is not left there.
    ///
    /// # Errors
    /// The guest's, that of `fill`, or [`Trouble::Interrupted`].
    pub fn file(
        &mut self,
        at: &GuestPath,
        metadata: &Metadata,
        fill: impl FnOnce(&NewFile) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        self.interruption.check()?;
        let entry = entry(at).ok_or(Errno::EISDIR)?;
        let (held, _) = self.make_room(&entry, || {
            self.guest.create(entry.clone(), 0o600, metadata.owner, Taken::Refuse)
        })?;
        let filled = fill(&NewFile { guest: self.guest, held, interruption: self.interruption })
            .and_then(|()| self.prepare(&FileAt::Held(held), metadata, true));
        let done = match filled {
            Ok(()) => self.guest.finish(held, &[], times(metadata)).map_err(Trouble::from),
            Err(trouble) => {
                let _ = self.guest.release(held);
                Err(trouble)
            }
        };
        if done.is_err() {
            // Half a file would pass for a whole one.
            let _ = self.guest.remove(entry, Removed::File);
        }
        done
    }

    /// Makes what has no contents.
    ///
    /// # Errors
    /// The guest's, or [`Trouble::Interrupted`].
    pub fn other(
        &mut self,
        at: &GuestPath,
        metadata: &Metadata,
        target: &Target,
    ) -> Result<(), Trouble> {
        self.interruption.check()?;
        let entry = entry(at).ok_or(Errno::EISDIR)?;
        let node = match target {
            Target::Link(to) => {
                NewNode::Link(LinkTarget::new(to).map_err(|_| Errno::ENAMETOOLONG)?)
            }
            Target::Special(kind, device) => {
                NewNode::Special { mode: kind | 0o600, device: *device }
            }
        };
        self.make_room(&entry, || self.guest.make(entry.clone(), node.clone(), metadata.owner))?;
        let is_link = matches!(target, Target::Link(_));
        let mut metadata = metadata.clone();
        if is_link {
            // Linux keeps none of these for links.
            metadata.xattrs.retain(|(name, _)| !name.starts_with(b"user."));
        }
        self.finish_as(&FileAt::Path(at.clone()), &metadata, !is_link)
    }

    /// Gives the file at `first` one more name.
    ///
    /// # Errors
    /// The guest's, or [`Trouble::Interrupted`].
    pub fn hard_link(&self, first: &GuestPath, at: &GuestPath) -> Result<(), Trouble> {
        self.interruption.check()?;
        let entry = entry(at).ok_or(Errno::EISDIR)?;
        self.make_room(&entry, || self.guest.hard_link(first.clone(), entry.clone()))?;
        Ok(())
    }

    /// Gives a file that is complete its owner, permissions, attributes and times.
    ///
    /// # Errors
    /// The guest's.
    pub fn finish(&mut self, file: &FileAt, metadata: &Metadata) -> Result<(), Trouble> {
        self.finish_as(file, metadata, true)
    }

    fn finish_as(
        &mut self,
        file: &FileAt,
        metadata: &Metadata,
        has_mode: bool,
    ) -> Result<(), Trouble> {
        self.prepare(file, metadata, has_mode)?;
        Ok(self.guest.set_attr(file.clone(), times(metadata)).map(drop)?)
    }

    /// Gives a file all but its times, which whatever comes after them would change.
    fn prepare(
        &mut self,
        file: &FileAt,
        metadata: &Metadata,
        has_mode: bool,
    ) -> Result<(), Trouble> {
        let set = |attributes| self.guest.set_attr(file.clone(), attributes).map(drop);
        let mode = has_mode.then_some(metadata.mode & 0o7777);
        // A change of the owner takes set-id bits away, and one of the contents capabilities.
        let owner = NewAttributes { owner: metadata.owner, mode, ..NewAttributes::default() };
        match set(owner) {
            Err(Errno::EPERM | Errno::EOPNOTSUPP) if !self.without_owners => {
                warn!("the filesystem does not keep owners and permissions");
                self.without_owners = true;
            }
            Err(Errno::EPERM | Errno::EOPNOTSUPP) => {}
            done => done?,
        }
        for (name, value) in &metadata.xattrs {
            let name = XattrName::new(name).map_err(|_| Errno::ERANGE)?;
            self.guest.set_xattr(file.clone(), name, value, XattrMode::Set)?;
        }
        Ok(())
    }

    /// Makes something where there may be a file that is replaced then.
    fn make_room<T>(
        &self,
        entry: &EntryPath,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EEXIST) if self.existing == Existing::Replace => {
                self.guest.remove(entry.clone(), Removed::File)?;
                make()
            }
            made => made,
        }
    }
}

fn times(metadata: &Metadata) -> NewAttributes {
    let at = |time| Some(NewTime::At(time));
    let (accessed, modified) = (at(metadata.accessed), at(metadata.modified));
    NewAttributes { accessed, modified, ..NewAttributes::default() }
}

/// Where a path's last name is; `None` for the root.
fn entry(path: &GuestPath) -> Option<EntryPath> {
    let bytes = path.as_bytes();
    let cut = bytes.iter().rposition(|&byte| byte == b'/');
    let (folder, name) = match cut {
        Some(cut) => (&bytes[..cut], &bytes[cut + 1..]),
        None => (&bytes[..0], bytes),
    };
    let folder = GuestPath::new(folder.to_vec()).ok()?;
    Some(EntryPath { folder, name: EntryName::new(name).ok()? })
}
