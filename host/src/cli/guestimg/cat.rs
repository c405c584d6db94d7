//! `guestimg cat`: what files of an image hold, on standard output.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::Printable;
use nix::errno::Errno;

use super::output::Output;
use crate::cli::look::FilesArguments;
use crate::files::{Files, Follow, Stretch, Trouble};

/// Prints files of an image, one behind the other
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) files: FilesArguments,

    /// Files in the image; links are followed inside it
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<std::ffi::OsString>,
}

/// Prints them. A file with trouble is told, and the next one printed.
///
/// # Errors
/// Where there is no image to be read, or no output to be written to.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
    let opened = arguments.files.open(matches)?;
    let stdout = Output::lock();
    let to_terminal = io::stdout().is_terminal();
    let mut out: Box<dyn Write> =
        if to_terminal { Box::new(Escaping(stdout)) } else { Box::new(stdout) };
    let mut status = ExitCode::SUCCESS;
    let mut fatal = None;
    for path in &arguments.paths {
        let path = path.as_encoded_bytes();
        match print(&opened.files, path, &mut out) {
            Ok(()) => {}
            Err(trouble @ Trouble::Host(_)) => {
                fatal = Some(trouble);
                break;
            }
            Err(trouble) => {
                eprintln!("guestimg: {}: {trouble}", Printable(path));
                status = ExitCode::FAILURE;
            }
        }
    }
    opened.close();
    match fatal {
        Some(trouble) => Err(super::boxed(trouble)),
        None => Ok(status),
    }
}

fn print(files: &Files, path: &[u8], out: &mut dyn Write) -> Result<(), Trouble> {
    let found = files.find(path, Follow::Last)?;
    match found.attr.mode & libc::S_IFMT {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(Errno::EISDIR.into()),
        _ => return Err(Trouble::LeftOut("a device, FIFO or socket")),
    }
    let contents = files.contents(&found.path, &found.attr);
    let whole = Stretch { at: 0, length: contents.size() };
    contents.read(whole, |_, bytes| out.write_all(bytes))?;
    out.flush()?;
    Ok(())
}

/// A terminal, which is not to act on what a file holds.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A copy: the guest may change the bytes between a look and the output.
        let bytes = bytes.to_vec();
        for part in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\t')) {
            let (text, end) = match part.split_last() {
                Some((b'\n' | b'\t', text)) => part.split_at(text.len()),
                _ => (part, &b""[..]),
            };
            write!(self.0, "{}", Printable(text))?;
            self.0.write_all(end)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_no_control_characters_but_line_breaks_and_tabs() {
        let mut out = Escaping(Vec::new());
        out.write_all(b"a\tb\n\x1b[31mc\x07\r\n\xff").unwrap();
        assert_eq!(out.0, b"a\tb\n\\u{1b}[31mc\\u{7}\\u{d}\n\\xff");
    }
}
