//! SECURITY.md names a test for each promise; they are there.

use std::fs;
use std::path::Path;

use xtask::skips::skip;

/// The names of tests in the last column of the table.
fn named(text: &str) -> Vec<&str> {
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.ends_with(" |"));
    let cells = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// Appends the text of all sources below `folder`.
fn read(folder: &Path, sources: &mut String) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_built = path.file_name().is_some_and(|name| name == "target" || name == ".git");
        if path.is_dir() && !is_built {
            read(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[test]
fn every_promise_has_a_test_that_exists() {
    let text = include_str!("../../SECURITY.md");
    let (_, promises) = text.split_once("## Promises").unwrap();
    let (table, _) = promises.split_once("## Not promised").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ")).skip(2);
    for row in rows {
        assert!(!named(row).is_empty(), "no test for {row}");
    }
    let mut sources = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    if let Err(error) = read(root, &mut sources) {
        skip(&format!("this user cannot read the sources: {error}"));
        return;
    }
    for name in named(table) {
        let is_there = sources.contains(&format!("fn {name}("));
        assert!(is_there, "there is no test {name}");
    }
}
