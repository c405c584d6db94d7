//! Namespaces of their own for what is measured, where root runs it: when it ends, by whatever
//! cause, every process and mount that it made ends with it.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sys::signal::{SigSet, Signal};

use crate::Error;
use crate::process::Tool;

/// Words that run what follows them in mount and PID namespaces that die with us. The shell is
/// process 1 there: it reaps orphans, and does not ignore a Ctrl-C on our behalf.
const WORDS: [&str; 11] = [
    "--pdeathsig=KILL",
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    r#""$@"; exit $?"#,
    "sh",
];

/// The variable that names the folder in memory to the program that is run again.
const MEMORY: &str = "GUESTMNT_BENCH_MEMORY";

/// A folder in memory for temporary files.
#[must_use]
pub fn memory() -> PathBuf {
    std::env::var_os(MEMORY).unwrap_or_else(|| "/dev/shm".into()).into()
}

/// Whether this process may make such namespaces.
#[must_use]
pub fn is_possible() -> bool {
    nix::unistd::geteuid().is_root() && Tool::new("setpriv").args(WORDS).arg("true").run().is_ok()
}

/// Runs this program again in namespaces of its own, with the same arguments and `more`. Its
/// temporary files are removed when it has ended, even where it was interrupted.
///
/// # Errors
/// [`Error::Start`], [`Error::File`].
pub fn run(more: &[&str]) -> Result<ExitCode, Error> {
    let signals: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
    let wait_failed =
        |errno: nix::Error| Error::Start { program: "sigwait".to_owned(), source: errno.into() };
    signals.thread_block().map_err(wait_failed)?;
    let folder_in = |place: &Path| {
        tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in(place)
            .map_err(Error::file("write in", place))
    };
    let temp = folder_in(&std::env::temp_dir())?;
    let memory = folder_in(&memory())?;
    let me = std::env::current_exe().map_err(Error::file("find", "this program"))?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let start = |source| Error::Start { program: "setpriv".to_owned(), source };
    let mut child = Command::new("setpriv")
        .args(WORDS)
        .arg(me)
        .args(arguments)
        .args(more)
        .env("TMPDIR", temp.path())
        .env(MEMORY, memory.path())
        .stdin(Stdio::null())
        .spawn()
        .map_err(start)?;
    loop {
        if signals.wait().map_err(wait_failed)? != Signal::SIGCHLD {
            // It may have ended this moment.
            let _ = child.kill();
        }
        if let Some(status) = child.try_wait().map_err(start)? {
            return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
}

/// Undoes in the new process what [`run`] left it: signals that are blocked.
pub fn enter() {
    // There is no reason for which this could fail; Ctrl-C would then be slower.
    let _ = SigSet::empty().thread_set_mask();
}
