//! All that was measured, before anybody formats it.

use super::experiments::Values;
use super::figure::{Figure, Medians, Opponent, Verdict};
use super::samples::Samples;

/// Names of the sides, in the order of the table's columns.
pub const SIDES: [&str; 3] = ["guestmnt", "guestmount", "native"];

/// One figure on one side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// What was measured.
    pub samples: Samples,
    /// Why there is no more.
    pub reason: Option<String>,
}

/// One figure on all sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Which.
    pub figure: Figure,
    /// In the order of [`SIDES`].
    pub cells: [Cell; 3],
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// In the order of measuring.
    pub rows: Vec<Row>,
    /// What people may want to know besides.
    pub notes: Vec<String>,
    /// Whether guestmount is installed.
    pub opponent: Opponent,
}

impl Row {
    /// Medians of the sides.
    #[must_use]
    pub fn medians(&self) -> Medians {
        let [guestmnt, guestmount, native] =
            [0, 1, 2].map(|side: usize| self.cells[side].samples.median());
        Medians { guestmnt, guestmount, native }
    }

    /// How often it was measured on our side.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.cells[0].samples.values().len()
    }
}

impl Results {
    /// Makes room for `figures`.
    pub fn add(&mut self, figures: &[Figure]) {
        let rows = figures.iter().map(|&figure| Row { figure, cells: <[Cell; 3]>::default() });
        self.rows.extend(rows);
    }

    /// Whether the target of one of the rows is reached.
    #[must_use]
    pub fn verdict(&self, row: &Row) -> Verdict {
        row.figure.verdict(&row.medians(), self.opponent)
    }

    /// Takes one run's values on side number `side` of [`SIDES`].
    pub fn take(&mut self, side: usize, values: Values) {
        for (name, value) in values.taken {
            if let Some(cell) = self.cell(name, side) {
                cell.samples.push(value);
            }
        }
        for (name, reason) in values.absent {
            self.give_reason(name, side, &reason);
        }
        for note in values.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }

    /// Notes why figure `name` has no value, or no more, on side number `side`.
    pub fn give_reason(&mut self, name: &str, side: usize, reason: &str) {
        if let Some(cell) = self.cell(name, side) {
            cell.reason = Some(reason.to_owned());
        }
    }

    fn cell(&mut self, name: &str, side: usize) -> Option<&mut Cell> {
        let row = self.rows.iter_mut().find(|row| row.figure.name == name)?;
        row.cells.get_mut(side)
    }
}
