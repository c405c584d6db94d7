//! `guestunmnt`: unmounts what `guestmnt` mounted, and waits until all of it is gone.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use log::info;

use super::{descriptor, harmless, start_logging};
use crate::session::end::{EndError, end};
use crate::session::mountpoint::absolute;
use crate::sys;

const AFTER_HELP: &str = "\
Exit status: 0 unmounted, QEMU is gone and the images are free; 1 usage or internal error;
2 the mount is in use; 3 the folder is not a mount of guestmnt; 4 unmounted, but not everything
that was written to it is kept.";

/// Unmounts a folder that guestmnt mounted.
#[derive(Parser)]
#[command(name = "guestunmnt", version, after_help = AFTER_HELP)]
struct Arguments {
    /// Times to try again, 1, 2, 4, … seconds apart, while the mount is in use
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=16))]
    retry: u32,

    /// Try once
    #[arg(long, conflicts_with = "retry")]
    no_retry: bool,

    /// Descriptor of a pipe or socket: wait until its other end is closed, then unmount
    #[arg(long, value_name = "N", value_parser = descriptor)]
    fd: Option<RawFd>,

    /// Print no errors
    #[arg(short = 'q', long)]
    quiet: bool,

    /// Say what is done
    #[arg(short = 'v', long)]
    verbose: bool,

    /// The folder
    #[arg(value_name = "FOLDER")]
    mountpoint: PathBuf,
}

/// The command line.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
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
    start_logging("guestunmnt", arguments.verbose, false);
    let complain = |text: &str| {
        if !arguments.quiet {
            eprintln!("guestunmnt: {}", harmless(text));
        }
    };
    if let Some(number) = arguments.fd
        && let Err(error) = wait_for_close(number)
    {
        complain(&format!("--fd {number}: {error}"));
        return ExitCode::FAILURE;
    }
    match end_with_retries(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            status(&error)
        }
    }
}

fn end_with_retries(arguments: &Arguments) -> Result<(), EndError> {
    let path = absolute(&arguments.mountpoint)
        .map_err(|_| EndError::NotOurs(arguments.mountpoint.clone()))?;
    let retries = if arguments.no_retry { 0 } else { arguments.retry };
    for n in 0..retries {
        match end(&path) {
            Err(EndError::Busy(..)) => {
                let pause = Duration::from_secs(1 << n);
                info!("{} is in use; trying again in {} s", path.display(), pause.as_secs());
                thread::sleep(pause);
            }
            ended => return ended,
        }
    }
    end(&path)
}

fn status(error: &EndError) -> ExitCode {
    ExitCode::from(match error {
        EndError::Busy(..) => 2,
        EndError::NotOurs(_) => 3,
        EndError::Lost(..) => 4,
        EndError::Lingers(_) | EndError::Mountpoint(_) => 1,
    })
}

/// Returns when nobody can write to the other end of the descriptor any more.
fn wait_for_close(number: RawFd) -> std::io::Result<()> {
    let mut pipe = File::from(sys::take_inherited(number)?);
    let mut bytes = [0; 256];
    while pipe.read(&mut bytes)? > 0 {}
    Ok(())
}
