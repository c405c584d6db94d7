//! `cargo xtask dist`: a Debian package with programs, appliance, manual pages and completions,
//! for machines without Rust.

mod package;
mod trial;

use std::fs;

use crate::Error;
use crate::appliance;
use crate::disks::Disks;
use crate::kernel::Source;
use crate::places::Places;
use crate::process::Tool;
use crate::progress::{size, step};
use crate::release;
use crate::setup;

/// Builds everything, makes the package, and tries it out.
///
/// # Errors
/// Where something cannot be built, or the package does not work.
pub fn run(places: &Places) -> Result<(), Error> {
    setup::ensure(places)?;
    appliance::build(&Source::Debian, places)?;
    release::build(places)?;
    let share = places.dist().join("share");
    step("manual pages", || {
        remove(&share)?;
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        Tool::new(cargo)
            .args(["run", "--quiet", "--locked", "--package", "guestmnt-manual", "--"])
            .arg(&share)
            .within(places.root())
            .run()?;
        Ok(((), share.display().to_string()))
    })?;
    let package = step("package", || {
        let package = package::build(places, &share)?;
        let length = fs::metadata(&package).map_err(Error::file("look at", &package))?.len();
        let shown = format!("{}, {}", package.display(), size(length));
        Ok((package, shown))
    })?;
    let disks = Disks::ensure(places)?;
    step("trial", || Ok(((), trial::run(places, &disks, &package)?)))?;
    println!("{}", package.display());
    Ok(())
}

/// Removes a folder, if it is there.
fn remove(folder: &std::path::Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("remove", folder)(error))
        }
        _ => Ok(()),
    }
}
