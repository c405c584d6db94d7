//! Goes through a folder as a user's programs do: lists, looks at and reads everything in it, and
//! counts what fails. Done by a program of its own, because only the user who mounted may look into
//! the mount, and because it can be killed.
//!
//! A damaged filesystem can have files of exbibytes and folders within themselves, so that whole
//! has its limits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// How long a walk goes on. Behind it, it ends with the call that it waits for.
pub const MOST_TIME: Duration = Duration::from_secs(60);

/// Entries that are looked at.
const MOST_ENTRIES: u64 = 20_000;

/// Folders within each other.
const MOST_DEPTH: usize = 32;

/// Bytes that are read of one file, and of all.
const MOST_OF_FILE: u64 = 32 << 20;
const MOST_BYTES: u64 = 128 << 20;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// Entries of folders.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Calls that failed, by their error.
    pub errors: BTreeMap<String, u64>,
    /// Whether there was more than the limits allow.
    pub cut: bool,
}

/// Goes through `folder`.
#[must_use]
pub fn walk(folder: &Path) -> Walk {
    let mut walker = Walker { walk: Walk::default(), end: Instant::now() + MOST_TIME };
    let mut ahead = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = ahead.pop() {
        if walker.is_enough() {
            break;
        }
        let folders = walker.list(&folder);
        if depth < MOST_DEPTH {
            ahead.extend(folders.into_iter().map(|folder| (folder, depth + 1)));
        } else {
            walker.walk.cut |= !folders.is_empty();
        }
    }
    walker.walk
}

struct Walker {
    walk: Walk,
    end: Instant,
}

impl Walker {
    /// Whether a limit is reached, which is noted.
    fn is_enough(&mut self) -> bool {
        let Walk { entries, bytes, .. } = self.walk;
        self.walk.cut |=
            entries >= MOST_ENTRIES || bytes >= MOST_BYTES || Instant::now() >= self.end;
        self.walk.cut
    }

    /// Goes through one folder, and returns those in it.
    fn list(&mut self, folder: &Path) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        let Some(entries) = self.count(fs::read_dir(folder)) else { return folders };
        for entry in entries {
            // Behind an error of reading a folder nothing comes that would end it.
            let Some(entry) = self.count(entry) else { break };
            if self.is_enough() {
                break;
            }
            self.walk.entries += 1;
            let path = entry.path();
            let Some(meta) = self.count(fs::symlink_metadata(&path)) else { continue };
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_symlink() {
                self.count(fs::read_link(&path));
            } else if meta.is_file() {
                let read = self.read(&path);
                self.count(read);
            }
        }
        folders
    }

    fn read(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?.take(MOST_OF_FILE);
        let mut buffer = vec![0; 1 << 20];
        while !self.is_enough() {
            match file.read(&mut buffer)? {
                0 => {
                    self.walk.cut |= file.limit() == 0;
                    break;
                }
                count => self.walk.bytes += count as u64,
            }
        }
        Ok(())
    }

    /// Counts an error.
    fn count<T>(&mut self, result: io::Result<T>) -> Option<T> {
        result
            .inspect_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
                *self.walk.errors.entry(format!("{errno:?}")).or_default() += 1;
            })
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn everything_is_seen_and_what_fails_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("folder/file"), [0; 1000]).unwrap();
        symlink("nowhere", at("link")).unwrap();
        let whole = Walk { entries: 3, bytes: 1000, ..Walk::default() };
        assert_eq!(walk(folder.path()), whole);
        let gone = walk(&at("gone"));
        assert_eq!(gone.errors, BTreeMap::from([("ENOENT".to_owned(), 1)]));
    }

    #[test]
    fn a_file_without_end_is_read_in_part() {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join("large")).unwrap().set_len(1 << 40).unwrap();
        let walk = walk(folder.path());
        assert_eq!((walk.bytes, walk.cut), (MOST_OF_FILE, true));
    }
}
