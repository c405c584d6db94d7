//! The loopback guest: the daemon's own server in this process, over a folder of the host. All
//! but the VM is real, FUSE included.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guestmnt::guest::Guest;
use guestmnt::session::fuse_options::FuseOptions;
use guestmnt::session::mountpoint::Mountpoint;
use guestmnt::session::serving::Serving;
use guestmnt_appliance::{guest::Guest as Daemon, serve::serve};
use tempfile::TempDir;

const LANES: usize = 4;

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
    Guest::connect(sockets.collect(), second, 10 * second).expect("the daemon says hello")
}

/// A folder shown through FUSE. Dropping it unmounts.
pub struct Mounted {
    _serving: Serving,
    guest: Arc<Guest>,
    mountpoint: TempDir,
}

impl Mounted {
    /// Mounts `folder` with the FUSE options `options`.
    ///
    /// # Panics
    /// Where it cannot be mounted.
    #[must_use]
    pub fn new(folder: &Path, options: &str) -> Self {
        let guest = Arc::new(guest_over(folder));
        let mountpoint = tempfile::tempdir().expect("a folder is to be had");
        let options: FuseOptions = options.parse().expect("the options are known");
        let checked = Mountpoint::check(mountpoint.path()).expect("it can be mounted on");
        let serving =
            Serving::start(Arc::clone(&guest), &checked, &options).expect("it can be mounted");
        Self { _serving: serving, guest, mountpoint }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Requests that reached the guest so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.guest.requests()
    }
}
