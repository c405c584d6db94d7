//! The filter of system calls: those are denied that QEMU does not need and that reach other
//! processes, the network, other files than the inherited, or rarely used parts of the kernel.
//!
//! Denied calls fail, they do not kill: QEMU asks for some and goes on without. QEMU's own sandbox
//! comes on top and forbids `execve`, which this has to let through once.
//!
//! Source: seccomp(2), Documentation/userspace-api/seccomp_filter.rst.

use std::mem::offset_of;

use libc::{c_long, sock_filter};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// The numbers of x86-64's second set of system calls begin here; no program of ours uses it.
const X32: u32 = 0x4000_0000;

/// System calls that fail with `EPERM`.
const DENIED: &[c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_execveat,
    libc::SYS_setns,
    libc::SYS_unshare,
    // The network, and sockets with a name. All of QEMU's are inherited and connected.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    // What files are called, who owns them, what may be done with them.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    libc::SYS_setxattr,
    libc::SYS_removexattr,
    libc::SYS_linkat,
    libc::SYS_mknodat,
    libc::SYS_truncate,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Mounts.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    // Parts of the kernel that were a way in before.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Without these QEMU waits for its files and sockets by epoll.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Who one is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// What a call gives that is not carried out and whose caller takes it as done.
///
/// Of posix_fadvise(2), which is advice: a VM that is restored asks for its images to be dropped
/// from the page cache, for the case that another host wrote to them. No other host does here, and
/// each mount would read from the disk again what the one before it has read. The option that
/// turns it off (`drop-cache`) does not reach the extents of a VMDK.
const DONE: libc::c_int = 0;

/// Whether programs may be started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Execute {
    /// Yes: the filter is there before the program is, which forbids it then.
    Once,
    /// No.
    Never,
}

/// The filter.
#[must_use]
pub fn filter(execute: Execute) -> Vec<sock_filter> {
    let deny = |errno| libc::SECCOMP_RET_ERRNO | errno_bits(errno);
    let mut code = vec![
        load(offset_of!(libc::seccomp_data, arch)),
        skip_if_equal(ARCHITECTURE, 1),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(offset_of!(libc::seccomp_data, nr)),
    ];
    if cfg!(target_arch = "x86_64") {
        code.extend([jump(libc::BPF_JGE, X32, 0, 1), give(deny(libc::EPERM))]);
    }
    let executing = (execute == Execute::Never).then_some(&libc::SYS_execve);
    for &number in DENIED.iter().chain(executing) {
        code.extend([skip_unless_equal(call(number), 1), give(deny(libc::EPERM))]);
    }
    // Its flags are in memory, where a filter cannot look; the C library then calls clone.
    code.extend([skip_unless_equal(call(libc::SYS_clone3), 1), give(deny(libc::ENOSYS))]);
    // Threads only.
    code.extend([
        skip_unless_equal(call(libc::SYS_clone), 4),
        load(argument(0)),
        jump(libc::BPF_JSET, libc::CLONE_THREAD.cast_unsigned(), 0, 1),
        give(libc::SECCOMP_RET_ALLOW),
        give(deny(libc::EPERM)),
    ]);
    for socket in [libc::SYS_socket, libc::SYS_socketpair] {
        code.extend([
            skip_unless_equal(call(socket), 4),
            load(argument(0)),
            skip_unless_equal(libc::AF_UNIX.cast_unsigned(), 1),
            give(libc::SECCOMP_RET_ALLOW),
            give(deny(libc::EPERM)),
        ]);
    }
    code.extend([skip_unless_equal(call(libc::SYS_fadvise64), 1), give(deny(DONE))]);
    code.push(give(libc::SECCOMP_RET_ALLOW));
    code
}

/// The offset of the lower half of an argument, on machines that store it first.
fn argument(n: usize) -> usize {
    offset_of!(libc::seccomp_data, args) + n * size_of::<u64>()
}

fn call(number: c_long) -> u32 {
    u32::try_from(number).expect("the numbers of system calls fit")
}

fn errno_bits(errno: libc::c_int) -> u32 {
    errno.cast_unsigned() & libc::SECCOMP_RET_DATA
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("codes have 16 bits"), jt, jf, k }
}

fn load(offset: usize) -> sock_filter {
    let offset = u32::try_from(offset).expect("seccomp_data has 64 bytes");
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn jump(condition: u32, k: u32, then: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | condition | libc::BPF_K, k, then, otherwise)
}

fn skip_if_equal(k: u32, count: u8) -> sock_filter {
    jump(libc::BPF_JEQ, k, count, 0)
}

fn skip_unless_equal(k: u32, count: u8) -> sock_filter {
    jump(libc::BPF_JEQ, k, 0, count)
}

fn give(verdict: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, verdict, 0, 0)
}
