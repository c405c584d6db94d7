//! Reading the contents of files.

use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::{GIBIBYTE, LARGE, PARTS};
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::{Mounted, Side};

const FIRST: Figure = Figure::new("read", "201 MB file, first read", Unit::MegabytesPerSecond)
    .bound(1_200.0)
    .times_guestmount(30.0)
    .as_native();
const AGAIN: Figure = Figure::new("read-again", "the same again", Unit::MegabytesPerSecond)
    .bound(8_000.0)
    .times_guestmount(100.0);
const FOUR: Figure =
    Figure::new("read-four", "4 files of 50 MB side by side", Unit::MegabytesPerSecond)
        .bound(1_200.0)
        .times_guestmount(30.0);
const RANDOM: Figure = Figure::new("random", "4 KiB random reads, depth 1", Unit::Microseconds)
    .bound(250.0)
    .times_guestmount(10.0);
const RANDOM_DEEP: Figure =
    Figure::new("random-16", "4 KiB random reads, depth 16", Unit::PerSecond)
        .bound(8_000.0)
        .times_guestmount(10.0);

/// Reads one by one.
const READS: u32 = 500;
/// Reads by 16 at a time, of other blocks.
const READS_DEEP: u32 = 4_000;

pub(super) fn experiments() -> Vec<Experiment> {
    vec![
        Experiment::new(Who::All, [FIRST, AGAIN], one_file),
        Experiment::new(Who::All, [FOUR], four_files),
        Experiment::new(Who::All, [RANDOM, RANDOM_DEEP], random),
    ]
}

fn one_file(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().chain())?;
    let read = || mounted.task(&["read".into(), mounted.path(LARGE).into()]);
    let (first, again) = (read()?, read()?);
    mounted.unmount()?;
    Ok(Values::of(FIRST.name, first.megabytes_per_second())
        .and(AGAIN.name, again.megabytes_per_second()))
}

fn four_files(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().chain())?;
    let mut words = vec!["read".into()];
    words.extend(PARTS.map(|name| mounted.path(name).into_os_string()));
    let read = mounted.task(&words)?;
    mounted.unmount()?;
    Ok(Values::of(FOUR.name, read.megabytes_per_second()))
}

fn random(ground: &Ground, side: &dyn Side) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().chain())?;
    let read = |reads: u32, skip: u32, depth: u32| {
        let options = [
            "--reads",
            &reads.to_string(),
            "--skip",
            &skip.to_string(),
            "--depth",
            &depth.to_string(),
        ]
        .map(Into::into);
        let mut words = vec!["random".into()];
        words.extend(options);
        words.push(mounted.path(GIBIBYTE).into());
        mounted.task(&words)
    };
    let one_by_one = read(READS, 0, 1)?;
    let deep = read(READS_DEEP, READS, 16)?;
    mounted.unmount()?;
    let mean = one_by_one.seconds * 1e6 / f64::from(READS);
    Ok(Values::of(RANDOM.name, mean).and(RANDOM_DEEP.name, f64::from(READS_DEEP) / deep.seconds))
}
