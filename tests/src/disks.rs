//! The demo's disks, where `cargo xtask test` put them.

use xtask::disks::Disks;

use crate::program::given;

/// The disks.
#[must_use]
pub fn disks() -> Disks {
    Disks::in_folder(given("GUESTMNT_DISKS"))
}
