//! `guestimg canary`: run in QEMU's place, tries what QEMU must not be able to do, and prints what
//! came of it as one line of JSON for each attempt. Not for users.

use std::fmt::Display;
use std::process::ExitCode;

use clap::Args;

use crate::sys::attempts::{ATTEMPTS, Attempt, EXECUTE, Targets, execute};

/// Tries to break out, as a test of the confinement.
#[derive(Args)]
pub struct Arguments {
    /// What to aim at, as JSON
    targets: String,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Display>> {
    let targets: Targets = serde_json::from_str(&arguments.targets).map_err(super::boxed)?;
    for (name, attempt) in ATTEMPTS {
        print(name, attempt(&targets).err())?;
    }
    print(EXECUTE, Some(execute()))?;
    Ok(ExitCode::SUCCESS)
}

fn print(name: &str, error: Option<std::io::Error>) -> Result<(), Box<dyn Display>> {
    let error = error.map(|error| error.to_string());
    let attempt = Attempt { name: name.to_owned(), error };
    println!("{}", serde_json::to_string(&attempt).map_err(super::boxed)?);
    Ok(())
}
