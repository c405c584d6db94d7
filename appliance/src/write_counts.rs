//! How often each disk was written to, as the kernel counts it.
//!
//! Follows Documentation/block/stat.rst.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::kmsg;

const BLOCK: &str = "/sys/block";

/// Bytes that hold all that is told of a disk.
const ROOM: usize = 512;

/// Where the kernel tells of each disk. These files stay open, since the way to one takes four times
/// as long as reading it.
#[derive(Default)]
pub struct WriteCounts {
    /// By the kernel's name of the disk.
    files: Mutex<BTreeMap<String, File>>,
}

impl WriteCounts {
    /// Opens the files of the disks that are there, so that a template has them open.
    pub fn prepare(&self) {
        let Ok(disks) = fs::read_dir(BLOCK) else {
            kmsg::warn(format_args!("{BLOCK} cannot be read"));
            return;
        };
        for name in disks.flatten().filter_map(|disk| disk.file_name().into_string().ok()) {
            self.read(&name);
        }
    }

    /// How often the disk with this name was written to. `None` where the kernel does not tell.
    pub fn of(&self, kernel_name: &str) -> Option<u64> {
        // Reads, merged, sectors, time, writes.
        self.read(kernel_name)?.split_ascii_whitespace().nth(4)?.parse().ok()
    }

    /// Forgets a disk that is gone, whose name another one may get.
    pub fn forget(&self, kernel_name: &str) {
        self.files().remove(kernel_name);
    }

    fn read(&self, kernel_name: &str) -> Option<String> {
        let mut files = self.files();
        if !files.contains_key(kernel_name) {
            let file = File::open(Path::new(BLOCK).join(kernel_name).join("stat")).ok()?;
            files.insert(kernel_name.to_owned(), file);
        }
        let mut bytes = [0; ROOM];
        let length = files.get(kernel_name)?.read_at(&mut bytes, 0).ok()?;
        String::from_utf8(bytes[..length].to_vec()).ok()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        // A file is in it or not.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_are_not_there_have_no_count() {
        let counts = WriteCounts::default();
        assert_eq!(counts.of("no-such-disk"), None);
        counts.forget("no-such-disk");
    }

    #[test]
    fn all_disks_of_this_machine_have_one() {
        let counts = WriteCounts::default();
        counts.prepare();
        let names: Vec<String> = counts.files().keys().cloned().collect();
        assert!(names.iter().all(|name| counts.of(name).is_some()), "{names:?}");
        names.iter().for_each(|name| counts.forget(name));
        assert!(counts.files().is_empty());
    }
}
