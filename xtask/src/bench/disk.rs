//! The disks that are measured: shaped like the demo's, with more in them.
//!
//! ```text
//! chain/base.vmdk          4 GiB in sparse extents: MBR, two NTFS partitions
//! chain/snapshot-N.vmdk    three of them, each changing a part of each large file
//! chain/volume.raw         partition 2 of the newest, for mounting it on the host
//! files-N/base.vmdk        N small files, 100 to a folder
//! files-N/volume.raw       likewise
//! written/disk.raw         ext4 on a whole disk of 1 GiB, with nothing in it
//! written/tree.tar         the small files of the chain, to be unpacked there
//! ```

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::disks::chain::{self, Layout};
use crate::disks::ntfs::{Edit, Format, Volume};
use crate::disks::partitions::{self, Partition, SECTOR};
use crate::disks::sparse;
use crate::places::Places;
use crate::process::Tool;
use crate::progress::{size, step};

/// Raised whenever other disks come out of this module.
const VERSION: u32 = 1;

/// Says which link of the chain is being read.
const STATE: &str = "state.txt";
/// As large as the demo's installer.
pub const LARGE: &str = "installer.msi";
/// Four files that are read side by side.
pub const PARTS: [&str; 4] = ["part-1.bin", "part-2.bin", "part-3.bin", "part-4.bin"];
/// 1 GiB.
pub const GIBIBYTE: &str = "gibibyte.bin";
/// Small files, [`FILES_IN_TREE`] in [`FOLDERS_IN_TREE`], some 5 MB.
pub const TREE: &str = "herds";
/// Their number.
pub const FILES_IN_TREE: u32 = 2_000;
/// Number of their folders.
pub const FOLDERS_IN_TREE: u32 = 20;

/// Files of a folder, in every tree here.
const FILES_IN_FOLDER: u32 = 100;
/// Snapshots over the base.
const SNAPSHOTS: usize = 3;
/// Bytes of a large file that each snapshot changes.
const PATCH: u64 = 300_000;

const BOOT: Format<'_> = Format { start: 2_048, sectors: 131_072, label: "System" };
const DATA: Format<'_> = Format { start: 133_120, sectors: 6_291_456, label: "Volume" };
const DISK: u64 = (4 << 30) / SECTOR;

/// What can be mounted: a disk, a partition of it, and the same partition as a raw file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The newest link.
    pub disk: PathBuf,
    /// As `-m` names it.
    pub device: &'static str,
    /// A file on it: the mount answers when this can be looked at.
    pub probe: &'static str,
    /// What is on the partition; where there is none, it cannot be mounted on the host.
    pub raw: Option<PathBuf>,
    /// What is done with its files.
    pub access: Access,
}

/// What is done with the files of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// They are read.
    Read,
    /// They are written, and the changes kept in a file beside the image.
    Write,
}

/// The folder of the measured disks.
#[derive(Clone, Debug)]
pub struct Disks(PathBuf);

impl Disks {
    /// Those of the target folder.
    #[must_use]
    pub fn of(places: &Places) -> Self {
        Self(places.disks().join(format!("bench-v{VERSION}")))
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The same in another folder.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn place(&self, folder: &Path) -> Result<Self, Error> {
        sparse::link_tree(&self.0, folder)?;
        Ok(Self(folder.to_path_buf()))
    }

    /// Makes the chain, unless it is there.
    ///
    /// # Errors
    /// [`Error::Step`].
    pub fn ensure_chain(&self) -> Result<(), Error> {
        self.ensure("chain", make_chain)
    }

    /// Makes the disk with `count` files, unless it is there.
    ///
    /// # Errors
    /// [`Error::Step`].
    pub fn ensure_files(&self, count: u32) -> Result<(), Error> {
        self.ensure(&files_folder(count), |work, disks| make_files(count, work, disks))
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> Image {
        let folder = self.0.join("chain");
        let disk = folder.join(format!("snapshot-{SNAPSHOTS}.vmdk"));
        let raw = Some(folder.join("volume.raw"));
        Image { disk, device: "/dev/sda2", probe: STATE, raw, access: Access::Read }
    }

    /// The disk with `count` files.
    #[must_use]
    pub fn files(&self, count: u32) -> Image {
        let folder = self.0.join(files_folder(count));
        let raw = Some(folder.join("volume.raw"));
        let disk = folder.join("base.vmdk");
        Image { disk, device: "/dev/sda1", probe: STATE, raw, access: Access::Read }
    }

    /// Makes the disk that is written to, and what is unpacked there, unless they are there.
    ///
    /// # Errors
    /// [`Error::Step`].
    pub fn ensure_written(&self) -> Result<(), Error> {
        self.ensure("written", make_written)
    }

    /// The disk that is written to.
    #[must_use]
    pub fn written(&self) -> Image {
        let disk = self.0.join("written/disk.raw");
        Image { disk, device: "/dev/sda", probe: STATE, raw: None, access: Access::Write }
    }

    /// An archive of [`FILES_IN_TREE`] files in [`TREE`].
    #[must_use]
    pub fn archive(&self) -> PathBuf {
        self.0.join("written/tree.tar")
    }

    fn ensure(
        &self,
        name: &str,
        make: impl FnOnce(&Path, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let finished = self.0.join(name);
        if finished.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.0).map_err(Error::file("create", &self.0))?;
        let staging = tempfile::tempdir_in(&self.0).map_err(Error::file("write in", &self.0))?;
        step(&format!("bench disk {name}"), || {
            let (work, disks) = (staging.path().join("work"), staging.path().join("disks"));
            for folder in [&work, &disks] {
                fs::create_dir(folder).map_err(Error::file("create", folder))?;
            }
            make(&work, &disks)?;
            fs::rename(&disks, &finished).map_err(Error::file("create", &finished))?;
            Ok(((), size(sparse::size_on_disk(&finished)?)))
        })
    }
}

fn files_folder(count: u32) -> String {
    format!("files-{count}")
}

fn make_chain(work: &Path, disks: &Path) -> Result<(), Error> {
    let tree = work.join("tree");
    let large: Vec<(&str, u64)> = [(LARGE, 200_822_784), (GIBIBYTE, 1 << 30)]
        .into_iter()
        .chain(PARTS.map(|name| (name, 50_000_000)))
        .collect();
    make_tree(&tree)?;
    write(&tree.join(STATE), b"base\n")?;
    for (seed, &(name, bytes)) in large.iter().enumerate() {
        noise(&tree.join(name), seed as u64, bytes)?;
    }
    let boot = Volume::format(work.join("boot.raw"), &BOOT)?;
    let data = Volume::format(disks.join("volume.raw"), &DATA)?;
    data.edit(&[Edit::Tree(&tree)])?;
    let raw = work.join("disk.raw");
    let assemble = || {
        let at = |format: &Format<'_>, image| Partition { start: format.start, image };
        let rows = [at(&BOOT, boot.image()), at(&DATA, data.image())];
        partitions::ntfs_disk(&raw, DISK, 0x0efb_9e3e, &rows)
    };
    assemble()?;
    let layout = Layout::TwoGbMaxExtentSparse;
    let mut parent = PathBuf::from("base.vmdk");
    chain::convert(&raw, &disks.join(&parent), layout)?;
    for number in 1..=SNAPSHOTS {
        let before = work.join("before.raw");
        let copy = sparse::create(&before, DATA.sectors * SECTOR)?;
        sparse::copy_into(data.image(), &copy, 0)?;
        data.edit(&take_snapshot(&tree, number, &large)?)?;
        let child = PathBuf::from(format!("snapshot-{number}.vmdk"));
        chain::create_snapshot(&disks.join(&child), &parent, layout)?;
        chain::write_changes(&disks.join(&child), &before, data.image(), DATA.start * SECTOR)?;
        parent = child;
    }
    assemble()?;
    chain::check_reads_as(&disks.join(parent), &raw)
}

/// Changes the tree, and returns the same changes for the volume.
fn take_snapshot(
    tree: &Path,
    number: usize,
    large: &[(&str, u64)],
) -> Result<Vec<Edit<'static>>, Error> {
    let state = tree.join(STATE);
    write(&state, format!("snapshot {number}\n").as_bytes())?;
    let mut edits = vec![Edit::File { from: state, to: STATE.to_owned() }];
    for &(name, bytes) in large {
        let (from, offset) = (tree.join(name), bytes / 5 * number as u64 + 123);
        let patch = words(number as u64 + 100, PATCH / 8);
        let file = File::options().write(true).open(&from).map_err(Error::file("open", &from))?;
        file.write_all_at(&patch, offset).map_err(Error::file("write", &from))?;
        edits.push(Edit::Patch { from, to: name.to_owned(), offset, len: PATCH });
    }
    Ok(edits)
}

/// The small files, below `tree`.
fn make_tree(tree: &Path) -> Result<(), Error> {
    small_files(&tree.join(TREE), FILES_IN_TREE, |number| 100 + u64::from(number) * 7919 % 4_900)
}

fn make_written(work: &Path, disks: &Path) -> Result<(), Error> {
    const SIZE: u64 = 1 << 30;
    let (tree, empty) = (work.join("tree"), work.join("empty"));
    make_tree(&tree)?;
    Tool::new("tar").arg("-cf").arg(disks.join("tree.tar")).arg("-C").arg(&tree).arg(TREE).run()?;
    fs::create_dir(&empty).map_err(Error::file("create", &empty))?;
    write(&empty.join(STATE), b"empty\n")?;
    let disk = disks.join("disk.raw");
    sparse::create(&disk, SIZE)?;
    Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).args([&empty, &disk]).run()
}

fn make_files(count: u32, work: &Path, disks: &Path) -> Result<(), Error> {
    let tree = work.join("tree");
    small_files(&tree.join(TREE), count, |_| 10)?;
    write(&tree.join(STATE), b"base\n")?;
    // An MFT record of 1 KiB for each file and folder, its line in an index, and some room.
    let bytes = (u64::from(count) * 2048 + (64 << 20)).next_multiple_of(1 << 20);
    let format = Format { start: 2_048, sectors: bytes / SECTOR, label: "Files" };
    let volume = Volume::format(disks.join("volume.raw"), &format)?;
    volume.edit(&[Edit::Tree(&tree)])?;
    let raw = work.join("disk.raw");
    let rows = [Partition { start: format.start, image: volume.image() }];
    partitions::ntfs_disk(&raw, format.start + format.sectors + 2_048, count, &rows)?;
    chain::convert(&raw, &disks.join("base.vmdk"), Layout::MonolithicSparse)
}

/// Fills a new folder with `count` files in folders of [`FILES_IN_FOLDER`].
fn small_files(folder: &Path, count: u32, bytes_of: impl Fn(u32) -> u64) -> Result<(), Error> {
    for number in 0..count {
        let inner = folder.join(format!("herd-{:05}", number / FILES_IN_FOLDER));
        if number % FILES_IN_FOLDER == 0 {
            fs::create_dir_all(&inner).map_err(Error::file("create", &inner))?;
        }
        let path = inner.join(format!("muflon-{:03}.dat", number % FILES_IN_FOLDER));
        noise(&path, u64::from(number), bytes_of(number))?;
    }
    Ok(())
}

/// A file of `bytes` that nothing can compress and that follow from `seed`.
fn noise(path: &Path, seed: u64, bytes: u64) -> Result<(), Error> {
    const PIECE: u64 = 1 << 20;
    let fill = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for start in (0..bytes).step_by(1 << 20) {
            let piece = PIECE.min(bytes - start);
            let text = words((seed << 32) | (start / PIECE), piece.div_ceil(8));
            file.write_all(&text[..usize::try_from(piece).expect("at most a MiB")])?;
        }
        file.flush()
    };
    fill().map_err(Error::file("write", path))
}

/// `count` words of a xorshift generator, as bytes. Source: Marsaglia, Xorshift RNGs, 2003.
fn words(seed: u64, count: u64) -> Vec<u8> {
    // Neighbouring seeds give unlike beginnings; 0 would stay 0.
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn write(path: &Path, text: &[u8]) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_its_size_and_follows_from_its_seed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, seed) in [("one", 1), ("same", 1), ("other", 2)] {
            noise(&path(name), seed, (1 << 20) + 13).unwrap();
        }
        let read = |name: &str| fs::read(path(name)).unwrap();
        assert_eq!(read("one").len(), (1 << 20) + 13);
        assert_eq!(read("one"), read("same"));
        assert_ne!(read("one")[..64], read("other")[..64]);
        assert_ne!(read("one")[..13], read("one")[1 << 20..]);
    }

    #[test]
    fn small_files_are_a_hundred_to_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        small_files(folder.path(), 250, u64::from).unwrap();
        let file = folder.path().join("herd-00002/muflon-049.dat");
        assert_eq!(fs::metadata(file).unwrap().len(), 249);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
