//! `cargo xtask bench`: how fast it is, beside libguestfs' guestmount and beside the image
//! mounted on the host, where these can be had.
//!
//! The sides take turns, run by run, so that what else the machine does falls on all of them.
//! Each run of an experiment mounts afresh: the mount's caches in host and guest are empty, the
//! image's own pages are in the host's cache. All VMs run under TCG, on both sides. Nothing here
//! fails because something is slow; figures are for people to judge.

mod apart;
mod disk;
mod experiments;
mod figure;
mod ground;
mod machine;
mod memory;
mod report;
mod results;
mod samples;
mod sides;
mod steps;
pub mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use self::experiments::{Experiment, Values};
use self::figure::{Opponent, Verdict};
use self::ground::{Ground, warm};
use self::machine::Machine;
use self::results::{Results, SIDES};
use self::sides::{Guestmnt, Guestmount, Mounted, Native, Side, Start};
use crate::Error;
use crate::appliance;
use crate::disks::Disks;
use crate::kernel::Source;
use crate::places::Places;
use crate::progress::line;
use crate::release;
use crate::setup;

/// Runs of each experiment on each side.
const RUNS: u32 = 10;
/// The same with `--quick`.
const QUICK_RUNS: u32 = 3;

/// What is noted of verdicts on a machine that cannot compare.
const WITHOUT_GUESTMOUNT: &str = "guestmount is not installed: how many times better guestmnt is \
    cannot be told; where a target has a value as well, that alone decided";

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Runs of each experiment on each side [default: 10].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Only figures of these names, which the table shows; those measured together come along.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Where every sample is written [default: target/bench.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Three runs, and trees of 10,000 files at most.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// A tree of a million files as well, whose disk takes some minutes to make.
    #[arg(long)]
    full: bool,
    /// Set up already, and in namespaces of our own.
    #[arg(long, hide = true)]
    apart: bool,
}

impl Options {
    fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { QUICK_RUNS } else { RUNS })
    }

    /// Sizes of the scale curve.
    fn counts(&self) -> &'static [u32] {
        match (self.quick, self.full) {
            (true, _) => &[1_000, 10_000],
            (_, false) => &[1_000, 10_000, 100_000],
            (_, true) => &[1_000, 10_000, 100_000, 1_000_000],
        }
    }

    /// The experiments to be done.
    fn experiments(&self) -> Result<Vec<Experiment>, Error> {
        let mut all = experiments::all(self.counts());
        let names: Vec<&str> =
            all.iter().flat_map(|one| one.figures.iter().map(|figure| figure.name)).collect();
        if let Some(unknown) = self.only.iter().find(|name| !names.contains(&name.as_str())) {
            let hint = format!("there are {}", names.join(", "));
            return Err(Error::unfit(format!("there is no figure {unknown}"), hint));
        }
        if !self.only.is_empty() {
            let wanted = |name: &str| self.only.iter().any(|only| only == name);
            all.retain(|one| one.figures.iter().any(|figure| wanted(figure.name)));
        }
        Ok(all)
    }
}

/// Sets up, measures, prints the table and writes the samples.
///
/// # Errors
/// Where it cannot begin. A side that fails is reported in the table.
pub fn run(options: &Options, places: &Places) -> Result<ExitCode, Error> {
    let experiments = options.experiments()?;
    let disks = disk::Disks::of(places);
    if !options.apart {
        setup::ensure(places)?;
        appliance::build(&Source::Debian, places)?;
        release::build(places)?;
        Disks::ensure(places)?;
        disks.ensure_chain()?;
        disks.ensure_written()?;
        for &count in options.counts() {
            disks.ensure_files(count)?;
        }
        if apart::is_possible() {
            return apart::run(&["--apart"]);
        }
    } else {
        apart::enter();
    }
    let mut machine = Machine::here(places);
    let ground = Ground::new(places, &Disks::ensure(places)?, &disks)?;
    let mut results = Results::default();
    if machine.guestmount.is_none() {
        results.opponent = Opponent::NotInstalled;
        results.notes.push(WITHOUT_GUESTMOUNT.to_owned());
    }
    for experiment in &experiments {
        results.add(&experiment.figures);
    }
    let json = options.json.clone().unwrap_or_else(|| places.target().join("bench.json"));
    warm(ground.disks().folder())?;
    let mut sides = Vec::new();
    for (name, candidate) in SIDES.into_iter().zip(candidates(options, places, &ground)) {
        let start = Instant::now();
        let side = warm_up(&ground, candidate);
        line(name, start.elapsed(), side.as_ref().err().map_or("takes part", String::as_str));
        match side {
            Ok((side, accelerator)) => {
                if name == SIDES[0] {
                    machine.accelerator = accelerator.unwrap_or(machine.accelerator);
                }
                sides.push(Some(side));
            }
            Err(reason) => {
                results.notes.push(format!("not measured on {name}: {reason}"));
                sides.push(None);
            }
        }
    }
    for experiment in &experiments {
        measure(experiment, options.runs(), &ground, &sides, &mut results);
        // What has been measured stays, should somebody end this before it is through.
        report::write_json(&json, &machine, &results)?;
    }
    let missed = results.rows.iter().filter(|row| results.verdict(row) == Verdict::Missed);
    let explained = steps::of_missed(&ground, missed.map(|row| row.figure.name));
    results.notes.extend(explained);
    let leftovers = ground.finish()?;
    if !leftovers.is_empty() {
        results.notes.push(format!("left behind, and cleaned up: {leftovers:?}"));
    }
    println!("\n{}", report::table(&machine, &results));
    report::write_json(&json, &machine, &results)?;
    println!("Every sample stands in {}", json.display());
    Ok(ExitCode::SUCCESS)
}

/// A side, or why it cannot take part.
type Candidate = Result<Box<dyn Side>, String>;

/// In the order of [`SIDES`].
fn candidates(options: &Options, places: &Places, ground: &Ground) -> [Candidate; 3] {
    let guestmount = || -> Result<Box<dyn Side>, Error> {
        let appliance = ground.show(&Guestmount::prepare(places)?, "guestfs")?;
        Ok(Box::new(Guestmount::new(appliance)))
    };
    let native: Candidate = if options.apart {
        Ok(Box::new(Native))
    } else {
        Err("it takes root, and mount and PID namespaces".to_owned())
    };
    [Ok(Box::new(Guestmnt(Start::Normal))), guestmount().map_err(|error| brief(&error)), native]
}

/// Mounts once on each side, untimed: programs and images get into the host's cache, templates
/// are made, and what does not work here is found out once. Gives the side, and what ran its VM.
fn warm_up(
    ground: &Ground,
    candidate: Candidate,
) -> Result<(Box<dyn Side>, Option<String>), String> {
    let side = candidate?;
    let mounted = Mounted::new(ground, side.as_ref(), &ground.disks().chain());
    let mounted = mounted.map_err(|error| brief(&error))?;
    let accelerator = mounted.accelerator();
    mounted.unmount().map_err(|error| brief(&error))?;
    Ok((side, accelerator))
}

/// Does one experiment, side by side.
fn measure(
    experiment: &Experiment,
    runs: u32,
    ground: &Ground,
    sides: &[Option<Box<dyn Side>>],
    results: &mut Results,
) {
    let start = Instant::now();
    let runs_on = |number: usize| {
        let side = sides[number].as_ref();
        side.map_or(0, |side| experiment.runs_on(side.name(), runs))
    };
    let names = take_turns(experiment, [0, 1, 2].map(runs_on), results, |number, run| {
        let side = sides[number].as_deref().expect("a side without runs has no turn");
        (experiment.measure)(ground, side, run)
    });
    line(&names.join(", "), start.elapsed(), "");
}

/// Has the sides of [`SIDES`] take turns at `experiment`, run by run, each as often as `runs` says. A
/// side that fails is not tried again. Gives the names of the figures.
fn take_turns(
    experiment: &Experiment,
    runs: [u32; SIDES.len()],
    results: &mut Results,
    mut once: impl FnMut(usize, u32) -> Result<Values, Error>,
) -> Vec<&'static str> {
    let names: Vec<&str> = experiment.figures.iter().map(|figure| figure.name).collect();
    let mut left = runs;
    while left != [0; SIDES.len()] {
        for (number, left) in left.iter_mut().enumerate().filter(|(_, left)| **left > 0) {
            let run = runs[number] - *left;
            *left -= 1;
            match once(number, run) {
                Ok(values) => results.take(number, values),
                Err(error) => {
                    *left = 0;
                    for name in &names {
                        results.give_reason(name, number, &brief(&error));
                    }
                }
            }
        }
    }
    names
}

/// An error in one line.
fn brief(error: &Error) -> String {
    error.to_string().split('\n').map(str::trim).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::figure::{Figure, Unit};
    use super::*;

    #[test]
    fn sides_go_by_turns_and_one_that_fails_is_not_tried_again() {
        let experiment = Experiment::for_test([Figure::new("wait", "", Unit::Seconds)]);
        let mut results = Results::default();
        results.add(&experiment.figures);
        let mut turns = Vec::new();

        let names = take_turns(&experiment, [3, 1, 3], &mut results, |side, run| {
            turns.push((side, run));
            if side == 2 && run == 1 {
                return Err(Error::unfit("it broke", "mend it"));
            }
            Ok(Values::of("wait", 1.0))
        });

        assert_eq!(names, ["wait"]);
        assert_eq!(turns, [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)]);
        let cells = &results.rows[0].cells;
        assert_eq!([0, 1, 2].map(|side: usize| cells[side].samples.values().len()), [3, 1, 1]);
        assert_eq!(cells[2].reason.as_deref(), Some("it broke; hint: mend it"));
    }
}
