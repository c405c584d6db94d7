//! The binaries that users run.

use crate::Error;
use crate::places::Places;
use crate::process::Tool;
use crate::progress::step;

/// Their names.
pub const BINARIES: [&str; 3] = ["guestmnt", "guestunmnt", "guestimg"];

/// Builds them in `target/release`, or finds them built. Cargo's own messages are shown.
///
/// # Errors
/// [`Error::Unfit`] where they do not compile.
pub fn build(places: &Places) -> Result<(), Error> {
    step("release binaries", || {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let status = Tool::new(cargo)
            .args(["build", "--quiet", "--release", "--locked", "--package", "guestmnt"])
            .within(places.root())
            .shown()?;
        if !status.success() {
            return Err(Error::unfit("guestmnt does not build", "cargo's messages stand above"));
        }
        for name in BINARIES {
            let path = places.release().join(name);
            if !path.exists() {
                return Err(Error::unfit(
                    format!("the build left no {}", path.display()),
                    "package guestmnt should have a binary of this name",
                ));
            }
        }
        Ok(((), places.release().display().to_string()))
    })
}
