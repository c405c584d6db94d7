//! Starts a program in a process that was shut in between clone and exec.
//!
//! What is to be done was decided before and lies ready in memory; the child only carries it out,
//! by system calls alone: it is a copy of a process that may have had threads, so it neither
//! allocates nor takes a lock. It says by a socket what the kernel refused, and goes on or ends.

mod child;
mod root;

use std::ffi::CString;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use libc::{c_char, c_int, c_long};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use self::child::{Child, Identity};
pub use self::root::MOST_SHOWN;

/// The layers of a confinement, in the order in which they are put around the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(usize)]
pub enum Layer {
    /// Namespaces other than the user's, all at once.
    Namespaces,
    /// A user namespace.
    UserNamespace,
    /// A root of its own.
    Root,
    /// Another user than root.
    Unprivileged,
    /// Limits of resources.
    Limits,
    /// No capabilities, nor a way to get some.
    Capabilities,
    /// `no_new_privs`.
    NoNewPrivileges,
    /// The Landlock ruleset.
    Landlock,
    /// The filter of system calls.
    Seccomp,
}

const LAYERS: usize = Layer::Seccomp as usize + 1;

/// An argument of a system call that is not used; variadic functions want its whole width.
const NONE: c_long = 0;

/// Stands for a layer that was not asked for.
const NOT_ASKED: c_int = -1;

/// How it went with each layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcomes([c_int; LAYERS]);

impl Layer {
    /// All of them.
    pub const ALL: [Self; LAYERS] = [
        Self::Namespaces,
        Self::UserNamespace,
        Self::Root,
        Self::Unprivileged,
        Self::Limits,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Landlock,
        Self::Seccomp,
    ];
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "own mount, PID, IPC, UTS and network namespaces",
            Self::UserNamespace => "own user namespace",
            Self::Root => "own root folder",
            Self::Unprivileged => "not root",
            Self::Limits => "resource limits",
            Self::Capabilities => "no capabilities nor a way to get some",
            Self::NoNewPrivileges => "no_new_privs",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp",
        })
    }
}

impl Outcomes {
    /// `None` where `layer` was not asked for, otherwise what the kernel said to it.
    #[must_use]
    pub fn of(&self, layer: Layer) -> Option<io::Result<()>> {
        match self.0[layer as usize] {
            NOT_ASKED => None,
            0 => Some(Ok(())),
            errno => Some(Err(io::Error::from_raw_os_error(errno))),
        }
    }

    fn note(&mut self, layer: Layer, result: Result<(), c_int>) {
        self.0[layer as usize] = result.err().unwrap_or(0);
    }

    fn complete(&self) -> bool {
        self.0.iter().all(|&errno| errno == 0)
    }
}

/// Something that the program's root shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A new folder.
    Folder(CString),
    /// A symbolic link with this text.
    Link(CString, CString),
    /// The host's file or folder of this path, read-only, on the folder or file that is made for it.
    Tree {
        /// Where on both sides.
        path: CString,
        /// Whether it is a folder.
        is_folder: bool,
        /// Whether device nodes in it may be opened.
        devices: bool,
    },
}

/// What the child is to do before it becomes the program. Paths are absolute.
pub struct Recipe<'fd> {
    /// The program.
    pub program: CString,
    /// Its arguments, itself first.
    pub arguments: Vec<CString>,
    /// Its standard output and standard error.
    pub output: BorrowedFd<'fd>,
    /// Descriptors that it gets under their own numbers; all others are closed.
    pub inherited: Vec<BorrowedFd<'fd>>,
    /// `CLONE_NEW…` of the namespaces, without the user's.
    pub namespaces: c_int,
    /// Whether it gets a user namespace.
    pub user_namespace: bool,
    /// What its root shows, folders before what is in them; `None` for the host's root.
    pub root: Option<Vec<Shown>>,
    /// The user that root becomes, with its supplementary groups.
    pub unprivileged: Option<(libc::uid_t, Vec<libc::gid_t>)>,
    /// Limits, by resource.
    pub limits: Vec<(libc::__rlimit_resource_t, libc::rlim_t)>,
    /// Whether all capabilities are given up.
    pub drop_capabilities: bool,
    /// Whether it sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// A Landlock ruleset.
    pub landlock: Option<OwnedFd>,
    /// A filter of system calls.
    pub seccomp: Option<Vec<libc::sock_filter>>,
    /// Whether the program is not to start where a layer failed or is missing.
    pub all_or_nothing: bool,
}

/// A process that was started so. Dropping it kills it and waits for its end.
pub struct Confined {
    pid: Pid,
    pidfd: OwnedFd,
    /// How it ended, once that was asked.
    ended: Option<Ending>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status.
    Exited(c_int),
    /// By a signal.
    Killed(Signal),
    /// In a way that nobody can tell any more.
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

impl Confined {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Readable when it has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.pidfd.as_fd()
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) -> Ending {
        if self.ended.is_none() {
            // It may have ended by itself; as long as nobody waited for it, its number is its own.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        self.wait()
    }

    /// Waits until it is gone.
    pub fn wait(&mut self) -> Ending {
        if let Some(ending) = self.ended {
            return ending;
        }
        let ending = loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, status)) => break Ending::Exited(status),
                Ok(WaitStatus::Signaled(_, signal, _)) => break Ending::Killed(signal),
                Err(nix::Error::EINTR) => {}
                // Our caller ignores SIGCHLD.
                Ok(_) | Err(_) => break Ending::Unknown,
            }
        };
        *self.ended.insert(ending)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Why a program was not started.
#[derive(Debug)]
pub enum NotStarted {
    /// There can be no process, or it cannot become the program.
    Failed(io::Error),
    /// A layer is missing, and none was to be.
    Incomplete(Outcomes),
}

/// Does what `recipe` says. The kernel kills the program when the *thread* that called this ends,
/// however it ends.
///
/// Where the kernel gives none of the namespaces, the program starts without; what it gave and
/// what not is in the outcomes.
///
/// # Errors
/// [`NotStarted`]; nothing runs then.
pub fn start(recipe: &Recipe) -> Result<(Confined, Outcomes), NotStarted> {
    let failed = NotStarted::Failed;
    let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
    let null = std::fs::File::open("/dev/null").map_err(failed)?;
    let arguments: Vec<*const c_char> =
        recipe.arguments.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
    let identity = Identity::of(recipe);
    let child = Child {
        recipe,
        arguments: &arguments,
        identity: &identity,
        null: null.as_raw_fd(),
        status: theirs.as_raw_fd(),
        parents_status: ours.as_raw_fd(),
        inherited: recipe.inherited.iter().map(AsRawFd::as_raw_fd).collect(),
        is_root: nix::unistd::geteuid().is_root(),
    };
    let user = if recipe.user_namespace { libc::CLONE_NEWUSER } else { 0 };
    // Root makes the namespaces first and becomes somebody then.
    let privileged = recipe.unprivileged.is_some().then_some(recipe.namespaces);
    let mut refused = 0;
    let candidates = [privileged, Some(recipe.namespaces | user), Some(0)];
    for flags in candidates.into_iter().flatten() {
        let mut pidfd: RawFd = -1;
        // SAFETY: without a stack and without CLONE_VM this is a fork: the child goes on with a
        // copy of our memory. `pidfd` is where the kernel writes the descriptor.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                c_long::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD),
                NONE,
                &raw mut pidfd,
                NONE,
                NONE,
            )
        };
        if pid == 0 {
            // SAFETY: this is the child, which calls nothing else.
            unsafe { child.run(flags, refused) }
        }
        if pid == -1 {
            let error = io::Error::last_os_error();
            if flags == 0 {
                return Err(failed(error));
            }
            refused = error.raw_os_error().unwrap_or(libc::EPERM);
            continue;
        }
        let pid = Pid::from_raw(c_int::try_from(pid).expect("the kernel's pids fit"));
        // SAFETY: the kernel has just given us this descriptor; nobody else knows its number.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let confined = Confined { pid, pidfd, ended: None };
        drop(theirs);
        return told(&mut ours, recipe.all_or_nothing).map(|outcomes| (confined, outcomes));
    }
    unreachable!("the last attempt returns either way")
}

/// Sets `no_new_privs` for this thread and puts a Landlock ruleset and a filter of system calls on
/// it. The process's other threads stay as they are.
///
/// # Errors
/// As prctl(2), landlock_restrict_self(2) and seccomp(2).
pub fn restrict_thread(ruleset: Option<&OwnedFd>, filter: &[libc::sock_filter]) -> io::Result<()> {
    child::renounce()
        .and_then(|()| ruleset.map_or(Ok(()), |ruleset| child::restrict(ruleset.as_raw_fd())))
        .and_then(|()| child::install(filter))
        .map_err(io::Error::from_raw_os_error)
}

/// What the child says: the outcomes, and the error where the program did not start.
fn told(status: &mut UnixStream, all_or_nothing: bool) -> Result<Outcomes, NotStarted> {
    let mut said = Vec::new();
    status.read_to_end(&mut said).map_err(NotStarted::Failed)?;
    let numbers: Vec<c_int> = said
        .chunks_exact(size_of::<c_int>())
        .map(|bytes| c_int::from_ne_bytes(bytes.try_into().expect("chunks have this size")))
        .collect();
    let Some((outcomes, rest)) = numbers.split_first_chunk::<LAYERS>() else {
        return Err(NotStarted::Failed(io::Error::other("it ended before it was confined")));
    };
    let outcomes = Outcomes(*outcomes);
    if let Some(&errno) = rest.first() {
        return Err(NotStarted::Failed(io::Error::from_raw_os_error(errno)));
    }
    if all_or_nothing && !outcomes.complete() {
        return Err(NotStarted::Incomplete(outcomes));
    }
    Ok(outcomes)
}
