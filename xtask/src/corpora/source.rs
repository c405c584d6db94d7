//! Source packages whose tests hold disk images, and the archives that they come in.
//!
//! The archives are fetched by apt from the mirror that this machine is configured for, and kept in
//! `target/corpora`. **Invariant:** nothing of them is in the repository.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::Apt;
use crate::digest;
use crate::error::Error;
use crate::places::Places;

/// Such a source package.
#[derive(Debug)]
pub struct Source {
    /// Debian's name of it.
    pub name: &'static str,
    /// The suite that it is taken from.
    suite: &'static str,
    /// The upstream archive with which the table was made.
    archive: &'static str,
    /// Its SHA-256.
    sha256: &'static str,
    /// The directories of images in it, below its top directory.
    pub directories: &'static [&'static str],
    /// Endings of the images' names, in the directories.
    pub endings: &'static [&'static str],
    /// Parts of names that have such an ending, and are of no image.
    pub others: &'static [&'static str],
    /// The expectations.
    pub table: &'static str,
}

/// An archive that is there.
#[derive(Debug)]
pub struct Archive {
    /// The file.
    pub file: PathBuf,
    /// Whether the table was made with it. The mirror may have moved on to another version; its
    /// images are then checked one by one.
    pub is_pinned: bool,
}

/// All of them. A suite's stable updates may bring another upstream version: of QEMU they do in
/// every release but bookworm.
#[rustfmt::skip]
pub const SOURCES: &[Source] = &[
    Source {
        name: "dfvfs",
        suite: "trixie",
        archive: "dfvfs_20240505.orig.tar.gz",
        sha256: "b1de52e61a447e53c89f141eec82fbd4af75405957231ab33f3847c5d70d0f0b",
        directories: &["test_data"],
        endings: &[".raw", ".dmg", ".dd", ".qcow2", ".vhd", ".vhdx", ".vmdk", ".E01", ".000", ".001", ".sparseimage", ".hds"],
        others: &[],
        table: include_str!("tables/dfvfs.tsv"),
    },
    Source {
        name: "util-linux",
        suite: "trixie",
        archive: "util-linux_2.41.5.orig.tar.xz",
        sha256: "f586e35d320ff537aab3ffeca37e9ecd482ccbe013590db4429a414d8aa6a728",
        directories: &["tests/ts/blkid/images-fs", "tests/ts/blkid/images-pt"],
        endings: &[".xz"],
        others: &[],
        table: include_str!("tables/util-linux.tsv"),
    },
    Source {
        name: "cryptsetup",
        suite: "trixie",
        archive: "cryptsetup_2.7.5.orig.tar.gz",
        sha256: "66f82757456411353216def2e93ee6f82e1dc5c8b583cb9b1c84ecb918b60980",
        directories: &["tests"],
        endings: &[".xz"],
        others: &["README", "keyfile", "images.conf", ".directory", ".BEK", ".log", "tcrypt-images/tc", "tcrypt-images/vck", "tcrypt-images/sys", "conversion_imgs", "luks2_mda_images"],
        table: include_str!("tables/cryptsetup.tsv"),
    },
    Source {
        name: "e2fsprogs",
        suite: "trixie",
        archive: "e2fsprogs_1.47.2.orig.tar.gz",
        sha256: "6dcd67ff9d8b13274ba3f088e4318be4f5b71412cd863524423fc49d39a6371f",
        directories: &["tests"],
        endings: &[".gz"],
        others: &[],
        table: include_str!("tables/e2fsprogs.tsv"),
    },
    Source {
        name: "btrfs-progs",
        suite: "trixie",
        archive: "btrfs-progs_6.14.orig.tar.gz",
        sha256: "5a85b791f0f32a4994e864ac4cb7abccce08e56db3010a1855ad0edeebc70b4c",
        directories: &["tests/convert-tests", "tests/fsck-tests", "tests/fuzz-tests", "tests/misc-tests"],
        endings: &[".xz", ".img"],
        others: &[],
        table: include_str!("tables/btrfs-progs.tsv"),
    },
    Source {
        name: "exfatprogs",
        suite: "trixie",
        archive: "exfatprogs_1.2.9.orig.tar.xz",
        sha256: "d9a42197c6ff9e6a8e923789413008e317415cf7a4ab85c486c5ffcaf49ca175",
        directories: &["tests"],
        endings: &[".xz"],
        others: &[],
        table: include_str!("tables/exfatprogs.tsv"),
    },
    Source {
        name: "qemu",
        suite: "bookworm",
        archive: "qemu_7.2+dfsg.orig.tar.xz",
        sha256: "91aca71520040edc40b8d437aa3004dae614f58e286cf653ee8996c07af2962f",
        directories: &["tests/qemu-iotests/sample_images"],
        endings: &[".bz2"],
        others: &[],
        table: include_str!("tables/qemu.tsv"),
    },
];

impl Source {
    /// The archive, fetched unless it is there or `offline` forbids it.
    ///
    /// # Errors
    /// Where it cannot be had, or is not what the mirror's name for it says.
    pub fn ensure(&self, offline: bool, places: &Places) -> Result<Archive, Error> {
        let directory = places.corpora().join(self.name);
        let mut found = archives_in(&directory)?;
        if !found.contains(&directory.join(self.archive)) && !offline {
            found = self.fetch(&directory, places)?;
        }
        let pinned = found.iter().find(|file| file.ends_with(self.archive));
        let Some(file) = pinned.or(found.last()) else {
            return Err(Error::unfit(
                format!("there is no archive of {} in {}", self.name, directory.display()),
                "run without --offline",
            ));
        };
        let is_pinned = pinned.is_some();
        if is_pinned && digest::of_file(file)? != self.sha256 {
            return Err(Error::unfit(
                format!("{} has another SHA-256 than the table of sources", file.display()),
                "remove it and try again",
            ));
        }
        Ok(Archive { file: file.clone(), is_pinned })
    }

    fn fetch(&self, directory: &Path, places: &Places) -> Result<Vec<PathBuf>, Error> {
        fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
        let apt = Apt::open_source_packages(places.apt_of_sources(self.suite), self.suite)?;
        apt.update()?;
        // Under a name of its own until it is complete.
        let partial = tempfile::Builder::new()
            .prefix("partial-")
            .tempdir_in(directory)
            .map_err(Error::file("write in", directory))?;
        apt.download_source(self.name, partial.path())?;
        for file in archives_in(partial.path())? {
            let name = file.file_name().expect("it was listed");
            let to = directory.join(name);
            fs::rename(&file, &to).map_err(Error::file("create", &to))?;
        }
        archives_in(directory)
    }
}

/// The upstream archives in a directory, sorted by name; none where it does not exist.
fn archives_in(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).map_err(Error::file("list", directory))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.to_string_lossy().contains(".orig.tar."))
        .filter(|path| !path.to_string_lossy().ends_with(".asc"))
        .collect();
    files.sort();
    Ok(files)
}
