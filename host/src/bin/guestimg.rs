//! The `guestimg` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    guestmnt::cli::guestimg::main(std::env::args_os())
}
