//! What the child does from its first instruction to the program's.
//!
//! **Invariant:** system calls only, on memory that was made before the fork; see the module above.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use libc::{c_char, c_int, c_long, c_ulong};

use super::root::show;
use super::{LAYERS, Layer, NONE, NOT_ASKED, Outcomes, Recipe};
use crate::sys::NOBODY;

/// The lines of a user namespace's maps: one user and one group, none of them root inside.
pub struct Identity {
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
}

impl Identity {
    pub fn of(recipe: &Recipe) -> Self {
        let (uid, gid) = match &recipe.unprivileged {
            Some((uid, _)) => (*uid, *uid),
            None => (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        };
        let line = |id: u32| format!("{} {id} 1\n", if id == 0 { NOBODY } else { id });
        Self { uid_map: line(uid).into(), gid_map: line(gid).into() }
    }
}

/// All that the child needs, in memory before it exists.
pub struct Child<'a> {
    pub recipe: &'a Recipe<'a>,
    pub arguments: &'a [*const c_char],
    pub identity: &'a Identity,
    pub inherited: Vec<RawFd>,
    pub null: RawFd,
    pub status: RawFd,
    pub parents_status: RawFd,
    pub is_root: bool,
}

/// The result of a system call as errno.
pub fn check(result: impl Into<i64>) -> Result<(), c_int> {
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
    pub unsafe fn run(&self, namespaces: c_int, refused: c_int) -> ! {
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
                outcomes.note(Layer::Landlock, restrict(ruleset.as_raw_fd()));
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

/// Giving up capabilities is everybody's right, giving up the way to others takes one
/// (`CAP_SETPCAP`): who may not do that has none all the same.
unsafe fn drop_capabilities() -> Result<(), c_int> {
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    // Effective, permitted and inheritable, of 32 capabilities each.
    let none = [0u32; 6];
    // SAFETY: system calls with plain numbers and pointers to live memory of the documented size.
    unsafe {
        let no_way = no_way_to_capabilities();
        check(libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()))?;
        no_way
    }
}

unsafe fn no_way_to_capabilities() -> Result<(), c_int> {
    // SAFETY: system calls with plain numbers.
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
        check(libc::prctl(libc::PR_SET_SECUREBITS, bits, NONE, NONE, NONE))
    }
}

/// Sets `no_new_privs` for this thread.
pub fn renounce() -> Result<(), c_int> {
    // SAFETY: a system call with plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, NONE, NONE, NONE) })
}

/// Puts a Landlock ruleset on this thread.
pub fn restrict(ruleset: RawFd) -> Result<(), c_int> {
    // SAFETY: a system call with plain numbers.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, c_long::from(ruleset), NONE) })
}

/// Puts a filter of system calls on this thread.
pub fn install(filter: &[libc::sock_filter]) -> Result<(), c_int> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| libc::EINVAL)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: a pointer to a live program, which the kernel copies.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, NONE, &raw const program)
    })
}
