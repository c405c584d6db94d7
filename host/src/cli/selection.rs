//! The options that say which filesystems are meant, as all programs have them.

use clap::Args;
use guestmnt_protocol::volume::Mountable;

use crate::session::plan::{MountSpec, PlanError, in_order};
use crate::session::selection::Selection;

/// Which filesystems.
#[derive(Args)]
pub struct SelectionArguments {
    /// What to mount where: one for /, others in its directories
    #[arg(short = 'm', long = "mount", value_name = "DEV[:MOUNTPOINT[:OPTIONS[:FSTYPE]]]")]
    mount: Vec<MountSpec>,

    /// Find the operating system, and mount its filesystems where they belong
    #[arg(short = 'i', long, conflicts_with_all = ["mount", "all"])]
    inspector: bool,

    /// With several operating systems: the filesystem that the one meant starts from
    #[arg(long, value_name = "DEV", requires = "inspector", value_parser = mountable)]
    root: Option<Mountable>,

    /// Mount all filesystems, each in a folder named after its device
    #[arg(long, conflicts_with = "mount")]
    all: bool,
}

fn mountable(text: &str) -> Result<Mountable, String> {
    text.parse().map_err(|error| format!("{text} is {error}"))
}

impl SelectionArguments {
    /// What is meant, of so many disks. `None` where nothing was said.
    ///
    /// # Errors
    /// [`PlanError`] for mounts that make no sense.
    pub fn of(&self, disks: usize) -> Result<Option<Selection>, PlanError> {
        Ok(match self {
            Self { inspector: true, root, .. } => Some(Selection::System(root.clone())),
            Self { all: true, .. } => Some(Selection::Everything),
            Self { mount, .. } if mount.is_empty() => None,
            Self { mount, .. } => Some(Selection::Named(in_order(mount.clone(), disks)?)),
        })
    }
}
