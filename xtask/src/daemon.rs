//! The daemon's binary for the initramfs: static, since nothing else is there.

use std::path::PathBuf;

use crate::Error;
use crate::places::Places;
use crate::process::Tool;

/// rustup has the musl target only from its own server, while glibc's `libc.a` comes with every
/// C compiler on Debian, so the daemon is linked statically for the ordinary target.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `guestmntd`, or finds it built, and returns its path. Cargo's own output is shown.
///
/// # Errors
/// [`Error::Unfit`] where it does not compile.
pub fn build(places: &Places) -> Result<PathBuf, Error> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    // CARGO_ENCODED_RUSTFLAGS wins over every other place where flags may stand, and with
    // --target it spares build scripts and macros, which cannot be static.
    let flags = ["-Ctarget-feature=+crt-static", "-Cstrip=debuginfo"];
    let status = Tool::new(cargo)
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--package", "guestmnt-appliance", "--bin", "guestmntd"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(places.guest())
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .within(places.root())
        .shown()?;
    if !status.success() {
        return Err(Error::unfit(
            "the daemon does not build",
            "cargo's messages stand above; a missing libblkid is mended by cargo xtask setup",
        ));
    }
    Ok(places.guest().join(TARGET).join("release/guestmntd"))
}
