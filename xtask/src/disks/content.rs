//! The files on the demo's disks: plain folders on the host, made from nothing but their names,
//! so that every machine has the same.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::noise::Noise;
use super::ntfs::Edit;
use crate::Error;

/// The installer that people have lying around: a large file that nothing can compress.
pub const INSTALLER: &str = "mysql-installer-community-5.6.14.0.msi";
/// Its size in bytes.
const INSTALLER_SIZE: usize = 200_822_784;

/// Says which link of the chain is being read.
pub const STATE: &str = "state.txt";

/// A file with an alternate data stream, that stream's name and text.
pub const STREAM: (&str, &str, &str) =
    ("Cosmological_Voids/streams.txt", "note", "kept beside the file\n");

/// A folder of 2,000 entries.
const CATALOGUE: &str = "Cosmological_Voids/catalogue";

/// Where the snapshots change the installer: bytes from [`patch_offset`] on.
const PATCH_SIZE: usize = 300_000;

/// A tree being made.
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty one in the new folder `root`.
    pub(super) fn new(root: &Path) -> Result<Self, Error> {
        let tree = Self { root: root.to_path_buf() };
        tree.folder("")?;
        Ok(tree)
    }

    /// Makes a folder, with those above it.
    pub(super) fn folder(&self, path: &str) -> Result<(), Error> {
        let path = self.root.join(path);
        fs::create_dir_all(&path).map_err(Error::file("create", &path))
    }

    /// Makes a file that holds `text`.
    pub(super) fn text(&self, path: &str, text: &str) -> Result<(), Error> {
        let path = self.root.join(path);
        fs::write(&path, text).map_err(Error::file("write", &path))
    }

    /// A file of `size` bytes of noise that follow from its path.
    pub(super) fn noise(&self, path: &str, size: usize) -> Result<(), Error> {
        let path_on_host = self.root.join(path);
        let write = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(&path_on_host)?);
            let mut noise = Noise::of(path);
            let mut piece = vec![0; 1 << 20];
            let mut left = size;
            while left > 0 {
                let part = &mut piece[..left.min(1 << 20)];
                noise.fill(part);
                file.write_all(part)?;
                left -= part.len();
            }
            file.flush()
        };
        write().map_err(Error::file("write", &path_on_host))
    }

    /// Gives everything a time that follows from its path, to the 100 ns that NTFS keeps.
    fn set_times(&self, folder: &Path) -> Result<(), Error> {
        for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
            let path = entry.map_err(Error::file("list", folder))?.path();
            if path.is_dir() {
                self.set_times(&path)?;
            }
            set_time(&path, &path.strip_prefix(&self.root).unwrap_or(&path).to_string_lossy())?;
        }
        Ok(())
    }

    /// Gives everything its time.
    pub(super) fn finish(self) -> Result<(), Error> {
        self.set_times(&self.root)
    }
}

/// The first partition of the large disk: hardly anything.
pub fn boot(root: &Path) -> Result<(), Error> {
    let tree = Tree::new(root)?;
    tree.folder("Boot/en-US")?;
    tree.text("readme.txt", "This partition is here to be partition 1.\n")?;
    for number in 0..20 {
        tree.noise(&format!("Boot/en-US/font-{number:02}.ttf"), 5_000 + number * 331)?;
    }
    tree.finish()
}

/// The second partition of the large disk.
pub fn data(root: &Path) -> Result<(), Error> {
    let tree = Tree::new(root)?;
    tree.folder("ufos")?;
    tree.text("ufos/ufo.txt", "Ufos are not real\n")?;
    tree.text("ufos/xufos", "")?;
    tree.text(STATE, "base\n")?;
    tree.noise(INSTALLER, INSTALLER_SIZE)?;
    // 20 folders of 100 files, some 5 MB: what the benchmarks walk.
    for herd in 0..20 {
        tree.folder(&format!("Muflons/herd-{herd:02}"))?;
        for animal in 0..100 {
            let path = format!("Muflons/herd-{herd:02}/muflon-{animal:03}.dat");
            let size = 100 + Noise::of(&path).below(4_900);
            tree.noise(&path, size)?;
        }
    }
    tree.folder(CATALOGUE)?;
    for void in 0..2_000 {
        let path = format!("{CATALOGUE}/void-{void:04}.dat");
        // Half of them fit into their MFT record, which is read by another way.
        let size = Noise::of(&path).below(1_400);
        tree.noise(&path, size)?;
    }
    awkward(&tree)?;
    tree.finish()
}

/// Files that are easily got wrong.
fn awkward(tree: &Tree) -> Result<(), Error> {
    let names = [
        "Grüße aus Köln.txt".to_owned(),
        "Åström – Ølfabrik.txt".to_owned(),
        "宇宙の空洞.txt".to_owned(),
        "пустота войд.txt".to_owned(),
        "emoji 🐏 muflon.txt".to_owned(),
        "  two leading spaces.txt".to_owned(),
        ".hidden".to_owned(),
        "100% & $HOME 'quoted' (1) [2] {3}; #4.txt".to_owned(),
        // As long as the host's file systems allow: 255 bytes.
        format!("{}x", "ü".repeat(127)),
    ];
    tree.folder("Cosmological_Voids/Names, odd ones")?;
    for name in &names {
        tree.text(&format!("Cosmological_Voids/Names, odd ones/{name}"), name)?;
    }
    tree.text("Cosmological_Voids/Boötes.txt", "one file, two names\n")?;
    let (old, new) = ("Cosmological_Voids/Boötes.txt", "Cosmological_Voids/Bootes too.txt");
    let (old, new) = (tree.root.join(old), tree.root.join(new));
    fs::hard_link(old, &new).map_err(Error::file("create", &new))?;

    let path = tree.root.join("Cosmological_Voids/sparse.bin");
    let file = super::sparse::create(&path, 64 << 20)?;
    file.write_all_at(b"in the middle", 32 << 20).map_err(Error::file("write", &path))?;

    tree.text(STREAM.0, "there is more to this file\n")?;
    let deep = format!("Cosmological_Voids/{}", vec!["void within a void"; 40].join("/"));
    tree.folder(&deep)?;
    tree.text(&format!("{deep}/bottom.txt"), "as deep as it goes\n")
}

/// The one partition of the system-like disk.
pub fn system(root: &Path) -> Result<(), Error> {
    let tree = Tree::new(root)?;
    for folder in
        ["Windows/System32/config", "Windows/Fonts", "Users/Public/Documents", "mounts/mnt2"]
    {
        tree.folder(folder)?;
    }
    for number in 0..250 {
        tree.noise(&format!("Windows/System32/library-{number:03}.dll"), 3_000 + number * 97)?;
    }
    for number in 0..60 {
        tree.noise(&format!("Windows/Fonts/font-{number:02}.ttf"), 20_000 + number * 511)?;
    }
    for hive in ["SAM", "SECURITY", "SOFTWARE", "SYSTEM"] {
        tree.noise(&format!("Windows/System32/config/{hive}"), 262_144)?;
    }
    tree.text("Users/Public/Documents/desktop.ini", "[.ShellClassInfo]\r\n")?;
    tree.finish()
}

/// Changes the tree `root` of [`data`] to what snapshot `number` (from 1) holds, and returns the
/// same changes for the volume.
pub fn take_snapshot(root: &Path, number: usize) -> Result<Vec<Edit<'static>>, Error> {
    let tree = Tree { root: root.to_path_buf() };
    let host = |path: &str| root.join(path);

    tree.text(STATE, &format!("snapshot {number}\n"))?;
    let added = format!("snapshot-{number}.txt");
    tree.text(&added, &format!("added by snapshot {number}\n"))?;

    let (offset, len) = (patch_offset(number), PATCH_SIZE as u64);
    let mut patch = vec![0; PATCH_SIZE];
    Noise::of(&format!("patch {number}")).fill(&mut patch);
    let installer = host(INSTALLER);
    File::options()
        .write(true)
        .open(&installer)
        .and_then(|file| file.write_all_at(&patch, offset))
        .map_err(Error::file("write", &installer))?;

    let removed = format!("{CATALOGUE}/void-{number:04}.dat");
    fs::remove_file(host(&removed)).map_err(Error::file("remove", host(&removed)))?;

    let touched = [STATE, &added, INSTALLER, CATALOGUE];
    for path in touched {
        set_time(&host(path), &format!("{path} {number}"))?;
    }
    let mut edits = vec![
        Edit::File { from: host(STATE), to: STATE.to_owned() },
        Edit::File { from: host(&added), to: added.clone() },
        Edit::Patch { from: installer, to: INSTALLER.to_owned(), offset, len },
        Edit::Remove(removed),
    ];
    edits.extend(touched.map(|path| Edit::Time { from: host(path), to: path.to_owned() }));
    Ok(edits)
}

/// Where snapshot `number` changes the installer: not at a block's start.
fn patch_offset(number: usize) -> u64 {
    number as u64 * 50_000_000 + 123
}

/// Sets the modification time of `path` to one that follows from `seed`.
fn set_time(path: &Path, seed: &str) -> Result<(), Error> {
    const SEPTEMBER_2013: i64 = 1_380_000_000;
    let mut noise = Noise::of(seed);
    let count = |n: usize| i64::try_from(n).expect("small");
    let seconds = SEPTEMBER_2013 + count(noise.below(30_000_000));
    set_moment(path, seconds, 100 * count(noise.below(10_000_000)))
}

/// Sets the modification time of `path`: seconds since 1970, nanoseconds.
pub(super) fn set_moment(path: &Path, seconds: i64, nanoseconds: i64) -> Result<(), Error> {
    let time = TimeSpec::new(seconds, nanoseconds);
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| Error::file("set the time of", path)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_such_as_ntfs_keeps() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        set_time(file.path(), "seed").unwrap();
        let meta = file.path().metadata().unwrap();
        assert_ne!(meta.mtime_nsec(), 0);
        assert_eq!(meta.mtime_nsec() % 100, 0);
    }
}
