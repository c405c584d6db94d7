//! A tree of files against what a manifest says is in it.

use std::collections::BTreeMap;
use std::path::Path;

use xtask::disks::manifest::{Entry, scan};

/// Checks that `folder` holds what `expected` lists and nothing else: every name, every
/// modification time, every file's size and hash.
///
/// NTFS' own files in the root are not in a manifest; the guest shows none of them.
///
/// # Panics
/// Where something differs.
pub fn assert_same(folder: &Path, expected: &BTreeMap<String, Entry>) {
    let found = scan(folder).expect("the mount is readable");
    let missing: Vec<&String> = expected.keys().filter(|name| !found.contains_key(*name)).collect();
    let extra: Vec<&String> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing {missing:?}, extra {extra:?}");
    for (name, wanted) in expected {
        let found = &found[name];
        assert_eq!((found.mtime, found.mtime_nsec), (wanted.mtime, wanted.mtime_nsec), "{name}");
        let content = |entry: &Entry| {
            entry.file.as_ref().map(|file| (file.size, file.sha256.clone(), file.links))
        };
        assert_eq!(content(found), content(wanted), "{name}");
    }
}
