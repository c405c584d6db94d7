//! `guestimg cp`: files and folders of an image into a folder of the host; with `--overlay` or
//! `--rw`, those of the host into a folder of an image.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use guestmnt_protocol::path::GuestPath;
use serde_json::json;

use super::output::say;
use crate::cli::change::{ChangeArguments, Insertion};
use crate::cli::look::FilesArguments;
use crate::cli::progress::Progress;
use crate::extract::copy::{Copy, Existing};
use crate::files::{Files, Follow, Trouble, Walked};
use crate::insert::{self, Inserted, from_host::FromHost};

/// Copies files and folders out of an image, with times, permissions, holes and links; with
/// --overlay or --rw, into an image
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) files: FilesArguments,

    #[command(flatten)]
    change: ChangeArguments,

    /// Replace files that are there already, and fill folders
    #[arg(short = 'f', long)]
    force: bool,

    /// Print what was done as JSON
    #[arg(long)]
    json: bool,

    /// Files and folders in the image, then the folder of the host that they go into; of / what is
    /// in it. With --overlay or --rw: files and folders of the host, then the folder in the image
    #[arg(value_name = "PATH… FOLDER", num_args = 2.., required = true)]
    paths: Vec<OsString>,
}

/// Copies them. A file with trouble is told, and the next one copied.
///
/// # Errors
/// Where there is no image to be read, or the folder cannot be written to.
pub fn run(arguments: &Arguments, matches: &ArgMatches) -> Result<ExitCode, Box<dyn Display>> {
    let (folder, paths) = arguments.paths.split_last().expect("clap asks for two");
    if arguments.change.are_given() {
        return arguments.insert(paths, folder, matches);
    }
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
    sum.troubles += u64::from(!opened.close());
    if arguments.json {
        say!("{}", json!({ "files": sum.files, "troubles": sum.troubles }));
    }
    match fatal {
        Some(trouble) => Err(super::boxed(format!("{}: {trouble}", folder.display()))),
        None if sum.troubles > 0 => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

impl Arguments {
    /// Copies `paths` of the host into the image's folder `folder`.
    fn insert(
        &self,
        paths: &[OsString],
        folder: &OsStr,
        matches: &ArgMatches,
    ) -> Result<ExitCode, Box<dyn Display>> {
        let changing = self.change.open(&self.files, matches)?;
        let existing = if self.force { insert::Existing::Replace } else { insert::Existing::Keep };
        let insert = |to: Insertion| {
            let mut copy = FromHost::new(to.writer, to.progress, to.complain);
            let done = paths.iter().try_for_each(|path| copy.copy(Path::new(path), to.folder));
            *to.sum = copy.sum();
            done
        };
        let folder = folder.as_encoded_bytes();
        let Inserted { files, troubles } = changing.insert(folder, existing, insert)?;
        if self.json {
            say!("{}", json!({ "files": files, "troubles": troubles }));
        }
        Ok(if troubles == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn one(
        &self,
        files: &Files,
        path: &[u8],
        folder: &Path,
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
