//! Two disks that are made together, or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use super::specimens::{Specimens, keep_file};
use crate::Error;

/// Two disks.
pub struct Pair {
    /// Names of their files.
    pub disks: [&'static str; 2],
    /// What they are, in the plural.
    pub what: &'static str,
}

impl Pair {
    /// Has `make` write the disks into a folder, under their names, if they are missing; or notes why
    /// it cannot.
    ///
    /// # Errors
    /// [`Error::File`]. That they cannot be made is none.
    pub fn ensure(
        &self,
        specimens: &Specimens,
        make: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.is_there(specimens) {
            return Ok(());
        }
        let note = self.note(specimens);
        self.made_by(specimens, make).or_else(|error| {
            let reason = format!("{} cannot be made here: {error}", self.what);
            fs::write(&note, reason).map_err(Error::file("write", &note))
        })
    }

    fn made_by(
        &self,
        specimens: &Specimens,
        make: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let folder = specimens.folder();
        let staging = tempfile::tempdir_in(folder).map_err(Error::file("write in", folder))?;
        make(staging.path())?;
        let keep = |name| keep_file(&staging.path().join(name), &folder.join(name));
        self.disks.into_iter().try_for_each(keep)
    }

    /// Whether both are there.
    #[must_use]
    pub fn is_there(&self, specimens: &Specimens) -> bool {
        self.disks.iter().all(|name| specimens.folder().join(name).exists())
    }

    /// The two images, or why there are none.
    ///
    /// # Errors
    /// The reason.
    pub fn images(&self, specimens: &Specimens) -> Result<[PathBuf; 2], String> {
        if self.is_there(specimens) {
            return Ok(self.disks.map(|name| specimens.folder().join(name)));
        }
        let reason = fs::read_to_string(self.note(specimens));
        Err(reason.unwrap_or_else(|_| format!("{} were not made", self.what)))
    }

    /// Where it is noted why they could not be made.
    fn note(&self, specimens: &Specimens) -> PathBuf {
        specimens.folder().join(format!("{}.missing", self.disks[0]))
    }
}
