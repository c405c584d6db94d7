//! `guestmntd`: PID 1 of the appliance.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guestmnt_appliance::init::run()
    }
    eprintln!("guestmntd: this is the init of guestmnt's appliance; it only runs as process 1");
    ExitCode::FAILURE
}
