//! A VM for the subcommands that look into disks, without FUSE: the options that all of these have,
//! and what becomes of them.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgMatches, Args};

use super::images::{ImageArguments, KeyArguments, ReadOverlayArguments};
use super::selection::SelectionArguments;
use crate::files::Files;
use crate::guest::Guest;
use crate::image::OnMissing;
use crate::session::fuse_options::FuseOptions;
use crate::session::keys;
use crate::session::launch::{Launched, launch};
use crate::session::plan::{
    DEFAULT_MEMORY_MIB, DiskSpec, Plan, WritesTo, check_count, check_overlays,
};
use crate::session::selection::Selection;
use crate::session::timings::Timings;
use crate::vm::Vm;
use crate::vm::accelerator::AcceleratorChoice;
use crate::vm::confinement::Policy;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Which disks, and what the VM is to be like.
#[derive(Args)]
pub struct LookArguments {
    #[command(flatten)]
    pub images: ImageArguments,

    #[command(flatten)]
    keys: KeyArguments,

    /// Memory of the VM in MiB; 256, or 1536 with keys
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(128..=65536))]
    memsize: Option<u32>,

    /// What runs the VM
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    accel: AcceleratorChoice,

    /// Say what is done
    #[arg(short = 'v', long)]
    pub verbose: bool,
}

/// Which disks, and which of their filesystems: the only one where nothing is said.
#[derive(Args)]
pub struct FilesArguments {
    #[command(flatten)]
    pub look: LookArguments,

    #[command(flatten)]
    pub overlays: ReadOverlayArguments,

    #[command(flatten)]
    selection: SelectionArguments,
}

impl LookArguments {
    /// A guest that sees the disks, in which nothing is mounted.
    ///
    /// # Errors
    /// Whatever stopped it, in words for people.
    pub fn launch(&self, matches: &ArgMatches) -> Result<Launched, Box<dyn Display>> {
        let nothing = Selection::Named(Vec::new());
        let plan = self.plan(self.images.disks(matches), nothing)?;
        launch(&plan, &Timings::start()).map_err(boxed)
    }

    /// What is to be launched for `disks`. What the host can read itself does not go through the
    /// guest.
    ///
    /// # Errors
    /// Whatever is wrong with the options, in words for people.
    pub fn plan(
        &self,
        disks: Vec<DiskSpec>,
        selection: Selection,
    ) -> Result<Plan, Box<dyn Display>> {
        let disks = self.images.resolved(disks).map_err(boxed)?;
        check_count(disks.len()).map_err(boxed)?;
        let keys = self.keys.fetch().map_err(boxed)?;
        let usual_memory = if keys.is_empty() { DEFAULT_MEMORY_MIB } else { keys::MEMORY_MIB };
        Ok(Plan {
            writes: WritesTo::Nothing,
            disks,
            allow_paths: self.images.allow_path.clone(),
            on_missing: OnMissing::default(),
            selection,
            keys,
            mountpoint: PathBuf::new(),
            fuse_options: FuseOptions::merged(&[]),
            accelerator: self.accel,
            use_template: true,
            memory_mib: self.memsize.unwrap_or(usual_memory),
            declined: None,
            through_guest: false,
            bulk: true,
            timeout: TIMEOUT,
            confinement: Policy::BestEffort,
            stats: false,
        })
    }
}

impl FilesArguments {
    /// The files of the filesystems that are meant.
    ///
    /// # Errors
    /// Whatever stopped it, in words for people.
    pub fn open(&self, matches: &ArgMatches) -> Result<Opened, Box<dyn Display>> {
        let mut disks = self.look.images.disks(matches);
        self.overlays.assign(matches, &mut disks).map_err(boxed)?;
        let plan = self.plan(disks)?;
        check_overlays(&plan.disks).map_err(boxed)?;
        Opened::of(launch(&plan, &Timings::start()).map_err(boxed)?)
    }

    /// What is to be launched for `disks`: the filesystems that are meant.
    ///
    /// # Errors
    /// Whatever is wrong with the options, in words for people.
    pub fn plan(&self, disks: Vec<DiskSpec>) -> Result<Plan, Box<dyn Display>> {
        let mut plan = self.look.plan(disks, Selection::Sole)?;
        if let Some(named) = self.selection.of(plan.disks.len()).map_err(boxed)? {
            plan.selection = named;
        }
        Ok(plan)
    }
}

/// A guest whose files can be read.
pub struct Opened {
    /// The files.
    pub files: Files,
    guest: Arc<Guest>,
    vm: Vm,
    complete: bool,
}

impl Opened {
    /// Those of a guest that was launched.
    ///
    /// # Errors
    /// Where there can be no threads.
    pub fn of(launched: Launched) -> Result<Self, Box<dyn Display>> {
        let guest = Arc::new(launched.guest);
        let files = Files::of(Arc::clone(&guest), launched.disks).map_err(boxed)?;
        Ok(Self { files, guest, vm: launched.vm, complete: launched.complete })
    }

    /// Ends the VM. Nothing in it is worth being unmounted: it was not written to. Tells whether
    /// nothing was missing of what the user asked for.
    #[must_use]
    pub fn close(self) -> bool {
        drop(self.files);
        drop(self.guest);
        self.vm.quit();
        self.complete
    }
}

fn boxed(error: impl Display + 'static) -> Box<dyn Display> {
    Box::new(error)
}
