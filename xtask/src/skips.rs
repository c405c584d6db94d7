//! What a test could not do on this machine: said at once, and counted at the end of the run.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Names the file that the lines go to, one for each skip.
pub const LOG: &str = "GUESTMNT_SKIP_LOG";

/// Says that the calling test skips something, and why.
pub fn skip(reason: &str) {
    let line = format!("SKIP: {}\n", reason.replace('\n', " "));
    print!("{line}");
    // Outside of `cargo xtask test` nobody counts.
    let Some(log) = std::env::var_os(LOG) else { return };
    let append = File::options().create(true).append(true).open(log);
    // One write of a short line to a file in append mode is not torn between processes.
    if let Err(error) = append.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("cannot note a skip: {error}");
    }
}

/// The lines of the log, as far as one was written.
#[must_use]
pub fn read(log: &Path) -> Vec<String> {
    fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}
