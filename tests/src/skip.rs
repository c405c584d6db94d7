//! Tests that cannot run on this machine say so, and are counted.

use std::env;
use std::fs::File;
use std::io::Write;

/// Prints `SKIP: reason`, and notes it in the file that `$GUESTMNT_SKIP_LOG` names, whose
/// lines are counted at the run's end.
pub fn skip(reason: &str) {
    println!("SKIP: {reason}");
    if let Some(log) = env::var_os("GUESTMNT_SKIP_LOG") {
        let mut file =
            File::options().append(true).create(true).open(log).expect("the skip log opens");
        writeln!(file, "SKIP: {reason}").expect("the skip log is writable");
    }
}
