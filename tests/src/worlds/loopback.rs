//! The loopback guest: the daemon's own server in this process, over a folder of the host. All
//! but the VM is real, FUSE included.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guestmnt::fs::Shows;
use guestmnt::fs::stats::Asked;
use guestmnt::guest::Guest;
use guestmnt::session::fuse_options::FuseOptions;
use guestmnt::session::mountpoint::Mountpoint;
use guestmnt::session::serving::{Files, Serving};
use guestmnt_appliance::{guest::Guest as Daemon, serve::serve};
use tempfile::TempDir;

use super::{Attributes, Shown, Space, World};

const LANES: usize = 4;

/// The world of the loopback guest.
pub struct Loopback;

impl World for Loopback {
    fn show(&self, source: &Path, options: &str) -> Box<dyn Shown> {
        Box::new(Mounted::new(source, options))
    }
}

/// A client of a daemon that serves `folder`. The daemon's threads end with the client.
///
/// # Panics
/// Where the folder cannot be served.
#[must_use]
pub fn guest_over(folder: &Path) -> Guest {
    let daemon = Arc::new(Daemon::over(folder).expect("the folder can be served"));
    let sockets = (0..LANES).map(|_| {
        let (host, guest) = UnixStream::pair().expect("sockets are to be had");
        let daemon = Arc::clone(&daemon);
        thread::spawn(move || serve(guest, &daemon));
        host
    });
    let second = Duration::from_secs(1);
    Guest::connect(sockets.collect(), None, second, 10 * second).expect("the daemon says hello")
}

/// A folder shown through FUSE. What must be seen is what is in the folder.
struct Mounted {
    serving: Serving,
    guest: Arc<Guest>,
    source: PathBuf,
    mountpoint: TempDir,
}

impl Mounted {
    fn new(source: &Path, options: &str) -> Self {
        let guest = Arc::new(guest_over(source));
        let mountpoint = tempfile::tempdir().expect("a folder is to be had");
        let options: FuseOptions = options.parse().expect("the options are known");
        let checked = Mountpoint::check(mountpoint.path()).expect("it can be mounted on");
        let files = Files::ReadOnly { disks: Vec::new(), shows: Shows::Files };
        let serving = Serving::start(Arc::clone(&guest), files, &checked, &options)
            .expect("it can be mounted");
        Self { serving, guest, source: source.to_owned(), mountpoint }
    }
}

impl Shown for Mounted {
    fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    fn requests(&self) -> u64 {
        self.guest.counts().total()
    }

    fn asked(&self, kind: Asked) -> u64 {
        self.serving.stats().asked.of(kind)
    }

    fn attributes(&self, file: &str) -> Attributes {
        let metadata = fs::symlink_metadata(self.source.join(file)).expect("the file is there");
        Attributes::from(&metadata)
    }

    fn numbers(&self, folder: &str) -> BTreeMap<OsString, u64> {
        let entries = fs::read_dir(self.source.join(folder)).expect("the folder is there");
        let entries = entries.map(|entry| entry.expect("it can be read"));
        entries.map(|entry| (entry.file_name(), entry.ino())).collect()
    }

    fn space(&self) -> Space {
        Space::at(&self.source)
    }
}
