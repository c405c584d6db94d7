//! Starts a program in a process that was shut in between clone and exec.
//!
//! What is to be done was decided before and lies ready in memory; the child only carries it out,
//! by system calls alone: it is a copy of a process that may have had threads, so it neither
//! allocates nor takes a lock. It says by a socket what the kernel refused, and goes on or ends.

use std::ffi::{CStr, CString};
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use libc::{c_char, c_int, c_long, c_ulong};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

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
            Self::Capabilities => "no capabilities",
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
    ended: bool,
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
    pub fn kill(&mut self) {
        if !self.ended {
            // It may have ended by itself; as long as nobody waited for it, its number is its own.
            let _ = kill(self.pid, Signal::SIGKILL);
            self.wait();
        }
    }

    /// Waits until it is gone.
    pub fn wait(&mut self) {
        while !self.ended {
            self.ended = waitpid(self.pid, None) != Err(nix::Error::EINTR);
        }
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
        let confined = Confined { pid, pidfd, ended: false };
        drop(theirs);
        return told(&mut ours, recipe.all_or_nothing).map(|outcomes| (confined, outcomes));
    }
    unreachable!("the last attempt returns either way")
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

/// The lines of a user namespace's maps: one user and one group, none of them root inside.
struct Identity {
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
}

impl Identity {
    fn of(recipe: &Recipe) -> Self {
        let (uid, gid) = match &recipe.unprivileged {
            Some((uid, _)) => (*uid, *uid),
            None => (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        };
        let line = |id: u32| format!("{} {id} 1\n", if id == 0 { super::NOBODY } else { id });
        Self { uid_map: line(uid).into(), gid_map: line(gid).into() }
    }
}

/// All that the child needs, in memory before it exists.
struct Child<'a> {
    recipe: &'a Recipe<'a>,
    arguments: &'a [*const c_char],
    identity: &'a Identity,
    inherited: Vec<RawFd>,
    null: RawFd,
    status: RawFd,
    parents_status: RawFd,
    is_root: bool,
}

/// The result of a system call as errno.
fn check(result: impl Into<i64>) -> Result<(), c_int> {
    if result.into() == -1 { Err(errno()) } else { Ok(()) }
}

fn errno() -> c_int {
    // SAFETY: the C library's own address of this thread's errno.
    unsafe { *libc::__errno_location() }
}

impl Child<'_> {
    /// The child, from its first instruction to the program's.
    ///
    /// # Safety
    /// Only for a process that was just forked and has nothing else to do.
    unsafe fn run(&self, namespaces: c_int, refused: c_int) -> ! {
        let recipe = self.recipe;
        let mut outcomes = Outcomes([NOT_ASKED; LAYERS]);
        // SAFETY: all below are system calls on memory that was made before the fork and that
        // nobody changes; the other threads of the parent do not exist here.
        unsafe {
            let prepared = self.descriptors();
            if recipe.namespaces != 0 {
                let result = if namespaces == 0 { Err(refused) } else { Ok(()) };
                outcomes.note(Layer::Namespaces, result);
            }
            let proc_self = libc::open(
                c"/proc/self".as_ptr(),
                libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
            );
            // Whoever runs out of memory shall lose this process first.
            let _ = write_at(proc_self, c"oom_score_adj", b"500");
            if namespaces & libc::CLONE_NEWUSER != 0 {
                outcomes.note(Layer::UserNamespace, self.map(proc_self));
            } else if recipe.user_namespace && recipe.unprivileged.is_none() {
                outcomes.note(Layer::UserNamespace, Err(refused));
            }
            if namespaces & libc::CLONE_NEWUTS != 0 {
                let name = b"guestmnt";
                let _ = libc::sethostname(name.as_ptr().cast(), name.len());
            }
            if let Some(shown) = &recipe.root {
                let own = namespaces & libc::CLONE_NEWNS != 0;
                outcomes.note(Layer::Root, if own { show(shown) } else { Err(refused) });
            }
            if !self.is_root {
                outcomes.note(Layer::Unprivileged, Ok(()));
            } else if let Some((uid, groups)) = &recipe.unprivileged {
                let result = if namespaces & libc::CLONE_NEWUSER == 0 {
                    become_user(*uid, groups)
                } else {
                    Err(refused)
                };
                outcomes.note(Layer::Unprivileged, result);
                if recipe.user_namespace && namespaces & libc::CLONE_NEWUSER == 0 {
                    let result = check(libc::unshare(libc::CLONE_NEWUSER));
                    outcomes.note(Layer::UserNamespace, result.and_then(|()| self.map(proc_self)));
                }
            }
            if !recipe.limits.is_empty() {
                outcomes.note(Layer::Limits, limit(&recipe.limits));
            }
            if recipe.drop_capabilities {
                outcomes.note(Layer::Capabilities, drop_capabilities());
            }
            if recipe.no_new_privileges {
                let result =
                    check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, NONE, NONE, NONE));
                outcomes.note(Layer::NoNewPrivileges, result);
            }
            if let Some(ruleset) = &recipe.landlock {
                let result = libc::syscall(
                    libc::SYS_landlock_restrict_self,
                    c_long::from(ruleset.as_raw_fd()),
                    NONE,
                );
                outcomes.note(Layer::Landlock, check(result));
            }
            // Changes of user and capabilities would have undone it.
            let bound = check(libc::prctl(libc::PR_SET_PDEATHSIG, c_long::from(libc::SIGKILL)));
            if let Some(filter) = &recipe.seccomp {
                outcomes.note(Layer::Seccomp, install(filter));
            }
            self.tell(&outcomes.0);
            if recipe.all_or_nothing && !outcomes.complete() {
                libc::_exit(1);
            }
            match prepared.and(bound) {
                // It may have ended before PR_SET_PDEATHSIG took effect.
                Ok(()) if self.parent_is_gone() => {}
                Ok(()) => {
                    let environment = [ptr::null::<c_char>()];
                    let (program, words) = (recipe.program.as_ptr(), self.arguments.as_ptr());
                    libc::execve(program, words, environment.as_ptr());
                    self.tell(&[errno()]);
                }
                Err(errno) => self.tell(&[errno]),
            }
            libc::_exit(127)
        }
    }

    unsafe fn descriptors(&self) -> Result<(), c_int> {
        // SAFETY: system calls with plain numbers, and a signal set of this frame.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()))?;
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            // A Ctrl-C at the terminal reaches only our parent.
            check(libc::setsid())?;
            libc::close(self.parents_status);
            check(libc::dup2(self.null, 0))?;
            check(libc::dup2(self.recipe.output.as_raw_fd(), 1))?;
            check(libc::dup2(self.recipe.output.as_raw_fd(), 2))?;
            let flag = libc::CLOSE_RANGE_CLOEXEC;
            check(libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flag))?;
            for &fd in &self.inherited {
                check(libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
        }
        Ok(())
    }

    unsafe fn map(&self, proc_self: RawFd) -> Result<(), c_int> {
        // SAFETY: as the function's.
        unsafe {
            write_at(proc_self, c"setgroups", b"deny")?;
            write_at(proc_self, c"uid_map", &self.identity.uid_map)?;
            write_at(proc_self, c"gid_map", &self.identity.gid_map)
        }
    }

    unsafe fn parent_is_gone(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.status, events: 0, revents: 0 };
        // SAFETY: one live pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    }

    unsafe fn tell(&self, numbers: &[c_int]) {
        // SAFETY: the bytes of a live slice.
        unsafe {
            libc::send(
                self.status,
                numbers.as_ptr().cast(),
                size_of_val(numbers),
                libc::MSG_NOSIGNAL,
            );
        }
    }
}

unsafe fn write_at(folder: RawFd, name: &CStr, bytes: &[u8]) -> Result<(), c_int> {
    // SAFETY: system calls on a NUL-terminated name and a live slice.
    unsafe {
        let fd = libc::openat(folder, name.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(fd)?;
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        let result = check(i64::try_from(written).unwrap_or(-1));
        libc::close(fd);
        result
    }
}

/// Where the new root is put together: a folder that every machine has. What it hides are only
/// this process's own names.
const STAGE: &CStr = c"/tmp";

/// Entries that a root may have; each takes a descriptor on the way.
pub const MOST_SHOWN: usize = 64;

/// Puts a root together from pieces of the old one, and leaves the old one behind.
unsafe fn show(shown: &[Shown]) -> Result<(), c_int> {
    let mut trees = [-1; MOST_SHOWN];
    // SAFETY: system calls on NUL-terminated paths and live structs, as each documents.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        mount(c"none", c"/", None, private, None)?;
        for (tree, item) in trees.iter_mut().zip(shown) {
            if let Shown::Tree { path, devices, .. } = item {
                *tree = detached(path, *devices)?;
            }
        }
        let own_files = detached(c"/proc/self/fd", false)?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        mount(c"guestmnt", STAGE, Some(c"tmpfs"), flags, Some(c"mode=755,size=64k"))?;
        check(libc::chdir(STAGE.as_ptr()))?;
        for (tree, item) in trees.iter().zip(shown) {
            match item {
                Shown::Folder(path) => check(libc::mkdir(relative(path).as_ptr(), 0o755))?,
                Shown::Link(path, text) => {
                    check(libc::symlink(text.as_ptr(), relative(path).as_ptr()))?;
                }
                Shown::Tree { path, is_folder: true, .. } => {
                    check(libc::mkdir(relative(path).as_ptr(), 0o755))?;
                    attach(*tree, relative(path))?;
                }
                Shown::Tree { path, is_folder: false, .. } => {
                    let made = libc::open(
                        relative(path).as_ptr(),
                        libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC,
                        0o444,
                    );
                    check(made)?;
                    libc::close(made);
                    attach(*tree, relative(path))?;
                }
            }
        }
        // What is inherited is opened by these names, and nothing else of /proc is there.
        for folder in [c"proc", c"proc/self", c"proc/self/fd"] {
            check(libc::mkdir(folder.as_ptr(), 0o755))?;
        }
        attach(own_files, c"proc/self/fd")?;
        let here = c".";
        read_only(libc::AT_FDCWD, here, 0, 0)?;
        check(libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()))?;
        check(libc::umount2(here.as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr()))
    }
}

/// An absolute path from the stage, where we are.
fn relative(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    CStr::from_bytes_with_nul(bytes.strip_prefix(b"/").unwrap_or(bytes)).unwrap_or(path)
}

/// A copy of the mount below `path`, attached to nothing yet, and not to be written to.
unsafe fn detached(path: &CStr, devices: bool) -> Result<RawFd, c_int> {
    let flags = libc::OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
    // SAFETY: a system call on a NUL-terminated path.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let tree = RawFd::try_from(tree).expect("descriptors and -1 fit");
    check(tree)?;
    let devices = if devices { 0 } else { libc::MOUNT_ATTR_NODEV };
    // SAFETY: as above.
    unsafe { read_only(tree, c"", AT_RECURSIVE, devices)? };
    Ok(tree)
}

const AT_RECURSIVE: libc::c_uint = 0x8000;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC.cast_unsigned();

unsafe fn read_only(
    folder: RawFd,
    path: &CStr,
    flags: libc::c_uint,
    more: u64,
) -> Result<(), c_int> {
    // SAFETY: a plain struct of numbers.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | more;
    let empty = libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: a system call on a NUL-terminated path and a live struct with its size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            folder,
            path.as_ptr(),
            flags | empty,
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
}

unsafe fn attach(tree: RawFd, path: &CStr) -> Result<(), c_int> {
    // SAFETY: a system call on NUL-terminated paths.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
}

unsafe fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result<(), c_int> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: a system call on NUL-terminated strings.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), pointer(kind), flags, pointer(data).cast())
    })
}

/// By the kernel's own calls: the C library's would ask all threads to do the same.
unsafe fn become_user(uid: libc::uid_t, groups: &[libc::gid_t]) -> Result<(), c_int> {
    // SAFETY: system calls with plain numbers and a live slice.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        // Otherwise what describes us in /proc would be root's, the maps among it.
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1 as c_ulong, NONE, NONE, NONE))
    }
}

unsafe fn limit(limits: &[(libc::__rlimit_resource_t, libc::rlim_t)]) -> Result<(), c_int> {
    for &(resource, most) in limits {
        let both = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: a pointer to a live struct.
        check(unsafe { libc::setrlimit(resource, &raw const both) })?;
    }
    Ok(())
}

/// The layout that capset(2) documents for version 3.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

unsafe fn drop_capabilities() -> Result<(), c_int> {
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    // Effective, permitted and inheritable, of 32 capabilities each.
    let none = [0u32; 6];
    // SAFETY: system calls with plain numbers and pointers to live memory of the documented size.
    unsafe {
        for capability in 0 as c_ulong..64 {
            match check(libc::prctl(libc::PR_CAPBSET_DROP, capability, NONE, NONE, NONE)) {
                // There are no more.
                Err(libc::EINVAL) if capability > 0 => break,
                result => result?,
            }
        }
        // Not even user 0 would get any by becoming it or by starting a program.
        let bits = c_long::from(libc::SECURE_ALL_BITS | libc::SECURE_ALL_LOCKS);
        check(libc::prctl(libc::PR_SET_SECUREBITS, bits, NONE, NONE, NONE))?;
        check(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()))
    }
}

unsafe fn install(filter: &[libc::sock_filter]) -> Result<(), c_int> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| libc::EINVAL)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: a pointer to a live program, which the kernel copies.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, NONE, &raw const program)
    })
}
