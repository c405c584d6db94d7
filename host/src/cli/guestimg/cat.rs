//! `guestimg cat`: what files of an image hold, on standard output: one behind the other, or in JSON,
//! which tells them apart.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::Printable;
use nix::errno::Errno;
use serde_json::json;

use super::base64::Base64;
use super::output::Output;
use crate::cli::look::FilesArguments;
use crate::files::{Files, Follow, Stretch, Trouble};

/// Prints files of an image, one behind the other
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) files: FilesArguments,

    /// Print JSON: of each file its path, size and contents in base64, or the error
    #[arg(long)]
    json: bool,

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
    let mut out: Box<dyn Print> = if arguments.json {
        Box::new(Json::new(Output::lock()))
    } else if io::stdout().is_terminal() {
        Box::new(Plain(Escaping(Output::lock())))
    } else {
        Box::new(Plain(Output::lock()))
    };
    let printed = print_all(arguments, &opened.files, &mut *out);
    // The file was found, whatever else was not.
    let _ = opened.close();
    printed.map_err(super::boxed)
}

/// # Errors
/// Those of standard output. Of other troubles the status tells.
fn print_all(
    arguments: &Arguments,
    files: &Files,
    out: &mut dyn Print,
) -> Result<ExitCode, Trouble> {
    let mut status = ExitCode::SUCCESS;
    for path in &arguments.paths {
        let path = path.as_encoded_bytes();
        let printed = print(files, path, out);
        match &printed {
            Ok(()) => {}
            Err(Trouble::Host(_)) => return printed.map(|()| status),
            Err(trouble) => {
                eprintln!("guestimg: {}: {trouble}", Printable(path));
                status = ExitCode::FAILURE;
            }
        }
        out.end_of_file(path, printed.as_ref().err())?;
    }
    out.end()?;
    Ok(status)
}

/// How files are printed. Errors are those of standard output.
trait Print {
    /// A file of so many bytes is next.
    fn start_of_file(&mut self, path: &[u8], size: u64) -> io::Result<()>;
    /// The next of its bytes. The guest may change them meanwhile.
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// The file's end; with trouble, it may not have been started.
    fn end_of_file(&mut self, path: &[u8], trouble: Option<&Trouble>) -> io::Result<()>;
    /// There are no further files.
    fn end(&mut self) -> io::Result<()>;
}

fn print(files: &Files, path: &[u8], out: &mut dyn Print) -> Result<(), Trouble> {
    let found = files.find(path, Follow::Last)?;
    match found.attr.mode & libc::S_IFMT {
        libc::S_IFREG => {}
        libc::S_IFDIR => return Err(Errno::EISDIR.into()),
        _ => return Err(Trouble::LeftOut("a device, FIFO or socket")),
    }
    let contents = files.contents(&found.path, &found.attr);
    let whole = Stretch { at: 0, length: contents.size() };
    out.start_of_file(path, contents.size())?;
    contents.read(whole, |_, bytes| out.bytes(bytes))
}

/// What the files hold, and nothing else.
struct Plain<W>(W);

impl<W: Write> Print for Plain<W> {
    fn start_of_file(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn end_of_file(&mut self, _: &[u8], _: Option<&Trouble>) -> io::Result<()> {
        self.0.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A list with an object for each file.
struct Json<W> {
    out: W,
    /// What stands before the next object.
    before: char,
    /// The file's bytes, once it was started.
    contents: Option<Base64>,
}

impl<W: Write> Json<W> {
    fn new(out: W) -> Self {
        Self { out, before: '[', contents: None }
    }

    fn start_of_object(&mut self, path: &[u8]) -> io::Result<()> {
        let path = json!(Printable(path).to_string());
        write!(self.out, "{}\n  {{ \"path\": {path}", self.before)?;
        self.before = ',';
        Ok(())
    }
}

impl<W: Write> Print for Json<W> {
    fn start_of_file(&mut self, path: &[u8], size: u64) -> io::Result<()> {
        self.start_of_object(path)?;
        self.contents = Some(Base64::default());
        write!(self.out, ", \"size\": {size}, \"base64\": \"")
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let contents = self.contents.as_mut().expect("a file's bytes come behind its start");
        self.out.write_all(contents.piece(bytes).as_bytes())
    }

    fn end_of_file(&mut self, path: &[u8], trouble: Option<&Trouble>) -> io::Result<()> {
        match self.contents.take() {
            Some(contents) => write!(self.out, "{}\"", contents.end())?,
            None => self.start_of_object(path)?,
        }
        if let Some(trouble) = trouble {
            write!(self.out, ", \"error\": {}", json!(trouble.to_string()))?;
        }
        self.out.write_all(b" }")
    }

    fn end(&mut self) -> io::Result<()> {
        writeln!(self.out, "\n]")
    }
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

    #[test]
    fn json_tells_files_and_troubles_apart() {
        let mut out = Json::new(Vec::new());
        out.start_of_file(b"/a", 4).unwrap();
        out.bytes(b"fo").unwrap();
        out.bytes(b"ob").unwrap();
        out.end_of_file(b"/a", None).unwrap();
        out.end_of_file(b"/\xff", Some(&Errno::ENOENT.into())).unwrap();
        out.start_of_file(b"/torn", 9).unwrap();
        out.bytes(b"f").unwrap();
        out.end_of_file(b"/torn", Some(&Errno::EIO.into())).unwrap();
        out.end().unwrap();
        let printed: serde_json::Value = serde_json::from_slice(&out.out).unwrap();
        let expected = json!([
            { "path": "/a", "size": 4, "base64": "Zm9vYg==" },
            { "path": "/\\xff", "error": Errno::ENOENT.desc() },
            { "path": "/torn", "size": 9, "base64": "Zg==", "error": Errno::EIO.desc() },
        ]);
        assert_eq!(printed, expected);
    }
}
