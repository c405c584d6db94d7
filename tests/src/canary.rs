//! A canary in QEMU's place: a program of ours that is started by the very code that starts QEMU,
//! tries to get out, and says how far it came.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;
use std::time::Duration;

use guestmnt::sys::attempts::{Attempt, Targets};
use guestmnt::sys::ended_within;
use guestmnt::vm::confinement::{ConfineError, Confinement, Layer, Part, Program, Report};
use nix::sched::CloneFlags;

use crate::program::{Workplace, given, is_root};

/// What each attempt came to: `None` where it succeeded.
pub type Outcomes = BTreeMap<String, Option<String>>;

/// The things of the host that a canary aims at. They are there as long as this is.
pub struct Aims {
    place: Workplace,
    targets: Targets,
    inherited: File,
    shared_memory: String,
    _listeners: (TcpListener, UnixListener, UnixListener),
}

impl Aims {
    /// Makes them, in a folder of this user that others can look into.
    ///
    /// # Panics
    /// Where one cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let place = Workplace::new();
        let home = place.path().to_owned();
        let image = home.join("disk.raw");
        fs::write(&image, "bytes").unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o666)).unwrap();
        let inherited = File::open(&image).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = home.join("socket");
        let path = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        let abstract_socket = format!("guestmnt-test-{}", home.display());
        let name = SocketAddr::from_abstract_name(&abstract_socket).unwrap();
        let hidden = UnixListener::bind_addr(&name).unwrap();
        let (shared_memory, key) = shared_memory();
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let targets = Targets {
            parent: std::process::id().try_into().unwrap(),
            home,
            image,
            port: tcp.local_addr().unwrap().port(),
            socket,
            abstract_socket,
            shared_memory: key,
            host_name: host_name.trim().to_owned(),
            inherited: inherited.as_raw_fd(),
        };
        Self { place, targets, inherited, shared_memory, _listeners: (tcp, path, hidden) }
    }

    /// Runs a canary in `confinement`, and gives what it did and what it was confined by.
    ///
    /// # Panics
    /// Where it does not run to its end.
    #[must_use]
    pub fn canary(&self, confinement: &Confinement) -> (Outcomes, Report) {
        self.started(confinement).unwrap()
    }

    /// The same, where it may not start at all.
    ///
    /// # Errors
    /// As [`Confinement::start`].
    ///
    /// # Panics
    /// Where it does not run to its end.
    pub fn started(&self, confinement: &Confinement) -> Result<(Outcomes, Report), ConfineError> {
        let mut output = tempfile::NamedTempFile::new_in(self.place.path()).unwrap();
        let said = output.as_file_mut();
        let targets = serde_json::to_string(&self.targets).unwrap();
        let program = Program {
            path: &given("GUESTMNT_BIN_DIR").join("guestimg"),
            arguments: &["canary".into(), targets.into()],
            output: said.as_fd(),
            inherited: &[self.inherited.as_fd()],
            reopened: &[],
            kvm: false,
            largest_file: 1 << 20,
        };
        let (mut process, report) = confinement.start(&program)?;
        assert!(ended_within(process.pidfd(), Duration::from_secs(20)), "the canary hangs");
        process.wait();
        let text = fs::read_to_string(output.path()).unwrap();
        let attempts = text.lines().map(|line| {
            let attempt: Attempt = serde_json::from_str(line).unwrap_or_else(|_| panic!("{text}"));
            (attempt.name, attempt.error)
        });
        Ok((attempts.collect(), report))
    }
}

impl Default for Aims {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Aims {
    fn drop(&mut self) {
        // Where it cannot be removed, some bytes stay until the machine boots again.
        let _ = Command::new("ipcrm").args(["-m", &self.shared_memory]).status();
    }
}

/// A new segment's id and key.
fn shared_memory() -> (String, i32) {
    let output = Command::new("ipcmk").args(["-M", "4096", "-p", "0666"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let id = text.split_whitespace().last().unwrap().to_owned();
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|fields| fields[1] == id).unwrap();
    (id, line[0].parse().unwrap())
}

/// What each part of the confinement is seen to prevent alone: with all the others in force, these
/// attempts succeed without it.
#[must_use]
pub fn duties() -> Vec<(Part, &'static [&'static str])> {
    let namespace = |flag: CloneFlags| Part::Namespace(flag.bits());
    let mut duties: Vec<(Part, &'static [&'static str])> = vec![
        (namespace(CloneFlags::CLONE_NEWNS), &["see /etc/passwd"]),
        (namespace(CloneFlags::CLONE_NEWPID), &["learn of the parent"]),
        (namespace(CloneFlags::CLONE_NEWIPC), &["attach shared memory of others"]),
        (namespace(CloneFlags::CLONE_NEWUTS), &["learn the host's name"]),
        (namespace(CloneFlags::CLONE_NEWNET), &["find a network interface with an address"]),
        (Part::Layer(Layer::Root), &["see /etc/passwd"]),
        (Part::Layer(Layer::Limits), &["have core dumps"]),
        (Part::Layer(Layer::Capabilities), &["be given capabilities by a program"]),
        (Part::Layer(Layer::NoNewPrivileges), &["be given privileges by a program"]),
        (Part::Layer(Layer::Landlock), &["list /", "open an inherited file for writing"]),
        (
            Part::Layer(Layer::Seccomp),
            &["change the times of an inherited file", "fork", "make an internet socket"],
        ),
    ];
    if !is_root() {
        // Without it a user gets none of the others.
        let all: &[_] = &["see /etc/passwd", "learn of the parent", "learn the host's name"];
        duties.push((Part::Layer(Layer::UserNamespace), all));
    }
    duties
}
