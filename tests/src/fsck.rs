//! The filesystems' own checks, of raw images.

use std::path::Path;

use xtask::disks::filesystems::Kind;
use xtask::process::{Tool, find_program};
use xtask::skips::skip;

/// The check of a kind, which changes nothing and fails where it finds anything.
///
/// # Panics
/// For kinds that have none here.
fn check(kind: Kind) -> (&'static str, &'static [&'static str]) {
    match kind {
        Kind::Ext4 => ("e2fsck", &["-f", "-n"]),
        Kind::Xfs => ("xfs_repair", &["-n", "-f"]),
        Kind::Btrfs => ("btrfs", &["check", "--readonly"]),
        other => panic!("{} has no check here", other.name()),
    }
}

/// Checks the raw image of a filesystem that is not mounted; a skip, where the check is not installed.
///
/// # Panics
/// Where it finds anything.
pub fn assert_sound(kind: Kind, raw: &Path) {
    let (program, arguments) = check(kind);
    if find_program(program).is_none() {
        skip(&format!("{program} is not installed: {} is not checked", kind.name()));
        return;
    }
    Tool::new(program).args(arguments).arg(raw).run().unwrap_or_else(|error| panic!("{error}"));
}
