//! `cargo xtask setup`: installs the programs and libraries that are missing, and lets users open
//! FUSE's device.
//!
//! What is there is told by the files themselves, not by the package database, so that a machine
//! that has them from elsewhere is served as well, and a run with nothing to do costs no network
//! and no noticeable time.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use crate::apt::{Apt, Packages};
use crate::error::Error;
use crate::places::Places;
use crate::process::{Tool, find_program};
use crate::progress::{line, step};
use crate::user;

/// How it shows that a package is there.
#[derive(Clone, Copy)]
enum Sign {
    Program(&'static str),
    File(&'static str),
}
use Sign::{File, Program};

/// What is needed, and Debian's package for it.
#[rustfmt::skip]
const NEEDS: &[(Sign, &str)] = &[
    // to mount
    (Program("fusermount3"), "fuse3"),
    // to build the appliance
    (Program("dpkg-deb"), "dpkg"),
    (Program("depmod"), "kmod"),
    (Program("xz"), "xz-utils"),
    (Program("zstd"), "zstd"),
    (Program("objcopy"), "binutils"),
    (File("/usr/lib/x86_64-linux-gnu/libblkid.a"), "libblkid-dev"),
    (File("/usr/lib/x86_64-linux-gnu/libuuid.a"), "uuid-dev"),
    // to make the demo's and the tests' disks
    (Program("mke2fs"), "e2fsprogs"),
    (Program("mkfs.btrfs"), "btrfs-progs"),
    (Program("mkfs.erofs"), "erofs-utils"),
    (Program("mkfs.exfat"), "exfatprogs"),
    (Program("mkfs.f2fs"), "f2fs-tools"),
    (Program("hformat"), "hfsutils"),
    (Program("mkfs.vfat"), "dosfstools"),
    (Program("mkfs.xfs"), "xfsprogs"),
    (Program("mkudffs"), "udftools"),
    (Program("genisoimage"), "genisoimage"),
    (Program("xorriso"), "xorriso"),
    (Program("mcopy"), "mtools"),
    (Program("mksquashfs"), "squashfs-tools"),
    (Program("mkntfs"), "ntfs-3g"),
    (Program("sfdisk"), "fdisk"),
    (Program("makefs"), "makefs"),
    (Program("setfattr"), "attr"),
    (Program("setfacl"), "acl"),
    (Program("cryptsetup"), "cryptsetup-bin"),
    // to check what was made
    (Program("hivexregedit"), "libwin-hivex-perl"),
    // to fuzz: libFuzzer is C++
    (Program("c++"), "g++"),
    // to measure copying out of a mount
    (Program("rsync"), "rsync"),
    // to watch what the tests watch
    (Program("strace"), "strace"),
    (Program("fincore"), "util-linux-extra"),
];

/// QEMU, from the newer suite where there is one: what has been measured and is relied upon
/// (`rom=off` of memory-backend-file, for one) came after bookworm's 7.2.
const NEEDS_NEWEST: &[(Sign, &str)] = &[
    (Program("qemu-system-x86_64"), "qemu-system-x86"),
    (Program("qemu-img"), "qemu-utils"),
    (Program("qemu-io"), "qemu-utils"),
];

/// How a command becomes root's.
pub enum Privilege {
    /// We are root.
    Root,
    /// `sudo` asks nothing.
    Sudo,
}

impl Privilege {
    /// What this process has; `None` for an ordinary user.
    fn find() -> Option<Self> {
        if nix::unistd::geteuid().is_root() {
            return Some(Self::Root);
        }
        Tool::new("sudo").args(["-n", "true"]).run().ok().map(|()| Self::Sudo)
    }

    /// `program`, to be run as root.
    pub(crate) fn tool(&self, program: &str) -> Tool {
        match self {
            Self::Root => Tool::new(program),
            Self::Sudo => Tool::new("sudo").args(["-n", program]),
        }
    }
}

/// What mounts are served through. fusermount3 opens it with its caller's rights.
const FUSE: &str = "/dev/fuse";

/// The mode that udev's rule gives it on every machine where udev runs, in octal digits.
const FUSE_MODE: &str = "666";

/// Installs what is missing, and lets users open `/dev/fuse` where only root may; as root, also
/// makes the ordinary user that demo and tests run as.
///
/// # Errors
/// [`Error::Unfit`] with the commands to run by hand where we are not root and sudo would ask,
/// [`Error::Step`] with the tail of apt's log where installing fails.
pub fn ensure(places: &Places) -> Result<(), Error> {
    let start = Instant::now();
    let missing = Packages { ordinary: missing_of(NEEDS), newest: missing_of(NEEDS_NEWEST) };
    if missing.ordinary.is_empty() && missing.newest.is_empty() {
        line("setup", start.elapsed(), "nothing is missing");
    } else {
        install(&missing, places)?;
    }
    let fuse = Path::new(FUSE);
    // Where there is none, a mount says what to do; all else can be built and tested.
    if fs::metadata(fuse).is_ok_and(|found| found.file_type().is_char_device()) && is_closed(fuse) {
        open_to_users(fuse, Privilege::find().as_ref())?;
    }
    if nix::unistd::geteuid().is_root() {
        user::ensure()?;
    }
    Ok(())
}

fn install(missing: &Packages, places: &Places) -> Result<(), Error> {
    let names = [&missing.ordinary[..], &missing.newest[..]].concat().join(" ");
    let apt = Apt::open(places.apt_of_root())?;
    let Some(privilege) = Privilege::find() else {
        let commands: Vec<String> =
            apt.install_commands(missing).iter().map(|words| words.join(" ")).collect();
        return Err(Error::unfit(
            format!("missing on this machine: {names}"),
            format!("run as root, then try again:\n{}", commands.join("\n")),
        ));
    };
    step("install", || {
        apt.install(missing, &privilege)?;
        Ok(((), names))
    })?;
    let left = [missing_of(NEEDS), missing_of(NEEDS_NEWEST)].concat();
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::unfit(
        format!("installed, but without the expected files: {}", left.join(" ")),
        format!("what apt did stands in {}", apt.log().display()),
    ))
}

/// Whether users may not open `device` for reading and writing. Root may whatever its mode is, so
/// the mode tells; anybody else tries, as an access list may let them.
fn is_closed(device: &Path) -> bool {
    if nix::unistd::geteuid().is_root() {
        let mode = fs::metadata(device).map_or(0, |found| found.permissions().mode());
        return mode & 0o006 != 0o006;
    }
    fs::File::options().read(true).write(true).open(device).is_err()
}

/// Gives `device` the mode that udev would have given it.
fn open_to_users(device: &Path, privilege: Option<&Privilege>) -> Result<(), Error> {
    let start = Instant::now();
    let Some(privilege) = privilege else {
        return Err(Error::unfit(
            format!("only root may open {}, through which every mount is served", device.display()),
            format!("run as root, then try again:\nchmod {FUSE_MODE} {}", device.display()),
        ));
    };
    privilege.tool("chmod").arg(FUSE_MODE).arg(device).run()?;
    let detail =
        format!("{} was root's alone; mode {FUSE_MODE} now, as udev has it", device.display());
    line("open to users", start.elapsed(), &detail);
    Ok(())
}

/// Packages whose sign is not there, each once.
fn missing_of(needs: &[(Sign, &'static str)]) -> Vec<&'static str> {
    let mut missing: Vec<&str> = needs
        .iter()
        .filter(|(sign, _)| match sign {
            Program(name) => find_program(name).is_none(),
            File(path) => !Path::new(path).exists(),
        })
        .map(|&(_, package)| package)
        .collect();
    missing.dedup();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_closed_to_users_is_opened_or_the_command_is_told() {
        // A file of ours stands in for the device: its owner may change its mode without root.
        let device = tempfile::NamedTempFile::new().unwrap();
        let path = device.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        assert!(is_closed(path));

        let told = open_to_users(path, None).unwrap_err().to_string();
        assert!(told.ends_with(&format!("\nchmod 666 {}", path.display())), "{told}");
        assert!(is_closed(path));

        open_to_users(path, Some(&Privilege::Root)).unwrap();
        assert!(!is_closed(path));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o666);
    }

    #[test]
    fn a_missing_package_is_named_once() {
        let needs = [
            (Program("sh"), "dash"),
            (Program("no-such-program"), "nowhere"),
            (Program("no-such-program-either"), "nowhere"),
            (File("/no/such/file"), "elsewhere"),
        ];
        assert_eq!(missing_of(&needs), ["nowhere", "elsewhere"]);
    }
}
