//! What QEMU's confinement adds to a mount: it is started with and without, by turns, for nothing
//! but its version, so that the layers are the only difference.

use serde::Deserialize;

use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;

const CONFINEMENT: Figure =
    Figure::new("confinement", "what QEMU's confinement adds to a mount", Unit::Seconds)
        .bound(0.010);

/// Starts of each kind in one run.
const STARTS: &str = "20";

pub(super) fn experiments() -> Vec<Experiment> {
    vec![Experiment::new(Who::Ours, [CONFINEMENT], |ground, _| added(ground))]
}

/// What `guestimg starts` prints: medians in seconds.
#[derive(Deserialize)]
struct Starts {
    plain: f64,
    confined: f64,
    missing: Vec<String>,
}

fn added(ground: &Ground) -> Result<Values, Error> {
    let mut starts = ground.as_user(&ground.program("guestimg"));
    starts.args(["starts", STARTS]);
    let printed = ground.run(starts)?.printed;
    let Starts { plain, confined, missing } = serde_json::from_str(printed.trim_end())
        .map_err(|_| Error::unfit(format!("no figures in: {printed}"), "this is a bug"))?;
    let mut values = Values::of(CONFINEMENT.name, confined - plain);
    if !missing.is_empty() {
        values.notes.push(format!("confinement: without {}", missing.join("; ")));
    }
    Ok(values)
}
