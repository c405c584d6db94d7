//! A VM from QEMU's start until the guest sees its disks: for a launch, and for a VM that follows one
//! that died.

use std::env;
use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};
use std::sync::OnceLock;
use std::thread;

use guestmnt_protocol::message::TableProblem;

use super::arrangement::Arrangement;
use super::launch::LaunchError;
use super::plan::{Plan, WritesTo};
use super::timings::Timings;
use crate::guest::Guest;
use crate::guest::lane::Wait;
use crate::image::Disk;
use crate::vm::accelerator::Accelerator;
use crate::vm::appliance::Appliance;
use crate::vm::confinement::Report;
use crate::vm::kept_overlay::KeptOverlay;
use crate::vm::processor::Processor;
use crate::vm::progress::Patience;
use crate::vm::template::Template;
use crate::vm::{Boot, Overlays, Started, Vm, VmConfig, VmError};

/// Requests on files that can be in flight.
const LANES: usize = 8;

/// Lanes of a VM: one more, by which it can be told whether the guest runs.
pub(super) const PORTS: usize = LANES + 1;

/// What a VM was launched from, opened and found once: enough to launch the same one again.
pub struct Origin {
    /// The QEMU program, by its absolute path.
    pub qemu: PathBuf,
    /// Kernel and initramfs.
    pub appliance: Appliance,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// The processor models that QEMU takes.
    pub processor: Processor,
    /// What it was restored from, unless it booted.
    pub template: Option<Template>,
    /// The disks, sda first.
    pub disks: Vec<Disk>,
    /// What takes the changes of the disks, where these are kept: one for each. Locked as long as it
    /// is here.
    pub kept: Vec<KeptOverlay>,
    /// What is mounted in the guest.
    pub mounted: Arrangement,
}

impl Origin {
    /// What the VM is made of, as `plan` has it.
    #[must_use]
    pub fn config(&self, plan: &Plan) -> VmConfig<'_> {
        VmConfig {
            qemu: &self.qemu,
            appliance: &self.appliance,
            accelerator: self.accelerator,
            processor: &self.processor,
            memory_mib: plan.memory_mib,
            bulk: plan.has_bulk(),
            confinement: plan.confinement,
            lanes: PORTS,
        }
    }

    /// How the VM begins.
    #[must_use]
    pub fn boot(&self) -> Boot<'_> {
        self.template.as_ref().map_or(Boot::Cold, Boot::Restore)
    }
}

/// A VM whose guest sees its disks.
pub struct Awake {
    /// The client.
    pub guest: Guest,
    /// The VM that it runs in.
    pub vm: Vm,
    /// What is the matter with partition tables of the disks.
    pub tables: Vec<TableProblem>,
    /// What QEMU is confined by.
    pub confinement: Report,
}

/// Starts a VM, and waits until its guest sees the disks.
///
/// # Errors
/// [`LaunchError`]; nothing runs then.
pub fn boot(
    config: &VmConfig,
    boot: &Boot,
    plan: &Plan,
    disks: &[Disk],
    kept: &[KeptOverlay],
    timings: &Timings,
) -> Result<Awake, LaunchError> {
    let started = start(config, boot, plan, disks, kept)?;
    timings.done("QEMU up");
    greet(started, config, boot, plan, disks.len(), timings)
}

/// Starts QEMU, with `kept` over the disks where there are such. It dies when the thread that called
/// this ends.
///
/// # Errors
/// [`VmError`]; nothing runs then.
pub fn start(
    config: &VmConfig,
    boot: &Boot,
    plan: &Plan,
    disks: &[Disk],
    kept: &[KeptOverlay],
) -> Result<Started, VmError> {
    let overlays = match plan.writes {
        WritesTo::Overlays(_) => Overlays::Kept(kept),
        WritesTo::Nothing | WritesTo::Images(_) => Overlays::In(overlay_folder(), kept),
    };
    Vm::start(config, boot, disks, overlays)
}

/// The folder for overlays by its absolute path, as the environment named it when the first VM
/// started: for a later one, this process may be in another folder.
fn overlay_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let named = env::temp_dir();
        path::absolute(&named).unwrap_or(named)
    })
}

/// Waits until the guest sees its `count` disks.
///
/// # Errors
/// [`LaunchError`]; the VM is gone then.
pub fn greet(
    started: Started,
    config: &VmConfig,
    boot: &Boot,
    plan: &Plan,
    count: usize,
    timings: &Timings,
) -> Result<Awake, LaunchError> {
    let entropy = entropy().map_err(LaunchError::Entropy)?;
    let Started { mut vm, mut lanes, memory, confinement } = started;
    let pulse = lanes.pop().expect("a VM has several lanes");
    if let Boot::Restore(template) = boot {
        vm.restore(template)?;
        timings.done("restored");
    }
    let patience = match boot {
        Boot::Restore(_) => Patience::restoring(config.accelerator),
        Boot::Cold | Boot::ToSave(_) => Patience::with(config.accelerator),
    };
    let console = vm.console();
    let count = u8::try_from(count).expect("the plan checked the number of disks");
    // The guest answers while QEMU opens the disks.
    let (attached, greeted) = thread::scope(|scope| {
        let greeting = scope.spawn(|| {
            let connect =
                |wait: Wait<'_>| Guest::connect(lanes, memory.as_ref(), wait, plan.timeout);
            console.while_printing(patience, connect).and_then(|guest| {
                guest.wake(entropy)?;
                timings.done("daemon awake");
                Ok(guest.with_pulse(pulse))
            })
        });
        let attached = vm.attach();
        timings.done("disks attached");
        (attached, greeting.join().expect("greeting does not panic"))
    });
    // A guest that is gone is the reason where QEMU is gone as well.
    let guest = match greeted {
        Ok(guest) => guest,
        Err(error) => return Err(LaunchError::Guest(error, vm.last_words())),
    };
    attached?;
    let tables = match guest.await_disks(count) {
        Ok(tables) => tables,
        Err(error) => return Err(LaunchError::Guest(error, vm.last_words())),
    };
    timings.done("disks visible");
    Ok(Awake { guest, vm, tables, confinement })
}

fn entropy() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_guests_get_the_same_entropy() {
        let (one, other) = (entropy().unwrap(), entropy().unwrap());
        assert_ne!(one, other);
        assert!(one.iter().any(|&byte| byte != one[0]), "{one:?}");
    }
}
