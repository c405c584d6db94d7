//! `guestimg`: tells about images, mounts and this host. Each subcommand has a file of its own.

mod canary;
mod doctor;
mod status;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::start_logging;

const AFTER_HELP: &str = "\
Exit status: 0 all is well; 1 usage or internal error, or an error that is told; 2 doctor: mounts work,
but something is missing; status: a mount lacks a layer or cannot be looked into; 3 doctor: mounts do
not work; status: no such mount.";

/// Tells about mounts of guestmnt and what this host offers to them.
#[derive(Parser)]
#[command(name = "guestimg", version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Status(status::Arguments),
    Doctor(doctor::Arguments),
    #[command(hide = true)]
    Canary(canary::Arguments),
}

/// Runs the program with the process's arguments.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done where even this cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    start_logging("guestimg", false, false);
    let done = match arguments.command {
        Command::Status(arguments) => status::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Canary(arguments) => canary::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("guestimg: {error}");
        ExitCode::FAILURE
    })
}

/// An error of any of the subcommands: all that is done with it is to print it.
fn boxed(error: impl std::fmt::Display + 'static) -> Box<dyn std::fmt::Display> {
    Box::new(error)
}
