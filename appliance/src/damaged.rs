//! Directories of which names could not be read.
//!
//! A listing takes several requests, and the directory may be closed and opened again between
//! them. So what was noticed with an earlier page is kept until the tree is gone.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Directories that are kept. With more, every listing is taken for incomplete.
const MAX: usize = 1 << 16;

/// The directories, by the numbers of their device and inode.
#[derive(Default)]
pub struct Damaged(Mutex<BTreeSet<(u64, u64)>>);

impl Damaged {
    /// Notes that names of a directory are missing.
    pub fn note(&self, directory: (u64, u64)) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MAX {
            known.insert(directory);
        }
    }

    /// Whether names of a directory are missing.
    pub fn holds(&self, directory: (u64, u64)) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.len() >= MAX || known.contains(&directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_room_all_are_damaged() {
        let damaged = Damaged::default();
        damaged.note((1, 2));
        assert_eq!([(1, 2), (1, 3), (2, 2)].map(|of| damaged.holds(of)), [true, false, false]);
        (0..MAX as u64).for_each(|inode| damaged.note((3, inode)));
        assert!(damaged.holds((1, 3)));
    }
}
