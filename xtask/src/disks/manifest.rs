//! What the disks' partitions hold, written down from the files they were filled with, so that a
//! test compares every file with its source and not with another reader of the same image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::digest;

/// The contents of several disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// By the disk's path from the manifest's folder.
    pub disks: BTreeMap<String, Vec<Partition>>,
}

/// The contents of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its number on the disk, from 1.
    pub number: u32,
    /// Type of its filesystem as libblkid names it.
    pub fstype: String,
    /// Its label.
    pub label: String,
    /// All files and folders by their path from the root, which is itself left out.
    pub entries: BTreeMap<String, Entry>,
}

/// A file, a folder or a symbolic link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since the epoch of the last modification.
    pub mtime: i64,
    /// Nanoseconds of it; NTFS keeps hundreds of them.
    pub mtime_nsec: i64,
    /// Of a file; others have none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<FileContent>,
    /// Where a symbolic link leads; others have none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    /// In bytes.
    pub size: u64,
    /// In lower-case hexadecimal.
    pub sha256: String,
    /// Names that it has.
    pub links: u64,
    /// Texts of its alternate data streams by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub streams: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::Unfit`] where it is none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path).map_err(Error::file("read", path))?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::unfit(
                format!("{} is no manifest: {error}", path.display()),
                "remove target/disks, they are made again",
            )
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self).expect("strings and numbers");
        fs::write(path, text).map_err(Error::file("write", path))
    }
}

/// Entries of all that is below `folder`.
///
/// # Errors
/// [`Error::File`].
pub fn scan(folder: &Path) -> Result<BTreeMap<String, Entry>, Error> {
    let mut entries = BTreeMap::new();
    scan_into(folder, "", &mut entries)?;
    Ok(entries)
}

fn scan_into(
    folder: &Path,
    prefix: &str,
    entries: &mut BTreeMap<String, Entry>,
) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let entry = entry.map_err(Error::file("list", folder))?;
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let meta = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
        let (mut file, mut target) = (None, None);
        if meta.is_dir() {
            scan_into(&path, &format!("{name}/"), entries)?;
        } else if meta.is_symlink() {
            let link = fs::read_link(&path).map_err(Error::file("read", &path))?;
            target = Some(link.to_string_lossy().into_owned());
        } else {
            let sha256 = digest::of_file(&path)?;
            let streams = BTreeMap::new();
            file = Some(FileContent { size: meta.len(), sha256, links: meta.nlink(), streams });
        }
        let entry = Entry { mtime: meta.mtime(), mtime_nsec: meta.mtime_nsec(), file, target };
        entries.insert(name, entry);
    }
    Ok(())
}
