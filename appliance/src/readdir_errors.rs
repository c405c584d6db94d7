//! Errors of reading directories that getdents64(2) does not return.
//!
//! Once a driver has given one entry, getdents64(2) drops the error that ends the same call. The
//! next call starts where the driver left the position, which is the directory's end with ntfs3 and
//! the next sector with exFAT and ext2. ext4 and FAT skip a damaged block without any error, and
//! only log it. Either way a listing that lacks names would look complete. So the kernel traces
//! what its drivers find while they read a directory: the result of `iterate_dir()`, and every
//! message. Unlike the log, the trace has no rate limit, and it names the thread.
//!
//! Follows Documentation/trace/kprobetrace.rst, events.rst and ftrace.rst.
//!
//! **Invariant:** without tracing, and outside of the VM, nothing is noticed and nothing fails.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::mount::{MsFlags, mount};
use nix::unistd::gettid;

use crate::kmsg;

/// Where the kernel's tracing is mounted.
const TRACING: &str = "/sys/kernel/tracing";

/// The probes, each with the filter of what it notes. Functions of modules cannot be probed: the
/// appliance's modules come without what that takes.
const PROBES: [(&str, &str); 4] = [
    ("r:guestmntd/result iterate_dir result=$retval:s32", "result < 0"),
    // ext4 reports damage by it, also where it logs no more. The mask is `FS_ERROR`.
    ("p:guestmntd/error fsnotify mask=$arg1:u32", "mask == 32768"),
    // FAT and ISO 9660 skip what they cannot read, also where they log no more.
    ("r:guestmntd/block __bread_gfp block=$retval:u64", "block == 0"),
    // squashfs and JFS end with no more than a message. What interrupts log is not the driver's:
    // the flags are those of interrupts, hard and soft.
    ("p:guestmntd/message vprintk_emit", "!(common_flags & 24)"),
];

/// KiB of the trace, which is read after each call.
const BUFFER_KIB: &str = "64";

/// The trace; unset without one.
static TRACE: OnceLock<Mutex<Trace>> = OnceLock::new();

/// Has the kernel trace the errors from now on.
///
/// # Errors
/// As mount(2), and those of the files of tracefs: `ENOENT` in a kernel without tracing.
pub fn trace() -> io::Result<()> {
    let root = Path::new(TRACING);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tracefs"), root, Some("tracefs"), flags, None::<&str>)?;
    fs::write(root.join("buffer_size_kb"), BUFFER_KIB)?;
    for (probe, filter) in PROBES {
        // Each is of use without the others.
        if let Err(error) = begin(root, probe, filter) {
            kmsg::warn(format_args!("cannot trace {probe}: {error}"));
        }
    }
    let pipe = root.join("trace_pipe");
    let pipe = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(pipe)?;
    // A second call changes nothing: both would read the same trace.
    let _ = TRACE.set(Mutex::new(Trace { pipe: Box::new(pipe), noted: BTreeMap::new() }));
    Ok(())
}

fn begin(root: &Path, probe: &str, filter: &str) -> io::Result<()> {
    let mut events = File::options().append(true).open(root.join("kprobe_events"))?;
    events.write_all(probe.as_bytes())?;
    let name = probe.split([':', ' ']).nth(1).unwrap_or_default();
    let event = root.join("events").join(name);
    if !filter.is_empty() {
        fs::write(event.join("filter"), filter)?;
    }
    fs::write(event.join("enable"), "1")
}

/// What the kernel noted of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// The driver met an error.
    pub error: bool,
    /// The driver logged something.
    pub message: bool,
}

/// Runs `call`, which reads a directory, with what the kernel noted meanwhile.
pub fn watch<T>(call: impl FnOnce() -> T) -> (T, Noted) {
    let Some(trace) = TRACE.get() else { return (call(), Noted::default()) };
    let own = gettid().as_raw();
    let lock = || trace.lock().unwrap_or_else(PoisonError::into_inner);
    lock().take(own);
    let done = call();
    let noted = lock().take(own);
    (done, noted)
}

/// What the kernel noted.
struct Trace {
    pipe: Box<dyn Read + Send>,
    /// By thread, since it was asked for.
    noted: BTreeMap<i32, Noted>,
}

impl Trace {
    /// What was noted of `thread` since this was asked for it.
    fn take(&mut self, thread: i32) -> Noted {
        let mut text = [0; 4096];
        // `WouldBlock` is the end. The kernel hands out whole lines.
        while let Ok(length @ 1..) = self.pipe.read(&mut text) {
            for line in text[..length].split(|&byte| byte == b'\n') {
                if let Some((thread, is_message)) = event(line) {
                    let noted = self.noted.entry(thread).or_default();
                    noted.error |= !is_message;
                    noted.message |= is_message;
                }
            }
        }
        self.noted.remove(&thread).unwrap_or_default()
    }
}

/// The thread of a line such as `  lane-62  [000] d....  1.25: result: (…) result=-22`, and whether
/// it is of a message.
fn event(line: &[u8]) -> Option<(i32, bool)> {
    // The thread's name comes first, and may hold anything but a bracket, which the daemon's have
    // not.
    let (name_and_thread, rest) = std::str::from_utf8(line).ok()?.split_once('[')?;
    let thread = name_and_thread.trim_end().rsplit_once('-')?.1.parse().ok()?;
    Some((thread, rest.contains(" message: ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_its_own_errors() {
        let text = b"\
            \x20     guestmntd-64      [000] d....    12.3: result: (f <- iterate_dir) result=-22\n\
            \x20     lane 3-65      [000] .....    12.4: message: (vprintk_emit+0x0/0x1a0)\n\
            \x20     a-b-66      [001] .....    12.5: error: (fsnotify+0x0/0x30) mask=32768\n\
            \x20     a-b-66      [001] .....    12.6: message: (vprintk_emit+0x0/0x1a0)\n\
            nothing\n";
        let mut trace = Trace { pipe: Box::new(&text[..]), noted: BTreeMap::new() };
        let noted = |error, message| Noted { error, message };
        let table = [
            (65, noted(false, true)),
            (64, noted(true, false)),
            (64, noted(false, false)),
            (66, noted(true, true)),
            (67, noted(false, false)),
        ];
        for (thread, expected) in table {
            assert_eq!(trace.take(thread), expected, "{thread}");
        }
    }

    #[test]
    fn without_a_trace_a_call_is_as_it_is() {
        assert_eq!(watch(|| 7), (7, Noted::default()));
    }
}
