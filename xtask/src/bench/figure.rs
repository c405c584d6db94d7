//! One figure: what it is called, what it is counted in, and what it has to reach.

/// What a figure is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Time, of something that a person waits for.
    Seconds,
    /// Time, of something that a program does often.
    Microseconds,
    /// 10⁶ bytes a second.
    MegabytesPerSecond,
    /// Operations a second.
    PerSecond,
    /// 2²⁰ bytes.
    Mebibytes,
    /// Requests of the host's kernel for each file.
    RequestsPerFile,
    /// Time for each file.
    MicrosecondsPerFile,
    /// One time over another.
    Times,
}

impl Unit {
    /// Whether less of it is better.
    #[must_use]
    pub fn lower_is_better(self) -> bool {
        !matches!(self, Self::MegabytesPerSecond | Self::PerSecond)
    }

    /// What stands behind the number.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Microseconds => "µs",
            Self::MegabytesPerSecond => "MB/s",
            Self::PerSecond => "/s",
            Self::Mebibytes => "MiB",
            Self::RequestsPerFile => "/file",
            Self::MicrosecondsPerFile => "µs/file",
            Self::Times => "×",
        }
    }

    /// `value` with three digits or so, and no more than it deserves.
    #[must_use]
    pub fn number(value: f64) -> String {
        match value.abs() {
            v if v < 1.0 => format!("{value:.3}"),
            v if v < 10.0 => format!("{value:.2}"),
            v if v < 100.0 => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        }
    }
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Target {
    /// A value: the most for a unit of which less is better, otherwise the least.
    pub bound: Option<f64>,
    /// How many times better than guestmount.
    pub times_guestmount: Option<f64>,
    /// Not worse than the image mounted on the host.
    pub as_native: bool,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// For `--only` and for programs that read the JSON.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What its values are counted in.
    pub unit: Unit,
    /// What it has to reach.
    pub target: Target,
}

/// Whether a target was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is none.
    NoTarget,
    /// One of the numbers that it is about is missing.
    Open,
    /// Reached.
    Met,
    /// Not reached.
    Missed,
}

/// Whether guestmount can be compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opponent {
    /// It is installed, whether it works or not.
    #[default]
    Installed,
    /// It is not: of targets that have a bound as well, the bound decides.
    NotInstalled,
}

/// Medians of the sides, as far as there are any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Medians {
    /// Ours.
    pub guestmnt: Option<f64>,
    /// libguestfs'.
    pub guestmount: Option<f64>,
    /// The image mounted on the host.
    pub native: Option<f64>,
}

impl Figure {
    /// A figure without a target.
    #[must_use]
    pub const fn new(name: &'static str, title: &'static str, unit: Unit) -> Self {
        let target = Target { bound: None, times_guestmount: None, as_native: false };
        Self { name, title, unit, target }
    }

    /// The value to reach.
    #[must_use]
    pub const fn bound(mut self, value: f64) -> Self {
        self.target.bound = Some(value);
        self
    }

    /// How many times better than guestmount it has to be.
    #[must_use]
    pub const fn times_guestmount(mut self, times: f64) -> Self {
        self.target.times_guestmount = Some(times);
        self
    }

    /// It has to be as good as the image mounted on the host.
    #[must_use]
    pub const fn as_native(mut self) -> Self {
        self.target.as_native = true;
        self
    }

    /// How many times better `ours` is than `theirs`.
    #[must_use]
    pub fn times_better(&self, ours: f64, theirs: f64) -> f64 {
        if self.unit.lower_is_better() { theirs / ours } else { ours / theirs }
    }

    /// Whether the target is reached. What is known to be missed is missed, even where another
    /// part of the target cannot be told.
    #[must_use]
    pub fn verdict(&self, medians: &Medians, opponent: Opponent) -> Verdict {
        let better = |theirs: Option<f64>, times: f64| {
            Some(self.times_better(medians.guestmnt?, theirs?) >= times)
        };
        let bound = |bound| Some(self.times_better(medians.guestmnt?, bound) >= 1.0);
        let bound_decides = opponent == Opponent::NotInstalled && self.target.bound.is_some();
        let times_guestmount = self.target.times_guestmount.filter(|_| !bound_decides);
        let parts = [
            self.target.bound.map(bound),
            times_guestmount.map(|times| better(medians.guestmount, times)),
            self.target.as_native.then(|| better(medians.native, 1.0)),
        ];
        let parts: Vec<Option<bool>> = parts.into_iter().flatten().collect();
        if parts.is_empty() {
            Verdict::NoTarget
        } else if parts.contains(&Some(false)) {
            Verdict::Missed
        } else if parts.contains(&None) {
            Verdict::Open
        } else {
            Verdict::Met
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_when_all_its_parts_are() {
        let wait = Figure::new("wait", "", Unit::Seconds).bound(0.2).times_guestmount(30.0);
        let rate = Figure::new("rate", "", Unit::MegabytesPerSecond).bound(1200.0).as_native();
        let medians = |guestmnt, guestmount, native| Medians { guestmnt, guestmount, native };
        let cases = [
            (wait, medians(Some(0.2), Some(6.0), None), Verdict::Met),
            (wait, medians(Some(0.2), Some(5.9), None), Verdict::Missed),
            (wait, medians(Some(0.3), None, None), Verdict::Missed),
            (wait, medians(Some(0.1), None, None), Verdict::Open),
            (wait, medians(None, Some(6.0), None), Verdict::Open),
            (rate, medians(Some(1300.0), None, Some(1299.0)), Verdict::Met),
            (rate, medians(Some(1300.0), None, Some(1301.0)), Verdict::Missed),
            (rate, medians(Some(1100.0), None, Some(900.0)), Verdict::Missed),
        ];
        for (figure, medians, verdict) in cases {
            let found = figure.verdict(&medians, Opponent::Installed);
            assert_eq!(found, verdict, "{} {medians:?}", figure.name);
        }
        let plain = Figure::new("plain", "", Unit::Times);
        let found = plain.verdict(&medians(Some(1.0), None, None), Opponent::Installed);
        assert_eq!(found, Verdict::NoTarget);
    }

    #[test]
    fn where_guestmount_is_not_installed_the_bound_decides() {
        let both = Figure::new("both", "", Unit::Seconds).bound(0.2).times_guestmount(30.0);
        let ratio = Figure::new("ratio", "", Unit::Seconds).times_guestmount(30.0);
        let native = both.as_native();
        for (figure, ours, verdict) in [
            (both, 0.1, Verdict::Met),
            (both, 0.3, Verdict::Missed),
            (ratio, 0.1, Verdict::Open),
            (native, 0.1, Verdict::Open),
        ] {
            let medians = Medians { guestmnt: Some(ours), ..Medians::default() };
            let found = figure.verdict(&medians, Opponent::NotInstalled);
            assert_eq!(found, verdict, "{} {ours}", figure.name);
        }
    }
}
