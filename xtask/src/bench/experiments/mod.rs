//! What is measured, and how. One experiment mounts afresh and takes the values of one or more
//! figures; it is done on each side by turns.

mod reads;
mod requests;
mod scale;
mod start;
mod walks;

use super::figure::Figure;
use super::ground::Ground;
use super::sides::Side;
use crate::Error;

/// Who takes part in an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody.
    All,
    /// Guestmnt alone.
    Ours,
    /// All but guestmount, which would take minutes.
    Fast,
}

/// What one run gave.
#[derive(Default)]
pub struct Values {
    /// Values by their figures' names.
    pub taken: Vec<(&'static str, f64)>,
    /// Why a figure has none, by its name.
    pub absent: Vec<(&'static str, String)>,
    /// What people may want to know besides.
    pub notes: Vec<String>,
}

impl Values {
    /// With the value of one figure.
    #[must_use]
    pub fn of(name: &'static str, value: f64) -> Self {
        Self::default().and(name, value)
    }

    /// And another.
    #[must_use]
    pub fn and(mut self, name: &'static str, value: f64) -> Self {
        self.taken.push((name, value));
        self
    }

    /// And a figure that cannot be had.
    #[must_use]
    pub fn without(mut self, name: &'static str, reason: impl Into<String>) -> Self {
        self.absent.push((name, reason.into()));
        self
    }
}

/// Mounts, takes values, unmounts.
pub type Measure = Box<dyn Fn(&Ground, &dyn Side) -> Result<Values, Error>>;

/// Something to be measured.
pub struct Experiment {
    /// The figures that it gives values for.
    pub figures: Vec<Figure>,
    /// On which sides.
    pub who: Who,
    /// How often at most, where once more tells nothing new.
    pub at_most: Option<u32>,
    /// One run.
    pub measure: Measure,
}

impl Experiment {
    fn new(
        who: Who,
        figures: impl Into<Vec<Figure>>,
        measure: impl Fn(&Ground, &dyn Side) -> Result<Values, Error> + 'static,
    ) -> Self {
        Self { figures: figures.into(), who, at_most: None, measure: Box::new(measure) }
    }

    fn at_most(mut self, runs: u32) -> Self {
        self.at_most = Some(runs);
        self
    }
}

/// All experiments, in the order of the table; `counts` are the sizes of the scale curve.
#[must_use]
pub fn all(counts: &[u32]) -> Vec<Experiment> {
    let mut all = start::experiments();
    all.extend(reads::experiments());
    all.extend(walks::experiments());
    all.extend(requests::experiments());
    all.extend(scale::experiments(counts));
    all
}
