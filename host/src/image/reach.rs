//! Which other files an image may refer to.
//!
//! **The folder rule.** Plain sectors show the bytes of any file as a disk, so an image from
//! elsewhere could fetch the user's own files by naming them. What an image names must
//! therefore really lie in its folder or below that, symbolic links resolved and nothing
//! hidden on the way: a descriptor in somebody's home folder does not reach `.ssh`. A file of
//! plain sectors must have no other name either, since a hard link brings a file from
//! elsewhere into the folder. Files that the user allows by name or folder are free of all
//! this.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::error::Problem;
use super::file::LocatedFile;

/// Where the files that one image names may be.
#[derive(Clone, Copy)]
pub struct Reach<'a> {
    /// The folder that the image is really in.
    pub folder: &'a Path,
    /// What the user allows besides: real paths.
    pub allowed: &'a [PathBuf],
}

impl Reach<'_> {
    /// Finds the file at `path`, relative to the folder, if it has bytes of its own kind that
    /// will be checked before they are shown. What is refused here was never readable.
    ///
    /// # Errors
    /// [`Problem::OutsideFolder`], or those of [`LocatedFile::at`].
    pub fn locate(&self, path: &Path) -> Result<LocatedFile, Problem> {
        Ok(self.find(path)?.0)
    }

    /// Finds the file at `path`, relative to the folder, whose bytes will be shown as they are.
    ///
    /// # Errors
    /// Those of [`Self::locate`], and [`Problem::HardLinked`].
    pub fn locate_plain(&self, path: &Path) -> Result<LocatedFile, Problem> {
        match self.find(path)? {
            (file, Permission::Folder) if file.nlink > 1 => {
                Err(Problem::HardLinked { nlink: file.nlink })
            }
            (file, _) => Ok(file),
        }
    }

    /// What `locate` finds first among `candidates`. One that is elsewhere on this machine does not
    /// hide a copy that came with the image, and is the error where there is no copy.
    ///
    /// # Errors
    /// Those of `locate`; ENOENT where none of them exists.
    pub fn first_of<T>(
        &self,
        candidates: &[PathBuf],
        locate: impl Fn(&Path) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let mut refused = None;
        for path in candidates {
            match locate(path) {
                Err(problem @ Problem::OutsideFolder { .. }) => {
                    refused.get_or_insert(problem);
                }
                Err(problem) if problem.is_missing() => {}
                found => return found,
            }
        }
        let missing = || io::Error::from_raw_os_error(libc::ENOENT).into();
        Err(refused.unwrap_or_else(missing))
    }

    fn find(&self, path: &Path) -> Result<(LocatedFile, Permission), Problem> {
        let file = LocatedFile::at(&self.folder.join(path))?;
        if self.allowed.iter().any(|path| file.real.starts_with(path)) {
            return Ok((file, Permission::User));
        }
        match file.real.strip_prefix(self.folder) {
            Ok(below) if !below.components().any(is_hidden) => Ok((file, Permission::Folder)),
            _ => Err(Problem::OutsideFolder { real: file.real }),
        }
    }
}

/// Why a file may be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// It is in the folder.
    Folder,
    /// The user said so.
    User,
}

fn is_hidden(part: Component) -> bool {
    part.as_os_str().as_bytes().starts_with(b".")
}
