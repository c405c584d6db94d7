//! `guestimg starts`: starts QEMU with and without its confinement, by turns and only to have it tell
//! its version, and prints what that took as one line of JSON. For the bench; not for users.

use std::fmt::Display;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::output::say;
use crate::vm::confinement::{ConfineError, Confinement, Layer, LayerState, Part, Program, Report};
use crate::vm::find_qemu;

/// Measures what the confinement adds to the start of QEMU.
#[derive(Args)]
pub struct Arguments {
    /// Starts of each kind
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
}

/// Medians in seconds, from before the start until the program has ended.
#[derive(Serialize)]
struct Starts {
    plain: f64,
    confined: f64,
    /// The layers that are not to be had here, and cost nothing.
    missing: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Display>> {
    let qemu = find_qemu().map_err(super::boxed)?;
    let null = File::options().write(true).open("/dev/null").map_err(super::boxed)?;
    let version = ["--version".into()];
    let program = Program::alone(&qemu, &version, null.as_fd());
    let all = Confinement::default();
    let none =
        Layer::ALL.into_iter().fold(all.clone(), |rest, layer| rest.without(Part::Layer(layer)));
    let (mut plain, mut confined) = (Vec::new(), Vec::new());
    // The first ones fetch the program and its libraries.
    let (_, report) = start(&all, &program).map_err(super::boxed)?;
    for _ in 0..arguments.count {
        plain.push(start(&none, &program).map_err(super::boxed)?.0);
        confined.push(start(&all, &program).map_err(super::boxed)?.0);
    }
    let missing = report.missing().map(LayerState::to_string).collect();
    let starts = Starts { plain: median(plain), confined: median(confined), missing };
    say!("{}", serde_json::to_string(&starts).map_err(super::boxed)?);
    Ok(ExitCode::SUCCESS)
}

/// Seconds that the program took, and what it was confined by.
fn start(confinement: &Confinement, program: &Program) -> Result<(f64, Report), ConfineError> {
    let start = Instant::now();
    let (mut process, report) = confinement.start(program)?;
    process.wait();
    Ok((start.elapsed().as_secs_f64(), report))
}

/// The one in the middle.
fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
