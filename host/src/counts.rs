//! Counting requests by their kind, for `--stats`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of request.
pub trait Kind: Copy + 'static {
    /// All kinds, in the order of their numbers.
    const ALL: &'static [Self];

    /// Its number, an index into [`Kind::ALL`].
    fn number(self) -> usize;

    /// What people read.
    fn name(self) -> &'static str;
}

/// How many requests of each kind there were, and how many bytes they brought.
pub struct Counts<K> {
    requests: Vec<AtomicU64>,
    bytes: AtomicU64,
    kinds: std::marker::PhantomData<K>,
}

impl<K: Kind> Default for Counts<K> {
    fn default() -> Self {
        let requests = K::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self { requests, bytes: AtomicU64::new(0), kinds: std::marker::PhantomData }
    }
}

impl<K: Kind> Counts<K> {
    /// Counts a request.
    pub fn request(&self, kind: K) {
        self.requests[kind.number()].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes.
    pub fn bytes(&self, count: usize) {
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Requests of this kind.
    #[must_use]
    pub fn of(&self, kind: K) -> u64 {
        self.requests[kind.number()].load(Ordering::Relaxed)
    }

    /// Requests of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.requests.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// `3 requests (readdir 2, stat 1), 100 bytes`
impl<K: Kind> fmt::Display for Counts<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: Vec<(u64, &str)> = K::ALL
            .iter()
            .map(|&kind| (self.of(kind), kind.name()))
            .filter(|(count, _)| *count > 0)
            .collect();
        // The most frequent first.
        counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let counts: Vec<String> =
            counts.iter().map(|(count, name)| format!("{name} {count}")).collect();
        write!(f, "{} requests ({})", self.total(), counts.join(", "))?;
        write!(f, ", {} bytes", self.bytes.load(Ordering::Relaxed))
    }
}

/// Defines a kind of request: an enum, with the names that people read.
macro_rules! kinds {
    ($(#[$doc:meta])* $kind:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $crate::counts::Kind for $kind {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn number(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}
pub(crate) use kinds;

#[cfg(test)]
mod tests {
    use super::*;

    kinds! {
        /// Fruit.
        Fruit {
            /// Red.
            Apple = "apple",
            /// Green.
            Pear = "pear",
            /// Neither.
            Plum = "plum",
        }
    }

    #[test]
    fn what_was_counted_is_told_the_most_frequent_first() {
        let counts = Counts::default();
        for fruit in [Fruit::Plum, Fruit::Apple, Fruit::Plum] {
            counts.request(fruit);
        }
        counts.bytes(7);
        assert_eq!(counts.to_string(), "3 requests (plum 2, apple 1), 7 bytes");
        assert_eq!((counts.total(), counts.of(Fruit::Plum), counts.of(Fruit::Pear)), (3, 2, 0));
    }
}
