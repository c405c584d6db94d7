//! The mounted tree: its root, what is open below it, and how attributes of its files are
//! numbered for the host.
//!
//! **Invariant:** knows nothing of mounting or frames, and of devices only which of its nodes are
//! shown as files; a folder of the host serves as well.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode};

use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::path::GuestPath;

use crate::ahead::Ahead;
use crate::blocks::BlockFile;
use crate::contents::Contents;
use crate::damaged::Damaged;
use crate::directories::Directory;
use crate::driver_times::MadeUp;
use crate::grafts::Grafts;
use crate::held::HeldFiles;
use crate::open_files::OpenFiles;
use crate::resolve;
use crate::small_files::Spaces;

/// Regular files kept open. Each pins its inode in the guest's memory.
const FILES_OPEN: usize = 64;
/// Directories kept open.
const DIRECTORIES_OPEN: usize = 32;

/// Everything below one root.
pub struct Tree {
    root: OwnedFd,
    /// Regular files, open for reading.
    pub(crate) files: OpenFiles<Contents>,
    /// Directories, each with its position.
    pub(crate) directories: OpenFiles<Directory>,
    /// Directories of which names are missing.
    pub(crate) damaged: Damaged,
    /// Files that the host writes to, or that have no name any more.
    pub(crate) held: HeldFiles,
    pub(crate) ahead: Ahead,
    /// For reading several files at once.
    pub(crate) spaces: Spaces,
    volumes: VolumeNumbers,
    /// Devices that are shown as regular files.
    blocks: Box<[BlockFile]>,
    /// Filesystems in the places of links.
    pub(crate) grafts: Grafts,
    /// Roots with times that are none of the image's.
    pub(crate) made_up: Vec<MadeUp>,
}

impl Tree {
    /// The tree below the directory `root`.
    ///
    /// # Errors
    /// As open(2).
    pub fn at(root: &Path) -> nix::Result<Self> {
        let root =
            open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let first = resolve::attributes(root.as_fd())?.st_dev;
        Ok(Self {
            root,
            files: OpenFiles::new(FILES_OPEN),
            directories: OpenFiles::new(DIRECTORIES_OPEN),
            damaged: Damaged::default(),
            held: HeldFiles::default(),
            ahead: Ahead::default(),
            spaces: Spaces::default(),
            volumes: VolumeNumbers(Mutex::new(vec![first])),
            blocks: Box::default(),
            grafts: Grafts::default(),
            made_up: Vec::new(),
        })
    }

    /// The tree of the nodes in the directory `root`, which are shown as `blocks` say.
    ///
    /// # Errors
    /// As open(2).
    pub fn of_blocks(root: &Path, blocks: Vec<BlockFile>) -> nix::Result<Self> {
        Ok(Self { blocks: blocks.into(), ..Self::at(root)? })
    }

    /// The device that is shown as the regular file at `path`, if it is one.
    ///
    /// # Errors
    /// As [`resolve::locate`].
    pub fn block(&self, path: &GuestPath) -> nix::Result<Option<&BlockFile>> {
        if self.blocks.is_empty() {
            return Ok(None);
        }
        let located = self.locate(path)?;
        let stat = resolve::attributes(located.as_fd())?;
        Ok(BlockFile::find(&self.blocks, stat.st_mode, stat.st_rdev))
    }

    /// Opens what is shown as the regular file at `path`.
    ///
    /// # Errors
    /// As [`resolve::open_regular`].
    pub(crate) fn open_shown(&self, path: &GuestPath) -> nix::Result<OwnedFd> {
        match self.block(path)? {
            Some(_) => resolve::open_device(self.root(), path),
            None => {
                let (start, path) = self.start(path);
                resolve::open_regular(start, &path)
            }
        }
    }

    /// The root, as a place to resolve paths from.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where the way to `path` begins, and what of it is left from there.
    pub fn start<'p>(&self, path: &'p GuestPath) -> (BorrowedFd<'_>, Cow<'p, GuestPath>) {
        self.grafts.start(self.root(), path)
    }

    /// A descriptor that names the file at `path`.
    ///
    /// # Errors
    /// As [`resolve::locate`].
    pub fn locate(&self, path: &GuestPath) -> nix::Result<OwnedFd> {
        let (start, path) = self.start(path);
        resolve::locate(start, &path)
    }

    /// Closes what is kept open, since a filesystem was mounted somewhere below.
    pub fn forget_open(&self) {
        self.files.clear();
        self.directories.clear();
    }

    /// Attributes as they go to the host.
    ///
    /// # Errors
    /// `EIO` for a size below zero, `EOVERFLOW` for more than 65,536 volumes.
    pub(crate) fn attr(&self, stat: &FileStat) -> nix::Result<Attr> {
        let stat = &self.made_up.iter().fold(*stat, |stat, made_up| made_up.removed_from(stat));
        let unsigned = |n: i64| u64::try_from(n).map_err(|_| Errno::EIO);
        let attr = Attr {
            ino: stat.st_ino,
            volume: self.volumes.number(stat.st_dev)?,
            mode: stat.st_mode,
            // A count that does not fit says "many" as well as the true one would.
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev,
            size: unsigned(stat.st_size)?,
            blocks: unsigned(stat.st_blocks)?,
            block_size: u32::try_from(stat.st_blksize).unwrap_or(0),
            accessed: time(stat.st_atime, stat.st_atime_nsec),
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
        };
        let block = BlockFile::find(&self.blocks, stat.st_mode, stat.st_rdev);
        Ok(block.map_or(attr, |block| block.shown(attr)))
    }
}

/// A moment as the kernel says it. Nanoseconds come from the image; a filesystem driver may let
/// anything through.
fn time(secs: i64, nanos: i64) -> Time {
    const SECOND: i32 = 1_000_000_000;
    const MINUS_SECOND: i32 = -SECOND;
    // Inodes have 32 bits for them; what is negative there comes here as more than 2^31.
    let low = u32::try_from(nanos & 0xffff_ffff).expect("32 bits").cast_signed();
    let (secs, nanos) = match low {
        0..SECOND => (secs, low),
        i32::MIN..=MINUS_SECOND | SECOND.. => (secs, 0),
        // Before 1970 ntfs3 rounds the seconds up and counts back from there. Source:
        // `nt2kernel()` in fs/ntfs3/ntfs_fs.h.
        before => (secs.saturating_sub(1), before + SECOND),
    };
    Time { secs, nanos: nanos.unsigned_abs() }
}

/// Small numbers for device numbers, in the order in which they were met. Each Btrfs subvolume
/// has a device number of its own.
struct VolumeNumbers(Mutex<Vec<u64>>);

impl VolumeNumbers {
    fn number(&self, device: u64) -> nix::Result<u16> {
        // A push is all or nothing, so a lane that panicked has spoilt nothing.
        let mut met = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = met.iter().position(|&known| known == device).unwrap_or(met.len());
        let number = u16::try_from(index).map_err(|_| Errno::EOVERFLOW)?;
        if index == met.len() {
            met.push(device);
        }
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_numbered_as_they_are_met() {
        let volumes = VolumeNumbers(Mutex::new(vec![0x801]));
        assert_eq!(volumes.number(0x802), Ok(1));
        assert_eq!(volumes.number(0x801), Ok(0));
        assert_eq!(volumes.number(0x803), Ok(2));
        assert_eq!(volumes.number(0x802), Ok(1));
    }

    #[test]
    fn more_volumes_than_numbers_are_refused() {
        let volumes = VolumeNumbers(Mutex::new((0..=u64::from(u16::MAX)).collect()));
        assert_eq!(volumes.number(u64::from(u16::MAX)), Ok(u16::MAX));
        assert_eq!(volumes.number(1 << 20), Err(Errno::EOVERFLOW));
    }

    #[test]
    fn nanoseconds_out_of_range_are_dropped() {
        assert_eq!(time(-1, 999_999_999), Time { secs: -1, nanos: 999_999_999 });
        assert_eq!(time(5, 1_000_000_000), Time { secs: 5, nanos: 0 });
        assert_eq!(time(5, -1_000_000_000), Time { secs: 5, nanos: 0 });
        assert_eq!(time(5, i64::from(i32::MIN)), Time { secs: 5, nanos: 0 });
    }

    #[test]
    fn nanoseconds_below_zero_count_back() {
        assert_eq!(time(-1, -1), Time { secs: -2, nanos: 999_999_999 });
        assert_eq!(time(0, -999_999_999), Time { secs: -1, nanos: 1 });
        assert_eq!(time(-1, 0xffff_ffff), Time { secs: -2, nanos: 999_999_999 });
        assert_eq!(time(i64::MIN, -1), Time { secs: i64::MIN, nanos: 999_999_999 });
    }
}
