//! `cargo xtask build-appliance`: kernel, initramfs and manifest in `target/appliance`.
//!
//! The folder is replaced as a whole, by an exchange of names: whoever opens it sees the old
//! appliance or the new one, never half of either.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};

use crate::daemon;
use crate::digest;
use crate::error::Error;
use crate::initramfs::Initramfs;
use crate::kernel::{Kernel, Origin, Source};
use crate::modules::{Selection, read_module};
use crate::places::Places;
use crate::programs::Programs;
use crate::progress::{line, size, step};

/// The uncompressed kernel.
pub const KERNEL: &str = "vmlinux";
/// The initramfs.
pub const INITRAMFS: &str = "initramfs.cpio";
/// What the two are.
pub const MANIFEST: &str = "manifest.json";

/// The sources that decide what an appliance looks like. A change in one of them makes a new
/// appliance, without a number that somebody has to remember to raise.
const RECIPE: &[&str] = &[
    include_str!("appliance.rs"),
    include_str!("initramfs.rs"),
    include_str!("kernel.rs"),
    include_str!("modules.rs"),
    include_str!("programs.rs"),
    include_str!("thunks.rs"),
];

/// `manifest.json`: says what an appliance is, and lets its reader check the files.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`guestmnt_protocol::VERSION`] of the daemon.
    pub protocol: u32,
    /// Version of the daemon's package.
    pub version: String,
    /// What `uname -r` says in the guest.
    pub kernel: String,
    /// The package that the kernel came in, where it came in one.
    pub kernel_package: Option<Origin>,
    /// [`KERNEL`] and [`INITRAMFS`].
    pub files: BTreeMap<String, FileEntry>,
    /// Digest of all that the appliance was built from.
    pub stamp: String,
}

/// One file of an appliance.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// In bytes.
    pub size: u64,
    /// In lower-case hexadecimal.
    pub sha256: String,
}

/// Builds the appliance, unless it is there and nothing that it is made of has changed.
///
/// # Errors
/// [`Error::Step`], naming the step.
pub fn build(source: &Source, places: &Places) -> Result<(), Error> {
    let daemon = step("daemon", || {
        let path = daemon::build(places)?;
        let bytes = fs::metadata(&path).map_err(Error::file("find", &path))?.len();
        Ok((path, size(bytes)))
    })?;
    let kernel = match Kernel::present(source, places)? {
        Some(kernel) => kernel,
        None => step("kernel package", || {
            let kernel = Kernel::fetch(places)?;
            let detail = kernel.release.clone();
            Ok((kernel, detail))
        })?,
    };
    let programs = programs(source, places)?;
    let stamp = stamp(&daemon, &kernel, programs.as_ref())?;
    let finished = places.appliance();
    if is_current(&finished, &stamp) {
        eprintln!("{} is up to date", finished.display());
        return Ok(());
    }
    let target = places.target();
    let staging = tempfile::tempdir_in(target).map_err(Error::file("write in", target))?;
    step("kernel", || {
        let path = staging.path().join(KERNEL);
        let elf = kernel.vmlinux()?;
        fs::write(&path, &elf).map_err(Error::file("write", &path))?;
        Ok(((), format!("{}, {}", kernel.release, size(elf.len() as u64))))
    })?;
    step("initramfs", || {
        let path = staging.path().join(INITRAMFS);
        let modules = write_initramfs(&path, &daemon, &kernel, programs.as_ref())?;
        let bytes = fs::metadata(&path).map_err(Error::file("find", &path))?.len();
        Ok(((), format!("{}, {modules} modules", size(bytes))))
    })?;
    step("manifest", || {
        write_manifest(staging.path(), &kernel, stamp)?;
        publish(staging.path(), &finished)?;
        Ok(((), finished.display().to_string()))
    })
}

/// The programs that go into the appliance. They are fetched where the kernel would be, too; a user
/// who brings a kernel may have no Debian, and gets an appliance without LVM and the like then.
fn programs(source: &Source, places: &Places) -> Result<Option<Programs>, Error> {
    if let Some(programs) = Programs::present(places) {
        return Ok(Some(programs));
    }
    let start = Instant::now();
    let fetched = step("packages of programs", || {
        let programs = Programs::fetch(places)?;
        Ok((programs, places.programs().display().to_string()))
    });
    match (fetched, source) {
        (Ok(programs), _) => Ok(Some(programs)),
        (Err(error), Source::Debian) => Err(error),
        (Err(error), Source::Files { .. }) => {
            line("packages of programs", start.elapsed(), "none: no LVM, RAID, LUKS");
            eprintln!("{error}");
            Ok(None)
        }
    }
}

/// Digest of what goes into an appliance.
fn stamp(daemon: &Path, kernel: &Kernel, programs: Option<&Programs>) -> Result<String, Error> {
    let daemon = digest::of_file(daemon)?;
    let kernel = kernel.identity()?;
    let protocol = guestmnt_protocol::VERSION.to_string();
    let programs = programs.map(Programs::identity).unwrap_or_default();
    let parts =
        [daemon.as_str(), &kernel, &protocol, &programs].into_iter().chain(RECIPE.iter().copied());
    Ok(digest::of_parts(parts.map(str::as_bytes)))
}

/// Whether `folder` holds an appliance with this stamp, its files whole by their sizes.
fn is_current(folder: &Path, stamp: &str) -> bool {
    let manifest = fs::read(folder.join(MANIFEST))
        .ok()
        .and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
    manifest.is_some_and(|manifest| {
        manifest.stamp == stamp
            && manifest.files.iter().all(|(name, entry)| {
                fs::metadata(folder.join(name)).is_ok_and(|meta| meta.len() == entry.size)
            })
    })
}

/// Writes the archive and returns the number of modules in it.
fn write_initramfs(
    path: &Path,
    daemon: &Path,
    kernel: &Kernel,
    programs: Option<&Programs>,
) -> Result<usize, Error> {
    let selection = Selection::of(kernel)?;
    let write = Error::file;
    let file = File::create(path).map_err(write("create", path))?;
    let mut archive = Initramfs::new(BufWriter::new(file)).map_err(write("write", path))?;
    let init = fs::read(daemon).map_err(Error::file("read", daemon))?;
    archive.file("init", 0o755, &init).map_err(write("write", path))?;
    archive.file("modules/list", 0o644, selection.list.as_bytes()).map_err(write("write", path))?;
    for (name, module) in &selection.files {
        archive
            .file(&format!("modules/{name}.ko"), 0o644, &read_module(module)?)
            .map_err(write("write", path))?;
    }
    if let Some(programs) = programs {
        let image = path.with_file_name("programs.staged");
        programs.pack(&image)?;
        let bytes = fs::read(&image).map_err(Error::file("read", &image))?;
        archive.file("programs.squashfs", 0o644, &bytes).map_err(write("write", path))?;
        fs::remove_file(&image).map_err(Error::file("remove", &image))?;
    }
    archive.finish().map_err(write("write", path))?;
    Ok(selection.files.len())
}

fn write_manifest(folder: &Path, kernel: &Kernel, stamp: String) -> Result<(), Error> {
    let mut files = BTreeMap::new();
    for name in [KERNEL, INITRAMFS] {
        let path = folder.join(name);
        let size = fs::metadata(&path).map_err(Error::file("find", &path))?.len();
        files.insert(name.to_owned(), FileEntry { size, sha256: digest::of_file(&path)? });
    }
    let manifest = Manifest {
        protocol: guestmnt_protocol::VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel.release.clone(),
        kernel_package: kernel.package.clone(),
        files,
        stamp,
    };
    let path = folder.join(MANIFEST);
    let mut text = serde_json::to_vec_pretty(&manifest).expect("strings and numbers");
    text.push(b'\n');
    fs::write(&path, text).map_err(Error::file("write", &path))
}

/// Puts `staging` where `finished` is; what was there goes with the staging folder.
fn publish(staging: &Path, finished: &Path) -> Result<(), Error> {
    // tempfile makes folders for their owner alone.
    fs::set_permissions(staging, fs::Permissions::from_mode(0o755))
        .map_err(Error::file("set the mode of", staging))?;
    let flags = if finished.exists() {
        RenameFlags::RENAME_EXCHANGE
    } else {
        RenameFlags::RENAME_NOREPLACE
    };
    renameat2(AT_FDCWD, staging, AT_FDCWD, finished, flags)
        .map_err(|errno| Error::file("replace", finished)(errno.into()))
}

/// The files of the appliance in `folder`, for those who copy it.
#[must_use]
pub fn files(folder: &Path) -> [PathBuf; 3] {
    [KERNEL, INITRAMFS, MANIFEST].map(|name| folder.join(name))
}
