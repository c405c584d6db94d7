//! What a figure's runs gave, and the three numbers that stand for them.

/// The values of one figure on one side, in the order in which they were taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the value of one more run.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// All of them.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// The middle one, or the mean of the two in the middle; `None` where there is none.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// The least and the greatest.
    #[must_use]
    pub fn range(&self) -> Option<(f64, f64)> {
        let sorted = self.sorted();
        Some((*sorted.first()?, *sorted.last()?))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let cases: [(&[f64], Option<[f64; 3]>); 4] = [
            (&[], None),
            (&[2.0], Some([2.0, 2.0, 2.0])),
            (&[9.0, 1.0, 2.0], Some([1.0, 2.0, 9.0])),
            (&[4.0, 1.0, 9.0, 2.0], Some([1.0, 3.0, 9.0])),
        ];
        for (values, expected) in cases {
            let samples = Samples(values.to_vec());
            let (median, range) = (samples.median(), samples.range());
            let found = range.zip(median).map(|((least, most), median)| [least, median, most]);
            assert_eq!(found, expected, "{values:?}");
        }
    }
}
