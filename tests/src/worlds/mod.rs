//! The worlds that one test body runs in. In each of them guestmnt shows a folder of the host, and
//! something that is not guestmnt tells what must be seen.
//!
//! **Invariant:** a body asks the world where worlds differ, and never which world it is in.

pub mod ext4;
pub mod loopback;
pub mod scripted;
pub mod scripted_files;
pub mod vm;
pub mod writable;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use guestmnt::counts::Kind;
use guestmnt::fs::stats::Asked;

/// Makes mounts of folders.
pub trait World {
    /// Shows what is in the folder `source` now, with the FUSE options `options`.
    ///
    /// # Panics
    /// Where it cannot be shown.
    fn show(&self, source: &Path, options: &str) -> Box<dyn Shown>;
}

/// A folder that is shown. Dropping it unmounts, and fails the test where anything is left.
pub trait Shown {
    /// Where it is mounted.
    fn path(&self) -> &Path;

    /// Requests that the guest answered so far.
    fn requests(&self) -> u64;

    /// Requests of this kind that the kernel made so far.
    fn asked(&self, kind: Asked) -> u64;

    /// Requests of all kinds that the kernel made so far.
    fn asked_in_all(&self) -> u64 {
        Asked::ALL.iter().map(|kind| self.asked(*kind)).sum()
    }

    /// What stat(2) must say of the file at the path `file` from the root.
    fn attributes(&self, file: &str) -> Attributes;

    /// The names in the folder at the path `folder`, with their inode numbers.
    fn numbers(&self, folder: &str) -> BTreeMap<OsString, u64>;

    /// What statvfs(3) must say.
    fn space(&self) -> Space;
}

/// What stat(2) says of a file, without the time of the last access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode's number.
    pub number: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub links: u64,
    /// Bytes.
    pub size: u64,
    /// Stored units of 512 bytes.
    pub blocks: u64,
    /// Last change of the contents: seconds since 1970 and nanoseconds.
    pub modified: (i64, i64),
    /// Last change of the attributes, likewise.
    pub changed: (i64, i64),
}

impl From<&Metadata> for Attributes {
    fn from(metadata: &Metadata) -> Self {
        Self {
            number: metadata.ino(),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            links: metadata.nlink(),
            size: metadata.size(),
            blocks: metadata.blocks(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What statvfs(3) says of a filesystem that nobody writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Bytes of the longest name.
    pub longest_name: u64,
}

impl Space {
    /// What it says of the filesystem that `path` is on.
    ///
    /// # Panics
    /// Where it says nothing.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        let stat = nix::sys::statvfs::statvfs(path).expect("the folder is there");
        Self {
            block_size: stat.fragment_size(),
            blocks: stat.blocks(),
            longest_name: stat.name_max(),
        }
    }
}
