//! The images of each kind of filesystem, where `cargo xtask test` put them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xtask::digest;
use xtask::disks::assembled;
use xtask::disks::bitlocker;
use xtask::disks::dynamic;
use xtask::disks::filesystems::Kind;
use xtask::disks::linux;
use xtask::disks::manifest::Entry;
use xtask::disks::specimens::{Specimen, Specimens};
use xtask::disks::windows;
use xtask::skips::skip;

use crate::program::given;

/// All of them.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn specimens() -> Specimens {
    Specimens::in_folder(given("GUESTMNT_SPECIMENS"))
}

/// The image of `kind` and what is in it. `None`, and a skip, where it could not be made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn specimen(kind: Kind) -> Option<(PathBuf, BTreeMap<String, Entry>)> {
    match specimens().of(kind).unwrap_or_else(|error| panic!("{error}")) {
        Specimen::Image { path, entries } => Some((path, entries)),
        Specimen::Missing(reason) => {
            skip(&reason);
            None
        }
    }
}

/// The disks `names` that have to be assembled. `None`, and a skip, where they could not be made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn assembled<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let specimens = specimens();
    let mut images = Vec::new();
    for name in names {
        match assembled::image(&specimens, name) {
            Ok(image) => images.push(image),
            Err(reason) => {
                skip(&reason);
                return None;
            }
        }
    }
    images.try_into().ok()
}

/// The disks of a machine with Windows: system and data. `None`, and a skip, where they could not be
/// made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn windows_disks() -> Option<[PathBuf; 2]> {
    windows::PAIR.images(&specimens()).inspect_err(|reason| skip(reason)).ok()
}

/// The disks with BitLocker volumes: a system's, and one with the NTFS specimen. `None`, and a skip,
/// where they could not be made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn bitlocker_disks() -> Option<[PathBuf; 2]> {
    bitlocker::PAIR.images(&specimens()).inspect_err(|reason| skip(reason)).ok()
}

/// Disks with the NTFS specimen in BitLocker volumes of other ciphers. `None`, and a skip, where they
/// could not be made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn bitlocker_disks_of_other_ciphers() -> Option<[PathBuf; 2]> {
    bitlocker::OTHERS.images(&specimens()).inspect_err(|reason| skip(reason)).ok()
}

/// Disks with the NTFS specimen in BitLocker volumes with keys of 256 bits, that a startup key opens.
/// `None`, and a skip, where they could not be made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn bitlocker_disks_with_a_startup_key() -> Option<[PathBuf; 2]> {
    bitlocker::LONG_KEYS.images(&specimens()).inspect_err(|reason| skip(reason)).ok()
}

/// Two dynamic disks of Windows. `None`, and a skip, where they could not be made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn dynamic_disks() -> Option<[PathBuf; 2]> {
    dynamic::PAIR.images(&specimens()).inspect_err(|reason| skip(reason)).ok()
}

/// Disks with a Linux: on subvolumes of Btrfs, and on LVM in LUKS. `None`, and a skip, where they could
/// not be made.
///
/// # Panics
/// As [`given`].
#[must_use]
pub fn linux_disks() -> Option<[PathBuf; 2]> {
    linux::PAIR.images(&specimens()).inspect_err(|reason| skip(reason)).ok()
}

/// The hash of a file.
///
/// # Panics
/// Where it cannot be read.
#[must_use]
pub fn sha256(file: &Path) -> String {
    digest::of_file(file).unwrap_or_else(|error| panic!("{error}"))
}
