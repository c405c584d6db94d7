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
use nix::sys::stat::{fstat, stat};
use nix::sys::statfs::fstatfs;

use crate::ntfs;
use crate::records::Records;

/// Records that are this close to each other, in bytes, are read in one piece.
const GAP: u64 = 32 * 1024;

/// Bytes of a directory's index that are read ahead when it is opened: some 10,000 entries.
const MAX_INDEX: u64 = 1024 * 1024;

/// The filesystems that are mounted.
#[derive(Default)]
pub struct Ahead(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The nodes of their devices.
    nodes: Vec<PathBuf>,
    /// The records of those that were met, by device number; `None` for those that have none to be
    /// read ahead.
    records: BTreeMap<u64, Option<Arc<Records>>>,
}

impl Ahead {
    /// What can be read ahead for `folder`.
    pub fn directory(&self, folder: BorrowedFd) -> Option<Inodes> {
        let stat = fstat(folder).ok()?;
        let known = self.lock().records.get(&stat.st_dev).cloned();
        let records = known.unwrap_or_else(|| {
            // Not under the lock: it reads the disk.
            let nodes = self.lock().nodes.clone();
            let records = records_of(folder, stat.st_dev, &nodes).map(Arc::new);
            self.lock().records.insert(stat.st_dev, records.clone());
            records
        });
        let inodes = Inodes { records: records? };
        inodes.records.read_index(stat.st_ino);
        Some(inodes)
    }

    /// Forgets everything, since a device number may mean another filesystem from now on: one of the
    /// devices with these nodes.
    pub fn begin(&self, nodes: Vec<PathBuf>) {
        *self.lock() = Known { nodes, ..Known::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No step leaves anything half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inodes of one filesystem.
pub struct Inodes {
    records: Arc<Records>,
}

impl Inodes {
    /// Has the disk begin to read these.
    pub fn read(&self, numbers: impl Iterator<Item = u64>) {
        let record = self.records.geometry.record;
        let mut offsets: Vec<u64> =
            numbers.filter_map(|number| number.checked_mul(record)).collect();
        // Mostly they are, and sorting would take as long as all else: little is translated yet in a
        // guest that was restored.
        if !offsets.is_sorted() {
            offsets.sort_unstable();
        }
        for piece in offsets.chunk_by(|before, after| after - before <= GAP) {
            let (first, last) = (piece[0], piece[piece.len() - 1]);
            for (start, length) in self.records.table.places(first, last - first + record) {
                self.records.read_ahead(start, length);
            }
        }
    }
}

/// The records of the volume that `folder` is on, which is the device `device`, with one of `nodes`.
fn records_of(folder: BorrowedFd, device: u64, nodes: &[PathBuf]) -> Option<Records> {
    if fstatfs(folder).ok()?.filesystem_type() != ntfs::MAGIC {
        return None;
    }
    let is_its = |node: &&PathBuf| stat(node.as_path()).is_ok_and(|stat| stat.st_rdev == device);
    Records::open(nodes.iter().find(is_its)?)
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

    fn read_ahead(&self, start: u64, length: u64) {
        if let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(length)) {
            // That it cannot be read ahead need not interest anyone.
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let _ = posix_fadvise(&self.device, start, length, advice);
        }
    }
}
