//! A live mount whose processes can be found, stopped and killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use guestmnt::session::mountpoint::mounts;
use guestmnt::session::record::Record;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::program::{Workplace, text};

/// Waits until a process that was killed is gone, and with it its locks. It may have no parent left
/// that could wait for it.
pub fn await_end(process: u32) {
    let folder = PathBuf::from(format!("/proc/{process}"));
    let is_dead = |stat: String| stat.rsplit(')').next().is_none_or(|rest| rest.starts_with(" Z"));
    // Its first thread may be dead while others have the files open.
    let others = || fs::read_dir(folder.join("task")).map_or(0, Iterator::count) > 1;
    while fs::read_to_string(folder.join("stat")).is_ok_and(|stat| !is_dead(stat)) || others() {
        thread::sleep(Duration::from_millis(10));
    }
}

/// A mount on the folder `mnt` of a workplace.
pub struct Live {
    /// Where it is.
    pub place: Workplace,
    /// The folder.
    pub mountpoint: PathBuf,
    /// The serving process.
    pub server: u32,
}

impl Live {
    /// Mounts what `arguments` say in `place`.
    ///
    /// # Panics
    /// Where it cannot be mounted.
    #[must_use]
    pub fn mount(place: Workplace, arguments: &[&str]) -> Self {
        let mountpoint = place.path().join("mnt");
        fs::create_dir_all(&mountpoint).expect("a new folder");
        place.mount(&[arguments, &[text(&mountpoint)]].concat());
        let server = server(&mountpoint);
        Self { place, mountpoint, server }
    }

    /// QEMU's process id, once it runs.
    ///
    /// # Panics
    /// Where there is none for a long time.
    #[must_use]
    pub fn qemu(&self) -> u32 {
        qemu_of(self.server)
    }

    /// How many VMs followed one that died.
    ///
    /// # Panics
    /// Where the server says nothing.
    #[must_use]
    pub fn revivals(&self) -> u32 {
        Record::of(self.server).expect("the server shows what it has mounted").revivals
    }

    /// Unmounts, and checks that nothing is left but `files`.
    ///
    /// # Panics
    /// Where something is.
    pub fn end(self, files: &[&str]) {
        self.place.unmount(&self.mountpoint);
        self.place.assert_clean(&[files, &["mnt"]].concat());
    }
}

/// The process that serves a mount.
///
/// # Panics
/// Where nothing is mounted.
#[must_use]
pub fn server(mountpoint: &Path) -> u32 {
    let mut mount = mounts().expect("the mount table is readable").into_iter();
    let mount = mount.rfind(|mount| mount.mountpoint == mountpoint);
    mount.and_then(|mount| mount.server()).expect("it is mounted")
}

/// The process id of the QEMU that a serving process has, once it runs.
///
/// # Panics
/// Where there is none for a long time.
#[must_use]
pub fn qemu_of(server: u32) -> u32 {
    let is_qemu = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.starts_with("qemu") && !gone(*pid)
    };
    for _ in 0..1000 {
        let path = format!("/proc/{server}/task/{server}/children");
        let children = fs::read_to_string(path).expect("the server lives");
        let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        if let Some(qemu) = pids.find(is_qemu) {
            return qemu;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("no QEMU");
}

/// Sends a signal to a process that is there.
///
/// # Panics
/// Where it is not.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().expect("process ids fit"));
    kill(pid, signal).expect("the process is there");
}

/// Whether a process has ended; nobody may have taken note of it yet.
#[must_use]
pub fn gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}
