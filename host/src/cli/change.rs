//! A VM for the subcommands that write into disks, without FUSE: the options by which the user says
//! where what is written goes, and how it ends.

use std::fmt::Display;
use std::sync::Arc;

use clap::{ArgMatches, Args};
use guestmnt_protocol::message::Dirty;
use guestmnt_protocol::path::{GuestPath, Printable};

use super::images::OverlayArguments;
use super::look::FilesArguments;
use super::progress::Progress;
use crate::files::{Files, Follow};
use crate::guest::Guest;
use crate::insert::interruption::Interruption;
use crate::insert::{self, Complain, Existing, Inserted, Trouble, Writer};
use crate::session::boot::Origin;
use crate::session::launch::{Launched, launch};
use crate::session::plan::{WritesTo, check_overlays};
use crate::session::timings::Timings;
use crate::vm::Vm;

/// Where what is written goes.
#[derive(Args)]
pub struct ChangeArguments {
    #[command(flatten)]
    overlays: OverlayArguments,

    /// Write into the image itself, which nobody else can use meanwhile; of a chain, into its leaf
    #[arg(short = 'w', long, group = "writing")]
    rw: bool,

    /// Write also to an NTFS that was not unmounted, or that Windows is hibernated on
    #[arg(long, requires = "writing")]
    force_dirty: bool,
}

/// A guest whose files can be written.
pub struct Changing {
    /// The client.
    pub guest: Arc<Guest>,
    vm: Vm,
    /// Images and overlays, which are locked as long as this is there.
    _origin: Origin,
    /// With it, no signal ends this process before the guest has unmounted.
    interruption: Interruption,
}

/// What files are put into a guest with.
pub struct Insertion<'a> {
    /// Where they go.
    pub folder: &'a GuestPath,
    /// What makes them.
    pub writer: Writer<'a>,
    /// Told how far it is.
    pub progress: insert::Progress<'a>,
    /// Told of files that there is trouble with.
    pub complain: Complain<'a>,
    /// Counts them.
    pub sum: &'a mut Inserted,
}

impl ChangeArguments {
    /// Whether something is to be written.
    #[must_use]
    pub fn are_given(&self) -> bool {
        self.rw || !self.overlays.is_empty()
    }

    /// Launches a guest that can write to the disks that `files` names.
    ///
    /// # Errors
    /// Whatever stopped it, in words for people.
    pub fn open(
        &self,
        files: &FilesArguments,
        matches: &ArgMatches,
    ) -> Result<Changing, Box<dyn Display>> {
        if !files.overlays.is_empty() {
            return Err(boxed(
                "files come out of a disk with --from-overlay, and go into one with --overlay or --rw\n  \
                 hint: copy them to a folder of the host first",
            ));
        }
        let mut disks = files.look.images.disks(matches);
        self.overlays.assign(matches, &mut disks).map_err(boxed)?;
        check_overlays(&disks).map_err(boxed)?;
        let mut plan = files.plan(disks)?;
        // A virtual machine's folder may stand for several disks.
        check_overlays(&plan.disks).map_err(boxed)?;
        let dirty = if self.force_dirty { Dirty::Force } else { Dirty::ReadOnly };
        plan.writes = if self.rw { WritesTo::Images(dirty) } else { WritesTo::Overlays(dirty) };
        let Launched { guest, vm, origin, .. } = launch(&plan, &Timings::start()).map_err(boxed)?;
        let failed = |error| boxed(format!("cannot wait for signals: {error}"));
        let interruption = Interruption::expect().map_err(failed)?;
        Ok(Changing { guest: Arc::new(guest), vm, _origin: origin, interruption })
    }
}

impl Changing {
    /// The folder of the image that the user calls `path`.
    ///
    /// # Errors
    /// Where there is none, in words for people.
    fn folder(&self, path: &[u8]) -> Result<GuestPath, Box<dyn Display>> {
        let files = Files::of(Arc::clone(&self.guest), Vec::new()).map_err(boxed)?;
        let failed = |reason: &str| boxed(format!("{}: {reason} in the image", Printable(path)));
        match files.find(path, Follow::Last) {
            Ok(found) if found.attr.mode & libc::S_IFMT == libc::S_IFDIR => Ok(found.path),
            Ok(_) => Err(failed("not a folder")),
            Err(errno) => Err(failed(errno.desc())),
        }
    }

    /// Has `insert` put files into the folder of the image that the user calls `folder`, while a line
    /// tells how far it is. Brings what was written to the disk then, and ends the VM.
    ///
    /// # Errors
    /// Where there is no such folder, or not all is on the disk, with how far it came.
    pub fn insert(
        self,
        folder: &[u8],
        existing: Existing,
        insert: impl FnOnce(Insertion) -> Result<(), Trouble>,
    ) -> Result<Inserted, Box<dyn Display>> {
        let mut sum = Inserted::default();
        let folder = match self.folder(folder) {
            Ok(folder) => folder,
            Err(error) => return self.end(Ok(()), sum).and(Err(error)),
        };
        let progress = Progress::open_ended();
        let done = insert(Insertion {
            folder: &folder,
            writer: Writer::of(&self.guest, existing, &self.interruption),
            progress: &mut |bytes| progress.advance(bytes),
            complain: &mut |path: &[u8], trouble: &Trouble| progress.tell(path, trouble),
            sum: &mut sum,
        });
        drop(progress);
        self.end(done, sum)
    }

    fn end(self, done: Result<(), Trouble>, sum: Inserted) -> Result<Inserted, Box<dyn Display>> {
        let flushed = self.guest.unmount();
        drop(self.guest);
        self.vm.quit();
        match (done, flushed) {
            (Ok(()), Ok(())) => Ok(sum),
            (Err(trouble), Ok(())) => Err(boxed(format!(
                "{trouble}; {} files were written before that and are kept",
                sum.files
            ))),
            (done, Err(error)) => {
                let first = done.err().map_or_else(String::new, |trouble| format!("{trouble}; "));
                Err(boxed(format!("{first}not everything that was written is kept: {error}")))
            }
        }
    }
}

fn boxed(error: impl Display + 'static) -> Box<dyn Display> {
    Box::new(error)
}
