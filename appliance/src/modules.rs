//! Kernel modules, loaded when they are needed.
//!
//! `/modules/list` has a line `name: dependency dependency …` for each module, the dependencies in
//! the order in which they load, and lines of the same form for aliases, `fs-iso9660: isofs`, which
//! have no file `/modules/<name>.ko` of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;

use crate::failure::errno_of;
use crate::kmsg;
use crate::sys;

/// The modules of the appliance.
pub struct Modules {
    folder: PathBuf,
    /// Dependencies by name, read when the first module is wanted.
    dependencies: OnceLock<BTreeMap<String, Vec<String>>>,
    /// What has been loaded. Held while loading, so that a second lane that wants the same module
    /// gets it loaded.
    loaded: Mutex<BTreeSet<String>>,
}

impl Modules {
    /// The modules in `folder`.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, dependencies: OnceLock::new(), loaded: Mutex::default() }
    }

    /// Loads the module or alias `name` and all that it depends on. Does nothing where that was
    /// done.
    ///
    /// # Errors
    /// `ENOENT` where the appliance has no such module, which is no harm where the kernel has
    /// it built in; else as finit_module(2).
    pub fn load(&self, name: &str) -> nix::Result<()> {
        // What is in the set has been loaded or is no worse for another attempt.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        self.load_into(&mut loaded, name)
    }

    /// Loads every module there is, except those whose hardware is missing.
    /// What cannot be loaded now is tried again when it is needed.
    pub fn load_all(&self) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        for name in self.dependencies.get_or_init(|| self.read_list()).keys() {
            if let Err(errno) = self.load_into(&mut loaded, name) {
                kmsg::warn(format_args!("module {name} was not loaded: {}", errno.desc()));
            }
        }
    }

    fn load_into(&self, loaded: &mut BTreeSet<String>, name: &str) -> nix::Result<()> {
        if loaded.contains(name) {
            return Ok(());
        }
        let dependencies = self.dependencies.get_or_init(|| self.read_list());
        let needed = dependencies.get(name).ok_or(Errno::ENOENT)?;
        // Before its dependencies, so that a circle in the list ends.
        loaded.insert(name.to_owned());
        let done = needed
            .iter()
            .try_for_each(|dependency| match self.load_into(loaded, dependency) {
                // A variant for hardware that is not there, such as crc32c_intel on a processor
                // without SSE 4.2: the list has the one that does without as well.
                Err(Errno::ENODEV) => Ok(()),
                outcome => outcome,
            })
            .and_then(|()| self.load_file(name));
        // Hardware that is not there will not come; everything else may go better next time.
        if done.is_err() && done != Err(Errno::ENODEV) {
            loaded.remove(name);
        }
        done
    }

    /// Loads the file of one module, if it has one.
    fn load_file(&self, name: &str) -> nix::Result<()> {
        let file = match File::open(self.folder.join(format!("{name}.ko"))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(errno_of(&error)),
        };
        match sys::finit_module(file.as_fd()) {
            Err(Errno::EEXIST) => Ok(()),
            done => done,
        }
    }

    fn read_list(&self) -> BTreeMap<String, Vec<String>> {
        parse_list(&fs::read_to_string(self.folder.join("list")).unwrap_or_default())
    }
}

fn parse_list(text: &str) -> BTreeMap<String, Vec<String>> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, needed)| {
            (name.to_owned(), needed.split_whitespace().map(str::to_owned).collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Modules whose files are missing, so that loading one loads nothing.
    fn listed(list: &str) -> (tempfile::TempDir, Modules) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("list"), list).unwrap();
        let modules = Modules::new(folder.path().to_owned());
        (folder, modules)
    }

    fn loaded(modules: &Modules) -> Vec<String> {
        modules.loaded.lock().unwrap().iter().cloned().collect()
    }

    #[test]
    fn an_alias_brings_what_its_module_needs() {
        let (_folder, modules) =
            listed("fs-ext4: ext4\next4: mbcache jbd2\nmbcache:\njbd2:\nntfs3:\n");
        assert_eq!(modules.load("fs-ext4"), Ok(()));
        assert_eq!(loaded(&modules), ["ext4", "fs-ext4", "jbd2", "mbcache"]);
        assert_eq!(modules.load("fs-ext4"), Ok(()));
    }

    #[test]
    fn a_circle_ends() {
        let (_folder, modules) = listed("a: b\nb: a\n");
        assert_eq!(modules.load("a"), Ok(()));
    }

    #[test]
    fn a_module_that_is_not_listed_is_missing() {
        let (_folder, modules) = listed("a: b\n");
        assert_eq!(modules.load("none"), Err(Errno::ENOENT));
        assert_eq!(modules.load("a"), Err(Errno::ENOENT));
        assert!(loaded(&modules).is_empty());
        let empty = Modules::new("/nowhere".into());
        assert_eq!(empty.load("a"), Err(Errno::ENOENT));
    }
}
