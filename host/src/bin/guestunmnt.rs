//! The `guestunmnt` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    guestmnt::cli::guestunmnt::main(std::env::args_os())
}
