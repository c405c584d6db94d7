//! Requests that the host's kernel makes for each file of a tree, and that we make of the guest:
//! the same on every machine.

use std::fs::File;
use std::io::Read;

use super::walks::{Walk, copy, find, tar};
use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::FILES_IN_TREE;
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::traced::{TRACE, count, is_passed_on, is_request};
use crate::bench::sides::{Mounted, Traced};

/// Names of the kernel's and of our requests, what people call the program, and the program.
const WALKS: [([&str; 2], [&str; 2], Walk); 3] = [
    (["requests-find", "guest-find"], ["requests for a file, find", "of these to the guest"], find),
    (["requests-tar", "guest-tar"], ["requests for a file, tar", "of these to the guest"], tar),
    (["requests-cp", "guest-cp"], ["requests for a file, cp -a", "of these to the guest"], copy),
];

pub(super) fn experiments() -> Vec<Experiment> {
    let experiment = |(names, titles, walk): ([&'static str; 2], [&'static str; 2], Walk)| {
        let figure = |n: usize| Figure::new(names[n], titles[n], Unit::RequestsPerFile);
        let figures = [figure(0), figure(1)];
        Experiment::new(Who::Ours, figures, move |ground, _| requests(ground, names, walk))
    };
    WALKS.into_iter().map(experiment).collect()
}

fn requests(ground: &Ground, names: [&'static str; 2], walk: Walk) -> Result<Values, Error> {
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
    let [name, of_guest] = names;
    let mut values = Values::of(name, f64::from(sum) / f64::from(FILES_IN_TREE));
    let kinds: Vec<String> = counts.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    values.notes.push(format!("{name}: {}", kinds.join(", ")));
    // What --stats says comes at the end.
    let last = read_on()?;
    values.notes.extend(
        last.lines().filter(|line| !is_request(line) && !is_passed_on(line)).map(str::to_owned),
    );
    Ok(match to_guest(&last) {
        Some(count) => values.and(of_guest, f64::from(count) / f64::from(FILES_IN_TREE)),
        None => values.without(of_guest, "not there yet: guestmnt has no --stats"),
    })
}

/// The number of requests in `guestmnt: guest: 23 requests (…)`.
fn to_guest(text: &str) -> Option<u32> {
    let rest = text.lines().find_map(|line| line.strip_prefix("guestmnt: guest: "))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_the_guest_are_those_that_stats_tells() {
        let text = "guestmnt: -> stat\nguestmnt: kernel: 86 requests (lookup 86), 0 bytes\n\
                    guestmnt: guest: 23 requests (readdir 21, stat 2), 125340 bytes\n";
        assert_eq!(to_guest(text), Some(23));
        assert_eq!(to_guest("guestmnt: -> stat\n"), None);
    }
}
