//! The worlds in which files can be written: a loopback guest over a folder, and a real VM with an
//! overlay over an image.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;

use guestmnt::guest::Guest;
use guestmnt::session::fuse_options::FuseOptions;
use guestmnt::session::mountpoint::Mountpoint;
use guestmnt::session::serving::{Files, Serving};
use guestmnt_protocol::message::NameMatching;
use nix::sys::stat::{Mode, umask};
use tempfile::{NamedTempFile, TempDir};
use xtask::process::Tool;

use super::loopback::guest_over;
use crate::program::{Workplace, text};
use crate::specimens::sha256;

/// A mount whose files can be written.
pub trait Writable {
    /// Where it is.
    fn path(&self) -> &Path;

    /// Unmounts it and mounts it again: nothing is left of it but what was written.
    fn remount(&mut self);
}

/// What is shown of links, so that it is what was written.
const OPTIONS: &str = "symlinks=raw";

/// A loopback guest over a new folder.
pub struct OverFolder {
    /// Before the folders: they are dropped in this order.
    serving: Option<Serving>,
    guest: Arc<Guest>,
    source: TempDir,
    mountpoint: TempDir,
}

impl OverFolder {
    /// An empty one.
    ///
    /// # Panics
    /// Where it cannot be mounted.
    #[must_use]
    pub fn new() -> Self {
        // As in a guest. Tests of one program do not depend on it otherwise.
        umask(Mode::empty());
        let folder = || tempfile::tempdir().expect("a folder is to be had");
        let source = folder();
        let guest = Arc::new(guest_over(source.path()));
        let mut new = Self { source, mountpoint: folder(), guest, serving: None };
        new.mount();
        new
    }

    /// Requests that the guest answered since it was mounted last.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.guest.counts().total()
    }

    fn mount(&mut self) {
        self.guest = Arc::new(guest_over(self.source.path()));
        let guest = Arc::clone(&self.guest);
        let options: FuseOptions = OPTIONS.parse().expect("the options are known");
        let checked = Mountpoint::check(self.mountpoint.path()).expect("it can be mounted on");
        let files = Files::Writable(NameMatching::Exact);
        let serving = Serving::start(guest, files, &checked, &options);
        self.serving = Some(serving.expect("it can be mounted"));
    }
}

impl Default for OverFolder {
    fn default() -> Self {
        Self::new()
    }
}

impl Writable for OverFolder {
    fn path(&self) -> &Path {
        self.mountpoint.path()
    }

    fn remount(&mut self) {
        let serving = self.serving.take().expect("it is mounted");
        serving.take_from_kernel().expect("everything can be written");
        let lost = serving.changes().and_then(|changes| changes.lost());
        assert_eq!(lost, None);
        drop(serving);
        self.mount();
    }
}

/// A real VM with an overlay over an image, which stays as it is.
pub struct OverImage {
    place: Workplace,
    mountpoint: PathBuf,
    image: PathBuf,
    sha256: String,
    server: Option<Child>,
    /// Further options.
    pub options: Vec<String>,
}

impl OverImage {
    /// Over the raw image of a filesystem.
    ///
    /// # Panics
    /// Where it cannot be mounted.
    #[must_use]
    pub fn new(image: &Path) -> Self {
        Self::with_options(image, &[])
    }

    /// As [`OverImage::new`], with further options.
    ///
    /// # Panics
    /// As [`OverImage::new`].
    #[must_use]
    pub fn with_options(image: &Path, options: &[&str]) -> Self {
        let place = Workplace::new();
        let mountpoint = place.folder("mnt");
        let (image, sha256) = (image.to_owned(), sha256(image));
        let (server, options) = (None, options.iter().copied().map(str::to_owned).collect());
        let mut new = Self { place, mountpoint, image, sha256, server, options };
        new.mount();
        new
    }

    /// Where the programs run.
    #[must_use]
    pub fn place(&self) -> &Workplace {
        &self.place
    }

    /// The overlay's path.
    #[must_use]
    pub fn overlay(&self) -> PathBuf {
        self.place.path().join("overlay.qcow2")
    }

    /// The disk as the image and the overlay make it, as a new raw file. Nothing may be mounted.
    ///
    /// # Panics
    /// Where there is no overlay.
    #[must_use]
    pub fn flattened(&self) -> NamedTempFile {
        let raw = NamedTempFile::new().expect("a file is to be had");
        let file = |path: &Path| serde_json::json!({ "driver": "file", "filename": path });
        let disk = serde_json::json!({
            "driver": "qcow2",
            "file": file(&self.overlay()),
            "backing": { "driver": "raw", "file": file(&self.image) },
        });
        let convert = Tool::new("qemu-img").args(["convert", "-O", "raw"]);
        let convert = convert.arg(format!("json:{disk}")).arg(raw.path());
        convert.run().unwrap_or_else(|error| panic!("{error}"));
        raw
    }

    /// The process that serves the mount.
    ///
    /// # Panics
    /// Where it is not mounted.
    #[must_use]
    pub fn server(&self) -> u32 {
        self.server.as_ref().expect("it is mounted").id()
    }

    /// Mounts it.
    ///
    /// # Panics
    /// Where that fails.
    pub fn mount(&mut self) {
        let overlay = self.overlay();
        let arguments = [
            "--no-fork",
            "--fd",
            "1",
            "--format",
            "raw",
            "-a",
            text(&self.image),
            "--overlay",
            text(&overlay),
            "-m",
            "/dev/sda",
            "-o",
            OPTIONS,
            text(&self.mountpoint),
        ];
        let options = self.options.iter().map(String::as_str);
        let arguments: Vec<&str> = options.chain(arguments).collect();
        let mut command = self.place.command("guestmnt", &arguments);
        let errors = File::create(self.place.path().join("log")).expect("a new file");
        let mut server =
            command.stdout(Stdio::piped()).stderr(errors).spawn().expect("the program starts");
        let mut ready = server.stdout.take().expect("piped above");
        if ready.read_exact(&mut [0]).is_err() {
            let status = server.wait();
            panic!("guestmnt: {status:?}\n{}", self.said());
        }
        self.server = Some(server);
    }

    /// Unmounts it; nothing that was written may be lost.
    ///
    /// # Panics
    /// Where something is.
    pub fn unmount(&mut self) {
        self.place.unmount(&self.mountpoint);
        let status = self.server.take().expect("it is mounted").wait().expect("it was started");
        assert!(status.success(), "guestmnt: {status}\n{}", self.said());
    }

    /// Waits for a server that ends by itself.
    ///
    /// # Panics
    /// Where it is not mounted.
    pub fn wait(&mut self) -> ExitStatus {
        self.server.take().expect("it is mounted").wait().expect("it was started")
    }

    /// Waits for a server that was killed, and for all that it leaves to go.
    ///
    /// # Panics
    /// Where something is left.
    pub fn reap(&mut self) {
        let _ = self.server.take().expect("it is mounted").wait();
        self.place.assert_clean(&["mnt", "log", "overlay.qcow2"]);
    }

    /// What guestmnt printed.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }
}

impl Writable for OverImage {
    fn path(&self) -> &Path {
        &self.mountpoint
    }

    fn remount(&mut self) {
        self.unmount();
        self.mount();
    }
}

impl Drop for OverImage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed; this only tidies up, and shows what there was.
            let _ = self.place.run("guestunmnt", &[text(&self.mountpoint)]);
            self.server.take().map(|mut server| server.wait());
            eprintln!("{}", self.said());
            return;
        }
        if self.server.is_some() {
            self.unmount();
        }
        self.place.assert_clean(&["mnt", "log", "overlay.qcow2"]);
        assert_eq!(sha256(&self.image), self.sha256, "the image was changed");
    }
}
