//! Our side, with each request of the kernel written to a file: for counting, not for timing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Guestmnt, Side, Start};
use crate::Error;
use crate::bench::disk::Image;
use crate::bench::ground::{Ground, Spot};

/// Mounts by `guestmnt -x`.
pub struct Traced;

/// What `-x` writes, beside the mount.
pub const TRACE: &str = "trace";

/// `-x` stays in the foreground, so the shell lets it go when it has written its process id,
/// which it does when the mount answers.
const LET_GO: &str = r#"
trace=$1 pid_file=$2
shift 2
"$@" 2> "$trace" &
until [ -s "$pid_file" ]; do kill -0 $! || exit 1; sleep 0.01; done
"#;

impl Side for Traced {
    fn name(&self) -> &'static str {
        "guestmnt -x"
    }

    fn mount_words(
        &self,
        ground: &Ground,
        image: &Image,
        spot: &Spot,
    ) -> Result<Vec<OsString>, Error> {
        let pid_file: PathBuf = spot.scratch.join("pid");
        let trace = spot.scratch.join(TRACE);
        let mut words: Vec<OsString> = vec!["sh".into(), "-c".into(), LET_GO.into(), "sh".into()];
        words.extend([trace.into(), pid_file.clone().into_os_string()]);
        words.extend(Guestmnt(Start::Normal).mount_words(ground, image, spot)?);
        words.extend(["-x".into(), "--pid-file".into(), pid_file.into()]);
        if ground.offers.has("--stats") {
            words.push("--stats".into());
        }
        Ok(words)
    }

    fn unmount_words(&self, ground: &Ground, spot: &Spot) -> Vec<OsString> {
        Guestmnt(Start::Normal).unmount_words(ground, spot)
    }

    fn command(&self, ground: &Ground, program: &Path, spot: &Spot) -> Command {
        Guestmnt(Start::Normal).command(ground, program, spot)
    }
}

/// Requests in a trace by their kind. A request's line is `guestmnt: KIND …(N us)`.
#[must_use]
pub fn count(trace: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for line in trace.lines().filter(|line| is_request(line)) {
        if let Some(kind) = line.split_ascii_whitespace().nth(1) {
            *counts.entry(kind.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Whether a line of a trace is a request's.
#[must_use]
pub fn is_request(line: &str) -> bool {
    line.starts_with("guestmnt: ") && line.ends_with(" us)")
}

/// Whether a line of a trace says that a request was made of the guest.
#[must_use]
pub fn is_passed_on(line: &str) -> bool {
    line.starts_with("guestmnt: -> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_kind_and_other_lines_are_not() {
        let trace = "\
guestmnt: warning: something else
guestmnt: lookup / ufos: ok (812 us)
guestmnt: lookup /ufos nothing: ENOENT (400 us)
guestmnt: -> read
guestmnt: read /ufos/read 131072@0: ok (90 us)
";
        let expected = [("lookup".to_owned(), 2), ("read".to_owned(), 1)];
        assert_eq!(count(trace), BTreeMap::from(expected));
    }
}
