//! Copies files and folders of the host into a folder of an image.
//!
//! Kept are permissions, times, holes, `user.` attributes, hard links, and symbolic links as they
//! are stored. Owners and the set-user-id and set-group-id bits are not: who somebody is here means
//! nothing there. Devices and sockets are left out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use guestmnt_protocol::attr::Time;
use guestmnt_protocol::change::{FileAt, Owner};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::path::{EntryName, GuestPath};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use xattr::FileExt as _;

use super::writer::{Metadata, NewFile, Target, Writer};
use super::{Complain, Inserted, Progress, Trouble};

/// Extended attributes that are kept: those of other kinds mean something to the host.
const KEPT_XATTRS: &[u8] = b"user.";

/// A copy under way.
pub struct FromHost<'a, 'g> {
    writer: Writer<'g>,
    /// Files with several names that were copied, by device and inode number.
    copied: HashMap<(u64, u64), GuestPath>,
    sum: Inserted,
    progress: Progress<'a>,
    complain: Complain<'a>,
}

impl<'a, 'g> FromHost<'a, 'g> {
    /// One that writes by `writer`.
    pub fn new(writer: Writer<'g>, progress: Progress<'a>, complain: Complain<'a>) -> Self {
        let (copied, sum) = (HashMap::new(), Inserted::default());
        Self { writer, copied, sum, progress, complain }
    }

    /// What was done so far.
    #[must_use]
    pub fn sum(&self) -> Inserted {
        self.sum
    }

    /// Copies the file or folder at `path` with all below it into `folder`, under its own name.
    ///
    /// # Errors
    /// What would meet all other files as well. Everything else is told and left out.
    pub fn copy(&mut self, path: &Path, folder: &GuestPath) -> Result<(), Trouble> {
        // `.` and `..` have no name of their own.
        let named = path.file_name().map(OsStr::to_owned).or_else(|| {
            path.canonicalize().ok().and_then(|real| real.file_name().map(OsStr::to_owned))
        });
        let at = named.map_or_else(|| Ok(folder.clone()), |name| child(folder, &name));
        let done = at.and_then(|at| self.one(path, &at));
        self.sum.count(path.as_os_str().as_bytes(), done, self.complain)
    }

    fn one(&mut self, path: &Path, at: &GuestPath) -> Result<(), Trouble> {
        let stat = fs::symlink_metadata(path)?;
        let kind = stat.file_type();
        let metadata = metadata_of(&stat);
        if kind.is_dir() {
            return self.folder(path, at, metadata);
        }
        let done = self.leaf(path, at, &stat, metadata);
        // Those above only pass it on.
        done.inspect_err(|trouble| {
            if trouble.is_final() {
                (self.complain)(path.as_os_str().as_bytes(), trouble);
            }
        })
    }

    /// Copies what is no folder.
    fn leaf(
        &mut self,
        path: &Path,
        at: &GuestPath,
        stat: &fs::Metadata,
        mut metadata: Metadata,
    ) -> Result<(), Trouble> {
        let kind = stat.file_type();
        let number = (stat.dev(), stat.ino());
        if let Some(first) = self.copied.get(&number) {
            return self.writer.hard_link(first, at);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path)?.into_os_string();
            self.writer.other(at, &metadata, &Target::Link(target.as_bytes().to_vec()))?;
        } else if kind.is_fifo() {
            self.writer.other(at, &metadata, &Target::Special(libc::S_IFIFO, 0))?;
        } else if kind.is_file() {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
            metadata.xattrs = xattrs(&file)?;
            let progress = &mut *self.progress;
            self.writer.file(at, &metadata, |new| fill(new, &file, progress))?;
        } else {
            let what = if kind.is_socket() { "a socket" } else { "a device" };
            return Err(Trouble::LeftOut(what));
        }
        if stat.nlink() > 1 {
            self.copied.insert(number, at.clone());
        }
        Ok(())
    }

    fn folder(
        &mut self,
        path: &Path,
        at: &GuestPath,
        mut metadata: Metadata,
    ) -> Result<(), Trouble> {
        self.writer.folder(at)?;
        let mut names: Vec<_> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            let path = path.join(&name);
            let done = child(at, &name).and_then(|at| self.one(&path, &at));
            self.sum.count(path.as_os_str().as_bytes(), done, self.complain)?;
        }
        metadata.xattrs = xattrs(&File::open(path)?)?;
        self.writer.finish(&FileAt::Path(at.clone()), &metadata)
    }
}

fn child(folder: &GuestPath, name: &OsStr) -> Result<GuestPath, Trouble> {
    let name = EntryName::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    folder.join(&name).map_err(|_| Errno::ENAMETOOLONG.into())
}

fn metadata_of(stat: &fs::Metadata) -> Metadata {
    let time = |secs, nanos: i64| Time { secs, nanos: u32::try_from(nanos).unwrap_or(0) };
    Metadata {
        mode: stat.mode() & 0o1777,
        owner: Owner::default(),
        accessed: time(stat.atime(), stat.atime_nsec()),
        modified: time(stat.mtime(), stat.mtime_nsec()),
        xattrs: Vec::new(),
    }
}

fn xattrs(file: &File) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = match file.list_xattr() {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let kept = names.filter(|name| name.as_bytes().starts_with(KEPT_XATTRS));
    let pairs = kept.map(|name| Ok((name.as_bytes().to_vec(), file.get_xattr(&name)?)));
    let pairs: io::Result<Vec<_>> = pairs.collect();
    Ok(pairs?.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// Writes what `file` holds, without its holes.
fn fill(new: &NewFile, file: &File, progress: &mut dyn FnMut(u64)) -> Result<(), Trouble> {
    let size = file.metadata()?.len();
    let mut buffer = vec![0; MAX_PAYLOAD];
    let mut at = 0;
    while at < size {
        let Some((start, end)) = data(file, at, size)? else { break };
        at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let count = file.read_at(&mut buffer[..most], at)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            new.write(at, &buffer[..count])?;
            progress(count as u64);
            at += count as u64;
        }
    }
    new.set_size(size)
}

/// The next bytes of a file that are stored, from `at` on.
fn data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    let signed = |offset: u64| i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput);
    let unsigned = |offset: i64| u64::try_from(offset).unwrap_or(0).min(size);
    match lseek(file, signed(at)?, Whence::SeekData) {
        Ok(start) => Ok(Some((unsigned(start), unsigned(lseek(file, start, Whence::SeekHole)?)))),
        Err(Errno::ENXIO) => Ok(None),
        // A filesystem that does not tell.
        Err(Errno::EINVAL) => Ok(Some((at, size))),
        Err(errno) => Err(errno.into()),
    }
}
