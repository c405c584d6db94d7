//! Where it is measured: a stage with the disks on it, and the programs that are run there.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::apart;
use super::disk::{self, Access, Image};
use super::worker::Timing;
use crate::Error;
use crate::disks::{self, SYSTEM, sparse};
use crate::places::Places;
use crate::process::search_path;
use crate::stage::{Finished, Leftovers, Stage};

/// The program that does the timed work, in the stage's folder of programs.
const WORKER: &str = "xtask";

/// How many images the figure of simultaneous mounts takes.
pub const CROWD: u32 = 20;

/// Where one mount is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The folder to mount on.
    pub mountpoint: PathBuf,
    /// A folder for the mount's own files. Its path begins with the mountpoint's, so that a
    /// process that names only this one is found by the mountpoint too.
    pub scratch: PathBuf,
    /// A folder in memory for what is copied out of the mount.
    pub copies: PathBuf,
}

/// Which options this build of guestmnt has, so that what is not there yet is said to be so.
pub struct Offers(String);

impl Offers {
    /// Whether the help names `option`.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.0.split(|c: char| c.is_whitespace() || c == ',' || c == '=').any(|word| word == option)
    }
}

/// A stage for measuring.
pub struct Ground {
    stage: Stage,
    /// Copies go there, so that the disk of this machine and what else is written to it do not
    /// belong to the time.
    memory: TempDir,
    disks: disk::Disks,
    counter: AtomicU32,
    /// Of the guestmnt that is measured.
    pub offers: Offers,
}

impl Ground {
    /// Puts everything in its place.
    ///
    /// # Errors
    /// [`Error::File`] where something has not been built.
    pub fn new(
        places: &Places,
        disks: &disks::Disks,
        bench_disks: &disk::Disks,
    ) -> Result<Self, Error> {
        let stage = Stage::new(places, disks)?;
        stage.place_xtask()?;
        let disks = bench_disks.place(&stage.path().join("bench"))?;
        make_crowd(&stage.disks().path(SYSTEM), stage.path())?;
        let mut help = stage.command("guestmnt");
        help.arg("--help");
        let offers = Offers(stage.run(help)?.printed);
        let memory = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(apart::memory())
            .map_err(Error::file("write in", apart::memory()))?;
        Ok(Self { stage, memory, disks, counter: AtomicU32::new(0), offers })
    }

    /// The measured disks.
    #[must_use]
    pub fn disks(&self) -> &disk::Disks {
        &self.disks
    }

    /// Number `number` of [`CROWD`] images of a small system.
    #[must_use]
    pub fn crowd(&self, number: u32) -> Image {
        let disk = self.stage.path().join(crowd_name(number));
        let probe = "Users/Public/Documents/desktop.ini";
        Image { disk, device: "/dev/sda1", probe, raw: None, access: Access::Read }
    }

    /// The path of one of our programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.stage.path().join("release").join(name)
    }

    /// The path of the program that does [`super::worker::Task`]s.
    #[must_use]
    pub fn worker(&self) -> PathBuf {
        self.program(WORKER)
    }

    /// Hard links to what is in `folder`, where the user can read it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn show(&self, folder: &Path, name: &str) -> Result<PathBuf, Error> {
        let shown = self.stage.path().join(name);
        sparse::link_tree(folder, &shown)?;
        Ok(shown)
    }

    /// A place for one more mount.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn spot(&self) -> Result<Spot, Error> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let name = format!("mnt-{number:04}");
        let mountpoint = self.stage.own_folder(&name)?;
        let scratch = self.stage.own_folder(&format!("{name}.tmp"))?;
        let copies = self.stage.own_folder_in(self.memory.path(), &name)?;
        Ok(Spot { mountpoint, scratch, copies })
    }

    /// `program` as the ordinary user.
    #[must_use]
    pub fn as_user(&self, program: &Path) -> Command {
        self.stage.command(&program.to_string_lossy())
    }

    /// `program` as who we are.
    #[must_use]
    pub fn as_root(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.stage.path())
            .env_clear()
            .env("PATH", search_path())
            .env("LC_ALL", "C.UTF-8")
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs a command that has to succeed.
    ///
    /// # Errors
    /// [`Error::Program`] with what it printed.
    pub fn run(&self, command: Command) -> Result<Finished, Error> {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let finished = self.stage.run(command)?;
        if finished.status.success() {
            return Ok(finished);
        }
        let tail = finished.printed.trim_end().as_bytes().to_vec();
        Err(Error::Program { command: words.join(" "), status: finished.status, tail })
    }

    /// Lets `worker`, a command that starts it, do the task that `words` spell.
    ///
    /// # Errors
    /// Those of the task.
    pub fn time(&self, mut worker: Command, words: &[OsString]) -> Result<Timing, Error> {
        worker.arg("bench-task").args(words);
        let printed = self.run(worker)?.printed;
        let last = printed.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        last.ok_or_else(|| Error::unfit(format!("no timing in: {printed}"), "this is a bug"))
    }

    /// Removes everything, and says what had been left running or mounted.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn finish(self) -> Result<Leftovers, Error> {
        self.stage.finish()
    }
}

/// Puts [`CROWD`] copies of `image` into `folder`. Each is a file of its own, as people's are: hard
/// links would be one file, with one place in the page cache and one lock. Where the filesystem shares
/// blocks between files, they take no room (copy_file_range(2)).
fn make_crowd(image: &Path, folder: &Path) -> Result<(), Error> {
    for number in 0..CROWD {
        let copy = folder.join(crowd_name(number));
        fs::copy(image, &copy).map_err(Error::file("create", &copy))?;
        // Blocks that are shared were not read, and what is measured begins with a warm cache.
        fs::read(&copy).map_err(Error::file("read", &copy))?;
    }
    Ok(())
}

fn crowd_name(number: u32) -> String {
    format!("system-{number:02}.vmdk")
}

/// Reads what is below `folder`, holes left out, so that it is in the page cache.
///
/// # Errors
/// [`Error::File`].
pub fn warm(folder: &Path) -> Result<(), Error> {
    let nowhere = Path::new("/dev/null");
    let sink =
        fs::File::options().write(true).open(nowhere).map_err(Error::file("open", nowhere))?;
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        if path.is_dir() { warm(&path)? } else { sparse::copy_into(&path, &sink, 0)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn images_of_the_crowd_are_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, "a disk").unwrap();

        make_crowd(&image, folder.path()).unwrap();

        let copies = (0..CROWD).map(|number| folder.path().join(crowd_name(number)));
        let files: HashSet<u64> = copies
            .map(|copy| {
                assert_eq!(fs::read(&copy).unwrap(), b"a disk");
                copy.metadata().unwrap().ino()
            })
            .collect();
        assert_eq!(files.len(), usize::try_from(CROWD).unwrap());
    }
}
