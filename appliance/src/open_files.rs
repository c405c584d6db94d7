//! Recently used open files and directories. A request names its file by path, so without this
//! each read of a large file would resolve the path and open the file again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guestmnt_protocol::path::GuestPath;

/// Up to a fixed number of open things by path; the one not used for longest makes room.
/// Safe to share between lanes. What has made room stays open as long as a lane still uses it.
pub struct OpenFiles<T> {
    capacity: usize,
    /// Most recently used first. A few dozen entries: comparing paths from the front, which
    /// mostly differ in length, is faster than hashing the one looked for.
    recent: Mutex<VecDeque<(GuestPath, Arc<T>)>>,
}

impl<T> OpenFiles<T> {
    /// Keeps at most `capacity` things open.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, recent: Mutex::new(VecDeque::with_capacity(capacity)) }
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
        if let Some(found) = self.find(path) {
            return Ok(found);
        }
        // Not under the lock: a slow disk must not stall the other lanes. Two lanes may open the
        // same file then; both descriptors are good and one is dropped.
        let opened = Arc::new(open()?);
        let mut recent = self.lock();
        recent.retain(|(known, _)| known != path);
        recent.truncate(self.capacity - 1);
        recent.push_front((path.clone(), Arc::clone(&opened)));
        Ok(opened)
    }

    /// Forgets everything, since paths may mean other files from now on.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn find(&self, path: &GuestPath) -> Option<Arc<T>> {
        let mut recent = self.lock();
        let index = recent.iter().position(|(known, _)| known == path)?;
        if index > 0 {
            let entry = recent.remove(index)?;
            recent.push_front(entry);
        }
        recent.front().map(|(_, open)| Arc::clone(open))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(GuestPath, Arc<T>)>> {
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
    fn a_failure_to_open_is_not_kept() {
        let files = OpenFiles::<u32>::new(2);
        assert_eq!(files.get_or_open(&path("a"), || Err("no")), Err("no"));
        assert_eq!(get(&files, "a", 2), 2);
    }
}
