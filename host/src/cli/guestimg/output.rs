//! Standard output of all subcommands. Its reader may be gone before the end, as in
//! `guestimg tar … | head`: then the program ends without a word, with the status by which a shell
//! knows those whom SIGPIPE ended. The signal itself would come for QEMU's sockets as well.

use std::fmt;
use std::io::{self, ErrorKind, StdoutLock, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// 128 and the number of SIGPIPE.
const ENDED_BY_SIGPIPE: u8 = 141;

/// Nobody reads the output any more.
static READER_GONE: AtomicBool = AtomicBool::new(false);

/// Something could not be printed, for another reason, which was told.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Standard output, for those who write much.
pub struct Output(StdoutLock<'static>);

impl Output {
    /// Locks it.
    pub fn lock() -> Self {
        Self(io::stdout().lock())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).inspect_err(note)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().inspect_err(note)
    }
}

fn note(error: &io::Error) {
    if error.kind() == ErrorKind::BrokenPipe {
        READER_GONE.store(true, Ordering::Relaxed);
    }
}

/// Prints `text`. That it cannot is kept for [`finish`].
pub fn print(text: fmt::Arguments) {
    keep(Output::lock().write_fmt(text));
}

fn keep(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
        && !FAILED.swap(true, Ordering::Relaxed)
    {
        eprintln!("guestimg: cannot write to standard output: {error}");
    }
}

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::guestimg::output::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(super) use say;

/// Whether there is anybody to write for.
pub fn reader_is_gone() -> bool {
    READER_GONE.load(Ordering::Relaxed)
}

/// Brings out what is kept back, and makes of `status` what it is then.
pub fn finish(status: ExitCode) -> ExitCode {
    keep(Output::lock().flush());
    match (reader_is_gone(), FAILED.load(Ordering::Relaxed)) {
        (true, _) => ExitCode::from(ENDED_BY_SIGPIPE),
        (false, true) => ExitCode::FAILURE,
        (false, false) => status,
    }
}
