//! Rows as virt-filesystems prints them: lined up for people, or as comma-separated values.
//!
//! Follows the man page of virt-filesystems, guestfs-tools 1.48, so that scripts read both.

use std::fmt::Write;

/// Columns that there can be; those that are left out count for the width all the same.
const COLUMNS: usize = 8;

/// With more characters than these in a line, one space between columns has to do instead of two.
const NARROW: usize = 72;

/// Cells in columns; `None` and an empty text are shown as `-`.
pub type Row = Vec<Option<String>>;

/// The rows lined up, each on a line.
#[must_use]
pub fn lined_up(rows: &[Row]) -> String {
    let shown: Vec<Vec<&str>> =
        rows.iter().map(|row| row.iter().map(|cell| shown(cell.as_deref())).collect()).collect();
    let count = shown.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = shown.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let gap = if widths.iter().sum::<usize>() + 2 * COLUMNS > NARROW { 1 } else { 2 };
    let mut text = String::new();
    for row in &shown {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let width = width + gap;
            write!(line, "{cell:<width$}").expect("a string takes everything");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn shown(cell: Option<&str>) -> &str {
    cell.filter(|text| !text.is_empty()).unwrap_or("-")
}

/// The rows as comma-separated values, each on a line.
#[must_use]
pub fn separated(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let fields: Vec<String> = row.iter().map(|cell| quoted(cell.as_deref())).collect();
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}

fn quoted(cell: Option<&str>) -> String {
    let field = cell.unwrap_or_default();
    if field.contains([' ', '"', '\n', ',']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

/// Bytes for people: `512`, `2.5G`, `79M`; powers of 1024, one decimal below ten, rounded.
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let mut unit = 0;
    let mut divisor: u128 = 1;
    while u128::from(bytes) >= divisor * 1024 && unit + 1 < UNITS.len() {
        divisor *= 1024;
        unit += 1;
    }
    // Rounded to what is shown, which may reach the next digit or unit.
    let tenths = (u128::from(bytes) * 10 + divisor / 2) / divisor;
    if unit > 0 && tenths < 100 {
        return format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit]);
    }
    let whole = (u128::from(bytes) + divisor / 2) / divisor;
    match UNITS.get(unit + 1) {
        Some(next) if whole >= 1024 => format!("1.0{next}"),
        _ => format!("{whole}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Row {
        cells.iter().map(|cell| Some((*cell).to_owned())).collect()
    }

    #[test]
    fn rows_are_lined_up_and_gaps_are_hyphens() {
        let rows = [row(&["Name", "Type"]), row(&["/dev/sda1", ""]), vec![None, None]];
        assert_eq!(lined_up(&rows), "Name       Type\n/dev/sda1  -\n-          -\n");
        let wide = "x".repeat(60);
        assert_eq!(lined_up(&[row(&[&wide, "y"])]), format!("{wide} y\n"));
    }

    #[test]
    fn fields_with_separators_are_quoted() {
        let rows = [row(&["a b", "c", "d\"e"]), vec![None, Some("f,g".to_owned())]];
        assert_eq!(separated(&rows), "\"a b\",c,\"d\"\"e\"\n,\"f,g\"\n");
    }

    #[test]
    fn sizes_are_rounded_for_people() {
        let table = [
            (0, "0"),
            (512, "512"),
            (1024, "1.0K"),
            (1_536 << 20, "1.5G"),
            (10 << 30, "10G"),
            ((10 << 20) - 1, "10M"),
            ((1 << 20) - 1, "1.0M"),
            (2_719_973_376, "2.5G"),
            (u64::MAX, "16E"),
        ];
        for (bytes, expected) in table {
            assert_eq!(human(bytes), expected, "{bytes}");
        }
    }
}
