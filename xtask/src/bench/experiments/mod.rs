//! What is measured, and how. One experiment mounts afresh and takes the values of one or more
//! figures; it is done on each side by turns.

mod confinement;
mod reads;
mod requests;
mod scale;
mod start;
mod walks;
mod writes;

pub use start::start_of;

use super::figure::Figure;
use super::ground::Ground;
use super::sides::Side;
use crate::Error;

/// Who takes part in an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Everybody.
    All,
    /// Those that have a guest between the image and the host.
    Guests,
    /// Guestmnt alone.
    Ours,
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

/// Mounts, takes values, unmounts; the number is the run's on this side, from 0.
pub type Measure = Box<dyn Fn(&Ground, &dyn Side, u32) -> Result<Values, Error>>;

/// Something to be measured.
pub struct Experiment {
    /// The figures that it gives values for.
    pub figures: Vec<Figure>,
    /// On which sides.
    pub who: Who,
    /// How often guestmount does it at most, where it takes a minute or so; 0 where it takes
    /// several.
    pub guestmount_at_most: Option<u32>,
    /// One run.
    pub measure: Measure,
}

impl Experiment {
    fn new(
        who: Who,
        figures: impl Into<Vec<Figure>>,
        measure: impl Fn(&Ground, &dyn Side) -> Result<Values, Error> + 'static,
    ) -> Self {
        Self::by_run(who, figures, move |ground, side, _| measure(ground, side))
    }

    /// One whose runs are not all alike.
    fn by_run(
        who: Who,
        figures: impl Into<Vec<Figure>>,
        measure: impl Fn(&Ground, &dyn Side, u32) -> Result<Values, Error> + 'static,
    ) -> Self {
        Self { figures: figures.into(), who, guestmount_at_most: None, measure: Box::new(measure) }
    }

    #[cfg(test)]
    pub(super) fn for_test(figures: impl Into<Vec<Figure>>) -> Self {
        Self::new(Who::All, figures, |_, _| Ok(Values::default()))
    }

    /// How often a side does it where others do it `runs` times.
    #[must_use]
    pub fn runs_on(&self, side: &str, runs: u32) -> u32 {
        match (self.who, side) {
            (_, "guestmnt") => runs,
            (Who::Ours, _) | (Who::Guests, "native") => 0,
            (_, "guestmount") => self.guestmount_at_most.unwrap_or(runs).min(runs),
            (Who::All | Who::Guests, _) => runs,
        }
    }

    fn guestmount_at_most(mut self, runs: u32) -> Self {
        self.guestmount_at_most = Some(runs);
        self
    }
}

/// All experiments, in the order of the table; `counts` are the sizes of the scale curve.
#[must_use]
pub fn all(counts: &[u32]) -> Vec<Experiment> {
    let mut all = start::experiments();
    all.extend(confinement::experiments());
    all.extend(reads::experiments());
    all.extend(walks::experiments());
    all.extend(writes::experiments());
    all.extend(requests::experiments());
    all.extend(scale::experiments(counts));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_do_what_they_can_in_reasonable_time() {
        let experiment = |who| Experiment::new(who, [], |_, _| Ok(Values::default()));
        let runs = |experiment: &Experiment| {
            ["guestmnt", "guestmount", "native"].map(|side| experiment.runs_on(side, 10))
        };
        assert_eq!(runs(&experiment(Who::All)), [10, 10, 10]);
        assert_eq!(runs(&experiment(Who::Guests)), [10, 10, 0]);
        assert_eq!(runs(&experiment(Who::Ours)), [10, 0, 0]);
        assert_eq!(runs(&experiment(Who::All).guestmount_at_most(1)), [10, 1, 10]);
    }

    #[test]
    fn no_two_figures_have_one_name() {
        let all = all(&[1_000, 10_000, 100_000, 1_000_000]);
        let mut names: Vec<&str> =
            all.iter().flat_map(|one| one.figures.iter().map(|figure| figure.name)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
