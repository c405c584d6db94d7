//! Reading the contents of files.

use std::fs::File;
use std::io::Read;

use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::{GIBIBYTE, LARGE, PARTS};
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::traced::{TRACE, count, is_passed_on};
use crate::bench::sides::{Mounted, Side, Traced};

const FIRST: Figure = Figure::new("read", "201 MB file, first read", Unit::MegabytesPerSecond)
    .bound(1_200.0)
    .times_guestmount(30.0)
    .as_native();
/// Only then does the kernel put each page on its list of active ones (`workingset_activation`), for
/// as long as it copies it.
const SECOND: Figure =
    Figure::new("read-second", "the same the second time", Unit::MegabytesPerSecond);
const AGAIN: Figure =
    Figure::new("read-again", "the same again, median of five", Unit::MegabytesPerSecond)
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
        Experiment::by_run(Who::All, [FIRST, SECOND, AGAIN], one_file),
        Experiment::new(Who::All, [FOUR], four_files),
        Experiment::new(Who::All, [RANDOM, RANDOM_DEEP], random),
    ]
}

fn one_file(ground: &Ground, side: &dyn Side, run: u32) -> Result<Values, Error> {
    if side.name() == "guestmnt" && run == 0 {
        check_again(ground)?;
    }
    let mounted = Mounted::new(ground, side, &ground.disks().chain())?;
    let read = || -> Result<f64, Error> {
        let timing = mounted.task(&["read".into(), mounted.path(LARGE).into()])?;
        Ok(timing.megabytes_per_second())
    };
    let (first, second) = (read()?, read()?);
    let mut again = [second, read()?, read()?, read()?, read()?];
    mounted.unmount()?;
    again.sort_by(f64::total_cmp);
    Ok(Values::of(FIRST.name, first).and(SECOND.name, second).and(AGAIN.name, again[2]))
}

/// Checks, in a mount that is not timed, that what is read again comes from the host's cache: neither
/// the kernel asks guestmnt for it, nor guestmnt the guest.
fn check_again(ground: &Ground) -> Result<(), Error> {
    let mounted = Mounted::new(ground, &Traced, &ground.disks().chain())?;
    let path = mounted.scratch(TRACE);
    let mut trace = File::open(&path).map_err(Error::file("open", &path))?;
    let mut read = || -> Result<(u32, u32), Error> {
        mounted.task(&["read".into(), mounted.path(LARGE).into()])?;
        let mut text = String::new();
        trace.read_to_string(&mut text).map_err(Error::file("read", &path))?;
        Ok(reads(&text))
    };
    let (first, again) = (read()?, read()?);
    mounted.unmount()?;
    if first.0 > 0 && again == (0, 0) {
        return Ok(());
    }
    Err(Error::unfit(
        format!("reading a file made {first:?} requests, reading it again {again:?}"),
        "these are of the kernel and of guestmnt to the guest; the second read should make none",
    ))
}

/// How often a trace says that the kernel wanted contents, and that the guest was asked for something.
fn reads(trace: &str) -> (u32, u32) {
    let of_kernel = count(trace).get("read").copied().unwrap_or(0);
    let to_guest = trace.lines().filter(|line| is_passed_on(line)).count();
    (of_kernel, u32::try_from(to_guest).unwrap_or(u32::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_the_kernel_and_requests_to_the_guest_are_told_apart() {
        let trace = "\
guestmnt: open /installer.msi: ok (12 us)
guestmnt: -> layout
guestmnt: read /installer.msi 131072@0: ok (90 us)
guestmnt: read /installer.msi 131072@131072: ok (80 us)
";
        assert_eq!(reads(trace), (2, 1));
        assert_eq!(reads("guestmnt: open /installer.msi: ok (12 us)\n"), (0, 0));
    }
}
