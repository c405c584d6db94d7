//! A file of the host that appears under its name when it is complete, and not before. Until then it
//! has none, where the filesystem allows that, so that nothing is left of it whatever ends us.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{LinkatFlags, linkat};
use tempfile::{NamedTempFile, TempPath};

/// What others may do with it, before the umask.
const MODE: u32 = 0o666;

/// A file that is being written, beside the place where it will be. Dropped before it is finished,
/// it is gone.
pub struct NewFile {
    file: File,
    /// Its name until then, where it has to have one.
    temporary: Option<TempPath>,
    path: PathBuf,
    force: bool,
}

/// Why there is no such file.
#[derive(Debug)]
pub enum NewFileError {
    /// There is a file of this name.
    Exists(PathBuf),
    /// The host says no.
    Write(PathBuf, io::Error),
}

impl fmt::Display for NewFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(path) => {
                write!(f, "{} is there already\n  hint: --force replaces it", path.display())
            }
            Self::Write(path, error) => {
                let errno = error.raw_os_error().map(Errno::from_raw);
                let reason = errno.map_or_else(|| error.to_string(), |e| e.desc().to_owned());
                write!(f, "cannot write {}: {reason}", path.display())?;
                if errno == Some(Errno::ENOSPC) {
                    f.write_str(
                        "\n  hint: nothing was left there; another filesystem may have room",
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for NewFileError {}

impl NewFile {
    /// One that will be at `path`. Another file there stays until then, and keeps its name unless
    /// `force` says otherwise.
    ///
    /// # Errors
    /// [`NewFileError`].
    pub fn beside(path: &Path, force: bool) -> Result<Self, NewFileError> {
        let failed = |error| NewFileError::Write(path.to_owned(), error);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {
                return Err(failed(Errno::EISDIR.into()));
            }
            Ok(_) if !force => return Err(NewFileError::Exists(path.to_owned())),
            _ => {}
        }
        let folder = folder_of(path);
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let (file, temporary) = match open(folder, flags, Mode::from_bits_truncate(MODE)) {
            Ok(file) => (file.into(), None),
            // Kernels and filesystems that have no files without names say either.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
                let named = named(folder, |path| {
                    let mut options = File::options();
                    options.read(true).write(true).create_new(true).mode(MODE).open(path)
                });
                let (file, temporary) = named.map_err(failed)?.into_parts();
                (file, Some(temporary))
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        Ok(Self { file, temporary, path: path.to_owned(), force })
    }

    /// The file, as it is so far.
    #[must_use]
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Where it will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, once all of it is on the disk.
    ///
    /// # Errors
    /// [`NewFileError`]; the file is gone then.
    pub fn finish(self) -> Result<(), NewFileError> {
        let Self { file, temporary, path, force } = self;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => NewFileError::Exists(path.clone()),
            _ => NewFileError::Write(path.clone(), error),
        };
        file.sync_all().map_err(failed)?;
        let temporary = match temporary {
            None if !force => return link(&file, &path).map_err(failed),
            // Only a name can take another's place.
            None => named(folder_of(&path), |temporary| link(&file, temporary))
                .map_err(failed)?
                .into_temp_path(),
            Some(temporary) => temporary,
        };
        let renamed =
            if force { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        renamed.map_err(|error| failed(error.error))
    }
}

/// The folder that `path` is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Tries names in `folder` until `make` finds one free.
fn named<T>(
    folder: &Path,
    make: impl FnMut(&Path) -> io::Result<T>,
) -> io::Result<NamedTempFile<T>> {
    tempfile::Builder::new().prefix(".guestimg-").make_in(folder, make)
}

/// Gives a name to an open file that has none.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = LinkatFlags::AT_SYMLINK_FOLLOW;
    Ok(linkat(AT_FDCWD, open.as_str(), AT_FDCWD, path, follow)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let file = NewFile::beside(&path, false).unwrap();
        file.as_file().write_all(b"new").unwrap();
        assert!(!path.exists());
        // Here files need no name. Where they do, it goes when the file is dropped.
        assert!(count() == 0 || file.temporary.is_some());
        drop(file);
        assert_eq!(count(), 0);

        let file = NewFile::beside(&path, false).unwrap();
        file.as_file().write_all(b"new").unwrap();
        // Somebody else was faster.
        fs::write(&path, "other").unwrap();
        assert!(matches!(file.finish(), Err(NewFileError::Exists(_))));
        assert!(matches!(NewFile::beside(&path, false), Err(NewFileError::Exists(_))));
        assert_eq!((fs::read(&path).unwrap(), count()), (b"other".to_vec(), 1));

        let file = NewFile::beside(&path, true).unwrap();
        file.as_file().write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!((fs::read(&path).unwrap(), count()), (b"new".to_vec(), 1));
        assert!(NewFile::beside(folder.path(), true).is_err());
    }
}
