//! What this machine's kernel logs meanwhile, as far as this user may know.
//! Source: dev-kmsg in the kernel's ABI documentation.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::unistd::{Whence, lseek};

/// Words of messages that nothing which a user does may bring about.
const GRAVE: [&str; 6] = ["BUG", "WARNING:", "Oops", "blocked for more than", "lockup", "fuse"];

/// Its end, as it was read so far.
pub struct KernelLog(File);

impl KernelLog {
    /// From now on. `None` where this user may not read it.
    #[must_use]
    pub fn open() -> Option<Self> {
        let mut options = File::options();
        let file = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
        lseek(&file, 0, Whence::SeekEnd).ok()?;
        Some(Self(file))
    }

    /// What was logged since, if it is grave or about a process of ours. What others on this
    /// machine bring about is not told apart, where it is grave.
    pub fn news(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]).into_owned();
                    let line = text.split_once(';').map_or("", |(_, message)| message);
                    let line = line.lines().next().unwrap_or_default();
                    if is_grave(line) {
                        lines.push(line.to_owned());
                    }
                }
                // Some were overwritten before they were read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(_) => return lines,
            }
        }
    }
}

fn is_grave(line: &str) -> bool {
    let fault = line.contains("guestmnt[") || line.contains("guestunmnt[");
    fault || GRAVE.iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_ours_and_of_the_kernel_are_grave() {
        assert!(is_grave("guestmnt[17]: segfault at 0 ip 00 sp 00 error 4"));
        assert!(is_grave("BUG: kernel NULL pointer dereference, address: 0"));
        assert!(!is_grave("traps: other[9] general protection fault"));
        assert!(!is_grave("EXT4-fs (vda): mounted filesystem"));
    }
}
