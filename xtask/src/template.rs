//! Has the built `guestmnt` make the calling user's template, so that the first mount finds it.

use crate::error::Error;
use crate::places::Places;
use crate::process::Tool;
use crate::release;

/// Builds the binaries and makes the template for the appliance in the target folder, if there
/// is none. Where QEMU cannot run, says so: the appliance is good all the same.
///
/// # Errors
/// Where the binaries cannot be built.
pub fn make(places: &Places) -> Result<(), Error> {
    release::build(places)?;
    let status = Tool::new(places.release().join("guestmnt"))
        .arg("--prepare")
        .env("GUESTMNT_APPLIANCE", places.appliance())
        .shown()?;
    if !status.success() {
        println!("no template was made; the first mount tries again");
    }
    Ok(())
}
