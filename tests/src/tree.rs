//! A tree of files against what a manifest says is in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest, Sha256};
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

/// Reads every file that is not small in pieces, as a database does, the last piece first, and
/// checks its hash. In a mount that nobody has read from, each piece is a request.
///
/// # Panics
/// Where something differs.
pub fn assert_same_in_pieces(folder: &Path, expected: &BTreeMap<String, Entry>) {
    const PIECE: usize = 12 << 10;
    for (name, entry) in expected {
        let Some(wanted) = entry.file.as_ref().filter(|file| file.size > 4 * PIECE as u64) else {
            continue;
        };
        let file = File::open(folder.join(name)).expect("it is there");
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("it is a file");
        let mut bytes = vec![0; usize::try_from(wanted.size).expect("it fits memory")];
        for (number, piece) in bytes.chunks_mut(PIECE).enumerate().rev() {
            file.read_exact_at(piece, (number * PIECE) as u64).expect("it can be read");
        }
        let found = Sha256::digest(&bytes).iter().fold(String::new(), |mut text, byte| {
            text.push_str(&format!("{byte:02x}"));
            text
        });
        assert_eq!(found, wanted.sha256, "{name}");
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
