//! The disks that the demo and the tests open: the shape that the tool's users have every day.
//!
//! ```text
//! Win7/Win7_x64_ssdx.vmdk              4 GiB in two sparse extents: MBR, two NTFS partitions
//! Win7Test/Win7_x64_ssdx-000001.vmdk   snapshot, names its parent by absolute path
//! Win7Test/Win7_x64_ssdx-000002.vmdk   snapshot, names its parent by relative path
//! Win7Test/Win7_x64_ssdx-000003.vmdk   snapshot, likewise; the newest
//! Win7_x64-cl1-000005.vmdk             256 MiB in one file: MBR, one NTFS partition
//! manifest.json                        what is in the partitions of the newest two
//! ```
//!
//! Beside them, for the tests alone, an image of each kind of filesystem: see [`specimens`].
//!
//! They are made once and kept under `target/disks`. Making them takes ntfs-3g in a mount
//! namespace: as root, or as a user who may make namespaces and open `/dev/fuse`.

pub mod assembled;
pub mod bitlocker;
mod build;
pub mod chain;
mod content;
pub mod dynamic;
mod exfat;
pub mod filesystems;
pub mod hive;
pub mod linux;
pub mod luks;
pub mod manifest;
pub mod mkfs;
pub mod noise;
pub mod ntfs;
pub mod pair;
pub mod partitions;
pub mod reparse;
pub mod sparse;
pub mod specimens;
pub mod windows;
pub mod workshop;

use std::fs;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::Error;
use crate::places::Places;
use crate::progress::{size, step};
use manifest::Manifest;

/// Raised whenever other disks come out of this module.
const VERSION: u32 = 1;

/// The base disk.
pub const BASE: &str = "Win7/Win7_x64_ssdx.vmdk";
/// The snapshots over it, oldest first.
pub const SNAPSHOTS: [&str; 3] = [
    "Win7Test/Win7_x64_ssdx-000001.vmdk",
    "Win7Test/Win7_x64_ssdx-000002.vmdk",
    "Win7Test/Win7_x64_ssdx-000003.vmdk",
];
/// The newest snapshot.
pub const NEWEST: &str = SNAPSHOTS[2];
/// The system-like disk.
pub const SYSTEM: &str = "Win7_x64-cl1-000005.vmdk";
/// [`Manifest`] as JSON.
pub const MANIFEST: &str = "manifest.json";

/// A folder with the disks in it.
#[derive(Clone, Debug)]
pub struct Disks {
    folder: PathBuf,
}

impl Disks {
    /// The disks in the target folder, made now if they are not there.
    ///
    /// # Errors
    /// [`Error::Step`], naming what could not be made.
    pub fn ensure(places: &Places) -> Result<Self, Error> {
        let folder = places.disks();
        let finished = folder.join(format!("v{VERSION}"));
        if finished.join(MANIFEST).exists() {
            // Perhaps root made them, and this user may not lock anything there.
            return Ok(Self { folder: finished });
        }
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        let _lock = locked(&folder)?;
        if !finished.join(MANIFEST).exists() {
            let staging =
                tempfile::tempdir_in(&folder).map_err(Error::file("write in", &folder))?;
            step("demo disks", || {
                build::all(staging.path(), &finished)?;
                Ok(((), size(sparse::size_on_disk(&finished)?)))
            })?;
        }
        Ok(Self { folder: finished })
    }

    /// The disks in `folder`, which [`Disks::ensure`] or [`Disks::place`] filled.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of [`BASE`], [`NEWEST`], [`SYSTEM`] and so on, with its folder.
    #[must_use]
    pub fn path(&self, disk: &str) -> PathBuf {
        self.folder.join(disk)
    }

    /// What the partitions hold.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Unfit`].
    pub fn manifest(&self) -> Result<Manifest, Error> {
        Manifest::read(&self.path(MANIFEST))
    }

    /// The same disks in another, empty folder: extents as hard links where possible, and the
    /// absolute path of the first snapshot's parent adjusted.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn place(&self, folder: &Path) -> Result<Self, Error> {
        sparse::link_tree(&self.folder, folder)?;
        chain::set_parent_path(&folder.join(SNAPSHOTS[0]), &folder.join(BASE))?;
        Ok(Self::in_folder(folder))
    }
}

/// Locks `folder` until the value is dropped: of several test programs, one makes what is in
/// there and the others wait.
fn locked(folder: &Path) -> Result<Flock<fs::File>, Error> {
    let lock = folder.join("lock");
    let file = fs::File::create(&lock).map_err(Error::file("create", &lock))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Error::file("lock", &lock)(errno.into()))
}
