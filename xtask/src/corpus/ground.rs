//! Where trials are made: a folder with a mountpoint, a place for temporary files, and the
//! programs as an ordinary user runs them. One for each trial that goes on at a time.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::process::search_path;
use crate::user::Ordinary;

/// The folder to mount on, and those for what a mount may need meanwhile.
const MOUNTPOINT: &str = "mnt";
const TEMPORARY: [&str; 2] = ["tmp", "run"];

/// What was built, where the user may go.
#[derive(Clone, Debug)]
pub struct Built {
    /// The folder of guestmnt, guestunmnt, and xtask as `xtask`.
    pub programs: PathBuf,
    /// The folder of the appliance.
    pub appliance: PathBuf,
    /// The folder of templates.
    pub cache: PathBuf,
}

/// Such a place.
pub struct Ground {
    folder: PathBuf,
    built: Built,
    user: Ordinary,
}

impl Ground {
    /// In the new folder `folder`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be made.
    pub fn new(folder: PathBuf, built: &Built) -> Result<Self, Error> {
        let user = Ordinary::find()?;
        let ours = [MOUNTPOINT].into_iter().chain(TEMPORARY).map(|name| folder.join(name));
        for path in [folder.clone()].into_iter().chain(ours) {
            fs::create_dir(&path).map_err(Error::file("create", &path))?;
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .map_err(Error::file("change the owner of", &path))?;
        }
        Ok(Self { folder, built: built.clone(), user })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder to mount on.
    #[must_use]
    pub fn mountpoint(&self) -> PathBuf {
        self.folder.join(MOUNTPOINT)
    }

    /// One of our programs, as the user runs it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.built.programs.join(program));
        command
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", search_path())
            .env("HOME", &self.folder)
            .env("XDG_CACHE_HOME", &self.built.cache)
            .env("TMPDIR", self.folder.join(TEMPORARY[0]))
            .env("XDG_RUNTIME_DIR", self.folder.join(TEMPORARY[1]))
            .env("GUESTMNT_APPLIANCE", &self.built.appliance)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        self.user.run_as(&mut command);
        command
    }

    /// What is mounted here, and what lies among the temporary files.
    ///
    /// # Errors
    /// Where that cannot be told.
    pub fn leftovers(&self) -> io::Result<Vec<PathBuf>> {
        // Source: proc_pid_mountinfo(5). These paths have no characters that would be escaped.
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let mounted = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut left: Vec<PathBuf> = mounted.filter(|at| at.starts_with(&self.folder)).collect();
        for name in TEMPORARY {
            for entry in fs::read_dir(self.folder.join(name))? {
                left.push(entry?.path());
            }
        }
        Ok(left)
    }
}
