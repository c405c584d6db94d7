//! The results, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::figure::{Figure, Unit, Verdict};
use super::machine::Machine;
use super::results::{Cell, Results, Row, SIDES};
use crate::Error;

/// Runs from which on a median is taken at its word.
const ENOUGH: usize = super::RUNS as usize;

/// The table, with what it was measured on above and the reasons for gaps below.
#[must_use]
pub fn table(machine: &Machine, results: &Results) -> String {
    let mut text = heading(machine);
    let mut lines = vec![[
        "figure".to_owned(),
        "name".to_owned(),
        "target".to_owned(),
        "guestmnt".to_owned(),
        "guestmount".to_owned(),
        "native".to_owned(),
        "× guestmount".to_owned(),
        "× native".to_owned(),
        String::new(),
    ]];
    lines.extend(results.rows.iter().map(|row| columns(results, row)));
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    for line in &lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text += &format!("| {} |\n", cells.join(" | "));
        if std::ptr::eq(line, &raw const lines[0]) {
            let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            text += &format!("| {} |\n", rule.join(" | "));
        }
    }
    text += "Medians (least–greatest).\n";
    for (row, side, reason) in gaps(results) {
        let _ = writeln!(text, "not measured: {} on {side}: {reason}", row.figure.name);
    }
    for note in &results.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn heading(machine: &Machine) -> String {
    let Machine { cpu, cores, memory_mib, kernel, load, qemu, accelerator, commit, .. } = machine;
    let guestmount = machine.guestmount.as_deref().unwrap_or("no guestmount");
    format!(
        "{cpu}, {cores} cores, {memory_mib} MiB, Linux {kernel}; load before: {load}\n\
         {qemu}; {guestmount}; accelerator {accelerator}; commit {commit}\n\n"
    )
}

fn columns(results: &Results, row: &Row) -> [String; 9] {
    let figure = &row.figure;
    let medians = row.medians();
    let ratio = |theirs: Option<f64>| {
        let both = medians.guestmnt.zip(theirs);
        let ratio = both.map(|(ours, theirs)| Unit::number(figure.times_better(ours, theirs)));
        ratio.unwrap_or_default()
    };
    let as_native = medians.native.filter(|_| figure.target.as_native);
    let verdict = match results.verdict(row) {
        Verdict::NoTarget => String::new(),
        Verdict::Open => "open".to_owned(),
        Verdict::Met => format!("met{}", reservation(row)),
        Verdict::Missed => format!("MISSED{}", reservation(row)),
    };
    let [ours, theirs, native] = [0, 1, 2].map(|side: usize| cell(&row.cells[side], figure.unit));
    [
        figure.title.to_owned(),
        figure.name.to_owned(),
        target(figure),
        ours,
        theirs,
        native,
        ratio(medians.guestmount),
        ratio(as_native),
        verdict,
    ]
}

/// What stands behind a verdict that rests on few runs.
fn reservation(row: &Row) -> String {
    match row.runs() {
        1 => " (1 run)".to_owned(),
        runs if runs < ENOUGH => format!(" ({runs} runs)"),
        _ => String::new(),
    }
}

/// `0.17 (0.15–0.21) s`; `–` where there should be something.
fn cell(cell: &Cell, unit: Unit) -> String {
    match (cell.samples.median(), cell.samples.range()) {
        (Some(median), Some((least, greatest))) if least < greatest => format!(
            "{} ({}–{}) {}",
            Unit::number(median),
            Unit::number(least),
            Unit::number(greatest),
            unit.symbol()
        ),
        (Some(median), _) => format!("{} {}", Unit::number(median), unit.symbol()),
        _ if cell.reason.is_some() => "–".to_owned(),
        _ => String::new(),
    }
}

/// `≤ 0.20 s, 30×`.
fn target(figure: &Figure) -> String {
    let mut parts = Vec::new();
    if let Some(bound) = figure.target.bound {
        let sign = if figure.unit.lower_is_better() { "≤" } else { "≥" };
        parts.push(format!("{sign} {} {}", Unit::number(bound), figure.unit.symbol()));
    }
    if let Some(times) = figure.target.times_guestmount {
        parts.push(format!("{times}×"));
    }
    if figure.target.as_native {
        parts.push("as native".to_owned());
    }
    parts.join(", ")
}

/// Figures with a reason for having no value or fewer than they should.
fn gaps(results: &Results) -> impl Iterator<Item = (&Row, &'static str, &str)> {
    results.rows.iter().flat_map(|row| {
        let cells = SIDES.into_iter().zip(&row.cells);
        cells.filter_map(move |(side, cell)| Some((row, side, cell.reason.as_deref()?)))
    })
}

/// Writes everything to the file `path`.
///
/// # Errors
/// [`Error::File`].
pub fn write_json(path: &Path, machine: &Machine, results: &Results) -> Result<(), Error> {
    let figures: Vec<Value> = results.rows.iter().map(|row| row_as_json(results, row)).collect();
    let all = json!({ "machine": machine, "figures": figures, "notes": results.notes });
    let mut text = serde_json::to_vec_pretty(&all).expect("numbers and strings");
    text.push(b'\n');
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    fs::write(path, text).map_err(Error::file("write", path))
}

fn row_as_json(results: &Results, row: &Row) -> Value {
    let Row { figure, cells } = row;
    let sides: Map<String, Value> = SIDES
        .into_iter()
        .zip(cells)
        .filter(|(_, cell)| !cell.samples.values().is_empty() || cell.reason.is_some())
        .map(|(side, cell)| {
            let value = json!({
                "samples": cell.samples.values(),
                "median": cell.samples.median(),
                "min": cell.samples.range().map(|range| range.0),
                "max": cell.samples.range().map(|range| range.1),
                "reason": cell.reason,
            });
            (side.to_owned(), value)
        })
        .collect();
    let medians = row.medians();
    let times = |theirs: Option<f64>| Some(figure.times_better(medians.guestmnt?, theirs?));
    json!({
        "name": figure.name,
        "title": figure.title,
        "unit": figure.unit.symbol(),
        "target": {
            "bound": figure.target.bound,
            "times_guestmount": figure.target.times_guestmount,
            "as_native": figure.target.as_native,
        },
        "met": match results.verdict(row) {
            Verdict::Met => Some(true),
            Verdict::Missed => Some(false),
            Verdict::NoTarget | Verdict::Open => None,
        },
        "times_guestmount": times(medians.guestmount),
        "times_native": times(medians.native),
        "sides": sides,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::experiments::Values;

    fn results() -> Results {
        let mut results = Results::default();
        let mount = Figure::new("mount", "until it answers", Unit::Seconds);
        results.add(&[mount.bound(0.2).times_guestmount(30.0)]);
        for value in [0.1, 0.3, 0.15] {
            results.take(0, Values::of("mount", value));
        }
        results.take(1, Values::of("mount", 6.0));
        results.give_reason("mount", 2, "only as root");
        results
    }

    #[test]
    fn a_row_says_median_range_ratio_and_verdict() {
        let results = results();
        let expected = [
            "until it answers",
            "mount",
            "≤ 0.200 s, 30×",
            "0.150 (0.100–0.300) s",
            "6.00 s",
            "–",
            "40.0",
            "",
            "met (3 runs)",
        ];
        assert_eq!(columns(&results, &results.rows[0]), expected);
        assert_eq!(gaps(&results).map(|gap| gap.2).collect::<Vec<_>>(), ["only as root"]);
    }

    #[test]
    fn a_verdict_of_few_runs_says_how_many() {
        let mut results = Results::default();
        results.add(&[Figure::new("mount", "", Unit::Seconds).bound(0.2)]);
        let mut verdicts = Vec::new();
        for _ in 0..ENOUGH {
            results.take(0, Values::of("mount", 0.1));
            verdicts.push(columns(&results, &results.rows[0])[8].clone());
        }
        assert_eq!(verdicts[..2], ["met (1 run)", "met (2 runs)"]);
        assert_eq!(verdicts[8..], ["met (9 runs)", "met"]);
    }

    #[test]
    fn the_ratio_to_native_is_shown_where_the_target_names_it() {
        let mut results = Results::default();
        let rate = |name| Figure::new(name, "", Unit::MegabytesPerSecond);
        results.add(&[rate("read").as_native(), rate("other").bound(100.0)]);
        for name in ["read", "other"] {
            results.take(0, Values::of(name, 1500.0));
            results.take(2, Values::of(name, 1000.0));
        }
        assert_eq!(
            results.rows.iter().map(|row| columns(&results, row)[7].clone()).collect::<Vec<_>>(),
            ["1.50", ""]
        );
    }

    #[test]
    fn the_table_begins_with_the_machine_and_what_runs_the_vms() {
        let machine = Machine {
            cpu: "Processor 9000".to_owned(),
            cores: 2,
            memory_mib: 24_105,
            kernel: "6.12.1".to_owned(),
            load: "0.25".to_owned(),
            qemu: "QEMU emulator version 10.0.2".to_owned(),
            guestmount: None,
            accelerator: "kvm".to_owned(),
            commit: "0123456789ab-dirty".to_owned(),
            time: 0,
        };
        let table = table(&machine, &results());
        let (heading, _) = table.split_once("\n\n| figure ").unwrap();
        let expected = "Processor 9000, 2 cores, 24105 MiB, Linux 6.12.1; load before: 0.25\n\
            QEMU emulator version 10.0.2; no guestmount; accelerator kvm; commit 0123456789ab-dirty";
        assert_eq!(heading, expected);
    }

    #[test]
    fn the_json_has_every_sample() {
        let results = results();
        let value = row_as_json(&results, &results.rows[0]);
        assert_eq!(value["sides"]["guestmnt"]["samples"], json!([0.1, 0.3, 0.15]));
        assert_eq!(value["sides"]["native"]["reason"], "only as root");
        assert_eq!((&value["met"], &value["unit"]), (&json!(true), &json!("s")));
    }
}
