//! Things that are kept as long as there is room for them: the one not used for longest makes room.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Values by key, up to a number of bytes in sum. Each value's bytes are what its user says.
pub struct Recent<K, V> {
    /// Bytes.
    limit: usize,
    total: usize,
    /// Counts uses.
    now: u64,
    values: HashMap<K, Kept<V>>,
    /// Keys by their last use.
    uses: BTreeMap<u64, K>,
}

struct Kept<V> {
    value: V,
    bytes: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    /// Keeps values of `limit` bytes in sum.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, total: 0, now: 0, values: HashMap::new(), uses: BTreeMap::new() }
    }

    /// The value of `key`, which counts as a use of it.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        let kept = self.values.get_mut(key)?;
        self.now += 1;
        self.uses.remove(&kept.used);
        self.uses.insert(self.now, key.clone());
        kept.used = self.now;
        Some(&mut kept.value)
    }

    /// Adds a value of no bytes, or replaces the one that there is.
    pub fn insert(&mut self, key: K, value: V) -> &mut V {
        self.remove(&key);
        self.now += 1;
        self.uses.insert(self.now, key.clone());
        let kept = Kept { value, bytes: 0, used: self.now };
        &mut self.values.entry(key).insert_entry(kept).into_mut().value
    }

    /// Notes how many bytes the value of `key` has now, and makes room: values that were not used
    /// for longest go, this one too where it is too large by itself.
    pub fn weigh(&mut self, key: &K, bytes: usize) {
        if let Some(kept) = self.values.get_mut(key) {
            self.total = self.total - kept.bytes + bytes;
            kept.bytes = bytes;
        }
        while self.total > self.limit
            && let Some((_, oldest)) = self.uses.first_key_value()
        {
            self.remove(&oldest.clone());
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some(kept) = self.values.remove(key) {
            self.total -= kept.bytes;
            self.uses.remove(&kept.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent(limit: usize, values: &[(u8, usize)]) -> Recent<u8, ()> {
        let mut recent = Recent::new(limit);
        for &(key, bytes) in values {
            recent.insert(key, ());
            recent.weigh(&key, bytes);
        }
        recent
    }

    fn keys(recent: &Recent<u8, ()>) -> Vec<u8> {
        assert_eq!(recent.values.len(), recent.uses.len());
        recent.uses.values().copied().collect()
    }

    #[test]
    fn the_one_not_used_for_longest_makes_room() {
        let mut recent = recent(10, &[(1, 4), (2, 4)]);
        assert!(recent.get(&1).is_some());
        recent.insert(3, ());
        recent.weigh(&3, 4);
        assert_eq!(keys(&recent), [1, 3]);
    }

    #[test]
    fn a_value_that_grows_pushes_others_out_and_at_last_itself() {
        let mut recent = recent(10, &[(1, 4), (2, 4)]);
        recent.weigh(&2, 7);
        assert_eq!(keys(&recent), [2]);
        recent.weigh(&2, 11);
        assert_eq!((keys(&recent), recent.total), (vec![], 0));
    }

    #[test]
    fn a_value_that_is_replaced_weighs_nothing() {
        let mut recent = recent(10, &[(1, 9)]);
        recent.insert(1, ());
        assert_eq!((keys(&recent), recent.total), (vec![1], 0));
    }
}
