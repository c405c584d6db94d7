//! `guestimg cp`: files and folders of an image into a folder of the host.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::GuestPath;
use serde_json::json;

use crate::cli::look::FilesArguments;
use crate::cli::progress::Progress;
use crate::extract::copy::{Copy, Existing};
use crate::files::{Files, Follow, Trouble, Walked};

/// Copies files and folders out of an image, with times, permissions, holes and links
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) files: FilesArguments,

    /// Replace files that are there already, and fill folders
    #[arg(short = 'f', long)]
    force: bool,

    /// Print what was done as JSON
    #[arg(long)]
    json: bool,

    /// Files and folders in the image, then the folder of the host that they go into; of / what is
    /// in it
    #[arg(value_name = "PATH… FOLDER", num_args = 2.., required = true)]
    paths: Vec<std::ffi::OsString>,
}

/// Copies them. A file with trouble is told, and the next one copied.
///
/// # Errors
/// Where there is no image to be read, or the folder cannot be written to.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
    let (folder, paths) = arguments.paths.split_last().expect("clap asks for two");
    let folder = PathBuf::from(folder);
    if !folder.is_dir() {
        return Err(super::boxed(format!("{} is not a folder", folder.display())));
    }
    let opened = arguments.files.open(matches)?;
    let progress = Progress::open_ended();
    let mut sum = Walked::default();
    let mut fatal = None;
    for path in paths {
        let path = path.as_encoded_bytes();
        match arguments.one(&opened.files, path, &folder, &progress) {
            Ok(walked) => {
                sum.files += walked.files;
                sum.troubles += walked.troubles;
            }
            Err(trouble) if trouble.is_final() => {
                fatal = Some(trouble);
                break;
            }
            Err(trouble) => {
                progress.tell(path, &trouble);
                sum.troubles += 1;
            }
        }
    }
    drop(progress);
    opened.close();
    if arguments.json {
        println!("{}", json!({ "files": sum.files, "troubles": sum.troubles }));
    }
    match fatal {
        Some(trouble) => Err(super::boxed(format!("{}: {trouble}", folder.display()))),
        None if sum.troubles > 0 => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

impl Arguments {
    fn one(
        &self,
        files: &Files,
        path: &[u8],
        folder: &std::path::Path,
        progress: &Progress,
    ) -> Result<Walked, Trouble> {
        let found = files.find(path, Follow::NotLast)?;
        let name = found.path.as_bytes().rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        let existing = if self.force { Existing::Replace } else { Existing::Keep };
        let mut advance = |bytes| progress.advance(bytes);
        let mut complain = |path: &GuestPath, trouble: &Trouble| {
            progress.tell(&[b"/", path.as_bytes()].concat(), trouble);
        };
        let start = found.path.clone();
        let mut copy = Copy::into(folder, name, start, existing, &mut advance, &mut complain)?;
        files.walk(&found, &mut copy)
    }
}
