//! The system calls that no safe library offers. The only unsafe file of this crate.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::NonNull;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Makes `command` start a child that cannot outlive us, with `inherited` descriptors open
/// under their own numbers; everything else that we have open is close-on-exec.
///
/// The kernel kills the child when the *thread* that starts it ends, however it ends, so that
/// thread has to live as long as the child shall. The child has a session of its own, so that a
/// Ctrl-C at the terminal reaches only us; it can gain no privileges; it leaves no core dump,
/// which would hold the image's data.
pub fn bind_to_us(command: &mut Command, inherited: &[BorrowedFd]) {
    let numbers: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let parent = nix::unistd::getpid().as_raw();
    // SAFETY: between fork and exec the closure makes plain system calls only, on values that
    // it owns; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || prepare(&numbers, parent));
    }
}

fn prepare(inherited: &[RawFd], parent: libc::pid_t) -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: system calls with plain numbers, and a pointer to a live rlimit.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::setsid())?;
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core))?;
        for &fd in inherited {
            check(libc::fcntl(fd, libc::F_SETFD, 0))?;
        }
        // The parent may have died before the first line took effect.
        if libc::getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

/// A descriptor that becomes readable when the process `pid` ends.
///
/// # Errors
/// `ESRCH` where there is no such process, or where the kernel is older than 5.3.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a system call with plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).expect("descriptors and -1 fit");
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether `pidfd`'s process ended within `timeout`.
#[must_use]
pub fn ended_within(pidfd: BorrowedFd, timeout: Duration) -> bool {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], timeout).is_ok_and(|ready| ready > 0)
}

/// Takes a descriptor that the other side of `socket` passes with one byte.
///
/// # Errors
/// `UnexpectedEof` where the other side closed the socket, or passed none.
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<()>(fd, &mut bytes, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let passed = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(files) => files.first().copied(),
        _ => None,
    });
    let number = passed.ok_or(io::ErrorKind::UnexpectedEof)?;
    // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Takes over a descriptor that our caller left open for us, such as `--fd N`.
///
/// # Errors
/// `EBADF` where it is not open.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a system call with plain numbers.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen, and our caller told us to use it; this is called
    // once for it, before anything else could have been given the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A file's bytes, shared with other processes that may change them at any time.
pub struct SharedMap {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread; this process only reads it.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `length` bytes of `file`, for reading. Nobody may be able to make the file
    /// shorter: reading what is gone would kill this process.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn of(file: &File, length: usize) -> io::Result<Self> {
        let (access, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at 0");
        Ok(Self { start, length })
    }

    /// `length` bytes at `offset`, to be handed to the kernel and not to be looked at: another
    /// process may change them while they are lent.
    ///
    /// # Panics
    /// Where they are not all within the map.
    #[must_use]
    pub fn lend(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length));
        // SAFETY: the range is within the mapping, which lives as long as `self`. That others may
        // write to it is why the callers only pass it on: no code of this process reads it, so
        // none can be misled by bytes that change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), length) }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of`, and nothing that was lent outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Forks. `Some(child's process id)` for the parent, `None` for the child.
///
/// # Errors
/// `EAGAIN` where there are too many processes.
///
/// # Panics
/// Where there is more than one thread: the child would have only the calling one.
pub fn fork() -> io::Result<Option<nix::unistd::Pid>> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "forking is for the start of a program");
    // SAFETY: there is one thread, so the child inherits no lock that is held.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
        nix::unistd::ForkResult::Child => Ok(None),
    }
}

/// Closes every descriptor but `kept`, and opens 0 to 2 on /dev/null.
///
/// Only for a process that is a fork of ours and does one thing: whatever else owns a
/// descriptor must not be used any more.
///
/// # Errors
/// Where /dev/null cannot be opened.
pub fn keep_only(kept: BorrowedFd) -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    let kept = kept.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, libc::c_uint::MAX)] {
        // SAFETY: a system call with plain numbers. The caller has promised that nothing uses
        // the descriptors that this closes; it fails where the range is empty.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
    // It was closed above with all others.
    std::mem::forget(null);
    Ok(())
}

/// Ends a forked process without running anything of its parent's.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: does not return, and touches no memory.
    unsafe { libc::_exit(status) }
}
