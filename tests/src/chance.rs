//! Chance that can be repeated: a seeded generator, and how many rounds a test makes.

use std::env;
use std::time::Duration;

use xtask::test::{ROUNDS, SEED};

/// A generator of numbers. Source: Vigna's splitmix64, public domain.
pub struct Chance(u64);

impl Chance {
    /// Seeded as the environment says.
    #[must_use]
    pub fn new() -> Self {
        Self(seed())
    }

    /// Seeded so.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Waits for less than `most_ms` milliseconds.
    pub fn wait(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_micros(self.below(most_ms * 1000)));
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}

/// The seed that the environment names, or the usual one.
#[must_use]
pub fn seed() -> u64 {
    number(SEED).unwrap_or(1)
}

/// How many rounds a test makes: `usual`, unless the environment says.
#[must_use]
pub fn rounds(usual: u64) -> u64 {
    number(ROUNDS).unwrap_or(usual)
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("${variable} is no number: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let mut chance = Chance(1_234_567);
        let numbers = [chance.below(u64::MAX), chance.below(u64::MAX)];
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
