//! A disk, in whatever form, against the filesystem that was put into it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use xtask::disks::filesystems::Kind;
use xtask::disks::manifest::Entry;

use crate::program::{Finished, Workplace, text};
use crate::specimens::{sha256, specimen};
use crate::tree::assert_same;

/// A place with a small filesystem, whose bytes the disks of a test are made of.
pub struct Showing {
    /// Where the disks are put.
    pub place: Workplace,
    /// The filesystem, a raw file.
    pub image: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Showing {
    /// With ext4. `None`, and a skip, where there is no such filesystem.
    #[must_use]
    pub fn new() -> Option<Self> {
        Self::of(Kind::Ext4)
    }

    /// With a filesystem of `kind`. `None`, and a skip, where there is none.
    #[must_use]
    pub fn of(kind: Kind) -> Option<Self> {
        let (image, entries) = specimen(kind)?;
        let place = Workplace::new();
        let _ = place.folder("mnt");
        Some(Self { place, image, entries })
    }

    /// The bytes of the filesystem.
    ///
    /// # Panics
    /// Where they cannot be read.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.image).expect("the specimen is readable")
    }

    /// Runs a program that makes an image in the place.
    ///
    /// # Panics
    /// Where it fails.
    pub fn make(&self, program: &str, arguments: &[&str]) {
        let output = Command::new(program).args(arguments).current_dir(self.place.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    }

    /// Makes a disk of the filesystem with `qemu-img convert`, in a format and with options of
    /// it, which may be empty.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn convert(&self, format: &str, options: &str, name: &str) {
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend([text(&self.image), name]);
        self.make("qemu-img", &arguments);
    }

    /// Mounts the whole of the first disk that `arguments` give, compares every file, unmounts,
    /// and checks that the images are what they were. Returns what guestmnt said.
    ///
    /// # Panics
    /// Where any of it fails.
    pub fn assert_shown(&self, arguments: &[&str]) -> Finished {
        self.assert_mounted(&[arguments, &["-m", "/dev/sda"]].concat())
    }

    /// As [`Self::assert_shown`], of whatever `arguments` mount.
    ///
    /// # Panics
    /// Where any of it fails.
    pub fn assert_mounted(&self, arguments: &[&str]) -> Finished {
        let mnt = self.place.path().join("mnt");
        let before = self.hashes();
        let arguments = [arguments, &[text(&mnt)]].concat();
        let finished = self.place.run("guestmnt", &arguments);
        assert_eq!(finished.status, Some(0), "guestmnt {arguments:?}: {finished:?}");
        assert_same(&mnt, &self.entries);
        self.place.unmount(&mnt);
        assert_eq!(self.hashes(), before, "an image was changed");
        finished
    }

    /// Runs guestmnt, which has to refuse with each of `words`, before it starts QEMU.
    ///
    /// # Panics
    /// Where it does not.
    pub fn assert_refused(&self, arguments: &[&str], words: &[&str]) {
        assert_refused(&self.place, arguments, words);
    }

    fn hashes(&self) -> BTreeMap<PathBuf, String> {
        let files = walk(self.place.path());
        files.into_iter().map(|file| (file.clone(), sha256(&file))).collect()
    }
}

/// Runs guestmnt in `place`, which has to refuse with each of `words`, before it starts QEMU.
///
/// # Panics
/// Where it does not.
pub fn assert_refused(place: &Workplace, arguments: &[&str], words: &[&str]) {
    let arguments = [arguments, &["-m", "/dev/sda", "mnt"]].concat();
    let mut command = place.command("guestmnt", &arguments);
    // Were it started, that would be the error.
    command.env("GUESTMNT_QEMU", "/nonexistent/qemu");
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: no {word:?} in\n{said}");
    }
    assert!(!said.contains("/nonexistent/qemu"), "{arguments:?}: {said}");
}

/// The regular files below the place that are images: not what is mounted, not the cache. Those
/// of terabytes are left out.
fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    const MOST: u64 = 1 << 30;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is readable").flatten() {
        let kind = entry.file_type().expect("it is still there");
        let name = entry.file_name();
        if kind.is_dir() && name != "mnt" && name != ".cache" {
            files.extend(walk(&entry.path()));
        } else if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.len() < MOST) {
            files.push(entry.path());
        }
    }
    files
}
