//! The last lines that a stream brought: the guest's console, QEMU's own messages. Shown when
//! a launch fails.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use guestmnt_protocol::path::Printable;
use nix::sys::signal::SigSet;

use super::progress::Console;

/// Bytes that are kept.
const KEPT: usize = 16 * 1024;

/// A stream's last bytes, collected by a thread until the stream ends.
pub struct Tail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    /// Starts to read `stream`, which is named `name` in `-v` output. What comes is counted by `counter`.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn of(
        stream: OwnedFd,
        name: &'static str,
        counter: Option<Console>,
    ) -> std::io::Result<Self> {
        let bytes = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&bytes);
        let reader = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(64 * 1024)
            .spawn(move || collect(File::from(stream), &kept, counter.as_ref()))?;
        Ok(Self { bytes, reader })
    }

    /// The last `count` lines, made printable. Waits for the stream's end, so the other side
    /// has to be gone.
    #[must_use]
    pub fn lines(self, count: usize) -> Vec<String> {
        // The thread only reads; if it panicked, what it had collected is still there.
        let _ = self.reader.join();
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let text: Vec<u8> = bytes.iter().copied().filter(|&b| b != b'\r').collect();
        let lines: Vec<String> = text
            .split(|&b| b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| Printable(line).to_string())
            .collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }
}

fn collect(mut stream: File, kept: &Mutex<VecDeque<u8>>, counter: Option<&Console>) {
    // Signals are the main thread's. Blocking them cannot fail with a valid set.
    let _ = SigSet::all().thread_block();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        if let Some(counter) = counter {
            counter.add(n);
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&chunk[..n]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_made_printable() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let tail = Tail::of(reader.into(), "test", None).unwrap();
        for n in 0..10_000 {
            writeln!(writer, "line {n}\r").unwrap();
        }
        writer.write_all(b"\x1b[2Jend").unwrap();
        drop(writer);
        assert_eq!(tail.lines(2), ["line 9999", "\\u{1b}[2Jend"]);
    }
}
