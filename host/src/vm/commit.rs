//! Brings what an overlay holds into the image below it: QEMU's own job, in a QEMU without a
//! machine, confined like that of a mount.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::confinement::{Confinement, Policy, Program};
use super::disks::DiskFiles;
use super::kept_overlay::KeptOverlay;
use super::qmp::{Command, Qmp, QmpError};
use super::tail::Tail;
use super::{Overlays, QMP_TIMEOUT, VmError, arguments, with_messages};
use crate::image::Disk;
use crate::sys;

/// The job's name.
const JOB: &str = "commit";

/// How long it is until QEMU is asked once more how far it is.
const PAUSE: Duration = Duration::from_millis(50);

/// How long QEMU may take to end once all is done.
const QUIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the image does not have all of the changes. The overlay still has them.
#[derive(Debug)]
pub enum CommitError {
    /// There is no QEMU that could do it.
    Vm(VmError),
    /// QEMU gave up, for this reason.
    Job(String),
    /// A file cannot be written or brought to the disk.
    Io(PathBuf, io::Error),
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(error) => return error.fmt(f),
            Self::Job(reason) => write!(f, "the changes cannot be committed: {reason}")?,
            Self::Io(path, error) => {
                write!(f, "the changes cannot be committed: {}: {error}", path.display())?;
            }
        }
        f.write_str("\n  hint: nothing is lost; when the reason is gone, the same command goes on")
    }
}

impl std::error::Error for CommitError {}

impl<E: Into<VmError>> From<E> for CommitError {
    fn from(error: E) -> Self {
        Self::Vm(error.into())
    }
}

/// Writes what `overlay` holds to the leaf of `disk`, which was opened for writing. `progress` is
/// told how many bytes of how many are done. When this returns, the host's disk has all of it.
///
/// The order is what makes it safe to be killed at any moment: first the overlay says that this was
/// begun, then the image changes. The overlay keeps all it holds, so that it can be done again.
///
/// # Errors
/// [`CommitError`].
pub fn commit(
    qemu: &Path,
    disk: &Disk,
    overlay: &KeptOverlay,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), CommitError> {
    let start = |error| VmError::Start(qemu.to_owned(), error);
    let files =
        DiskFiles::of(std::slice::from_ref(disk), Overlays::Kept(std::slice::from_ref(overlay)))?;
    let (ours, theirs) = UnixStream::pair().map_err(start)?;
    let (messages, their_messages) = UnixStream::pair().map_err(start)?;
    let mut arguments = arguments::sandbox();
    arguments.extend(arguments::without_machine(theirs.as_raw_fd()));
    arguments.extend(files.arguments());
    let output = OwnedFd::from(their_messages);
    let inherited: Vec<BorrowedFd> =
        std::iter::once(theirs.as_fd()).chain(files.descriptors()).collect();
    let program = Program {
        path: qemu,
        arguments: &arguments,
        output: output.as_fd(),
        inherited: &inherited,
        reopened: &[],
        kvm: false,
        largest_file: files.largest_file(),
    };
    let (process, confinement) = Confinement::new(Policy::BestEffort)
        .start(&program)
        .map_err(|error| VmError::Confine(qemu.to_owned(), error))?;
    confinement.warn_once();
    let messages = Tail::of(messages.into(), "qemu-messages", None).map_err(start)?;
    // While our copies are open, QEMU's end would not be seen.
    drop((output, theirs));
    let mut qmp = match Qmp::connect(ours, QMP_TIMEOUT) {
        Ok(qmp) => qmp,
        Err(error) => {
            drop(process);
            return Err(with_messages(error, messages, files.node_names()).into());
        }
    };
    let additions: Vec<Command> = files.additions().collect();
    qmp.run(&additions).map_err(|error| match error {
        QmpError::Refused { reason, .. } => {
            VmError::Disk { image: Some(disk.path.clone()), reason }
        }
        other => VmError::Qmp(other),
    })?;
    overlay.begin_commit().map_err(|error| CommitError::Io(overlay.path().to_owned(), error))?;
    disk.begin_writing().map_err(|error| CommitError::Io(disk.path.clone(), error))?;
    run(&mut qmp, files.first(), progress)?;
    qmp.quit();
    if !sys::ended_within(process.pidfd(), QUIT_TIMEOUT) {
        return Err(CommitError::Job("QEMU does not end".to_owned()));
    }
    for file in disk.chain[0].files() {
        file.sync_all().map_err(|error| CommitError::Io(disk.path.clone(), error))?;
    }
    Ok(())
}

/// Has QEMU write what `top` holds to `base`, and waits for it. The job is ready when all is
/// written and flushed.
fn run(
    qmp: &mut Qmp,
    (top, base): (&str, &str),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), CommitError> {
    let job = json!({
        "job-id": JOB, "device": top, "base-node": base, "auto-dismiss": false,
    });
    qmp.run(&[Command::new("block-commit", job)])?;
    let mut is_completing = false;
    loop {
        let jobs = qmp.run(&[Command::new("query-jobs", json!({}))])?;
        let job = jobs[0].as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB));
        let job = job.ok_or(QmpError::Malformed)?;
        let number = |name: &str| job[name].as_u64().unwrap_or(0);
        progress(number("current-progress"), number("total-progress"));
        match job["status"].as_str() {
            Some("concluded") => {
                return match job.get("error").and_then(Value::as_str) {
                    None if is_completing => Ok(()),
                    None => Err(CommitError::Job("it was cancelled".to_owned())),
                    Some(reason) => Err(CommitError::Job(reason.to_owned())),
                };
            }
            Some("ready") if !is_completing => {
                qmp.run(&[Command::new("job-complete", json!({ "id": JOB }))])?;
                is_completing = true;
            }
            _ => thread::sleep(PAUSE),
        }
    }
}
