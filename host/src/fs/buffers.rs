//! What contents are read into on their way to the kernel.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers that are not in use, the one used last on top: that is in the processor's cache. They grow
/// to the largest request. There are as many as threads read at once, which are fewer than there are
/// threads.
#[derive(Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Has `work` use a buffer, whatever is in it.
    pub fn with<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut buffer = self.free().pop().unwrap_or_default();
        let done = work(&mut buffer);
        self.free().push(buffer);
        done
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // A buffer is in it or not.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_used_last_is_used_next() {
        let buffers = Buffers::default();
        let outer = buffers.with(|outer| {
            outer.resize(10, 1);
            buffers.with(|inner| assert!(inner.is_empty()));
            outer.as_ptr()
        });
        buffers.with(|next| {
            assert_eq!(next.as_ptr(), outer);
            buffers.with(|other| assert_ne!(other.as_ptr(), next.as_ptr()));
        });
        assert_eq!(buffers.free().len(), 2);
    }
}
