//! The kernel's log: where the daemon writes its few lines, and where it reads why a mount failed.
//! Follows Documentation/ABI/testing/dev-kmsg.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use guestmnt_protocol::path::Printable;

const KMSG: &str = "/dev/kmsg";

/// The kernel's log where this process is the guest's init; unset elsewhere.
static LOG: OnceLock<File> = OnceLock::new();

/// Sends the daemon's lines to the kernel's log, whose end the host shows when a launch fails.
/// Without this call they go to standard error.
///
/// # Errors
/// As open(2).
pub fn use_kernel_log() -> std::io::Result<()> {
    let log = OpenOptions::new().write(true).open(KMSG)?;
    // A second call changes nothing: both files are the same device.
    let _ = LOG.set(log);
    Ok(())
}

/// Writes one line about something unusual. Text of the image in it must be escaped already.
pub fn warn(line: fmt::Arguments) {
    // One write is one record. `<3>` is the level of an error, the lowest that a quiet console
    // shows.
    let record = format!("<3>guestmntd: {line}\n");
    let written = match LOG.get() {
        Some(mut log) => log.write_all(record.as_bytes()),
        None => std::io::stderr().write_all(&record.as_bytes()[3..]),
    };
    // There is nobody left to tell.
    drop(written);
}

/// What the kernel logs from a moment on.
pub struct Tail(Option<File>);

impl Tail {
    /// Begins at the log's present end. Where the log cannot be read, nothing will be found.
    #[must_use]
    pub fn from_now() -> Self {
        let open = || {
            let mut log =
                OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(KMSG)?;
            log.seek(SeekFrom::End(0))?;
            std::io::Result::Ok(log)
        };
        Self(open().ok())
    }

    /// The kernel's lines since then, one below the other and printable, cut behind the one that
    /// passes `limit` bytes.
    #[must_use]
    pub fn read(mut self, limit: usize) -> String {
        let mut text = String::new();
        let Some(log) = &mut self.0 else { return text };
        // The kernel's own bound for a record is CONSOLE_EXT_LOG_MAX, 8 KiB at most.
        let mut record = [0; 8192];
        // `WouldBlock` is the log's end; `EPIPE`, records that were overwritten, ends it as well.
        while let Ok(length @ 1..) = log.read(&mut record)
            && text.len() < limit
        {
            if let Some(message) = kernel_message(&record[..length]) {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&Printable(message).to_string());
            }
        }
        text
    }
}

/// The text of a record such as `4,1073,5140900,-;ntfs3: …`, unless a process wrote it.
fn kernel_message(record: &[u8]) -> Option<&[u8]> {
    let semicolon = record.iter().position(|&b| b == b';')?;
    let priority = record[..semicolon].split(|&b| b == b',').next()?;
    let priority: u32 = std::str::from_utf8(priority).ok()?.parse().ok()?;
    let facility = priority >> 3;
    let message = record[semicolon + 1..].split(|&b| b == b'\n').next()?;
    (facility == 0).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_of_the_kernels_own_records_is_shown() {
        let table: &[(&[u8], Option<&[u8]>)] = &[
            (
                b"3,1,5,-;ntfs3: sda1: volume is dirty\n SUBSYSTEM=block\n",
                Some(b"ntfs3: sda1: volume is dirty"),
            ),
            (b"12,2,6,-;guestmntd: a line of ours\n", None),
            (b"4,3,7,-;a;b\n", Some(b"a;b")),
            (b"no record", None),
            (b"", None),
        ];
        for (record, message) in table {
            assert_eq!(kernel_message(record), *message);
        }
    }
}
