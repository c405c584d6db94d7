//! A real VM: the folder becomes an ext4 image, the built guestmnt mounts it, guestunmnt
//! unmounts it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use guestmnt::counts::Kind;
use guestmnt::fs::stats::Asked;

use super::ext4::Ext4;
use super::{Attributes, Shown, Space, World};
use crate::program::{Workplace, text};
use crate::specimens::sha256;

/// The world of real VMs.
pub struct Vm;

impl World for Vm {
    fn show(&self, source: &Path, options: &str) -> Box<dyn Shown> {
        VmWith(&[]).show(source, options)
    }
}

/// The same, mounted with further arguments.
pub struct VmWith(pub &'static [&'static str]);

impl World for VmWith {
    fn show(&self, source: &Path, options: &str) -> Box<dyn Shown> {
        Box::new(Mounted::new(source, self.0, options))
    }
}

/// An image that is mounted. What must be seen is what debugfs sees in it.
struct Mounted {
    place: Workplace,
    mountpoint: PathBuf,
    image: Ext4,
    sha256: String,
    server: Child,
    /// What the server said, each request among it.
    log: PathBuf,
}

impl Mounted {
    fn new(source: &Path, further: &[&str], options: &str) -> Self {
        let place = Workplace::new();
        let mountpoint = place.folder("mnt");
        let image = Ext4::of(source, place.path().join("image"));
        let sha256 = sha256(image.path());
        let log = place.path().join("log");
        let mut arguments = vec!["-x", "--fd", "1", "--format", "raw", "-a", text(image.path())];
        arguments.extend(further);
        arguments.extend(["-m", "/dev/sda", "-o", options, text(&mountpoint)]);
        let mut server = place
            .command("guestmnt", &arguments)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a new file"))
            .spawn()
            .expect("the program starts");
        let mut ready = server.stdout.take().expect("piped above");
        if ready.read_exact(&mut [0]).is_err() {
            let status = server.wait();
            panic!("guestmnt: {status:?}\n{}", fs::read_to_string(&log).unwrap_or_default());
        }
        Self { place, mountpoint, image, sha256, server, log }
    }
}

impl Mounted {
    /// The lines of the log that begin so.
    fn lines(&self, beginning: &str) -> u64 {
        let log = fs::read(&self.log).expect("the log is there");
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| line.starts_with(beginning)).count() as u64
    }
}

impl Shown for Mounted {
    fn path(&self) -> &Path {
        &self.mountpoint
    }

    fn requests(&self) -> u64 {
        self.lines("guestmnt: -> ")
    }

    fn asked(&self, kind: Asked) -> u64 {
        self.lines(&format!("guestmnt: {} ", kind.name()))
    }

    fn attributes(&self, file: &str) -> Attributes {
        self.image.attributes(file)
    }

    fn numbers(&self, folder: &str) -> BTreeMap<OsString, u64> {
        self.image.numbers(folder)
    }

    fn space(&self) -> Space {
        self.image.space()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed; this only tidies up, and shows what there was.
            let _ = self.place.run("guestunmnt", &[text(&self.mountpoint)]);
            let _ = self.server.wait();
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
            return;
        }
        self.place.unmount(&self.mountpoint);
        let status = self.server.wait().expect("it was started");
        assert!(status.success(), "guestmnt: {status}");
        self.place.assert_clean(&["mnt", "image", "log"]);
        assert_eq!(sha256(self.image.path()), self.sha256, "the image was changed");
    }
}
