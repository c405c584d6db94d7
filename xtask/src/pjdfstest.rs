//! pjdfstest, a public suite of POSIX behaviour, out of its own package: built once, in the target
//! folder, for the tests. What is made of what it finds is theirs.

use std::path::PathBuf;

use crate::error::Error;
use crate::places::Places;
use crate::process::Tool;

/// Names the program; there is none where it could not be had.
pub const PROGRAM: &str = "GUESTMNT_PJDFSTEST";

/// What the list of differences was made with. Later ones have other cases.
const VERSION: &str = "0.2.2";

/// The program, which is built where it is not there yet.
///
/// # Errors
/// Where it cannot be had: it comes from the network.
pub fn ensure(places: &Places) -> Result<PathBuf, Error> {
    let root = places.pjdfstest().join(VERSION);
    let program = root.join("bin/pjdfstest");
    if program.exists() {
        return Ok(program);
    }
    println!("building pjdfstest {VERSION}");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let install = Tool::new(cargo).args(["install", "--quiet", "--locked", "--root"]).arg(&root);
    let install = install.args(["--version", &format!("={VERSION}"), "pjdfstest"]);
    install.env("CARGO_TARGET_DIR", places.pjdfstest().join("build")).run()?;
    Ok(program)
}
