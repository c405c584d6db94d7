//! Reading a filesystem's tables ahead where its driver would read them block by block and wait
//! for each: ntfs3 does so with the records of files and the indexes of directories, which made
//! up more than half of a walk over cold directories.
//!
//! What is read ahead lands in the kernel's cache of the disk, where the driver then finds it.
//! Nothing depends on it: without, everything only takes longer.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{FileStat, stat};
use nix::sys::statfs::fstatfs;

use crate::inodes::{Inodes, Volume};
use crate::kmsg;
use crate::ntfs;
use crate::records::Records;
use crate::resolve;

/// Bytes of a directory's index that are read ahead when it is opened: some 10,000 entries.
const MAX_INDEX: u64 = 1024 * 1024;

/// The filesystems that are mounted.
#[derive(Default)]
pub struct Ahead(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The nodes of their devices.
    nodes: Vec<PathBuf>,
    /// Whether one of them can be written.
    any_writable: bool,
    /// Those that were met, by device number; `None` for those that have no records to be read ahead.
    volumes: BTreeMap<u64, Option<Arc<Volume>>>,
}

impl Ahead {
    /// What can be read ahead for `folder`.
    pub fn directory(&self, folder: BorrowedFd) -> Option<Inodes> {
        let (volume, stat) = self.volume(folder)?;
        volume.records.read_index(stat.st_ino);
        Some(Inodes::of(volume, stat.st_ino))
    }

    /// The NTFS volume that `file` is on, with attributes of `file`.
    pub fn volume(&self, file: BorrowedFd) -> Option<(Arc<Volume>, FileStat)> {
        let stat = resolve::attributes(file).ok()?;
        let known = self.lock().volumes.get(&stat.st_dev).cloned();
        let volume = known.unwrap_or_else(|| {
            // Not under the lock: it reads the disk.
            let (nodes, any_writable) = {
                let known = self.lock();
                (known.nodes.clone(), known.any_writable)
            };
            let records = records_of(file, stat.st_dev, &nodes);
            let volume = records.map(|records| Arc::new(Volume::new(records, !any_writable)));
            self.lock().volumes.insert(stat.st_dev, volume.clone());
            volume
        })?;
        Some((volume, stat))
    }

    /// The node of the device with this number, if one that is mounted has it.
    pub fn node_of(&self, device: u64) -> Option<PathBuf> {
        let nodes = self.lock().nodes.clone();
        nodes.into_iter().find(|node| stat(node).is_ok_and(|stat| stat.st_rdev == device))
    }

    /// Forgets everything, since a device number may mean another filesystem from now on: one of the
    /// devices with these nodes.
    pub fn begin(&self, nodes: Vec<PathBuf>, any_writable: bool) {
        *self.lock() = Known { nodes, any_writable, ..Known::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No step leaves anything half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The records of the volume that `folder` is on, which is the device `device`, with one of `nodes`.
fn records_of(folder: BorrowedFd, device: u64, nodes: &[PathBuf]) -> Option<Records> {
    if fstatfs(folder).ok()?.filesystem_type() != ntfs::MAGIC {
        return None;
    }
    let is_its = |node: &&PathBuf| stat(node.as_path()).is_ok_and(|stat| stat.st_rdev == device);
    let node = nodes.iter().find(is_its)?;
    let records = Records::open(node);
    if records.is_none() {
        // The driver reads what it wants by itself then, which takes longer.
        kmsg::warn(format_args!(
            "the records of {} are laid out in an unknown way",
            node.display()
        ));
    }
    records
}

impl Records {
    /// Has the disk begin to read the index of the directory with this number, whose record the
    /// driver has read before.
    fn read_index(&self, directory: u64) -> Option<()> {
        let size = self.geometry.record;
        let (start, length) = self.table.places(directory.checked_mul(size)?, size).next()?;
        let mut record = vec![0; usize::try_from(length).ok()?];
        self.device.read_exact_at(&mut record, start).ok()?;
        for (start, length) in self.geometry.index_runs(&mut record)?.places(0, MAX_INDEX) {
            self.read_ahead(start, length);
        }
        Some(())
    }

    /// Has the disk begin to read so many bytes from one place of the volume on.
    pub fn read_ahead(&self, start: u64, length: u64) {
        if let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(length)) {
            // That it cannot be read ahead need not interest anyone.
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let _ = posix_fadvise(&self.device, start, length, advice);
        }
    }
}
