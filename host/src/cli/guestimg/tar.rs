//! `guestimg tar`: files and folders of an image as a stream of tar; with `--overlay` or `--rw`, a
//! stream of tar into a folder of an image.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::GuestPath;
use serde_json::json;

use super::output::{Output, say};
use crate::cli::change::{ChangeArguments, Insertion};
use crate::cli::look::FilesArguments;
use crate::cli::progress::Progress;
use crate::extract::new_file::{NewFile, NewFileError};
use crate::extract::tar::Tar;
use crate::files::{Files, Follow, Trouble, Walked};
use crate::insert::{self, Inserted, from_tar::unpack};

/// Writes files and folders of an image as a tar stream, with everything that is known of them;
/// with --overlay or --rw, unpacks a tar stream into an image
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) files: FilesArguments,

    #[command(flatten)]
    change: ChangeArguments,

    /// File to write; standard output otherwise
    #[arg(short = 'o', long, value_name = "FILE", conflicts_with = "writing")]
    output: Option<PathBuf>,

    /// With --overlay or --rw: the tar file to unpack; standard input otherwise
    #[arg(long, value_name = "FILE", requires = "writing")]
    input: Option<PathBuf>,

    /// Replace the file, or those in the image, that are there already
    #[arg(short = 'f', long)]
    force: bool,

    /// Print what was done as JSON, on standard output
    #[arg(long)]
    json: bool,

    /// Files and folders in the image. With --overlay or --rw: the folder that is unpacked into
    #[arg(value_name = "PATH", default_value = "/")]
    paths: Vec<std::ffi::OsString>,
}

/// Writes them. A file with trouble is told, and zeros are in the place of what cannot be read.
///
/// # Errors
/// Where there is no image to be read, or the stream cannot be written.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
    if arguments.change.are_given() {
        return arguments.unpack(matches);
    }
    let written = match &arguments.output {
        None if arguments.json || arguments.force => {
            let text = "--force and --json go with a file to write\n  hint: -o FILE";
            return Err(super::boxed(text));
        }
        None if io::stdout().is_terminal() => {
            let text = "a tar stream is nothing for a terminal\n  hint: -o FILE, or > FILE";
            return Err(super::boxed(text));
        }
        None => arguments.write(matches, Output::lock())?,
        Some(path) => {
            let file = NewFile::beside(path, arguments.force).map_err(super::boxed)?;
            let written = arguments.write(matches, file.as_file())?;
            file.finish().map_err(super::boxed)?;
            written
        }
    };
    if arguments.json {
        say!("{}", json!({ "files": written.files, "troubles": written.troubles }));
    }
    Ok(if written.troubles == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Arguments {
    /// Unpacks a stream into the image.
    fn unpack(&self, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
        let [folder] = self.paths.as_slice() else {
            return Err(super::boxed("one folder of the image is unpacked into"));
        };
        let stream = match &self.input {
            None if io::stdin().is_terminal() => {
                let text = "no tar stream is typed on a terminal\n  hint: --input FILE, or < FILE";
                return Err(super::boxed(text));
            }
            None => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            Some(path) => File::open(path),
        };
        let name = self.input.as_deref().unwrap_or(Path::new("standard input"));
        let failed = |error| super::boxed(format!("cannot read {}: {error}", name.display()));
        let stream = stream.map_err(failed)?;
        let changing = self.change.open(&self.files, matches)?;
        let existing = if self.force { insert::Existing::Replace } else { insert::Existing::Keep };
        let insert = |to: Insertion| {
            let Insertion { folder, mut writer, progress, complain, sum } = to;
            let stream = writer.interruption().reader(stream);
            let stream = BufReader::with_capacity(1 << 20, stream);
            unpack(stream, folder, &mut writer, sum, progress, complain)
        };
        let folder = folder.as_encoded_bytes();
        let Inserted { files, troubles } = changing.insert(folder, existing, insert)?;
        if self.json {
            say!("{}", json!({ "files": files, "troubles": troubles }));
        }
        Ok(if troubles == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

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
        let missing = u64::from(!opened.close());
        let written = written.map(|sum| Walked { troubles: sum.troubles + missing, ..sum });
        written.map_err(|trouble| match (trouble, &self.output) {
            (Trouble::Host(error), Some(path)) => {
                super::boxed(NewFileError::Write(path.clone(), error))
            }
            (trouble, _) => super::boxed(trouble),
        })
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
