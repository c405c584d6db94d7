//! What is in the package, and where.
//!
//! Follows the Debian Policy Manual: fields of `control`, the layout below `/usr`, compressed
//! manual pages, permissions.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::remove;
use crate::Error;
use crate::places::Places;
use crate::process::Tool;
use crate::release::BINARIES;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Files of the appliance.
const APPLIANCE: [&str; 3] = ["vmlinux", "initramfs.cpio", "manifest.json"];

/// What `/usr/share/doc/guestmnt/copyright` says.
const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: guestmnt

Files: *
Copyright: the guestmnt developers
License: MIT or Apache-2.0

Files: usr/lib/guestmnt/*
Copyright: the authors of Linux and of the programs in the initramfs
License: GPL-2 and others
 Kernel and programs are Debian's, unchanged. Which packages they are from says
 packages.json in this folder for the programs, and manifest.json beside the kernel
 for the kernel; their sources are Debian's source packages of these versions.
";

/// Builds the package from what was built before, with manual pages and completions from `share`,
/// and returns where it is.
///
/// # Errors
/// Where a file is missing, or dpkg-deb fails.
pub fn build(places: &Places, share: &Path) -> Result<PathBuf, Error> {
    let tree = places.dist().join("tree");
    remove(&tree)?;
    for name in BINARIES {
        // What it takes to name a line of code in a backtrace is half of the file.
        let stripped = tree.join("usr/bin").join(name);
        make_folder_of(&stripped)?;
        let plain = places.release().join(name);
        Tool::new("strip").arg("-o").arg(&stripped).arg(&plain).run()?;
        set_mode(&stripped, 0o755)?;
    }
    for name in APPLIANCE {
        copy(&places.appliance().join(name), &tree.join("usr/lib/guestmnt").join(name))?;
    }
    copy_tree(share, &tree.join("usr/share"))?;
    let pages = tree.join("usr/share/man/man1");
    for page in entries(&pages)? {
        Tool::new("gzip").args(["-9", "-n"]).arg(page).run()?;
    }
    let doc = tree.join("usr/share/doc/guestmnt");
    copy(&places.root().join("README.md"), &doc.join("README.md"))?;
    copy(&places.programs().join("packages.json"), &doc.join("packages.json"))?;
    write(&doc.join("copyright"), COPYRIGHT)?;
    write(&tree.join("DEBIAN/control"), &control(&libc_version()?, kibibytes(&tree)?))?;
    set_folder_modes(&tree)?;
    let package = places.dist().join(format!("guestmnt_{VERSION}_amd64.deb"));
    Tool::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([&tree, &package]).run()?;
    Ok(package)
}

/// The package's description. `libc` is the version of libc that the programs were linked with:
/// an older one may lack what they call.
fn control(libc: &str, kibibytes: u64) -> String {
    format!(
        "Package: guestmnt
Version: {VERSION}
Architecture: amd64
Maintainer: the guestmnt developers <root@localhost>
Installed-Size: {kibibytes}
Depends: libc6 (>= {libc}), qemu-system-x86, fuse3
Section: utils
Priority: optional
Description: shows the files of untrusted disk images, without root
 A throw-away Linux in a microVM reads the filesystems of VMDK, qcow2, VDI, VHD,
 VHDX and raw images, so that nothing of them is parsed by the host's kernel.
 guestmnt shows the files in a folder, guestunmnt ends that, and guestimg lists,
 copies and exports what is on disks and tells about their chains of snapshots.
"
    )
}

/// The version of libc here, without the distribution's own part.
fn libc_version() -> Result<String, Error> {
    let said = Tool::new("dpkg-query").args(["-W", "-f", "${Version}", "libc6"]).output()?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let upstream = said.split(['-', '+']).next().unwrap_or_default().to_owned();
    if upstream.starts_with(|c: char| c.is_ascii_digit()) {
        Ok(upstream)
    } else {
        Err(Error::unfit(format!("libc6 has no version: {said}"), "dist wants a Debian machine"))
    }
}

/// What the files in `tree` take, in KiB.
fn kibibytes(tree: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for path in entries(tree)? {
        let metadata = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
        sum += if metadata.is_dir() { kibibytes(&path)? } else { metadata.len().div_ceil(1024) };
    }
    Ok(sum)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(Error::file("list", folder))?;
    paths.sort();
    Ok(paths)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    make_folder_of(to)?;
    fs::copy(from, to).map_err(Error::file("copy", from))?;
    set_mode(to, 0o644)
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), Error> {
    for path in entries(from)? {
        let target = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() { copy_tree(&path, &target)? } else { copy(&path, &target)? }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    make_folder_of(path)?;
    fs::write(path, text).map_err(Error::file("write", path))?;
    set_mode(path, 0o644)
}

fn make_folder_of(path: &Path) -> Result<(), Error> {
    let folder = path.parent().expect("a file is in a folder");
    fs::create_dir_all(folder).map_err(Error::file("create", folder))
}

/// Whatever the umask is here.
fn set_folder_modes(folder: &Path) -> Result<(), Error> {
    set_mode(folder, 0o755)?;
    for path in entries(folder)?.iter().filter(|path| path.is_dir()) {
        set_folder_modes(path)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::file("change the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_has_what_dpkg_asks_for() {
        let text = control("2.36", 12);
        for field in ["Package", "Version", "Architecture", "Maintainer", "Depends", "Description"]
        {
            assert!(text.lines().any(|line| line.starts_with(&format!("{field}: "))), "{field}");
        }
        assert!(text.contains("\nInstalled-Size: 12\n") && text.contains("libc6 (>= 2.36)"));
        assert!(text.ends_with('\n') && !text.contains("\n\n"));
        let long = text.lines().skip_while(|line| !line.starts_with("Description")).skip(1);
        assert!(long.clone().all(|line| line.starts_with(' ')) && long.count() > 2);
    }
}
