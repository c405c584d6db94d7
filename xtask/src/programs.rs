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

/// Libraries that glibc loads by itself: ending a thread, as each lane of Argon2 does, takes libgcc.
const LOADED_BY_GLIBC: &[&str] = &["libgcc_s.so.1"];

/// Providers of OpenSSL, which it loads by name from a directory of theirs: old LUKS volumes use hashes
/// that only the legacy one has, such as Whirlpool.
const OPENSSL_PROVIDERS: &[&str] = &["legacy.so"];

/// Where OpenSSL's providers are in a package.
const PROVIDER_FOLDERS: &[&str] =
    &["usr/lib/x86_64-linux-gnu/ossl-modules", "lib/x86_64-linux-gnu/ossl-modules"];

/// The programs and libraries that call dlopen(3), each with what it loads. No header of an ELF file
/// tells that, so [`Programs::pack`] refuses one that is not here until somebody has looked at it.
const LOADERS: &[(&str, &str)] = &[
    ("libcrypto.so.3", "OPENSSL_PROVIDERS; engines for hardware, which is not there"),
    ("libcryptsetup.so.12", "plugins of tokens, for hardware and networks; a key is always given"),
    ("libgmodule-2.0.so.0", "modules of GIO, for networks and desktops"),
    ("libmount.so.1", "libcryptsetup, for files with dm-verity that fstab names"),
    ("libselinux.so.1", "libsepol, to build policies"),
    ("mdadm", "libdlm and libcmap, for arrays of a cluster"),
    ("ntfs-3g", "plugins for reparse points, of which Debian has none"),
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

    /// All libraries that `files` need, by name; those that glibc loads, and the dynamic linker, are among
    /// them.
    ///
    /// # Errors
    /// [`Error::Unfit`] where one is missing, and those of objdump.
    pub fn libraries_of(&self, files: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, Error> {
        let mut libraries =
            BTreeMap::from([(LINKER.to_owned(), self.file(LIBRARY_FOLDERS, LINKER)?)]);
        for name in LOADED_BY_GLIBC {
            libraries.insert((*name).to_owned(), self.file(LIBRARY_FOLDERS, name)?);
        }
        let mut todo: Vec<PathBuf> = files.iter().chain(libraries.values()).cloned().collect();
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

    /// What the squashfs holds: the path of each file in it, and the file.
    ///
    /// # Errors
    /// As [`Programs::libraries_of`]; [`Error::Unfit`] for a file that loads others at run time and is not
    /// in [`LOADERS`].
    fn contents(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let names = PROGRAMS.iter().flat_map(|(_, programs)| programs.iter());
        let programs = names.map(|name| Ok((format!("bin/{name}"), self.find(name)?)));
        let mut files: Vec<(String, PathBuf)> = programs.collect::<Result<_, Error>>()?;
        for name in OPENSSL_PROVIDERS {
            let provider = self.file(PROVIDER_FOLDERS, name)?;
            files.push((format!("lib/ossl-modules/{name}"), provider));
        }
        let needing: Vec<PathBuf> = files.iter().map(|(_, file)| file.clone()).collect();
        let libraries = self.libraries_of(&needing)?.into_iter();
        files.extend(libraries.map(|(name, file)| (format!("lib/{name}"), file)));
        for (path, file) in &files {
            let name = path.rsplit('/').next().unwrap_or(path);
            if !LOADERS.iter().any(|(known, _)| *known == name) && calls_dlopen(file)? {
                return Err(Error::unfit(
                    format!("{name} loads files at run time, and nobody has said which"),
                    "find out, put them into the appliance, and note it in LOADERS of xtask/src/programs.rs",
                ));
            }
        }
        Ok(files)
    }

    /// Writes the squashfs `image`: `bin` with the programs, `lib` with all that they load.
    ///
    /// # Errors
    /// As [`Programs::libraries_of`], [`Error::Unfit`] for a program that loads what is not known, and
    /// those of mksquashfs.
    pub fn pack(&self, image: &Path) -> Result<(), Error> {
        let files = self.contents()?;
        let staging = tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
        for (path, file) in &files {
            let copy = staging.path().join(path);
            let folder = copy.parent().expect("all are in bin or lib");
            fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
            fs::copy(file, &copy).map_err(Error::file("copy", file))?;
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

/// Whether an ELF file calls dlopen(3) or its kin.
fn calls_dlopen(file: &Path) -> Result<bool, Error> {
    let symbols = Tool::new("objdump").arg("--dynamic-syms").arg(file).output()?;
    let symbols = String::from_utf8_lossy(&symbols);
    let undefined = symbols.lines().filter(|line| line.contains("*UND*"));
    let mut names = undefined.filter_map(|line| line.split_whitespace().last());
    Ok(names.any(|name| matches!(name, "dlopen" | "dlmopen" | "__libc_dlopen_mode")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skips::skip;

    #[test]
    fn what_is_loaded_at_run_time_is_packed() {
        let Some(programs) = Programs::present(&Places::of_workspace()) else {
            return skip("the packages of the appliance's programs were not fetched");
        };
        let contents = programs.contents().unwrap();
        for path in ["lib/libgcc_s.so.1", "lib/ossl-modules/legacy.so", "lib/libargon2.so.1"] {
            assert!(contents.iter().any(|(packed, _)| packed == path), "{path}");
        }
    }
}
