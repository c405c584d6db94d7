//! What is mounted where, and mounting it.
//!
//! What the guest says of its systems is the image's word: a mount that does not work out is told
//! and left out, unless the user asked for it or it is the root.

use std::fmt;

use guestmnt_protocol::limits::MAX_REMARKS;
use guestmnt_protocol::message::{Dirty, MountRequest, NameMatching, Volume};
use guestmnt_protocol::path::{EntryName, Printable};
use guestmnt_protocol::system::System;
use guestmnt_protocol::volume::{Mountable, VolumeName};
use log::{info, warn};

use super::launch::Suggestions;
use super::plan::MountSpec;
use crate::guest::{Guest, GuestError};

/// What is mounted where, once that is decided: enough to mount it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrangement {
    /// What is on `/`.
    pub(super) root: Root,
    /// What cannot be done without.
    pub(super) required: Vec<MountSpec>,
    /// What else is mounted if it can be.
    pub(super) others: Vec<MountSpec>,
}

/// What the root is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Root {
    /// A filesystem.
    #[default]
    Filesystem,
    /// One of the guest's own with these folders.
    Folders(Vec<EntryName>),
    /// Devices as files.
    Blocks,
}

impl Root {
    /// The same without the folders for these filesystems.
    fn without(self, specs: &[MountSpec]) -> Self {
        let Self::Folders(mut names) = self else { return self };
        names.retain(|name| !specs.iter().any(|spec| spec.at.as_bytes() == name.as_bytes()));
        Self::Folders(names)
    }
}

/// What was mounted.
pub struct Mounted {
    /// It, as an arrangement that can do without none of it.
    pub(super) arrangement: Arrangement,
    /// How the filesystems that can be written compare names: loosely if one of them does.
    pub(super) names: NameMatching,
    /// What could not be mounted.
    pub(super) left_out: Vec<MountSpec>,
}

/// Why nothing is mounted.
#[derive(Debug)]
pub enum ArrangementError {
    /// There is no operating system, or none on the filesystem that was named.
    NoSystem(Option<Mountable>, Vec<System>),
    /// There are several.
    SeveralSystems(Vec<System>),
    /// There is no filesystem that can be mounted.
    NoFilesystem,
    /// None was named, and there is not one alone.
    NotOne(Vec<Volume>),
    /// What is in this encrypted volume is wanted, and its key can be asked for.
    Locked(VolumeName),
    /// This one cannot be mounted.
    Mount(Box<MountSpec>, GuestError),
    /// The guest broke down over this one, which could be done without.
    Broke(Box<MountSpec>, GuestError),
    /// The guest broke down.
    Guest(GuestError),
    /// The guest broke down, and there can be no other.
    Restart(String),
}

impl fmt::Display for ArrangementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSystem(Some(root), systems) if !systems.is_empty() => {
                write!(f, "there is no operating system on {root}{}", Choice(systems))
            }
            Self::NoSystem(..) => f.write_str(
                "there is no operating system on the disks\n  hint: --all shows all filesystems, \
                 -m one that is named",
            ),
            Self::SeveralSystems(systems) => {
                write!(f, "there are several operating systems{}", Choice(systems))
            }
            Self::NoFilesystem => f.write_str(
                "there is no filesystem on the disks that can be mounted\n  hint: guestimg \
                 filesystems --all lists what is there",
            ),
            Self::NotOne(volumes) => {
                write!(f, "no filesystem is named with -m{}", Suggestions(volumes))
            }
            Self::Locked(volume) => {
                write!(f, "{volume} is encrypted\n  hint: --key {volume}:file:PATH opens it")
            }
            Self::Mount(spec, error) | Self::Broke(spec, error) => {
                write!(f, "cannot mount {} on {}: {error}", spec.device, spec.at)
            }
            Self::Guest(error) => write!(f, "the appliance failed: {error}"),
            Self::Restart(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for ArrangementError {}

/// The systems that there are to choose from.
struct Choice<'a>(&'a [System]);

impl fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\nWhich one is meant? --root names it:")?;
        self.0.iter().try_for_each(|system| {
            let product = match system.product.as_str() {
                "" => "unnamed",
                product => product,
            };
            write!(f, "\n    {} ({}", system.root, Printable(product.as_bytes()))?;
            if !system.host_name.is_empty() {
                write!(f, ", {}", Printable(system.host_name.as_bytes()))?;
            }
            f.write_str(")")
        })
    }
}

impl Arrangement {
    /// Mounts everything in the guest, where nothing is mounted yet; for writing where `writing` says
    /// what to do with a dirty filesystem. What was mounted is an arrangement that can do without
    /// none of it.
    ///
    /// # Errors
    /// [`ArrangementError::Mount`] for the first that cannot be done without,
    /// [`ArrangementError::Broke`] for another that the guest did not survive,
    /// [`ArrangementError::NoFilesystem`] where nothing at all could be mounted.
    pub fn mount(self, guest: &Guest, writing: Option<Dirty>) -> Result<Mounted, ArrangementError> {
        let mut names = NameMatching::Exact;
        let mut mount = |spec: &MountSpec| {
            if mount(guest, spec, writing)? == NameMatching::Loose {
                names = NameMatching::Loose;
            }
            Ok(())
        };
        let root = match &self.root {
            Root::Filesystem => Ok(()),
            Root::Folders(names) => guest.mount_folders(names.clone()),
            Root::Blocks => guest.show_blocks(),
        };
        root.map_err(ArrangementError::Guest)?;
        for spec in &self.required {
            mount(spec).map_err(|error| match error {
                GuestError::Failed(_) => ArrangementError::Mount(Box::new(spec.clone()), error),
                broken => ArrangementError::Guest(broken),
            })?;
        }
        let (mut mounted, offered) = (self.required, !self.others.is_empty());
        let mut left_out = Vec::new();
        for spec in self.others {
            match mount(&spec) {
                Ok(()) => mounted.push(spec),
                Err(error @ GuestError::Failed(_)) => {
                    warn!("cannot mount {} on {}: {error}", spec.device, spec.at);
                    left_out.push(spec);
                }
                Err(broken) => return Err(ArrangementError::Broke(Box::new(spec), broken)),
            }
        }
        if mounted.is_empty() && offered {
            return Err(ArrangementError::NoFilesystem);
        }
        let root = self.root.without(&left_out);
        let arrangement = Self { root, required: mounted, others: Vec::new() };
        Ok(Mounted { arrangement, names, left_out })
    }

    /// The same without one of those that could be done without.
    #[must_use]
    pub(super) fn without(mut self, spec: &MountSpec) -> Self {
        self.others.retain(|other| other != spec);
        self.root = self.root.without(std::slice::from_ref(spec));
        self
    }

    /// Whether all filesystems are shown side by side: each of them is then what the user asked for.
    pub(super) fn shows_everything(&self) -> bool {
        matches!(self.root, Root::Folders(_))
    }
}

/// Tells what the guest says of a filesystem that is mounted.
fn pass_on(remarks: Vec<String>) {
    for remark in remarks.iter().take(MAX_REMARKS) {
        warn!("{}", Printable(remark.as_bytes()));
    }
}

fn mount(
    guest: &Guest,
    spec: &MountSpec,
    writing: Option<Dirty>,
) -> Result<NameMatching, GuestError> {
    info!("mounting {} on {}", spec.device, spec.at);
    let request = MountRequest::from(spec);
    let Some(dirty) = writing else {
        pass_on(guest.mount(request)?);
        return Ok(NameMatching::Exact);
    };
    let (how, remarks) = guest.mount_writable(request, dirty)?;
    pass_on(remarks);
    if let Some(reason) = how.read_only {
        let mut lines = reason.lines().map(|line| Printable(line.as_bytes()).to_string());
        warn!("{} is mounted read-only: {}", spec.device, lines.next().unwrap_or_default());
        lines.for_each(|line| warn!("  {line}"));
    }
    Ok(how.names)
}
