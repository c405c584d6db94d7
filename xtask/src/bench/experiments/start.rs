//! Coming up, going away, and the memory in between.

use std::thread;
use std::time::Instant;

use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::GIBIBYTE;
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::{CROWD, Ground};
use crate::bench::memory::Memory;
use crate::bench::sides::{Guestmnt, Mounted, Side, Start};

const MOUNT: Figure = Figure::new("mount", "command start to mount answering", Unit::Seconds)
    .bound(0.20)
    .times_guestmount(30.0);
const UNMOUNT: Figure =
    Figure::new("unmount", "unmount until QEMU is gone", Unit::Seconds).bound(0.10);
const TEMPLATE: Figure =
    Figure::new("template", "a user's first mount, template made", Unit::Seconds).bound(5.0);
const COLD: Figure = Figure::new("cold", "cold boot to mount answering", Unit::Seconds).bound(3.0);
const TWENTY: Figure =
    Figure::new("twenty", "20 mounts of 20 images at once", Unit::Seconds).bound(4.0);
const MEMORY: Figure =
    Figure::new("memory", "own memory after the mount", Unit::Mebibytes).bound(64.0);
const PSS: Figure = Figure::new("pss", "Pss after the mount", Unit::Mebibytes);
const MEMORY_READ: Figure =
    Figure::new("memory-read", "own memory after reading 1 GiB", Unit::Mebibytes).bound(160.0);
const PSS_READ: Figure = Figure::new("pss-read", "Pss after reading 1 GiB", Unit::Mebibytes);

/// What is said of figures about a template where there is none.
const NO_TEMPLATE: &str = "not there yet: guestmnt has no --no-template";

pub(super) fn experiments() -> Vec<Experiment> {
    vec![
        Experiment::new(Who::All, [MOUNT, UNMOUNT, MEMORY, PSS], mount_and_unmount),
        Experiment::new(Who::Ours, [TEMPLATE], make_template),
        Experiment::new(Who::Ours, [COLD], cold_boot),
        Experiment::new(Who::Ours, [TWENTY], twenty_at_once),
        Experiment::new(Who::All, [MEMORY_READ, PSS_READ], read_a_gibibyte).guestmount_at_most(1),
    ]
}

/// How the mounts come up by which the figure `name` is measured.
#[must_use]
pub fn start_of(name: &str) -> Start {
    match name {
        name if name == COLD.name => Start::Cold,
        name if name == TEMPLATE.name => Start::NewUser,
        _ => Start::Normal,
    }
}

fn mount_and_unmount(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().chain())?;
    let took = mounted.took;
    let memory = mounted.memory();
    let values = Values::of(UNMOUNT.name, mounted.unmount()?);
    let values = with_memory(values, [MEMORY, PSS], memory);
    if side.name() == "guestmnt" && !ground.offers.has("--no-template") {
        return Ok(values.without(MOUNT.name, NO_TEMPLATE));
    }
    Ok(values.and(MOUNT.name, took))
}

fn make_template(ground: &Ground, _: &dyn Side) -> Result<Values, Error> {
    if !ground.offers.has("--no-template") {
        return Ok(Values::default().without(TEMPLATE.name, NO_TEMPLATE));
    }
    let side = Guestmnt(Start::NewUser);
    let mounted = Mounted::new(ground, &side, &ground.disks().chain())?;
    let took = mounted.took;
    mounted.unmount()?;
    Ok(Values::of(TEMPLATE.name, took))
}

fn cold_boot(ground: &Ground, _: &dyn Side) -> Result<Values, Error> {
    let side = Guestmnt(Start::Cold);
    let mounted = Mounted::new(ground, &side, &ground.disks().chain())?;
    let took = mounted.took;
    mounted.unmount()?;
    Ok(Values::of(COLD.name, took))
}

fn twenty_at_once(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let start = Instant::now();
    let mounts = thread::scope(|scope| {
        let threads: Vec<_> = (0..CROWD)
            .map(|number| scope.spawn(move || Mounted::new(ground, side, &ground.crowd(number))))
            .collect();
        let mounts = threads.into_iter().map(|thread| thread.join().expect("mounting returns"));
        mounts.collect::<Result<Vec<_>, _>>()
    })?;
    let took = start.elapsed().as_secs_f64();
    for mounted in mounts {
        mounted.unmount()?;
    }
    Ok(Values::of(TWENTY.name, took))
}

fn read_a_gibibyte(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().chain())?;
    mounted.task(&["read".into(), mounted.path(GIBIBYTE).into()])?;
    let memory = mounted.memory();
    mounted.unmount()?;
    Ok(with_memory(Values::default(), [MEMORY_READ, PSS_READ], memory))
}

/// Adds what a mount's processes take; not everybody may look into them.
fn with_memory(values: Values, [own, pss]: [Figure; 2], memory: Result<Memory, Error>) -> Values {
    match memory {
        Ok(Memory { pss_kib, own_kib }) => {
            values.and(own.name, mebibytes(own_kib)).and(pss.name, mebibytes(pss_kib))
        }
        Err(error) => {
            values.without(own.name, error.to_string()).without(pss.name, error.to_string())
        }
    }
}

pub(super) fn mebibytes(kib: u64) -> f64 {
    // Exact up to 2⁵³ KiB.
    #[expect(clippy::cast_precision_loss)]
    let kib = kib as f64;
    kib / 1024.0
}
