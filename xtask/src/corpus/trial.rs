//! One image, mounted, gone through and unmounted as an ordinary user, each within its deadline;
//! then a look at what is left.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sha2::{Digest, Sha256};

use super::family::Family;
use super::ground::Ground;
use super::kernel_log::KernelLog;
use super::walk::{MOST_TIME, Walk};
use crate::disks::sparse;
use crate::error::Error;

/// How long a launch, an unmount and the end of guestmnt may take. On a busy machine without KVM
/// some last seconds.
const DEADLINE: Duration = Duration::from_secs(180);

/// Seconds that one request to the guest may take (`--timeout`).
const REQUEST: u64 = 30;

/// What is mounted.
#[derive(Clone, Debug)]
pub struct Exhibit<'a> {
    /// The image.
    pub image: &'a Path,
    /// The device in it.
    pub device: &'a str,
    /// The passphrase of its encrypted volumes.
    pub passphrase: Option<&'a str>,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What came of the image.
    pub outcome: Outcome,
    /// What must not be.
    pub faults: Vec<Fault>,
    /// How long all of it took.
    pub took: Duration,
    /// What guestmnt said.
    pub said: String,
}

/// What came of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was mounted, and this was seen.
    Mounted(Walk),
    /// guestmnt said no, with this reason.
    Refused(String),
    /// It did not come so far: see the faults.
    Unknown,
}

/// What no image may bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This did not end.
    Hang(&'static str),
    /// A program crashed, or ended with a status that it does not have.
    Crash(String),
    /// A process was left behind.
    Process(u32, String),
    /// A mount, socket or temporary file was.
    File(PathBuf),
    /// The image was changed.
    Changed,
    /// This machine's kernel had something to say.
    Kernel(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hang(what) => write!(f, "HANG: {what}"),
            Self::Crash(how) => write!(f, "CRASH: {how}"),
            Self::Process(pid, name) => write!(f, "LEFT BEHIND: process {pid} ({name})"),
            Self::File(path) => write!(f, "LEFT BEHIND: {}", path.display()),
            Self::Changed => f.write_str("CHANGED: the image"),
            Self::Kernel(line) => write!(f, "KERNEL: {line}"),
        }
    }
}

/// Tries an image.
///
/// # Errors
/// Where the trial itself cannot be made; what goes wrong with the image is in the [`Verdict`].
pub fn run(exhibit: &Exhibit<'_>, ground: &Ground, family: &Family) -> Result<Verdict, Error> {
    let start = Instant::now();
    let mut kernel = KernelLog::open();
    let before = fingerprint(exhibit.image)?;
    let mut trial = Trial { ground, family, faults: Vec::new() };
    let failed = Error::file("make a trial in", ground.folder());
    let (outcome, said) = trial.mount(exhibit).map_err(failed)?;
    trial.look_around().map_err(Error::file("look around in", ground.folder()))?;
    let mut faults = trial.faults;
    if fingerprint(exhibit.image)? != before {
        faults.push(Fault::Changed);
    }
    faults.extend(kernel.iter_mut().flat_map(KernelLog::news).map(Fault::Kernel));
    Ok(Verdict { outcome, faults, took: start.elapsed(), said })
}

/// A hash of where a file has data, and of the data.
///
/// # Errors
/// [`Error::File`].
pub fn fingerprint(image: &Path) -> Result<Vec<u8>, Error> {
    let read = || -> io::Result<Vec<u8>> {
        let file = File::open(image)?;
        let mut hash = Sha256::new();
        hash.update(file.metadata()?.len().to_le_bytes());
        let mut buffer = vec![0; 1 << 20];
        for (start, end) in sparse::data_ranges(&file)? {
            let mut at = start;
            while at < end {
                let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
                file.read_exact_at(&mut buffer[..length], at)?;
                hash.update(at.to_le_bytes());
                hash.update(&buffer[..length]);
                at += length as u64;
            }
        }
        Ok(hash.finalize().to_vec())
    };
    read().map_err(Error::file("read", image))
}

struct Trial<'a> {
    ground: &'a Ground,
    family: &'a Family,
    faults: Vec<Fault>,
}

impl Trial<'_> {
    /// From the launch to the end of guestmnt; what came of it, and what guestmnt said.
    fn mount(&mut self, exhibit: &Exhibit<'_>) -> io::Result<(Outcome, String)> {
        let log = self.ground.folder().join("said");
        let mut command = self.ground.command("guestmnt");
        // In the foreground all that it says and how it ends is seen.
        command.args(["--no-fork", "--fd", "1", "--timeout", &REQUEST.to_string()]);
        if let Some(passphrase) = exhibit.passphrase {
            command.arg("--key").arg(format!("all:key:{passphrase}"));
        }
        command.arg("-a").arg(exhibit.image).args(["-m", exhibit.device, "--ro"]);
        command.arg(self.ground.mountpoint());
        command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut server = self.family.start(&mut command)?;
        let outcome = match ready(&mut server)? {
            Some(true) => {
                let walk = self.walk()?;
                self.unmount()?;
                let status = self.end(server, "guestmnt behind its unmount")?;
                self.judge("guestmnt", status, &[0]);
                walk.map_or(Outcome::Unknown, Outcome::Mounted)
            }
            Some(false) => {
                let status = self.end(server, "guestmnt behind its refusal")?;
                self.judge("guestmnt", status, &[1]);
                Outcome::Refused(reason(&read(&log)?))
            }
            None => {
                self.end(server, "the launch")?;
                Outcome::Unknown
            }
        };
        let said = read(&log)?;
        if let Some(line) = said.lines().find(|line| line.contains("panicked at")) {
            self.faults.push(Fault::Crash(line.to_owned()));
        }
        Ok((outcome, said))
    }

    /// Goes through the mount.
    fn walk(&mut self) -> io::Result<Option<Walk>> {
        let mut command = self.ground.command("xtask");
        command.arg("corpus-walk").arg(self.ground.mountpoint()).stdout(Stdio::piped());
        let mut walker = self.family.start(&mut command)?;
        let mut printed = walker.stdout.take().expect("piped above");
        let most = MOST_TIME + 2 * Duration::from_secs(REQUEST) + Duration::from_secs(10);
        if self.family.wait(&mut walker, most)?.is_none() {
            self.faults.push(Fault::Hang("a call within the mount"));
            kill(&mut walker, self.family)?;
            return Ok(None);
        }
        let mut text = String::new();
        printed.read_to_string(&mut text)?;
        let walk = serde_json::from_str(&text).ok();
        if walk.is_none() {
            self.faults.push(Fault::Crash(format!("the walk said: {text}")));
        }
        Ok(walk)
    }

    fn unmount(&mut self) -> io::Result<()> {
        let mut command = self.ground.command("guestunmnt");
        command.arg(self.ground.mountpoint()).stderr(Stdio::null());
        let child = self.family.start(&mut command)?;
        let status = self.end(child, "guestunmnt")?;
        self.judge("guestunmnt", status, &[0]);
        Ok(())
    }

    /// Waits for the end of a program. One that hangs is killed.
    fn end(&mut self, mut child: Child, what: &'static str) -> io::Result<Option<ExitStatus>> {
        let status = self.family.wait(&mut child, DEADLINE)?;
        if status.is_none() {
            self.faults.push(Fault::Hang(what));
            kill(&mut child, self.family)?;
        }
        Ok(status)
    }

    fn judge(&mut self, program: &str, status: Option<ExitStatus>, good: &[i32]) {
        let Some(status) = status else { return };
        if status.signal().is_some() || !good.iter().any(|&code| status.code() == Some(code)) {
            self.faults.push(Fault::Crash(format!("{program}: {status}")));
        }
    }

    /// What is left, once those that end with others had their time.
    fn look_around(&mut self) -> io::Result<()> {
        let orphans = self.family.orphans()?;
        self.faults.extend(orphans.into_iter().map(|(pid, name)| Fault::Process(pid, name)));
        for path in self.ground.leftovers()? {
            self.faults.push(Fault::File(path));
        }
        Ok(())
    }
}

/// Waits until guestmnt says that the mount answers, or ends; `None` at the deadline.
fn ready(server: &mut Child) -> io::Result<Option<bool>> {
    let mut stdout = server.stdout.take().expect("piped by the caller");
    let timeout = PollTimeout::try_from(DEADLINE).expect("some minutes fit");
    if poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
        return Ok(None);
    }
    Ok(Some(stdout.read(&mut [0])? > 0))
}

fn kill(child: &mut Child, family: &Family) -> io::Result<()> {
    child.kill()?;
    family.wait(child, DEADLINE).map(drop)
}

fn read(log: &Path) -> io::Result<String> {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line of a refusal, without the program's name. Before it there may be warnings.
fn reason(said: &str) -> String {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("guestmnt: "));
    line.unwrap_or_else(|| said.lines().next().unwrap_or_default()).to_owned()
}

/// The devices that guestmnt names where the one that was asked for is none.
#[must_use]
pub fn suggested(said: &str) -> Vec<String> {
    let list = said.lines().skip_while(|line| !line.starts_with("Did you mean to mount")).skip(1);
    let devices = list.map_while(|line| line.strip_prefix("    ")?.split_once(" ("));
    devices.map(|(device, _)| device.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_gives_its_reason_and_other_devices() {
        let said = "guestmnt: preparing the VM\n\
                    guestmnt: cannot mount /dev/sda on /: partitions (dos)\n\
                    Did you mean to mount one of these filesystems?\n    \
                    /dev/sda1 (ntfs)\n    btrfsvol:/dev/sda2/a b (btrfs)\n";
        assert_eq!(reason(said), "cannot mount /dev/sda on /: partitions (dos)");
        assert_eq!(suggested(said), ["/dev/sda1", "btrfsvol:/dev/sda2/a b"]);
        assert!(suggested("guestmnt: no\n").is_empty());
    }
}
