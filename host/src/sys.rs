//! The system calls that no safe library offers. The only unsafe files of this crate are this one
//! and those in its folder.

pub mod attempts;
pub mod confined;

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The user and group that is nobody's on every Linux.
pub const NOBODY: u32 = 65534;

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

/// Kills the process of `pidfd`, unless it has ended.
///
/// # Errors
/// As pidfd_send_signal(2), but that there is no such process is none.
pub fn kill_process(pidfd: BorrowedFd) -> io::Result<()> {
    let (pidfd, info) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a system call with plain numbers; without information about the signal.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, info, 0 as libc::c_uint)
    };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
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

/// Gives memory back to the kernel that was freed in small pieces.
pub fn give_back_freed() {
    // SAFETY: it takes a plain number, and touches only what nobody has allocated.
    unsafe { libc::malloc_trim(0) };
}

/// A file's bytes, shared with other processes that may change them at any time.
pub struct SharedMap {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread. This process reads it by `lend` and writes it by `fill`,
// whose callers see to it that no two threads use the same bytes.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `length` bytes of `file`. Nobody may be able to make the file
    /// shorter: reading what is gone would kill this process.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn of(file: &File, length: usize) -> io::Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
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

    /// Overwrites the bytes at `offset`, which must not be lent.
    ///
    /// # Panics
    /// Where they are not all within the map.
    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.length));
        // SAFETY: the range is within the mapping, which lives as long as `self` and can be
        // written; `bytes` is memory of this process's own, so they do not overlap.
        unsafe {
            let there = self.start.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), there, bytes.len());
        }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of`, and nothing that was lent outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// The version of Landlock's interface that the kernel has; 0 without Landlock.
#[must_use]
pub fn landlock_abi() -> u32 {
    const VERSION: libc::c_ulong = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: with this flag the call takes no memory and only tells the version.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, none, 0 as libc::c_ulong, VERSION)
    };
    u32::try_from(abi).unwrap_or(0)
}

/// Whether the kernel has filters of system calls that are put on all threads of a process at once.
#[must_use]
pub fn has_seccomp() -> bool {
    let (operation, flag) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    let none = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: a system call without a filter, which changes nothing: it fails.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, flag, none) };
    // Who knows them looks for the filter.
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
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
