//! `cargo xtask test`: everything that the tests need, then the tests.

use std::fs;
use std::process::ExitCode;

use crate::appliance;
use crate::disks::Disks;
use crate::error::Error;
use crate::kernel::Source;
use crate::places::Places;
use crate::process::Tool;
use crate::release;
use crate::setup;
use crate::skips;

/// Runs the tests whose names contain one of `filters`, or all; the status is theirs.
///
/// # Errors
/// Where the tests could not be started.
pub fn run(filters: &[String], places: &Places) -> Result<ExitCode, Error> {
    setup::ensure(places)?;
    appliance::build(&Source::Debian, places)?;
    release::build(places)?;
    let disks = Disks::ensure(places)?;
    let log = places.target().join("skips.log");
    fs::write(&log, "").map_err(Error::file("write", &log))?;

    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Tool::new(cargo)
        .args(["test", "--workspace", "--locked", "--no-fail-fast", "--"])
        .args(filters)
        .env("GUESTMNT_APPLIANCE", places.appliance())
        .env("GUESTMNT_BIN_DIR", places.release())
        .env("GUESTMNT_DISKS", disks.folder())
        .env(skips::LOG, &log)
        .within(places.root())
        .shown()?;

    let skipped = skips::read(&log);
    for line in &skipped {
        println!("{line}");
    }
    println!("tests {}; skipped on this machine: {}", outcome(status.success()), skipped.len());
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn outcome(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}
