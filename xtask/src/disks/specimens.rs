//! One image of each kind of filesystem, with files that are easily got wrong. They are made once,
//! as root where root sets up, and kept under `target/disks`: filling NTFS takes a mount, which
//! the tests, as an ordinary user, could not do on every machine.
//!
//! ```text
//! ext4.img      the filesystem, on the whole disk
//! ext4.json     what is in it, as far as the kind keeps it
//! hfs.missing   instead of these two: why there are none
//! crowd.img     ext4 with [`CROWD`] files in one folder
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::content::{Tree, set_moment};
use super::filesystems::{Keeps, Kind, Names, Times};
use super::manifest::{Entry, scan};
use super::ntfs::{Edit, Volume};
use super::{assembled, bitlocker, dynamic, linux, locked, mkfs, sparse, windows};
use crate::Error;
use crate::places::Places;
use crate::process::Tool;
use crate::progress::{size, step};

/// Raised whenever other images come out of this module.
const VERSION: u32 = 1;

/// Files in the folder of [`Specimens::crowd`].
pub const CROWD: usize = 20_000;

/// Empty folders, for those who mount something in there.
pub const MOUNTPOINTS: [&str; 3] = ["mnt/one", "mnt/two", "mnt/three"];

/// Files of these many bytes: none, one, and those around the sizes in which files are read.
const SIZES: [usize; 7] = [0, 1, 4095, 4096, 131_072, 131_073, 5_000_011];

/// A folder with the images in it.
#[derive(Clone, Debug)]
pub struct Specimens {
    folder: PathBuf,
}

/// What is known of the image of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Specimen {
    /// It is there.
    Image {
        /// The raw image.
        path: PathBuf,
        /// What is in it.
        entries: BTreeMap<String, Entry>,
    },
    /// It could not be made, for this reason.
    Missing(String),
}

impl Specimens {
    /// The images in the target folder. Those that are not there are made now, or tried again.
    ///
    /// # Errors
    /// [`Error::File`]. That one cannot be made is none.
    pub fn ensure(places: &Places) -> Result<Self, Error> {
        let specimens = Self { folder: places.disks().join(format!("specimens-v{VERSION}")) };
        let folder = specimens.folder();
        let lacking = || -> Vec<Kind> {
            Kind::ALL.into_iter().filter(|&kind| !specimens.file(kind, "json").exists()).collect()
        };
        let whole = assembled::are_there(&specimens)
            && windows::PAIR.is_there(&specimens)
            && bitlocker::PAIR.is_there(&specimens)
            && bitlocker::OTHERS.is_there(&specimens)
            && bitlocker::LONG_KEYS.is_there(&specimens)
            && dynamic::PAIR.is_there(&specimens)
            && linux::PAIR.is_there(&specimens);
        if lacking().is_empty() && specimens.crowd().exists() && whole {
            // Perhaps root made them, and this user may not lock anything there.
            return Ok(specimens);
        }
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        let _lock = locked(folder)?;
        let wanted = lacking();
        if !wanted.is_empty() {
            step("filesystems of each kind", || {
                wanted.iter().try_for_each(|&kind| specimens.try_make(kind))?;
                Ok(((), size(sparse::size_on_disk(folder)?)))
            })?;
        }
        if !specimens.crowd().exists() {
            step("a large folder", || {
                specimens.make_crowd()?;
                Ok(((), format!("{CROWD} files")))
            })?;
        }
        windows::ensure(&specimens)?;
        bitlocker::ensure(&specimens)?;
        dynamic::ensure(&specimens)?;
        if !assembled::are_there(&specimens) {
            step("disks to be assembled", || {
                assembled::ensure(&specimens, places)?;
                Ok(((), size(sparse::size_on_disk(folder)?)))
            })?;
        }
        if !linux::PAIR.is_there(&specimens) {
            step("disks of a Linux", || {
                linux::ensure(&specimens, places)?;
                Ok(((), size(sparse::size_on_disk(folder)?)))
            })?;
        }
        Ok(specimens)
    }

    /// The images in `folder`, which [`Specimens::ensure`] filled.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The image of `kind`.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::Unfit`] where nothing is known of it.
    pub fn of(&self, kind: Kind) -> Result<Specimen, Error> {
        let missing = self.file(kind, "missing");
        if let Ok(reason) = fs::read_to_string(&missing) {
            return Ok(Specimen::Missing(reason));
        }
        let list = self.file(kind, "json");
        let text = fs::read(&list).map_err(Error::file("read", &list))?;
        let entries = serde_json::from_slice(&text).map_err(|error| {
            Error::unfit(
                format!("{}: {error}", list.display()),
                "remove target/disks, they are made again",
            )
        })?;
        Ok(Specimen::Image { path: self.file(kind, "img"), entries })
    }

    /// An ext4 image with [`CROWD`] empty files in the folder `crowd`, named `entry 0` and so on.
    #[must_use]
    pub fn crowd(&self) -> PathBuf {
        self.folder.join("crowd.img")
    }

    fn file(&self, kind: Kind, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", kind.file_name()))
    }

    fn try_make(&self, kind: Kind) -> Result<(), Error> {
        let missing = self.file(kind, "missing");
        let reason = match kind.missing_program() {
            Some(program) => format!("{program} is not installed"),
            None => match self.make(kind) {
                Ok(()) if missing.exists() => {
                    return fs::remove_file(&missing).map_err(Error::file("remove", &missing));
                }
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            },
        };
        fs::write(&missing, format!("{} cannot be made here: {reason}", kind.file_name()))
            .map_err(Error::file("write", &missing))
    }

    fn make(&self, kind: Kind) -> Result<(), Error> {
        let staging = self.staging()?;
        let (tree, image) = (staging.path().join("tree"), staging.path().join("image"));
        plant(&tree, kind.keeps())?;
        let mut entries = scan(&tree)?;
        mkfs::make(kind, &tree, &image)?;
        if kind == Kind::Ntfs {
            let (name, entry) = add_longest_name(&tree, &image)?;
            entries.insert(name, entry);
        }
        for entry in entries.values_mut() {
            keep(kind.keeps(), entry);
        }
        let list = self.file(kind, "json");
        let text = serde_json::to_vec_pretty(&entries).expect("strings and numbers");
        keep_file(&image, &self.file(kind, "img"))?;
        fs::write(&list, text).map_err(Error::file("write", &list))
    }

    /// mke2fs looks through all entries for each that it adds: this takes half a minute.
    fn make_crowd(&self) -> Result<(), Error> {
        let staging = self.staging()?;
        let (folder, image) = (staging.path().join("tree"), staging.path().join("image"));
        let tree = Tree::new(&folder)?;
        tree.folder("crowd")?;
        for number in 0..CROWD {
            tree.text(&format!("crowd/entry {number}"), "")?;
        }
        sparse::create(&image, 128 << 20)?;
        let mke2fs = Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-N", "24000", "-d"]);
        mke2fs.args([&folder, &image]).run()?;
        keep_file(&image, &self.crowd())
    }

    fn staging(&self) -> Result<TempDir, Error> {
        tempfile::tempdir_in(&self.folder).map_err(Error::file("write in", &self.folder))
    }
}

/// Puts a finished image where everybody may read it.
///
/// # Errors
/// [`Error::File`].
pub fn keep_file(image: &Path, kept: &Path) -> Result<(), Error> {
    fs::set_permissions(image, fs::Permissions::from_mode(0o644))
        .and_then(|()| fs::rename(image, kept))
        .map_err(Error::file("write", kept))
}

/// Makes the tree `root`, with what a kind keeps.
fn plant(root: &Path, keeps: Keeps) -> Result<(), Error> {
    let tree = Tree::new(root)?;
    for size in SIZES {
        tree.noise(&format!("{size}-bytes"), size)?;
    }
    tree.folder("many")?;
    for number in 0..300 {
        tree.text(&format!("many/entry-{number:03}"), &format!("{number}\n"))?;
    }
    for mountpoint in MOUNTPOINTS {
        tree.folder(mountpoint)?;
    }
    let names: &[&str] = match keeps.names {
        Names::Plain => &[],
        Names::TwoBytes => &["two words.txt", "Grüße aus Köln.txt", "宇宙の空洞.txt"],
        Names::All => &["two words.txt", "Grüße aus Köln.txt", "宇宙の空洞.txt", "🐏.txt"],
    };
    for name in names {
        tree.text(name, name)?;
    }
    if keeps.hard_links {
        let (one, other) = (root.join("4096-bytes"), root.join("many/4096-bytes-too"));
        fs::hard_link(one, &other).map_err(Error::file("create", &other))?;
    }
    if keeps.symbolic_links {
        for (target, link) in [("many/entry-007", "link"), ("no/where", "dangling")] {
            let link = root.join(link);
            symlink(target, &link).map_err(Error::file("create", &link))?;
        }
    }
    let years = keeps.times.map_or(vec![], years);
    for year in &years {
        tree.text(&format!("of-{year}"), "")?;
    }
    tree.finish()?;
    for year in years {
        set_moment(&root.join(format!("of-{year}")), new_year(year), 123_456_789)?;
    }
    Ok(())
}

/// Years that a kind could get wrong: before its epoch or Unix', behind the end of 32 bits.
fn years(times: Times) -> Vec<i64> {
    let kept = times.first_year..=times.last_year;
    [1903, 1969, 1980, 2027, 2037, 2050, 2100]
        .into_iter()
        .filter(|year| kept.contains(year))
        .collect()
}

/// One second into a year, in seconds since 1970.
fn new_year(year: i64) -> i64 {
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let days = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969);
    days * 86_400 + 1
}

/// Makes `entry` what a kind keeps of it.
fn keep(keeps: Keeps, entry: &mut Entry) {
    match keeps.times {
        Some(times) => {
            let second = 1_000_000_000;
            if times.unit_ns >= second {
                entry.mtime -= entry.mtime.rem_euclid(times.unit_ns / second);
            }
            entry.mtime_nsec -= entry.mtime_nsec % times.unit_ns.min(second);
        }
        None => (entry.mtime, entry.mtime_nsec) = (0, 0),
    }
}

/// Puts a file into an NTFS volume whose name the host's filesystems could not have: 255 UTF-16
/// units that are 765 bytes.
fn add_longest_name(tree: &Path, image: &Path) -> Result<(String, Entry), Error> {
    const SAME: &str = "1-bytes";
    let name = "宇".repeat(255);
    Volume::in_file(image).edit(&[Edit::File { from: tree.join(SAME), to: name.clone() }])?;
    let entry = scan(tree)?.remove(SAME).expect("every tree has it");
    Ok((name, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years_begin_when_they_should() {
        let table = [
            (1903, -2_114_380_799),
            (1969, -31_535_999),
            (1970, 1),
            (2000, 946_684_801),
            (2050, 2_524_608_001),
            (2100, 4_102_444_801),
        ];
        for (year, seconds) in table {
            assert_eq!(new_year(year), seconds, "{year}");
        }
    }

    #[test]
    fn times_are_rounded_down_to_what_a_kind_keeps() {
        let entry = |mtime, mtime_nsec| Entry { mtime, mtime_nsec, file: None, target: None };
        let table = [
            (Kind::Erofs, entry(-1, 123_456_789)),
            (Kind::Ntfs, entry(-1, 123_456_700)),
            (Kind::Ext4, entry(-1, 0)),
            (Kind::Vfat, entry(-2, 0)),
            (Kind::Xfs, entry(0, 0)),
        ];
        for (kind, expected) in table {
            let mut kept = entry(-1, 123_456_789);
            keep(kind.keeps(), &mut kept);
            assert_eq!(kept, expected, "{kind:?}");
        }
    }
}
