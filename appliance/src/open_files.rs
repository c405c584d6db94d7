//! Recently used open files and directories. A request names its file by path, so without this
//! each read of a large file would resolve the path and open the file again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guestmnt_protocol::path::GuestPath;

/// Up to a fixed number of open things by path; the one not used for longest makes room.
/// Safe to share between lanes. What has made room stays open as long as a lane still uses it.
pub struct OpenFiles<T> {
    capacity: usize,
    recent: Mutex<Recent<T>>,
}

struct Recent<T> {
    /// Most recently used first. A few dozen entries: comparing paths from the front, which
    /// mostly differ in length, is faster than hashing the one looked for.
    open: VecDeque<(GuestPath, Arc<T>)>,
    /// Counts the times that paths lost their meaning: what was opened by one before is not kept.
    forgotten: u64,
}

impl<T> OpenFiles<T> {
    /// Keeps at most `capacity` things open.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let recent = Recent { open: VecDeque::with_capacity(capacity), forgotten: 0 };
        Self { capacity, recent: Mutex::new(recent) }
    }

    /// What is open at `path`, or what `open` opens.
    ///
    /// # Errors
    /// That of `open`.
    pub fn get_or_open<E>(
        &self,
        path: &GuestPath,
        open: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let forgotten = match self.find(path) {
            Ok(found) => return Ok(found),
            Err(forgotten) => forgotten,
        };
        // Not under the lock: a slow disk must not stall the other lanes. Two lanes may open the
        // same file then; both descriptors are good and one is dropped.
        let opened = Arc::new(open()?);
        let mut recent = self.lock();
        if recent.forgotten == forgotten {
            recent.open.retain(|(known, _)| known != path);
            recent.open.truncate(self.capacity - 1);
            recent.open.push_front((path.clone(), Arc::clone(&opened)));
        }
        Ok(opened)
    }

    /// Forgets everything, since paths may mean other files from now on.
    pub fn clear(&self) {
        let mut recent = self.lock();
        recent.open.clear();
        recent.forgotten += 1;
    }

    /// Forgets what is open at `path`, which may mean something else from now on.
    pub fn forget(&self, path: &GuestPath) {
        let mut recent = self.lock();
        recent.open.retain(|(known, _)| known != path);
        recent.forgotten += 1;
    }

    /// What is open at `path`, or else how often something was forgotten so far.
    fn find(&self, path: &GuestPath) -> Result<Arc<T>, u64> {
        let mut recent = self.lock();
        let index = recent.open.iter().position(|(known, _)| known == path);
        let entry = index.and_then(|index| recent.open.remove(index)).ok_or(recent.forgotten)?;
        let found = Arc::clone(&entry.1);
        recent.open.push_front(entry);
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, Recent<T>> {
        // No step leaves the list half-changed, so a lane that panicked has spoilt nothing.
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn path(name: &str) -> GuestPath {
        GuestPath::parse(name.as_bytes()).unwrap()
    }

    fn get(files: &OpenFiles<u32>, name: &str, otherwise: u32) -> u32 {
        *files.get_or_open(&path(name), || Ok::<_, Infallible>(otherwise)).unwrap()
    }

    #[test]
    fn what_is_open_is_not_opened_again() {
        let files = OpenFiles::new(2);
        assert_eq!(get(&files, "a", 1), 1);
        assert_eq!(get(&files, "a", 2), 1);
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let files = OpenFiles::new(2);
        get(&files, "a", 1);
        get(&files, "b", 1);
        get(&files, "a", 2);
        get(&files, "c", 1);
        assert_eq!(get(&files, "a", 3), 1);
        assert_eq!(get(&files, "b", 3), 3);
    }

    #[test]
    fn clear_forgets_everything() {
        let files = OpenFiles::new(2);
        get(&files, "a", 1);
        files.clear();
        assert_eq!(get(&files, "a", 2), 2);
    }

    #[test]
    fn what_was_opened_before_its_path_lost_its_meaning_is_not_kept() {
        let files = OpenFiles::new(2);
        let forget = || {
            files.forget(&path("a"));
            Ok::<_, Infallible>(1)
        };
        assert_eq!(*files.get_or_open(&path("a"), forget).unwrap(), 1);
        assert_eq!(get(&files, "a", 2), 2);
        files.forget(&path("a"));
        assert_eq!(get(&files, "a", 3), 3);
    }

    #[test]
    fn a_failure_to_open_is_not_kept() {
        let files = OpenFiles::<u32>::new(2);
        assert_eq!(files.get_or_open(&path("a"), || Err("no")), Err("no"));
        assert_eq!(get(&files, "a", 2), 2);
    }
}
