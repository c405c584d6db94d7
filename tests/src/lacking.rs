//! A host that lacks what QEMU is confined by, as far as a program and all that it starts can tell: the
//! kernel's answers are those of one that was built or set up without it.
//!
//! Who is not root gives up set-user-id programs with that, fusermount3 among them, so that nothing can
//! be mounted.

use std::env::consts::ARCH;
use std::process::{Command, Output};
use std::thread;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// What is lacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// Namespaces cannot be made, as where a distribution keeps them from users.
    Namespaces,
    /// The kernel knows no Landlock.
    Landlock,
    /// The kernel knows no filters of system calls.
    Seccomp,
}

impl Lacking {
    /// The system calls that are answered otherwise, under which conditions, and how.
    fn calls(self) -> (Vec<(libc::c_long, Vec<SeccompRule>)>, libc::c_int) {
        match self {
            Self::Namespaces => {
                let flags = [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWPID];
                let with = |flag: libc::c_int| {
                    let flag = u64::from(flag.cast_unsigned());
                    let (length, is_set) = (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag));
                    let condition = SeccompCondition::new(0, length, is_set, flag);
                    SeccompRule::new(vec![condition.expect("a call has a first argument")])
                        .expect("there is a condition")
                };
                let rules = || flags.map(with).into();
                (vec![(libc::SYS_clone, rules()), (libc::SYS_unshare, rules())], libc::EPERM)
            }
            Self::Landlock => (vec![(libc::SYS_landlock_create_ruleset, Vec::new())], libc::ENOSYS),
            Self::Seccomp => (vec![(libc::SYS_seccomp, Vec::new())], libc::ENOSYS),
        }
    }

    /// Runs a program to its end on such a host.
    ///
    /// # Panics
    /// Where it cannot be started.
    #[must_use]
    pub fn run(self, mut command: Command) -> Output {
        // What a thread may not, what it starts may not either; the other threads may.
        let run = move || {
            self.apply();
            command.output().expect("the program starts")
        };
        thread::spawn(run).join().expect("it only runs a program")
    }

    fn apply(self) {
        let (calls, errno) = self.calls();
        let answer = SeccompAction::Errno(errno.cast_unsigned());
        let target = ARCH.try_into().expect("this machine is known");
        let rules = calls.into_iter().collect();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, target);
        let program: BpfProgram = filter.and_then(TryInto::try_into).expect("the filter is sound");
        apply_filter(&program).expect("the kernel has seccomp");
    }
}
