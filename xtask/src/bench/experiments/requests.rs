//! Requests that the host's kernel makes for each file of a tree: the same on every machine.

use std::fs::File;
use std::io::Read;

use super::walks::{Walk, copy, find, tar};
use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::FILES_IN_TREE;
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::traced::{TRACE, count, is_request};
use crate::bench::sides::{Mounted, Traced};

const WALKS: [(&str, &str, Walk); 3] = [
    ("requests-find", "requests for a file, find", find),
    ("requests-tar", "requests for a file, tar", tar),
    ("requests-cp", "requests for a file, cp -a", copy),
];

pub(super) fn experiments() -> Vec<Experiment> {
    let experiment = |(name, title, walk)| {
        let figure = Figure::new(name, title, Unit::RequestsPerFile);
        Experiment::new(Who::Ours, [figure], move |ground, _| requests(ground, name, walk))
    };
    WALKS.into_iter().map(experiment).collect()
}

fn requests(ground: &Ground, name: &'static str, walk: Walk) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, &Traced, &ground.disks().chain())?;
    let path = mounted.scratch(TRACE);
    // Stays readable when the mount's own files are gone.
    let mut trace = File::open(&path).map_err(Error::file("open", &path))?;
    let mut read_on = || -> Result<String, Error> {
        let mut text = String::new();
        trace.read_to_string(&mut text).map_err(Error::file("read", &path))?;
        Ok(text)
    };
    read_on()?;
    walk(&mounted)?;
    let counts = count(&read_on()?);
    mounted.unmount()?;
    let sum: u32 = counts.values().sum();
    let mut values = Values::of(name, f64::from(sum) / f64::from(FILES_IN_TREE));
    let kinds: Vec<String> = counts.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    values.notes.push(format!("{name}: {}", kinds.join(", ")));
    // What --stats says comes at the end.
    let last = read_on()?;
    values.notes.extend(last.lines().filter(|line| !is_request(line)).map(str::to_owned));
    Ok(values)
}
