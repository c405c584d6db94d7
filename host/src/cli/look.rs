//! A VM for the subcommands that look into disks and mount nothing: the options that all of these
//! have, and what becomes of them.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Args};

use super::images::{ImageArguments, KeyArguments};
use crate::session::arrangement::Selection;
use crate::session::fuse_options::FuseOptions;
use crate::session::keys;
use crate::session::launch::{Launched, launch};
use crate::session::plan::{DEFAULT_MEMORY_MIB, Plan, check_count};
use crate::session::timings::Timings;
use crate::vm::accelerator::AcceleratorChoice;
use crate::vm::confinement::Policy;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Which disks, and what the VM is to be like.
#[derive(Args)]
pub struct LookArguments {
    #[command(flatten)]
    images: ImageArguments,

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

impl LookArguments {
    /// A guest that sees the disks, in which nothing is mounted.
    ///
    /// # Errors
    /// Whatever stopped it, in words for people.
    pub fn launch(&self, matches: &ArgMatches) -> Result<Launched, Box<dyn Display>> {
        let disks = self.images.resolved(self.images.disks(matches)).map_err(boxed)?;
        check_count(disks.len()).map_err(boxed)?;
        let keys = self.keys.fetch().map_err(boxed)?;
        let usual_memory = if keys.is_empty() { DEFAULT_MEMORY_MIB } else { keys::MEMORY_MIB };
        let plan = Plan {
            disks,
            allow_paths: self.images.allow_path.clone(),
            selection: Selection::Named(Vec::new()),
            keys,
            mountpoint: PathBuf::new(),
            fuse_options: FuseOptions::merged(&[]),
            accelerator: self.accel,
            use_template: true,
            memory_mib: self.memsize.unwrap_or(usual_memory),
            through_guest: true,
            bulk: true,
            timeout: TIMEOUT,
            confinement: Policy::BestEffort,
            stats: false,
        };
        launch(&plan, &Timings::start()).map_err(boxed)
    }
}

fn boxed(error: impl Display + 'static) -> Box<dyn Display> {
    Box::new(error)
}
