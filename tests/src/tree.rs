//! A tree of files against what a manifest says is in it.

use std::collections::BTreeMap;
use std::path::Path;

use xtask::disks::manifest::{Entry, scan};

/// Checks that `folder` holds what `expected` lists and nothing else: every name, every
/// modification time, every file's size and hash, every link's target.
///
/// NTFS' own files in the root are not in a manifest; the guest shows none of them.
///
/// # Panics
/// Where something differs.
pub fn assert_same(folder: &Path, expected: &BTreeMap<String, Entry>) {
    for (name, wanted, found) in pairs(folder, expected) {
        assert_eq!((found.mtime, found.mtime_nsec), (wanted.mtime, wanted.mtime_nsec), "{name}");
        assert_eq!(content(&found), content(wanted), "{name}");
    }
}

/// As [`assert_same`], whatever the modification times are.
///
/// # Panics
/// Where something else differs.
pub fn assert_same_but_times(folder: &Path, expected: &BTreeMap<String, Entry>) {
    for (name, wanted, found) in pairs(folder, expected) {
        assert_eq!(content(&found), content(wanted), "{name}");
    }
}

/// What is expected and found under each name.
fn pairs<'a>(
    folder: &Path,
    expected: &'a BTreeMap<String, Entry>,
) -> Vec<(&'a String, &'a Entry, Entry)> {
    let mut found = scan(folder).expect("the mount is readable");
    let missing: Vec<&String> = expected.keys().filter(|name| !found.contains_key(*name)).collect();
    let extra: Vec<&String> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:?}, extra {extra:?}");
    let take = |(name, wanted)| (name, wanted, found.remove(name).expect("it is not missing"));
    expected.iter().map(take).collect()
}

/// All of an entry but its time and streams, which a mount does not show.
fn content(entry: &Entry) -> (Option<(u64, &str, u64)>, Option<&str>) {
    let file = entry.file.as_ref().map(|file| (file.size, file.sha256.as_str(), file.links));
    (file, entry.target.as_deref())
}
