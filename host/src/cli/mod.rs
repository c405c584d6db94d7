//! The command lines of the binaries, and what they print.

mod background;
mod change;
pub mod guestimg;
pub mod guestmnt;
pub mod guestunmnt;
mod images;
mod look;
mod progress;
mod selection;
mod utc;

use std::fmt;
use std::io::Write;

use guestmnt_protocol::path::Printable;
use libc::c_int;
use log::LevelFilter;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{fs, guest};

/// The command lines, for those who describe them.
#[must_use]
pub fn commands() -> [clap::Command; 3] {
    [guestmnt::command(), guestunmnt::command(), guestimg::command()]
}

/// Messages go to standard error as `PROGRAM: text`; `-v` shows steps, `-x` each request.
fn start_logging(program: &'static str, verbose: bool, trace: bool) {
    let level = if verbose { LevelFilter::Debug } else { LevelFilter::Warn };
    let requests = if trace { LevelFilter::Trace } else { LevelFilter::Off };
    env_logger::Builder::new()
        .filter_level(LevelFilter::Error)
        .filter_module("guestmnt", level)
        .filter_module(fs::TRACE, requests)
        .filter_module(guest::TRACE, requests)
        .format(move |out, record| writeln!(out, "{program}: {}", harmless(record.args())))
        .init();
}

/// What is said, with all escaped in it that could steer a terminal, line breaks excepted. Whoever says
/// something of an image has escaped its text already; this is for what was forgotten, names of
/// files on the host among it.
fn harmless(said: impl fmt::Display) -> String {
    let said = said.to_string();
    let lines: Vec<String> =
        said.split('\n').map(|line| Printable(line.as_bytes()).to_string()).collect();
    lines.join("\n")
}

/// Lets this process and QEMU open as many files as they may: a chain of split disks has
/// hundreds of extents, and the usual limit is 1024.
fn raise_file_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // A lower limit shows where a file cannot be opened, which names it.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Whether the program was started by root.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A descriptor number after `--fd`.
fn descriptor(text: &str) -> Result<c_int, String> {
    text.parse().ok().filter(|&fd| fd >= 0).ok_or_else(|| "not a descriptor number".to_owned())
}
