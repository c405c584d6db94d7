//! The programs that assemble volumes in the appliance: LVM, MD, LUKS, Btrfs and Windows' dynamic
//! disks have their own, and they come out of Debian's packages with the libraries that they need. So does ntfs-3g.
//!
//! They stand in a squashfs within the initramfs, which the guest mounts when the first of them is
//! needed: unpacked they would take three times as much of every guest's memory, and boots would
//! wait for that.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::Apt;
use crate::error::Error;
use crate::kernel::Origin;
use crate::places::Places;
use crate::process::Tool;

/// Programs by their packages.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("lvm2", &["lvm"]),
    ("mdadm", &["mdadm"]),
    ("cryptsetup-bin", &["cryptsetup"]),
    ("btrfs-progs", &["btrfs"]),
    ("ntfs-3g", &["ntfs-3g"]),
    ("ldmtool", &["ldmtool"]),
    ("dmsetup", &["dmsetup"]),
];

/// Packages whose files serve to make disks for the tests, and are in no appliance.
const FOR_TESTS: &[&str] = &["busybox-static"];

/// Where programs are in a package.
const PROGRAM_FOLDERS: &[&str] = &["usr/sbin", "usr/bin", "sbin", "bin"];

/// Where libraries are in a package, and the dynamic linker among them.
const LIBRARY_FOLDERS: &[&str] = &["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// The dynamic linker, by which the guest starts each program.
const LINKER: &str = "ld-linux-x86-64.so.2";

/// The file beside the unpacked packages that says what they are.
const ORIGINS: &str = "packages.json";

/// The unpacked packages.
#[derive(Debug)]
pub struct Programs {
    tree: PathBuf,
    origins: Vec<Origin>,
}

/// What [`ORIGINS`] holds.
#[derive(Serialize, Deserialize)]
struct Fetched {
    /// What was asked for: another list has them fetched again.
    wanted: Vec<String>,
    origins: Vec<Origin>,
}

fn wanted() -> Vec<&'static str> {
    PROGRAMS.iter().map(|(package, _)| *package).chain(FOR_TESTS.iter().copied()).collect()
}

impl Programs {
    /// The packages, if they were fetched before.
    #[must_use]
    pub fn present(places: &Places) -> Option<Self> {
        let tree = places.programs();
        let text = fs::read(tree.join(ORIGINS)).ok()?;
        let fetched: Fetched = serde_json::from_slice(&text).ok()?;
        (fetched.wanted == wanted()).then_some(Self { tree, origins: fetched.origins })
    }

    /// Fetches the packages with the libraries they depend on, and unpacks them without installing
    /// anything.
    ///
    /// # Errors
    /// Those of apt, and of the file system.
    pub fn fetch(places: &Places) -> Result<Self, Error> {
        let apt = Apt::open(places.apt())?;
        apt.update()?;
        let target = places.target();
        let staging = tempfile::tempdir_in(target).map_err(Error::file("write in", target))?;
        let tree = staging.path().join("tree");
        let mut origins = Vec::new();
        for package in apt.download_with_libraries(&wanted(), staging.path())? {
            Tool::new("dpkg-deb").arg("--extract").arg(&package.file).arg(&tree).run()?;
            origins.push(Origin { name: package.name, version: package.version });
        }
        let wanted = wanted().into_iter().map(str::to_owned).collect();
        let fetched = Fetched { wanted, origins };
        let text = serde_json::to_vec(&fetched).expect("strings");
        fs::write(tree.join(ORIGINS), text).map_err(Error::file("write in", &tree))?;
        let kept = places.programs();
        if kept.exists() {
            fs::remove_dir_all(&kept).map_err(Error::file("remove", &kept))?;
        }
        fs::rename(&tree, &kept).map_err(Error::file("replace", &kept))?;
        Ok(Self { tree: kept, origins: fetched.origins })
    }

    /// What tells these packages from others.
    #[must_use]
    pub fn identity(&self) -> String {
        self.origins.iter().map(|origin| format!("{} {}\n", origin.name, origin.version)).collect()
    }

    /// The program `name`, for the tests' disks as well.
    ///
    /// # Errors
    /// [`Error::Unfit`] where no package has it.
    pub fn find(&self, name: &str) -> Result<PathBuf, Error> {
        self.file(PROGRAM_FOLDERS, name)
    }

    /// `files` with all libraries that they need, by name; the dynamic linker is among them.
    ///
    /// # Errors
    /// [`Error::Unfit`] where one is missing, and those of objdump.
    pub fn libraries_of(&self, files: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, Error> {
        let mut libraries =
            BTreeMap::from([(LINKER.to_owned(), self.file(LIBRARY_FOLDERS, LINKER)?)]);
        let mut todo = files.to_vec();
        while let Some(file) = todo.pop() {
            for name in needed_by(&file)? {
                if let Entry::Vacant(entry) = libraries.entry(name) {
                    let library = self.file(LIBRARY_FOLDERS, entry.key())?;
                    todo.push(entry.insert(library).clone());
                }
            }
        }
        Ok(libraries)
    }

    /// Writes the squashfs `image`: `bin` with the programs, `lib` with their libraries.
    ///
    /// # Errors
    /// As [`Programs::libraries_of`], and those of mksquashfs.
    pub fn pack(&self, image: &Path) -> Result<(), Error> {
        let names = PROGRAMS.iter().flat_map(|(_, programs)| programs.iter());
        let programs = names.map(|name| Ok((*name, self.find(name)?)));
        let programs: Vec<(&str, PathBuf)> = programs.collect::<Result<_, Error>>()?;
        let files: Vec<PathBuf> = programs.iter().map(|(_, file)| file.clone()).collect();
        let staging = tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
        let copy = |folder: &str, name: &str, file: &Path| -> Result<(), Error> {
            let folder = staging.path().join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
            fs::copy(file, folder.join(name)).map(drop).map_err(Error::file("copy", file))
        };
        for (name, file) in &programs {
            copy("bin", name, file)?;
        }
        for (name, file) in self.libraries_of(&files)? {
            copy("lib", &name, &file)?;
        }
        // LZ4, because it is read under TCG; times, because what is the same shall be the same.
        let options = ["-quiet", "-no-progress", "-noappend", "-all-root", "-comp", "lz4", "-Xhc"];
        Tool::new("mksquashfs")
            .args([staging.path(), image])
            .args(options)
            .args(["-mkfs-time", "0", "-all-time", "0"])
            .run()
    }

    fn file(&self, folders: &[&str], name: &str) -> Result<PathBuf, Error> {
        let places = folders.iter().map(|folder| self.tree.join(folder).join(name));
        places.into_iter().find(|path| path.exists()).ok_or_else(|| {
            Error::unfit(
                format!("none of the packages in {} has {name}", self.tree.display()),
                "remove that folder, they are fetched again",
            )
        })
    }
}

/// Names of the libraries that an ELF file asks for.
fn needed_by(file: &Path) -> Result<BTreeSet<String>, Error> {
    let headers = Tool::new("objdump").arg("--private-headers").arg(file).output()?;
    let headers = String::from_utf8_lossy(&headers);
    let names = headers.lines().filter_map(|line| line.trim().strip_prefix("NEEDED"));
    Ok(names.map(|name| name.trim().to_owned()).collect())
}
