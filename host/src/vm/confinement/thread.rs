//! What a thread of ours gives up that takes what a guest says: new privileges, all files that are
//! not open yet, the network, other processes. The threads that it starts are born so.
//!
//! The process's other threads keep all of that: to unmount, fusermount3 has to be started, which
//! needs its set-user-id bit. As threads share their memory, this stops what only reads and calls,
//! not code that was brought in; the wall is around QEMU.

use std::io;

use super::landlock;
use super::seccomp::{self, Execute};
use crate::sys;

/// Gives it up, for good.
///
/// # Errors
/// Where the kernel refuses; what came before stays given up.
pub fn confine_thread() -> io::Result<()> {
    let ruleset = landlock::ruleset(&[], &[]).map_err(io::Error::other)?;
    sys::confined::restrict_thread(ruleset.as_ref(), &seccomp::filter(Execute::Never))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn a_confined_thread_and_those_that_it_starts_open_nothing_and_others_do() {
        if sys::landlock_abi() == 0 {
            println!("SKIP: this kernel has no Landlock");
            return;
        }
        let may = || {
            let opened = File::open("/etc/passwd").is_ok();
            (opened, UdpSocket::bind("127.0.0.1:0").is_ok(), Command::new("true").status().is_ok())
        };
        let confined = thread::spawn(move || {
            confine_thread().unwrap();
            thread::spawn(may).join().unwrap()
        });
        assert_eq!(confined.join().unwrap(), (false, false, false));
        assert_eq!(may(), (true, true, true));
    }
}
