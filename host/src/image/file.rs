//! Opening one file of an image so that opening does nothing else: no FIFO blocks, no device
//! is touched, nothing can be written unless that is what it is opened for.
//!
//! **Invariant:** knows no format; what a file may be used for is decided elsewhere.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::descriptor::Descriptor;
use super::error::Problem;
use super::patches::Patches;
use super::unwritable::Unwritable;
use super::{SECTOR_SIZE, Source};

/// One file, however it is named: device and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    dev: u64,
    ino: u64,
}

impl FileId {
    /// That of the file at `path`; symbolic links are followed.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|meta| Self::from(&meta))
    }

    /// That of an open file.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|meta| Self::from(&meta))
    }
}

impl From<&Metadata> for FileId {
    fn from(meta: &Metadata) -> Self {
        Self { dev: meta.dev(), ino: meta.ino() }
    }
}

/// A regular file that was found but not opened: what can be known of it without its content.
#[derive(Debug)]
pub struct LocatedFile {
    /// An O_PATH descriptor, which cannot be read from.
    handle: File,
    path: PathBuf,
    /// Where it really is: absolute, no symbolic links.
    pub real: PathBuf,
    /// Number of hard links.
    pub nlink: u64,
}

impl LocatedFile {
    /// Finds the regular file at `path`; symbolic links are followed.
    ///
    /// # Errors
    /// [`Problem::Io`], or [`Problem::NotRegular`] for everything but a regular file.
    pub fn at(path: &Path) -> Result<Self, Problem> {
        // O_PATH runs no code of a FIFO or a device.
        let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
        let meta = handle.metadata()?;
        if !meta.is_file() {
            return Err(Problem::NotRegular(kind_of(meta.file_type())));
        }
        let real = fs::read_link(proc_path(&handle))?;
        Ok(Self { handle, path: path.to_owned(), real, nlink: meta.nlink() })
    }

    /// Finds an open file once more.
    ///
    /// # Errors
    /// Those of [`Self::at`].
    pub fn of(file: &File) -> Result<Self, Problem> {
        Self::at(Path::new(&proc_path(file)))
    }

    /// Opens it for reading. It is the very file that was found, whatever its path means now.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn open(self) -> Result<ImageFile, Problem> {
        self.open_with(OpenOptions::new().read(true))
    }

    /// Opens it for reading and writing.
    ///
    /// # Errors
    /// [`Problem::Unwritable`], for root too where nobody has the permission to write to it.
    pub fn open_for_writing(self) -> Result<ImageFile, Problem> {
        if self.handle.metadata()?.mode() & 0o222 == 0 {
            return Err(Unwritable::ReadOnlyFile.into());
        }
        self.open_with(OpenOptions::new().read(true).write(true)).map_err(|problem| match problem {
            Problem::Io(error) => Unwritable::Refused(error).into(),
            other => other,
        })
    }

    fn open_with(self, options: &mut OpenOptions) -> Result<ImageFile, Problem> {
        let file = options.custom_flags(libc::O_NOCTTY).open(proc_path(&self.handle))?;
        let meta = file.metadata()?;
        Ok(ImageFile {
            file,
            path: self.path,
            real: self.real,
            id: FileId::from(&meta),
            len: meta.len(),
            part_at: None,
            patches: None,
        })
    }
}

fn proc_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A regular file, open for reading at least.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    /// The name it was opened by.
    pub path: PathBuf,
    /// Where it really is: absolute, no symbolic links.
    pub real: PathBuf,
    /// Which file it is.
    pub id: FileId,
    /// Bytes.
    pub len: u64,
    /// Where it begins within `file`, where it is only a part of that.
    part_at: Option<u64>,
    /// Changes that are read in the place of what is stored.
    patches: Option<Patches>,
}

impl ImageFile {
    /// Finds and opens the regular file at `path`.
    ///
    /// # Errors
    /// Those of [`LocatedFile::at`] and [`LocatedFile::open`].
    pub fn open(path: &Path) -> Result<Self, Problem> {
        LocatedFile::at(path)?.open()
    }

    /// The folder it is really in.
    pub fn folder(&self) -> &Path {
        self.real.parent().unwrap_or(Path::new("/"))
    }

    /// The `len` bytes at `offset` as a file of their own, to be called `path`.
    ///
    /// # Errors
    /// [`Problem::Truncated`] where there are fewer, [`Problem::Io`].
    pub fn part(&self, path: PathBuf, offset: u64, len: u64) -> Result<Self, Problem> {
        self.check_inside(offset, len, "part")?;
        let (file, real) = (self.file.try_clone()?, self.real.clone());
        let part_at = Some(self.part_at.unwrap_or(0) + offset);
        Ok(Self { file, path, real, id: self.id, len, part_at, patches: None })
    }

    /// Whether it is only a part of a file, and so has nothing beside it.
    pub fn is_part(&self) -> bool {
        self.part_at.is_some()
    }

    /// The same file as it is with `patches`, which are made for its length.
    ///
    /// # Panics
    /// For a part.
    pub fn with_patches(self, patches: Patches) -> Self {
        assert!(!self.is_part(), "parts have no changes");
        Self { len: patches.len(), patches: Some(patches), ..self }
    }

    /// Whether it is read with changes that are not stored.
    pub fn is_patched(&self) -> bool {
        self.patches.is_some()
    }

    /// The files that hold `count` sectors from `first` on, one behind the other: for each the
    /// number of its sectors, the first of them, and the file. That is this file alone unless it
    /// is patched.
    ///
    /// # Errors
    /// Those of fcntl(2) and memfd_create(2).
    ///
    /// # Panics
    /// For a part.
    pub fn extents(&self, first: u64, count: u64) -> io::Result<Vec<(u64, u64, File)>> {
        match &self.patches {
            Some(patches) => patches.extents(&self.file, first, count),
            None => Ok(vec![(count, first, self.duplicate()?)]),
        }
    }

    /// Its first bytes, at most `limit`.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn start(&self, limit: usize) -> Result<Vec<u8>, Problem> {
        let len = usize::try_from(self.len).map_or(limit, |len| len.min(limit));
        self.bytes(0, len, "first bytes")
    }

    /// The `N` bytes at `offset`; `what` they are goes into the error.
    ///
    /// # Errors
    /// [`Problem::Truncated`] where the file ends before them, [`Problem::Io`].
    pub fn header<const N: usize>(
        &self,
        offset: u64,
        what: &'static str,
    ) -> Result<[u8; N], Problem> {
        self.check_inside(offset, N as u64, what)?;
        let mut bytes = [0; N];
        self.read(&mut bytes, offset, what)?;
        Ok(bytes)
    }

    /// Like [`Self::header`], for a length that is known only now. The caller bounds `len`.
    ///
    /// # Errors
    /// Those of [`Self::header`].
    pub fn bytes(&self, offset: u64, len: usize, what: &'static str) -> Result<Vec<u8>, Problem> {
        self.check_inside(offset, len as u64, what)?;
        let mut bytes = vec![0; len];
        self.read(&mut bytes, offset, what)?;
        Ok(bytes)
    }

    /// Has the kernel fetch `len` bytes at `offset`, which will be read soon. Where it does not, they
    /// are read later all the same.
    pub fn will_read(&self, offset: u64, len: u64) {
        let offset = self.part_at.unwrap_or(0).checked_add(offset);
        let offset = offset.and_then(|offset| i64::try_from(offset).ok());
        if let (Some(offset), Ok(len)) = (offset, i64::try_from(len)) {
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let _ = posix_fadvise(&self.file, offset, len, advice);
        }
    }

    /// Checks that the file holds `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`Problem::Truncated`].
    pub fn check_inside(&self, offset: u64, len: u64, what: &'static str) -> Result<(), Problem> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Problem::Truncated { what, len: self.len }),
        }
    }

    /// How many of the `len` bytes at `offset` the file holds.
    pub fn len_inside(&self, offset: u64, len: u64) -> u64 {
        self.len.saturating_sub(offset).min(len)
    }

    fn read(&self, bytes: &mut [u8], offset: u64, what: &'static str) -> Result<(), Problem> {
        // In bounds: a part was checked to lie in its file.
        let offset = self.part_at.unwrap_or(0) + offset;
        let read = match &self.patches {
            Some(patches) => patches.read(&self.file, bytes, offset),
            None => self.file.read_exact_at(bytes, offset),
        };
        read.map_err(|e| match e.kind() {
            // It became shorter since it was opened.
            io::ErrorKind::UnexpectedEof => Problem::Truncated { what, len: self.len },
            _ => Problem::Io(e),
        })
    }

    /// The open file once more, to be used from its first byte to its last.
    ///
    /// # Errors
    /// Those of fcntl(2).
    ///
    /// # Panics
    /// For a part.
    pub fn duplicate(&self) -> io::Result<File> {
        assert!(!self.is_part(), "parts are no extents");
        self.file.try_clone()
    }

    /// What QEMU reads. A part ends with a whole sector where its file goes on so far.
    ///
    /// # Errors
    /// Those of [`Self::extents`] for a file with changes.
    pub fn into_source(self) -> io::Result<Source> {
        if self.is_patched() {
            let parts = self.extents(0, self.len.div_ceil(SECTOR_SIZE))?;
            let sectors: Vec<(u64, u64)> =
                parts.iter().map(|&(count, first, _)| (count, first)).collect();
            let extents = parts.into_iter().map(|(_, _, file)| file).collect();
            let descriptor = Descriptor::of_flat_files(&sectors);
            return Ok(Source::Patched { descriptor, extents });
        }
        Ok(match self.part_at {
            None => Source::File(self.file),
            Some(offset) => Source::Part { file: self.file, offset, len: self.len },
        })
    }

    /// The open file, to be used from its first byte to its last.
    ///
    /// # Panics
    /// For a part.
    pub fn into_whole(self) -> File {
        assert!(!self.is_part(), "parts are no extents");
        self.file
    }
}

fn kind_of(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "a folder"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "a device"
    } else if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a special file"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        symlink("fifo", dir.path().join("link")).unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let table = [
            (dir.path().to_owned(), "a folder"),
            (fifo, "a FIFO"),
            (dir.path().join("link"), "a FIFO"),
            (socket, "a socket"),
            ("/dev/null".into(), "a device"),
        ];
        for (path, kind) in table {
            assert!(
                matches!(ImageFile::open(&path), Err(Problem::NotRegular(k)) if k == kind),
                "{path:?}"
            );
        }
    }

    #[test]
    fn an_open_file_cannot_be_written_and_knows_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap();
        fs::write(folder.join("a"), b"0123456789").unwrap();
        symlink(folder.join("a"), folder.join("b")).unwrap();

        let a = ImageFile::open(&folder.join("a")).unwrap();
        let b = ImageFile::open(&folder.join("b")).unwrap();

        assert_eq!(a.id, b.id);
        assert_eq!(b.real, folder.join("a"));
        assert_eq!(b.folder(), folder);
        assert_eq!(a.start(4).unwrap(), b"0123");
        assert_eq!(a.start(40).unwrap(), b"0123456789");
        assert_eq!(&a.header::<2>(8, "end").unwrap(), b"89");
        for (offset, len) in [(9, 2), (u64::MAX, 2), (11, 0)] {
            assert!(matches!(a.bytes(offset, len, "end"), Err(Problem::Truncated { .. })));
        }
        let file = a.into_whole();
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
        assert_eq!(flags & OFlag::O_ACCMODE, OFlag::O_RDONLY);
    }

    #[test]
    fn what_is_inside_is_reckoned_as_with_numbers_that_cannot_overflow() {
        const LEN: u64 = 4096;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![0; 4096]).unwrap();
        let file = ImageFile::open(&path).unwrap();
        let half = 1 << 63;
        let numbers = [0, 1, LEN - 1, LEN, LEN + 1, 1 << 32, half - 1, half, half + 1, u64::MAX];
        for offset in numbers {
            for len in numbers {
                let inside = u128::from(offset) + u128::from(len) <= u128::from(LEN);
                assert_eq!(file.check_inside(offset, len, "x").is_ok(), inside, "{offset} {len}");
                assert_eq!(file.part(path.clone(), offset, len).is_ok(), inside, "{offset} {len}");
            }
        }
    }
}
