//! The results, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::figure::{Figure, Unit, Verdict};
use super::machine::Machine;
use super::results::{Cell, Results, Row, SIDES};
use crate::Error;

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
        String::new(),
    ]];
    lines.extend(results.rows.iter().map(columns));
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

fn columns(row: &Row) -> [String; 8] {
    let figure = &row.figure;
    let medians = row.medians();
    let ratio = medians.guestmnt.zip(medians.guestmount);
    let ratio = ratio.map(|(ours, theirs)| Unit::number(figure.times_better(ours, theirs)));
    let verdict = match figure.verdict(&medians) {
        Verdict::NoTarget => "",
        Verdict::Open => "open",
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
    };
    let [ours, theirs, native] = [0, 1, 2].map(|side: usize| cell(&row.cells[side], figure.unit));
    [
        figure.title.to_owned(),
        figure.name.to_owned(),
        target(figure),
        ours,
        theirs,
        native,
        ratio.unwrap_or_default(),
        verdict.to_owned(),
    ]
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
    let figures: Vec<Value> = results.rows.iter().map(row_as_json).collect();
    let all = json!({ "machine": machine, "figures": figures, "notes": results.notes });
    let mut text = serde_json::to_vec_pretty(&all).expect("numbers and strings");
    text.push(b'\n');
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    fs::write(path, text).map_err(Error::file("write", path))
}

fn row_as_json(row: &Row) -> Value {
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
        "met": match figure.verdict(&medians) {
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
            "met",
        ];
        assert_eq!(columns(&results.rows[0]), expected);
        assert_eq!(gaps(&results).map(|gap| gap.2).collect::<Vec<_>>(), ["only as root"]);
    }

    #[test]
    fn the_json_has_every_sample() {
        let value = row_as_json(&results().rows[0]);
        assert_eq!(value["sides"]["guestmnt"]["samples"], json!([0.1, 0.3, 0.15]));
        assert_eq!(value["sides"]["native"]["reason"], "only as root");
        assert_eq!((&value["met"], &value["unit"]), (&json!(true), &json!("s")));
    }
}
