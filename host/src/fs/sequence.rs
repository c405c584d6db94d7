//! Whether a file is read from front to back.

/// The kernel has several requests of one reader on their way, and they overtake each other.
const DISORDER: u64 = 512 << 10;

/// What is read of a file, for as long as it is read in sequence. Whoever reads here and there, or
/// takes a little at every step, begins a new one with each request.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    /// The first byte asked for.
    begin: u64,
    /// Behind the furthest byte asked for.
    pub next: u64,
    /// Bytes that were read in sequence so far.
    pub length: u64,
}

impl Sequence {
    /// One that begins at byte `offset`.
    pub fn at(offset: u64) -> Self {
        Self { begin: offset, next: offset, length: 0 }
    }

    /// Takes note of a request. The bytes up to `had` need not be asked for. Returns whether the
    /// request belongs to the sequence; where it does not, another begins with it.
    pub fn note(&mut self, offset: u64, size: u64, had: u64) -> bool {
        let end = offset.saturating_add(size);
        let next = self.next.max(had.min(offset));
        let nearby =
            offset <= next.saturating_add(DISORDER) && self.next <= offset.saturating_add(DISORDER);
        let length = self.length.saturating_add(next - self.next);
        let dense = next - self.begin <= length.saturating_mul(2).saturating_add(DISORDER);
        let follows = nearby && dense;
        if follows {
            (self.next, self.length) = (next, length);
        } else {
            *self = Self::at(offset);
        }
        self.length = self.length.saturating_add(end.saturating_sub(self.next).min(size));
        self.next = self.next.max(end);
        follows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: u64 = 128 << 10;

    #[test]
    fn requests_that_overtake_each_other_are_a_sequence() {
        let mut sequence = Sequence::at(0);
        for n in [0, 2, 1, 3, 5, 4] {
            assert!(sequence.note(n * REQUEST, REQUEST, 0));
        }
        assert_eq!(sequence.next, 6 * REQUEST);
        assert!(sequence.length >= 4 * REQUEST);
    }

    #[test]
    fn what_need_not_be_asked_for_is_passed_over() {
        let mut sequence = Sequence::at(0);
        assert!(sequence.note(0, REQUEST, 0));
        assert!(sequence.note(100 * REQUEST, REQUEST, 100 * REQUEST));
        assert_eq!((sequence.next, sequence.length), (101 * REQUEST, 101 * REQUEST));
        assert!(!sequence.note(300 * REQUEST, REQUEST, 200 * REQUEST));
        assert_eq!((sequence.next, sequence.length), (301 * REQUEST, REQUEST));
    }

    #[test]
    fn who_reads_here_and_there_or_a_little_at_every_step_reads_in_no_sequence() {
        let scattered = (0..1000u64).map(|n| n * 7_919 % 1000 * (1 << 20));
        let strided = (0..1000u64).map(|n| n << 18);
        for offsets in [scattered.collect::<Vec<_>>(), strided.collect()] {
            let mut sequence = Sequence::at(offsets[0]);
            for offset in offsets {
                sequence.note(offset, 4096, 0);
                assert!(sequence.length < REQUEST, "at {offset}");
            }
        }
    }

    #[test]
    fn no_numbers_are_too_large() {
        let numbers = [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        let mut sequence = Sequence::at(u64::MAX);
        for offset in numbers {
            for (size, had) in numbers.into_iter().flat_map(|size| numbers.map(|had| (size, had))) {
                sequence.note(offset, size, had);
            }
        }
    }
}
