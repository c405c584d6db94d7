//! A folder in which an ordinary user finds all that a run of the tool takes, wherever the
//! workspace is and whoever built it: binaries, appliance, disks, mountpoints.
//!
//! What is left there at the end is what the tool left behind: mounts below the folder,
//! processes that have it on their command line, in their memory map or among their open files,
//! and temporary files.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use tempfile::TempDir;

use crate::appliance;
use crate::disks::specimens::Specimens;
use crate::disks::{Disks, sparse};
use crate::error::Error;
use crate::kernel::Source;
use crate::places::Places;
use crate::process::search_path;
use crate::release::{self, BINARIES};
use crate::setup;
use crate::user::Ordinary;

/// How long a command may take before it counts as hanging. Under TCG on a busy machine the first
/// mount boots for several seconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// The folder for temporary files in it.
const TEMPORARY: &str = "tmp";

/// Such a folder. Dropping it unmounts, kills and removes what is left; [`Stage::finish`] does
/// the same and tells.
pub struct Stage {
    folder: TempDir,
    user: Ordinary,
    disks: Disks,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed, stdout and stderr in one.
    pub printed: String,
    /// How long it took.
    pub took: Duration,
}

/// What a run left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Mountpoints.
    pub mounts: Vec<PathBuf>,
    /// Processes, with their command lines.
    pub processes: Vec<(i32, String)>,
    /// Temporary files.
    pub files: Vec<PathBuf>,
}

impl Stage {
    /// Sets up and builds everything, and stages it with this program, for those who try it as an
    /// ordinary user; with the images of each kind of filesystem.
    ///
    /// # Errors
    /// Where any of it cannot be had.
    pub fn of_everything(places: &Places) -> Result<(Self, Specimens), Error> {
        setup::ensure(places)?;
        appliance::build(&Source::Debian, places)?;
        release::build(places)?;
        let disks = Disks::ensure(places)?;
        let specimens = Specimens::ensure(places)?;
        let stage = Self::new(places, &disks)?;
        stage.place_xtask()?;
        Ok((stage, specimens))
    }

    /// Fills a new folder from the target folder.
    ///
    /// # Errors
    /// [`Error::File`] where something has not been built, [`Error::Unfit`] without the user.
    pub fn new(places: &Places, disks: &Disks) -> Result<Self, Error> {
        let user = Ordinary::find()?;
        let temp = std::env::temp_dir();
        let folder = tempfile::Builder::new()
            .prefix("guestmnt.")
            .tempdir_in(&temp)
            .map_err(Error::file("write in", &temp))?;
        set_mode(folder.path(), 0o755)?;
        // The same places to each other as in the target folder.
        let bin = folder.path().join("release");
        fs::create_dir(&bin).map_err(Error::file("create", &bin))?;
        for name in BINARIES {
            sparse::link_or_copy(&places.release().join(name), &bin.join(name))?;
        }
        sparse::link_tree(&places.appliance(), &folder.path().join("appliance"))?;
        let disks = disks.place(folder.path())?;
        let stage = Self { folder, user, disks };
        stage.own_folder("home")?;
        stage.own_folder(TEMPORARY)?;
        set_mode(&stage.own_folder("run")?, 0o700)?;
        Ok(stage)
    }

    /// Puts this program beside ours, for work that only the ordinary user can do.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn place_xtask(&self) -> Result<(), Error> {
        let me = std::env::current_exe().map_err(Error::file("find", "this program"))?;
        sparse::link_or_copy(&me, &self.path().join("release/xtask"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The disks in it.
    #[must_use]
    pub fn disks(&self) -> &Disks {
        &self.disks
    }

    /// Makes a folder that the ordinary user owns, a mountpoint for one.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn own_folder(&self, name: &str) -> Result<PathBuf, Error> {
        self.own_folder_in(self.path(), name)
    }

    /// As [`Stage::own_folder`], in another place.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn own_folder_in(&self, place: &Path, name: &str) -> Result<PathBuf, Error> {
        let path = place.join(name);
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        chown(&path, Some(self.user.uid.as_raw()), Some(self.user.gid.as_raw()))
            .map_err(Error::file("change the owner of", &path))?;
        Ok(path)
    }

    /// A command of the ordinary user, in this folder and with its environment. One of ours is
    /// found by its name alone.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let ours = self.path().join("release").join(program);
        let mut command = if ours.exists() { Command::new(ours) } else { Command::new(program) };
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", search_path())
            .env("HOME", self.path().join("home"))
            .env("TMPDIR", self.path().join(TEMPORARY))
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("GUESTMNT_APPLIANCE", self.path().join("appliance"))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        self.user.run_as(&mut command);
        command
    }

    /// Runs a command to its end. A process that it leaves in the background may keep its output
    /// open: what was printed until the end is what counts.
    ///
    /// # Errors
    /// [`Error::Start`], or [`Error::Unfit`] where it takes longer than any run should.
    pub fn run(&self, mut command: Command) -> Result<Finished, Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut output =
            tempfile::tempfile_in(self.path()).map_err(Error::file("write in", self.path()))?;
        let copy =
            |file: &File| file.try_clone().map_err(Error::file("duplicate a file in", self.path()));
        command.stdout(copy(&output)?).stderr(copy(&output)?);
        let start = Instant::now();
        let mut child =
            command.spawn().map_err(|source| Error::Start { program: program.clone(), source })?;
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("the kernel's pids fit"));
        let (sender, ended) = mpsc::channel();
        let waiter = std::thread::spawn(move || drop(sender.send((child.wait(), Instant::now()))));
        let answer = ended.recv_timeout(DEADLINE);
        if answer.is_err() {
            // It may have ended this very moment; then there is nobody to kill.
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = waiter.join();
        let printed = read_back(&mut output).map_err(Error::file("read in", self.path()))?;
        match answer {
            Ok((status, end)) => {
                let status = status.map_err(|source| Error::Start { program, source })?;
                Ok(Finished { status, printed, took: end - start })
            }
            Err(_) => Err(Error::unfit(
                format!("{program} did not end within {} s\n{printed}", DEADLINE.as_secs()),
                "run it by hand with -v",
            )),
        }
    }

    /// What the runs so far have left.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn leftovers(&self) -> Result<Leftovers, Error> {
        Ok(Leftovers {
            mounts: mounts_below(self.path())?,
            processes: processes_at(self.path())?,
            files: files_in(&self.path().join(TEMPORARY))?,
        })
    }

    /// Cleans up, removes the folder, and says what had to be cleaned up.
    ///
    /// # Errors
    /// [`Error::File`] where the folder cannot be removed.
    pub fn finish(self) -> Result<Leftovers, Error> {
        let leftovers = self.leftovers()?;
        clean(&leftovers);
        let path = self.path().to_path_buf();
        fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
        Ok(leftovers)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Ok(leftovers) = self.leftovers() {
            clean(&leftovers);
        }
    }
}

impl Leftovers {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.processes.is_empty() && self.files.is_empty()
    }
}

/// Ends what a failed run left: its mounts, deepest first, then its processes, by their ids.
fn clean(leftovers: &Leftovers) {
    for mountpoint in leftovers.mounts.iter().rev() {
        // Nobody is left to tell where this fails; removing the folder will fail as well.
        let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(mountpoint).status();
    }
    for (pid, _) in &leftovers.processes {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    entries.map(|entry| Ok(entry.map_err(Error::file("list", folder))?.path())).collect()
}

/// Mountpoints below `folder`, in the order of mounting. Source: proc_pid_mountinfo(5).
fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let table = "/proc/self/mountinfo";
    let text = fs::read_to_string(table).map_err(Error::file("read", table))?;
    // Temporary folders have no characters that the kernel would escape.
    let mountpoints = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(mountpoints.filter(|path| path.starts_with(folder)).collect())
}

/// Processes other than this one that have to do with `folder`, with their command lines.
/// Those of other users are seen as far as this user may look.
fn processes_at(folder: &Path) -> Result<Vec<(i32, String)>, Error> {
    let needle = folder.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(Error::file("list", "/proc"))?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        if pid == getpid().as_raw() {
            continue;
        }
        let process = entry.path();
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        let maps = fs::read(process.join("maps")).unwrap_or_default();
        let links = ["cwd", "exe", "root"].map(|name| fs::read_link(process.join(name)));
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let touches = line.contains(&needle)
            || String::from_utf8_lossy(&maps).contains(&needle)
            || links.into_iter().flatten().any(|path| path.starts_with(folder))
            || files.flat_map(|file| fs::read_link(file.path())).any(|p| p.starts_with(folder));
        if touches {
            found.push((pid, line.trim_end().to_owned()));
        }
    }
    Ok(found)
}

fn read_back(output: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(Error::file("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_holds_a_file_of_the_folder_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(processes_at(folder.path()).unwrap(), []);
        let file = File::create(folder.path().join("held")).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "echo; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap();
        // Its command line is there once it says something.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();

        let found = processes_at(folder.path()).unwrap();

        child.kill().unwrap();
        child.wait().unwrap();
        let words = "sh -c echo; read line".to_owned();
        assert_eq!(found, [(i32::try_from(child.id()).unwrap(), words)]);
    }
}
