//! How the trials went: a line for each, and a table of all.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use guestmnt_protocol::path::Printable;

use super::trial::{Outcome, Verdict};
use super::walk::Walk;

/// Of each group of images, in the order of their names.
#[derive(Default)]
pub struct Tally(BTreeMap<String, Row>);

#[derive(Default)]
struct Row {
    tried: u64,
    whole: u64,
    with_errors: u64,
    refused: u64,
    faults: u64,
    longest: Duration,
    took: Duration,
}

impl Tally {
    /// Adds a trial of the image `name`, and gives its line.
    pub fn add(&mut self, group: &str, name: &str, verdict: &Verdict) -> String {
        let row = self.0.entry(group.to_owned()).or_default();
        row.tried += 1;
        match &verdict.outcome {
            Outcome::Mounted(walk) if walk.errors.is_empty() => row.whole += 1,
            Outcome::Mounted(_) => row.with_errors += 1,
            Outcome::Refused(_) => row.refused += 1,
            Outcome::Unknown => {}
        }
        row.faults += verdict.faults.len() as u64;
        row.longest = row.longest.max(verdict.took);
        row.took += verdict.took;
        let took = verdict.took.as_secs_f64();
        let mut line = format!("{name:<40} {took:>6.2} s  {}", words(&verdict.outcome));
        for fault in &verdict.faults {
            line += &format!("\n    {fault}");
        }
        line
    }

    /// Faults of all.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.0.values().map(|row| row.faults).sum()
    }
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Mounted(Walk { entries, bytes, errors, cut }) => {
            let errors: String =
                errors.iter().map(|(errno, count)| format!(", {count} {errno}")).collect();
            let cut = if *cut { ", and more" } else { "" };
            format!("mounted: {entries} entries, {bytes} bytes{errors}{cut}")
        }
        Outcome::Refused(reason) => format!("refused: {}", Printable(reason.as_bytes())),
        Outcome::Unknown => "?".to_owned(),
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = ["", "tried", "whole", "errors", "refused", "faults", "mean", "longest"];
        write_row(f, columns.map(str::to_owned))?;
        for (name, row) in &self.0 {
            let Row { tried, whole, with_errors, refused, faults, longest, took } = row;
            let counts = [tried, whole, with_errors, refused, faults].map(u64::to_string);
            let mean = took.div_f64(*tried as f64).as_secs_f64();
            let times = [mean, longest.as_secs_f64()].map(|seconds| format!("{seconds:.2} s"));
            let [tried, whole, with_errors, refused, faults] = counts;
            let [mean, longest] = times;
            write_row(
                f,
                [name.clone(), tried, whole, with_errors, refused, faults, mean, longest],
            )?;
        }
        let tried: u64 = self.0.values().map(|row| row.tried).sum();
        writeln!(f, "images tried: {tried}, faults: {}", self.faults())
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, cells: [String; 8]) -> fmt::Result {
    let [name, numbers @ ..] = cells;
    write!(f, "{name:<16}")?;
    numbers.iter().try_for_each(|number| write!(f, " {number:>8}"))?;
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::super::trial::Fault;
    use super::*;

    #[test]
    fn each_trial_is_counted_once_and_each_fault_shown() {
        let verdict = |outcome, faults| {
            let (took, said) = (Duration::from_millis(500), String::new());
            Verdict { outcome, faults, took, said }
        };
        let errors = BTreeMap::from([("EIO".to_owned(), 2)]);
        let damaged = Walk { entries: 3, bytes: 9, errors, cut: true };
        let mut tally = Tally::default();
        tally.add("ntfs", "a", &verdict(Outcome::Mounted(Walk::default()), vec![]));
        let line = tally.add("ntfs", "b", &verdict(Outcome::Mounted(damaged), vec![]));
        assert!(line.ends_with("mounted: 3 entries, 9 bytes, 2 EIO, and more"), "{line}");
        tally.add("ntfs", "c", &verdict(Outcome::Refused("no \x1b".to_owned()), vec![]));
        let faults = vec![Fault::Hang("the launch"), Fault::Changed];
        let line = tally.add("xfs", "d", &verdict(Outcome::Unknown, faults));
        assert!(line.contains("HANG: the launch") && line.contains("CHANGED"), "{line}");
        assert_eq!(tally.faults(), 2);
        let table = tally.to_string();
        let ntfs: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(ntfs, ["ntfs", "3", "1", "1", "1", "0", "0.50", "s", "0.50", "s"]);
        assert!(table.ends_with("images tried: 4, faults: 2\n"));
    }
}
