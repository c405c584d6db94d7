//! `guestimg tar`: files and folders of an image as a stream of tar.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::GuestPath;
use serde_json::json;

use crate::cli::look::FilesArguments;
use crate::cli::progress::Progress;
use crate::extract::new_file::NewFile;
use crate::extract::tar::Tar;
use crate::files::{Files, Follow, Trouble, Walked};

/// Writes files and folders of an image as a tar stream, with everything that is known of them
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) files: FilesArguments,

    /// File to write; standard output otherwise
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the file if it is there already
    #[arg(short = 'f', long, requires = "output")]
    force: bool,

    /// Print what was done as JSON, on standard output
    #[arg(long, requires = "output")]
    json: bool,

    /// Files and folders in the image
    #[arg(value_name = "PATH", default_value = "/")]
    paths: Vec<std::ffi::OsString>,
}

/// Writes them. A file with trouble is told, and zeros are in the place of what cannot be read.
///
/// # Errors
/// Where there is no image to be read, or the stream cannot be written.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
    let written = match &arguments.output {
        None if io::stdout().is_terminal() => {
            let text = "a tar stream is nothing for a terminal\n  hint: -o FILE, or > FILE";
            return Err(super::boxed(text));
        }
        None => arguments.write(matches, io::stdout().lock())?,
        Some(path) => {
            let file = NewFile::beside(path, arguments.force).map_err(super::boxed)?;
            let written = arguments.write(matches, file.as_file())?;
            file.finish().map_err(super::boxed)?;
            written
        }
    };
    if arguments.json {
        println!("{}", json!({ "files": written.files, "troubles": written.troubles }));
    }
    Ok(if written.troubles == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Arguments {
    fn write(&self, matches: &ArgMatches, out: impl Write) -> Result<Walked, Box<dyn Display>> {
        let opened = self.files.open(matches)?;
        let progress = Progress::open_ended();
        let mut advance = |bytes| progress.advance(bytes);
        let mut complain = |path: &GuestPath, trouble: &Trouble| {
            progress.tell(&[b"/", path.as_bytes()].concat(), trouble);
        };
        // Headers are small; what files hold goes through without another copy.
        let out = BufWriter::with_capacity(64 * 1024, out);
        let mut tar = Tar::to(out, &mut advance, &mut complain);
        let written = self.all(&opened.files, &mut tar, &progress);
        let written = written.and_then(|sum| Ok(tar.finish().map(|_| sum)?));
        drop(progress);
        opened.close();
        written.map_err(super::boxed)
    }

    fn all<W: Write>(
        &self,
        files: &Files,
        tar: &mut Tar<'_, W>,
        progress: &Progress,
    ) -> Result<Walked, Trouble> {
        let mut sum = Walked::default();
        for path in &self.paths {
            let path = path.as_encoded_bytes();
            match files.find(path, Follow::NotLast) {
                Ok(found) => {
                    let walked = files.walk(&found, tar)?;
                    sum.files += walked.files;
                    sum.troubles += walked.troubles;
                }
                Err(errno) => {
                    progress.tell(path, &errno.desc());
                    sum.troubles += 1;
                }
            }
        }
        Ok(sum)
    }
}
