//! What is put around QEMU, so that a guest that took it over has nothing: no name of a file, no
//! network, no other process, no privilege. QEMU gets all it works with as descriptors.
//!
//! The layers overlap on purpose: each holds without the others. Which of them are in force is
//! told, never assumed; QEMU's own sandbox (`-sandbox`) is one more, which this knows nothing of.
//!
//! **Invariant:** nothing here depends on the program being QEMU, so that a canary can take its
//! place.

mod executable;
mod landlock;
mod root;
mod seccomp;
mod thread;

use std::ffi::{CString, OsString};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

use libc::c_int;
use log::warn;
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use self::executable::Executable;
use self::seccomp::Execute;
pub use self::thread::confine_thread;
pub use crate::sys::confined::Layer;
use crate::sys::confined::{self, Confined, NotStarted, Outcomes, Recipe};
use crate::sys::{self, NOBODY};

/// What the program may do with an inherited file when it opens it once more by its name in
/// `/proc/self/fd`. Through the descriptor itself it may do what that was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reopened {
    /// Read.
    ToRead,
    /// Read and write.
    ToWrite,
}

/// A program that is to be confined.
pub struct Program<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// Its arguments, without itself.
    pub arguments: &'a [OsString],
    /// Its standard output and standard error.
    pub output: BorrowedFd<'a>,
    /// Descriptors that it gets under their own numbers.
    pub inherited: &'a [BorrowedFd<'a>],
    /// Those of them that it opens once more.
    pub reopened: &'a [(BorrowedFd<'a>, Reopened)],
    /// Whether it uses `/dev/kvm`.
    pub kvm: bool,
    /// Bytes of the largest file that it writes.
    pub largest_file: u64,
}

impl<'a> Program<'a> {
    /// One that gets nothing but its output.
    #[must_use]
    pub fn alone(path: &'a Path, arguments: &'a [OsString], output: BorrowedFd<'a>) -> Self {
        let (inherited, reopened) = (&[], &[]);
        Self { path, arguments, output, inherited, reopened, kvm: false, largest_file: 0 }
    }
}

/// What to do where the host does not offer a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Start with the others, and tell.
    #[default]
    BestEffort,
    /// Do not start.
    Required,
}

/// A part of the confinement that can be left out, to see what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// One of the namespaces besides the user's, by its `CLONE_NEW…`.
    Namespace(c_int),
    /// A whole layer.
    Layer(Layer),
}

/// The layers that a program gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    policy: Policy,
    omitted: Vec<Part>,
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerState {
    /// The layer.
    pub layer: Layer,
    /// `None` where it is in force, otherwise why it is not.
    pub missing: Option<String>,
}

/// What became of each layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Report(pub Vec<LayerState>);

impl Report {
    /// Those that are not in force.
    pub fn missing(&self) -> impl Iterator<Item = &LayerState> {
        self.0.iter().filter(|state| state.missing.is_some())
    }

    /// Warns of what is missing, the first time in this process.
    pub fn warn_once(&self) {
        static WARNED: Once = Once::new();
        let missing: Vec<String> = self.missing().map(LayerState::to_string).collect();
        if !missing.is_empty() {
            WARNED.call_once(|| {
                warn!(
                    "QEMU is less confined on this host than it could be, without: {}",
                    missing.join("; ")
                );
            });
        }
    }
}

impl fmt::Display for LayerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.missing {
            None => self.layer.fmt(f),
            Some(reason) => write!(f, "{} ({reason})", self.layer),
        }
    }
}

/// Why a program was not started.
#[derive(Debug)]
pub enum ConfineError {
    /// It cannot be started.
    Start(io::Error),
    /// These layers are not to be had, and had to be.
    Missing(Vec<LayerState>),
}

impl fmt::Display for ConfineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => error.fmt(f),
            Self::Missing(states) => {
                f.write_str("QEMU cannot be confined as --require-confinement demands; missing:")?;
                states.iter().try_for_each(|state| write!(f, "\n    {state}"))?;
                f.write_str("\n  hint: `guestimg doctor` says what this host lacks")
            }
        }
    }
}

impl std::error::Error for ConfineError {}

/// All namespaces but the user's.
const NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET;

/// What is missing of the capabilities where there is no user namespace.
const BOUNDING_SET: &str = "it has none, but may not give up their bounding set";

/// Why a wrapper of QEMU is less well confined.
const SCRIPT: &str = "QEMU is a script, which may run the programs of the system";

impl Confinement {
    /// All layers.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, omitted: Vec::new() }
    }

    /// The same without `part`.
    #[must_use]
    pub fn without(mut self, part: Part) -> Self {
        self.omitted.push(part);
        self
    }

    /// Starts `program` with these layers around it. It dies when the thread that called this ends.
    ///
    /// # Errors
    /// [`ConfineError`]; nothing runs then.
    pub fn start(&self, program: &Program) -> Result<(Confined, Report), ConfineError> {
        let start = ConfineError::Start;
        let executable = Executable::of(program.path).map_err(start)?;
        let has = |layer| !self.omitted.contains(&Part::Layer(layer));
        let namespaces = NAMESPACES & !self.omitted_namespaces();
        let own_root = has(Layer::Root) && namespaces & libc::CLONE_NEWNS != 0;
        let pieces = root::pieces(&executable, program.kvm);
        let landlock = has(Layer::Landlock)
            .then(|| landlock::ruleset(&pieces, program.reopened))
            .transpose()
            .map_err(|error| start(io::Error::other(error)))?;
        let word = |text: &[u8]| CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into());
        let path = word(executable.path.as_os_str().as_bytes()).map_err(start)?;
        let arguments = program.arguments.iter().map(|argument| word(argument.as_bytes()));
        let arguments =
            std::iter::once(Ok(path.clone())).chain(arguments).collect::<Result<_, _>>();
        let root = nix::unistd::geteuid().is_root() && has(Layer::Unprivileged);
        let recipe = Recipe {
            program: path,
            arguments: arguments.map_err(start)?,
            output: program.output,
            inherited: program.inherited.to_vec(),
            namespaces,
            user_namespace: has(Layer::UserNamespace),
            root: own_root.then(|| root::plan(&pieces)).transpose().map_err(start)?,
            unprivileged: root.then(|| (NOBODY, kvm_group(program.kvm))),
            limits: if has(Layer::Limits) { limits(program) } else { Vec::new() },
            drop_capabilities: has(Layer::Capabilities),
            no_new_privileges: has(Layer::NoNewPrivileges),
            landlock: landlock.flatten(),
            seccomp: has(Layer::Seccomp).then(|| seccomp::filter(Execute::Once)),
            all_or_nothing: self.policy == Policy::Required,
        };
        if self.policy == Policy::Required && executable.is_script {
            let missing = Some(SCRIPT.to_owned());
            return Err(ConfineError::Missing(vec![LayerState {
                layer: Layer::Landlock,
                missing,
            }]));
        }
        match confined::start(&recipe) {
            Ok((process, outcomes)) => Ok((process, report(&outcomes, &executable))),
            Err(NotStarted::Incomplete(outcomes)) => {
                let missing = report(&outcomes, &executable).missing().cloned().collect();
                Err(ConfineError::Missing(missing))
            }
            Err(NotStarted::Failed(error)) => Err(start(error)),
        }
    }

    fn omitted_namespaces(&self) -> c_int {
        self.omitted.iter().fold(0, |all, part| match part {
            Part::Namespace(flag) => all | flag,
            Part::Layer(Layer::Namespaces) => NAMESPACES,
            Part::Layer(_) => all,
        })
    }
}

fn report(outcomes: &Outcomes, executable: &Executable) -> Report {
    let state = |layer| {
        let missing = match outcomes.of(layer) {
            Some(Ok(())) if layer == Layer::Landlock && executable.is_script => {
                Some(SCRIPT.to_owned())
            }
            Some(Ok(())) => None,
            Some(Err(error))
                if layer == Layer::Capabilities && error.raw_os_error() == Some(libc::EPERM) =>
            {
                Some(BOUNDING_SET.to_owned())
            }
            Some(Err(error)) => Some(error.to_string()),
            None if layer == Layer::Landlock && sys::landlock_abi() == 0 => {
                Some("this kernel has none".to_owned())
            }
            None => Some("left out".to_owned()),
        };
        LayerState { layer, missing }
    };
    Report(Layer::ALL.map(state).into())
}

/// The group that may use KVM: as nobody, QEMU could not.
fn kvm_group(kvm: bool) -> Vec<libc::gid_t> {
    let device = kvm.then(|| std::fs::metadata("/dev/kvm").ok()).flatten();
    device.map(|stat| stat.gid()).filter(|&gid| gid != 0).into_iter().collect()
}

/// No limit on address space: QEMU reserves a gibibyte for what it translates, and maps the
/// guest's memory. None on processes: it has threads only, which count as such, and before Linux
/// 5.14 the user's other processes counted as well.
fn limits(program: &Program) -> Vec<(libc::__rlimit_resource_t, libc::rlim_t)> {
    // QEMU duplicates what it inherits when it learns of it, and again when it opens it.
    let files = program.inherited.len() * 4 + 1024;
    let wanted = [
        // A core would hold the image's data.
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, files as libc::rlim_t),
        (Resource::RLIMIT_FSIZE, program.largest_file),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ];
    // A limit cannot be raised again; ours may be lower already.
    let lowest = |(resource, limit): (Resource, libc::rlim_t)| {
        let most = getrlimit(resource).map_or(limit, |(_, most)| most.min(limit));
        (resource as libc::__rlimit_resource_t, most)
    };
    wanted.map(lowest).into()
}
