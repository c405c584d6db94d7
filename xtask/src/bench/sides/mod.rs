//! Those who are compared: guestmnt, libguestfs' guestmount, and the image mounted on the host.

mod guestmnt;
mod guestmount;
mod native;
pub mod traced;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use guestmnt::{Guestmnt, Start};
pub use guestmount::Guestmount;
pub use native::Native;
pub use traced::Traced;

use super::disk::Image;
use super::ground::{Ground, Spot};
use super::memory::{self, Memory};
use super::worker::Timing;
use crate::Error;

/// How long processes may take to end after an unmount before this counts as a failure.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// One of those who are compared.
pub trait Side: Sync {
    /// Its name in the table.
    fn name(&self) -> &'static str;

    /// The words that mount `image` at `spot`.
    ///
    /// # Errors
    /// [`Error::Unfit`] where this side cannot mount this image.
    fn mount_words(
        &self,
        ground: &Ground,
        image: &Image,
        spot: &Spot,
    ) -> Result<Vec<OsString>, Error>;

    /// The words that unmount it.
    fn unmount_words(&self, ground: &Ground, spot: &Spot) -> Vec<OsString>;

    /// `program`, with the user and the environment of this side.
    fn command(&self, ground: &Ground, program: &Path, spot: &Spot) -> Command;
}

/// A mount that answers. Dropped without [`Mounted::unmount`], it is taken apart without being
/// asked how that went.
pub struct Mounted<'a> {
    ground: &'a Ground,
    side: &'a dyn Side,
    spot: Spot,
    processes: Vec<i32>,
    /// From the command's start until a file of the mount has been looked at, in seconds.
    pub took: f64,
    is_mounted: bool,
}

impl<'a> Mounted<'a> {
    /// Mounts `image`.
    ///
    /// # Errors
    /// Those of the command, with what it printed.
    pub fn new(ground: &'a Ground, side: &'a dyn Side, image: &Image) -> Result<Self, Error> {
        let spot = ground.spot()?;
        let words = side.mount_words(ground, image, &spot)?;
        let mut mounted =
            Self { ground, side, spot, processes: Vec::new(), took: 0.0, is_mounted: true };
        let file = mounted.path(image.probe);
        let mut arguments = vec!["answer".into(), "--file".into(), file.into(), "--".into()];
        arguments.extend(words);
        mounted.took = mounted.task(&arguments)?.seconds;
        mounted.processes = memory::processes_of(&mounted.spot.mountpoint)?;
        Ok(mounted)
    }

    /// The path of a file in the mount.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.spot.mountpoint.join(name)
    }

    /// The path of a file beside the mount, which goes with it.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.spot.scratch.join(name)
    }

    /// The path of a file in memory, which goes with the mount.
    #[must_use]
    pub fn copies(&self, name: &str) -> PathBuf {
        self.spot.copies.join(name)
    }

    /// Lets a worker do a [`super::worker::Task`], given as the words of its command line.
    ///
    /// # Errors
    /// Those of the task.
    pub fn task(&self, words: &[OsString]) -> Result<Timing, Error> {
        let command = self.side.command(self.ground, &self.ground.worker(), &self.spot);
        self.ground.time(command, words)
    }

    /// Runs a command in a worker.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self, words: &[&OsStr]) -> Result<Timing, Error> {
        let mut task: Vec<OsString> = vec!["run".into(), "--".into()];
        task.extend(words.iter().map(Into::into));
        self.task(&task)
    }

    /// What the processes behind the mount take now.
    ///
    /// # Errors
    /// As [`Memory::of`].
    pub fn memory(&self) -> Result<Memory, Error> {
        Memory::of(&self.processes)
    }

    /// What runs the mount's VM, by QEMU's `-accel`; `None` where none of its processes has one.
    #[must_use]
    pub fn accelerator(&self) -> Option<String> {
        let lines = self.processes.iter().map(|pid| fs::read(format!("/proc/{pid}/cmdline")));
        lines.flatten().find_map(|line| accelerator(&line))
    }

    /// Unmounts, waits until every process behind the mount has ended, and returns how long that
    /// took, in seconds.
    ///
    /// # Errors
    /// Those of the command; [`Error::Unfit`] where a process does not end.
    pub fn unmount(mut self) -> Result<f64, Error> {
        self.is_mounted = false;
        self.take_apart()
    }

    fn take_apart(&self) -> Result<f64, Error> {
        let words = self.side.unmount_words(self.ground, &self.spot);
        let mut command = self.side.command(self.ground, Path::new(&words[0]), &self.spot);
        command.args(&words[1..]);
        let start = Instant::now();
        self.ground.run(command)?;
        while let Some(pid) = self.processes.iter().copied().find(|&pid| memory::runs(pid)) {
            if start.elapsed() > END_TIMEOUT {
                return Err(Error::unfit(
                    format!("{}: process {pid} lives on after unmounting", self.side.name()),
                    "look at it with ps",
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.is_mounted {
            // What made the measurement fail is what is told.
            let _ = self.take_apart();
            for pid in memory::processes_of(&self.spot.mountpoint).unwrap_or_default() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        // The ground removes it at the end, if not now.
        for folder in [&self.spot.scratch, &self.spot.copies] {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// `tcg` of `qemu\0-accel\0tcg,thread=single\0`. Source: proc_pid_cmdline(5).
fn accelerator(command_line: &[u8]) -> Option<String> {
    let mut words = command_line.split(|&byte| byte == 0).skip_while(|word| *word != b"-accel");
    let value = words.nth(1)?.split(|&byte| byte == b',').next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accelerator_is_what_qemu_was_told() {
        let cases: [(&[u8], Option<&str>); 4] = [
            (b"qemu\0-no-reboot\0-accel\0kvm\0-cpu\0max\0", Some("kvm")),
            (b"qemu\0-accel\0tcg,thread=single\0", Some("tcg")),
            (b"guestmnt\0--accel\0tcg\0", None),
            (b"qemu\0-accel", None),
        ];
        for (line, expected) in cases {
            assert_eq!(accelerator(line).as_deref(), expected);
        }
    }
}
