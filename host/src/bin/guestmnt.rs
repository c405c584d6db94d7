//! The `guestmnt` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    guestmnt::cli::guestmnt::main(std::env::args_os())
}
