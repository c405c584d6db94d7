//! What a writable mount asks beside what a read-only one does: changes, and files that the guest
//! holds open.
//!
//! A file is held from when it is opened for writing, or loses its name while it is open, until it
//! is closed. Everything else is still asked by path; a read-only mount holds nothing.

use serde::{Deserialize, Serialize};

use crate::attr::Time;
use crate::message::Extent;
use crate::path::{EntryName, GuestPath, LinkTarget};
use crate::xattr::XattrName;

/// A file that the guest holds open, by the number that the guest gave it. No number is given
/// twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HeldFile(pub u64);

/// A name in a folder, where something is or shall be. The root has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryPath {
    /// The folder.
    pub folder: GuestPath,
    /// The name.
    pub name: EntryName,
}

/// A file, by what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileAt {
    /// By its path; symbolic links are not followed.
    Path(GuestPath),
    /// One that is held, with or without a name.
    Held(HeldFile),
}

/// What is asked about a file that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldRequest {
    /// Its attributes. Answer: [`crate::message::Answer::Attr`].
    Stat,
    /// As [`crate::message::Request::Read`].
    Read {
        /// First byte.
        offset: u64,
        /// Most bytes.
        size: u32,
    },
    /// As [`crate::message::Request::Seek`].
    Seek {
        /// First byte that counts.
        offset: u64,
        /// What is looked for.
        what: Extent,
    },
    /// It is held no longer. Answer: [`crate::message::Answer::Done`].
    Release,
    /// As [`crate::message::Request::GetXattr`].
    GetXattr {
        /// The attribute.
        name: XattrName,
    },
    /// As [`crate::message::Request::ListXattr`].
    ListXattr,
}

/// A change. The answer is [`crate::message::Answer::Done`] unless something else is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Makes a regular file and holds it. Answer: [`crate::message::Answer::Created`].
    Create {
        /// Where.
        entry: EntryPath,
        /// Permission bits.
        mode: u32,
        /// Who it belongs to.
        owner: Owner,
        /// What to do where there is one.
        existing: Existing,
    },
    /// Holds a regular file. Answer: [`crate::message::Answer::Held`].
    Hold {
        /// The file.
        file: FileAt,
        /// What for.
        access: Access,
    },
    /// Writes the request's payload.
    Write {
        /// The file, held for writing.
        file: HeldFile,
        /// The first byte's place.
        offset: u64,
    },
    /// Changes attributes. Answer: [`crate::message::Answer::Attr`].
    SetAttr {
        /// The file.
        file: FileAt,
        /// What changes.
        attributes: NewAttributes,
    },
    /// As fallocate(2).
    Allocate {
        /// The file, held for writing.
        file: HeldFile,
        /// The first byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Linux' `FALLOC_FL_…`.
        mode: i32,
    },
    /// As copy_file_range(2). Answer: [`crate::message::Answer::Offset`] with the bytes copied.
    CopyRange {
        /// The file that is read, held.
        from: HeldFile,
        /// The first byte's place in it.
        from_offset: u64,
        /// The file that is written, held for writing.
        to: HeldFile,
        /// The first byte's place in it.
        to_offset: u64,
        /// Bytes, at most.
        length: u64,
    },
    /// Makes something that is not opened. Answer: [`crate::message::Answer::Attr`].
    Make {
        /// Where.
        entry: EntryPath,
        /// What.
        node: NewNode,
        /// Who it belongs to.
        owner: Owner,
    },
    /// Gives a file one more name. Answer: [`crate::message::Answer::Attr`].
    Link {
        /// The file.
        file: GuestPath,
        /// Its new name.
        entry: EntryPath,
    },
    /// Takes a name away.
    Remove {
        /// The name.
        entry: EntryPath,
        /// Of what kind it must be.
        kind: Removed,
    },
    /// Gives a file another name.
    Rename {
        /// Its name.
        from: EntryPath,
        /// The other name.
        to: EntryPath,
        /// What to do with what has the other name.
        how: Renaming,
    },
    /// Sets an extended attribute to the request's payload.
    SetXattr {
        /// The file.
        file: FileAt,
        /// The attribute.
        name: XattrName,
        /// Whether it may or must be there already.
        how: XattrMode,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// The file.
        file: FileAt,
        /// The attribute.
        name: XattrName,
    },
    /// Returns when a file or directory is on the disk, beyond all caches.
    Sync {
        /// The file.
        file: FileAt,
        /// How much of it.
        what: Synced,
    },
    /// Writes the request's payload, if there is one, then changes attributes, and then lets the
    /// file go, if that is said: what a new file needs after it was made. Answer:
    /// [`crate::message::Answer::Attr`] of one that is kept.
    Finish {
        /// The file, held for writing.
        file: HeldFile,
        /// The first byte's place.
        offset: u64,
        /// What changes.
        attributes: NewAttributes,
        /// Whether it is held any longer.
        afterwards: Afterwards,
    },
    /// As [`Change::SetAttr`], of a file that was changed at this moment. A guest in a VM makes that
    /// the time of its last change, as well as the filesystem can keep it.
    SetAttrAt {
        /// The file.
        file: FileAt,
        /// What changes.
        attributes: NewAttributes,
        /// When.
        changed: Time,
    },
    /// As [`Change::Finish`], likewise.
    FinishAt {
        /// The file, held for writing.
        file: HeldFile,
        /// The first byte's place.
        offset: u64,
        /// What changes.
        attributes: NewAttributes,
        /// Whether it is held any longer.
        afterwards: Afterwards,
        /// When.
        changed: Time,
    },
}

impl Change {
    /// Whether the request brings a payload.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::SetXattr { .. }
                | Self::Finish { .. }
                | Self::FinishAt { .. }
        )
    }
}

/// Who a new file belongs to; where nothing is said, to the image's root and, below a directory
/// that says so, to its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

/// What to do where the file that is to be made is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Existing {
    /// Fail with `EEXIST`.
    Refuse,
    /// Hold it as it is.
    Open,
}

/// What a file is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// What becomes of a file that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Afterwards {
    /// It is held as before.
    Held,
    /// It is held no longer, whether what was asked succeeded or failed.
    Released,
}

/// Attributes that change; the others stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAttributes {
    /// Bytes.
    pub size: Option<u64>,
    /// Who it belongs to.
    pub owner: Owner,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Last access.
    pub accessed: Option<NewTime>,
    /// Last change of the contents.
    pub modified: Option<NewTime>,
}

/// A time that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewTime {
    /// That of the guest's clock.
    Now,
    /// This one.
    At(Time),
}

/// What is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// A directory with these permission bits.
    Directory(u32),
    /// A symbolic link that leads there.
    Link(LinkTarget),
    /// A FIFO, socket, device node or empty regular file.
    Special {
        /// Type and permission bits.
        mode: u32,
        /// The device's number, as in `st_rdev`.
        device: u64,
    },
}

/// What loses its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Removed {
    /// Anything but a directory.
    File,
    /// An empty directory.
    Directory,
}

/// What happens to a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renaming {
    /// It loses it.
    Replace,
    /// It keeps it: `EEXIST`.
    NoReplace,
    /// It gets the other one's.
    Exchange,
    /// It loses it, and the name that is given up becomes a whiteout: a character device 0/0.
    Whiteout,
    /// It keeps it: `EEXIST`; else as with [`Renaming::Whiteout`].
    WhiteoutNoReplace,
}

/// Whether an extended attribute may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// It may.
    Set,
    /// It must not: `EEXIST`.
    Create,
    /// It must: `ENODATA`.
    Replace,
}

/// How much of a file is brought to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Synced {
    /// What it takes to read its contents again.
    Data,
    /// All.
    All,
}
