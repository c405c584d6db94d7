//! Which bytes of a disk its files should hold and do not, because they were cut short.

use std::ops::Range;

/// Most ranges that are kept apart; what lies between further ones counts as missing too.
const MAX_RANGES: usize = 1 << 20;

/// What becomes of reads of [`Missing`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMissing {
    /// They fail with EIO.
    #[default]
    Fail,
    /// They yield zeros.
    Zeros,
}

/// Ranges of bytes, in order, neither empty nor touching each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    ranges: Vec<Range<u64>>,
}

impl Missing {
    /// Adds a range that begins at or after the start of the last one.
    pub fn push(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let is_full = self.ranges.len() >= MAX_RANGES;
        match self.ranges.last_mut() {
            Some(last) if range.start <= last.end || is_full => last.end = last.end.max(range.end),
            _ => self.ranges.push(range),
        }
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many bytes are missing.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// What is missing first of the bytes in `range`.
    #[must_use]
    pub fn first_in(&self, range: Range<u64>) -> Option<Range<u64>> {
        let at = self.ranges.partition_point(|missing| missing.end <= range.start);
        let missing = self.ranges.get(at)?;
        let found = missing.start.max(range.start)..missing.end.min(range.end);
        (!found.is_empty()).then_some(found)
    }

    /// Those before `end`.
    #[must_use]
    pub fn before(&self, end: u64) -> Self {
        let mut clipped = Self::default();
        self.ranges.iter().for_each(|range| clipped.push(range.start.min(end)..range.end.min(end)));
        clipped
    }

    /// Those that are in either.
    #[must_use]
    pub fn union(self, other: &Self) -> Self {
        if other.is_empty() {
            return self;
        }
        let mut all: Vec<Range<u64>> = [self.ranges, other.ranges.clone()].concat();
        all.sort_unstable_by_key(|range| range.start);
        let mut union = Self::default();
        all.into_iter().for_each(|range| union.push(range));
        union
    }
}

/// Takes ranges off a [`Missing`] that are given in order.
pub struct Subtraction<'a> {
    rest: std::slice::Iter<'a, Range<u64>>,
    current: Option<Range<u64>>,
    left: Missing,
}

impl<'a> Subtraction<'a> {
    /// From `missing`.
    pub fn from(missing: &'a Missing) -> Self {
        let mut rest = missing.ranges.iter();
        let current = rest.next().cloned();
        Self { rest, current, left: Missing::default() }
    }

    /// Takes `range` off. It begins where the one before ended, or later.
    pub fn take(&mut self, range: &Range<u64>) {
        while let Some(current) = &mut self.current {
            if current.end > range.start {
                if current.start >= range.end {
                    return;
                }
                self.left.push(current.start..range.start.max(current.start));
                if current.end > range.end {
                    current.start = range.end;
                    return;
                }
            } else {
                self.left.push(current.clone());
            }
            self.current = self.rest.next().cloned();
        }
    }

    /// What is left.
    pub fn finish(mut self) -> Missing {
        self.current.into_iter().chain(self.rest.cloned()).for_each(|range| self.left.push(range));
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(ranges: &[Range<u64>]) -> Missing {
        let mut missing = Missing::default();
        ranges.iter().for_each(|range| missing.push(range.clone()));
        missing
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let all = missing(&[0..2, 2..3, 5..5, 5..6, 5..9, 12..13]);
        assert_eq!(all.ranges(), [0..3, 5..9, 12..13]);
        assert_eq!(all.bytes(), 8);
        assert_eq!(all.before(6).ranges(), [0..3, 5..6]);
        assert_eq!(all.union(&missing(&[1..6, 20..21])).ranges(), [0..9, 12..13, 20..21]);
    }

    /// All pairs of ranges of small numbers, taken off a fixed set and asked for in it.
    #[test]
    fn ranges_are_found_and_taken_off_byte_by_byte() {
        let set = missing(&[1..3, 4..7, 9..10]);
        let has = |set: &Missing, at: u64| set.ranges().iter().any(|range| range.contains(&at));
        for a in 0..12 {
            for b in a..12 {
                let first = (a..b).find(|&at| has(&set, at));
                assert_eq!(set.first_in(a..b).map(|range| range.start), first, "{a}..{b}");
                for c in b..12 {
                    let (one, two) = (a..b, b..c);
                    let mut subtraction = Subtraction::from(&set);
                    subtraction.take(&one);
                    subtraction.take(&(two.start + 1..two.end.max(two.start + 1)));
                    let left = subtraction.finish();
                    for at in 0..12 {
                        let taken = one.contains(&at) || (two.contains(&at) && at != b);
                        assert_eq!(has(&left, at), has(&set, at) && !taken, "{a} {b} {c} {at}");
                    }
                }
            }
        }
    }
}
