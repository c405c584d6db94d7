//! What a program that was taken over would try first. Each attempt is made in earnest, and
//! harmless where it succeeds.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::ptr;

use libc::{c_int, c_long, c_ulong};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What the attempts aim at: things of the host that are there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Targets {
    /// The process that started this one.
    pub parent: i32,
    /// A folder of the user's.
    pub home: PathBuf,
    /// An image in it.
    pub image: PathBuf,
    /// The port of a listening TCP socket.
    pub port: u16,
    /// The path of a listening socket.
    pub socket: PathBuf,
    /// The name of a listening abstract socket.
    pub abstract_socket: String,
    /// The key of a segment of shared memory.
    pub shared_memory: i32,
    /// The host's name.
    pub host_name: String,
    /// An inherited descriptor of a file of the user's that is open for reading.
    pub inherited: c_int,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was tried.
    pub name: String,
    /// Why it failed; `None` where it did not.
    pub error: Option<String>,
}

type Try = fn(&Targets) -> io::Result<()>;

/// The attempts, but for [`execute`].
pub const ATTEMPTS: &[(&str, Try)] = &[
    ("read /etc/passwd", |_| read("/etc/passwd")),
    ("see /etc/passwd", |_| fs::metadata("/etc/passwd").map(drop)),
    ("list /", |_| list("/")),
    ("list the home folder", |targets| list(&targets.home)),
    ("read an image by its path", |targets| read(&targets.image)),
    ("write in the current folder", |_| create(Path::new("."))),
    ("write in /tmp", |_| create(Path::new("/tmp"))),
    ("write in /dev/shm", |_| create(Path::new("/dev/shm"))),
    ("write in the home folder", |targets| create(&targets.home)),
    ("open an inherited file for writing", |targets| {
        let path = format!("/proc/self/fd/{}", targets.inherited);
        File::options().write(true).open(path).map(drop)
    }),
    ("change the mode of an inherited file", |targets| {
        call(libc::SYS_fchmod, [targets.inherited.into(), 0o600, 0, 0])
    }),
    ("change the times of an inherited file", |targets| {
        let omit = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW };
        let times = [omit, omit];
        call(libc::SYS_utimensat, [targets.inherited.into(), 0, address(&times), 0])
    }),
    ("connect over TCP", |targets| {
        TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, targets.port)).map(drop)
    }),
    ("connect to a socket by its path", |targets| UnixStream::connect(&targets.socket).map(drop)),
    ("connect to an abstract socket", |targets| {
        let name = SocketAddr::from_abstract_name(&targets.abstract_socket)?;
        UnixStream::connect_addr(&name).map(drop)
    }),
    ("make an internet socket", |_| socket(libc::AF_INET, libc::SOCK_DGRAM)),
    ("make a raw socket", |_| socket(libc::AF_INET, libc::SOCK_RAW)),
    ("make a netlink socket", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    ("find a network interface with an address", |_| interfaces()),
    ("learn of the parent", |targets| call(libc::SYS_getpgid, [targets.parent.into(), 0, 0, 0])),
    ("signal the parent", |targets| call(libc::SYS_kill, [targets.parent.into(), 0, 0, 0])),
    ("hold the parent", |targets| call(libc::SYS_pidfd_open, [targets.parent.into(), 0, 0, 0])),
    ("trace the parent", |targets| {
        // PTRACE_SEIZE does not stop it, and ends with us.
        call(libc::SYS_ptrace, [c_long::from(libc::PTRACE_SEIZE), targets.parent.into(), 0, 0])
    }),
    ("read the parent's environment", |targets| read(format!("/proc/{}/environ", targets.parent))),
    ("open the parent's memory", |targets| {
        File::open(format!("/proc/{}/mem", targets.parent)).map(drop)
    }),
    ("read the environment of process 1", |_| read("/proc/1/environ")),
    ("fork", |_| fork()),
    ("attach shared memory of others", |targets| {
        call(libc::SYS_shmget, [targets.shared_memory.into(), 0, 0, 0])
    }),
    ("learn the host's name", |targets| {
        let same = nix::sys::utsname::uname()?.nodename() == targets.host_name.as_str();
        if same { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }),
    ("mount", |_| {
        let kind = c"tmpfs".as_ptr() as c_long;
        call(libc::SYS_mount, [kind, c"/tmp".as_ptr() as c_long, kind, 0])
    }),
    ("make a user namespace", |_| {
        call(libc::SYS_unshare, [c_long::from(libc::CLONE_NEWUSER), 0, 0, 0])
    }),
    ("change the root", |_| call(libc::SYS_chroot, [c"/".as_ptr() as c_long, 0, 0, 0])),
    ("load a module", |_| call(libc::SYS_init_module, [0, 0, c"".as_ptr() as c_long, 0])),
    ("open /dev/mem", |_| File::open("/dev/mem").map(drop)),
    ("open /dev/fuse", |_| device("/dev/fuse")),
    ("open /dev/kvm", |_| device("/dev/kvm")),
    ("become root", |_| call(libc::SYS_setuid, [0, 0, 0, 0])),
    ("use the kernel's keys", |_| {
        // KEYCTL_GET_KEYRING_ID of KEY_SPEC_USER_KEYRING, made if need be.
        call(libc::SYS_keyctl, [0, -4, 1, 0])
    }),
    ("make a BPF map", |_| {
        // BPF_MAP_CREATE of an array with one element of 4 bytes.
        let attributes: [u32; 18] = [2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let size = size_of_val(&attributes).cast_signed() as c_long;
        call(libc::SYS_bpf, [0, address(&attributes), size, 0])
    }),
    ("count performance events", |_| {
        // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY, of user space only.
        let mut attributes = [0u64; 16];
        attributes[0] = 1 | 128 << 32;
        attributes[1] = 9;
        attributes[5] = 1 << 5 | 1 << 6;
        call(libc::SYS_perf_event_open, [address(&attributes), 0, -1, -1])
    }),
    ("use io_uring", |_| {
        let parameters = [0u32; 30];
        call(libc::SYS_io_uring_setup, [1, address(&parameters), 0, 0])
    }),
    ("handle page faults", |_| {
        // UFFD_USER_MODE_ONLY, which needs no privilege.
        call(libc::SYS_userfaultfd, [1, 0, 0, 0])
    }),
    ("have core dumps", |_| {
        let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE)?;
        if most > 0 { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }),
    ("be given capabilities by a program", |_| {
        const CAP_SYS_ADMIN: c_ulong = 21;
        // SAFETY: a system call with plain numbers.
        let bounded = unsafe { libc::prctl(libc::PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) };
        if bounded == 1 { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }),
    ("be given privileges by a program", |_| {
        let limited = nix::sys::prctl::get_no_new_privs()?;
        if limited { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }),
];

/// The name of what [`execute`] tries.
pub const EXECUTE: &str = "execute /bin/sh";

/// Becomes a shell that says so, in the form that the attempts have; comes back only where that
/// fails.
#[must_use]
pub fn execute() -> io::Error {
    let said = format!("echo '{{\"name\":\"{EXECUTE}\",\"error\":null}}'");
    let said = CString::new(said).expect("it has no NUL");
    let words = [c"sh".as_ptr(), c"-c".as_ptr(), said.as_ptr(), ptr::null()];
    // SAFETY: a NUL-terminated path and a list of live strings that ends in a null pointer; an
    // empty environment may be null on Linux.
    unsafe { libc::execve(c"/bin/sh".as_ptr(), words.as_ptr(), ptr::null()) };
    io::Error::last_os_error()
}

fn call(number: c_long, [a, b, c, d]: [c_long; 4]) -> io::Result<()> {
    // SAFETY: the callers pass plain numbers, or addresses of live memory of the size that the
    // call reads or writes. None of the calls changes memory that Rust relies on.
    let result = unsafe { libc::syscall(number, a, b, c, d, 0 as c_long, 0 as c_long) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn address<T>(value: &T) -> c_long {
    ptr::from_ref(value) as c_long
}

fn read(path: impl AsRef<Path>) -> io::Result<()> {
    fs::read(path).map(drop)
}

fn list(path: impl AsRef<Path>) -> io::Result<()> {
    fs::read_dir(path)?.next().map_or(Ok(()), |first| first.map(drop))
}

fn create(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!(".guestmnt-canary-{}", std::process::id()));
    File::create_new(&path)?;
    fs::remove_file(path)
}

fn device(path: &str) -> io::Result<()> {
    File::options().read(true).write(true).open(path).map(drop)
}

fn socket(family: c_int, kind: c_int) -> io::Result<()> {
    call(libc::SYS_socket, [family.into(), kind.into(), 0, 0])
}

/// Asks by a socket of another family, which a filter lets through.
fn interfaces() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    const SIOCGIFCONF: c_ulong = 0x8912;
    let (socket, _other) = UnixStream::pair()?;
    let mut found = [0u8; 4096];
    let mut request = libc::ifconf {
        ifc_len: 4096,
        ifc_ifcu: libc::__c_anonymous_ifc_ifcu { ifcu_buf: found.as_mut_ptr().cast() },
    };
    // SAFETY: the request names a live buffer and its length.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGIFCONF, &raw mut request) } == -1 {
        return Err(io::Error::last_os_error());
    }
    if request.ifc_len > 0 { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn fork() -> io::Result<()> {
    // SAFETY: a fork without a stack of its own; the child ends at once.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_long::from(libc::SIGCHLD),
            0 as c_long,
            0 as c_long,
            0 as c_long,
            0 as c_long,
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => super::exit_now(0),
        _ => {
            let child = Pid::from_raw(c_int::try_from(pid).expect("the kernel's pids fit"));
            Ok(waitpid(child, None).map(drop)?)
        }
    }
}
