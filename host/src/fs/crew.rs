//! The threads that answer the kernel, of which those rest that would only take turns.
//!
//! The kernel hands each request to the thread that has waited longest. With more threads than
//! processors, what a processor's caches know of each is gone when its turn comes, which makes a
//! request from memory take a tenth longer. So where requests come and go fast, threads that are not
//! needed for it stay away for a moment. Only for a moment: what follows may be slow, and keep those
//! that are left.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What took no longer came from memory.
const QUICK: Duration = Duration::from_micros(150);

/// How long a thread rests. Unmounting may have to wait for it.
const REST: Duration = Duration::from_millis(20);

/// The threads of one mount.
pub struct Crew {
    /// Threads that may rest at once.
    spare: usize,
    resting: AtomicUsize,
}

impl Crew {
    /// So many threads, of which `storing` may be storing ahead.
    #[must_use]
    pub fn of(threads: usize, storing: usize) -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        Self { spare: spare(threads, processors, storing), resting: AtomicUsize::new(0) }
    }

    /// Lets this thread rest, if what it began at `started` was quick and others are there.
    pub fn rest(&self, started: Instant) {
        if self.spare == 0 || started.elapsed() > QUICK {
            return;
        }
        // More can have been counted than rest, for an instant: they return at once.
        if self.resting.fetch_add(1, Ordering::Relaxed) < self.spare {
            thread::sleep(REST);
        }
        self.resting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Threads that are not needed: one more than can run is, and than may be storing ahead, so that
/// somebody answers.
fn spare(threads: usize, processors: usize, storing: usize) -> usize {
    threads.saturating_sub(processors.max(storing) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of three threads rest after something that began at `started`.
    fn rested(crew: &Crew, started: Instant) -> Vec<bool> {
        let rest = || {
            let before = Instant::now();
            crew.rest(started);
            before.elapsed() >= REST
        };
        thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(rest));
            threads.map(|thread| thread.join().unwrap()).to_vec()
        })
    }

    #[test]
    fn threads_rest_that_are_not_needed_after_what_was_quick() {
        let hour = Duration::from_secs(3600);
        // From the future: that is quick, however slow this machine is.
        let quick = Instant::now() + hour;
        let crew = |spare| Crew { spare, resting: AtomicUsize::new(0) };
        assert_eq!(rested(&crew(3), quick), [true; 3]);
        assert_eq!(rested(&crew(0), quick), [false; 3]);
        assert!(rested(&crew(1), quick).contains(&true));
        if let Some(long_ago) = Instant::now().checked_sub(QUICK + Duration::from_micros(1)) {
            assert_eq!(rested(&crew(3), long_ago), [false; 3]);
        }
    }

    #[test]
    fn few_threads_do_not_rest() {
        assert_eq!(Crew::of(1, 0).spare, 0);
        assert!(Crew::of(1 << 20, 0).spare > 0);
    }

    #[test]
    fn one_answers_where_others_run_or_store() {
        assert_eq!([1, 2, 4, 16].map(|processors| spare(8, processors, 2)), [5, 5, 3, 0]);
        assert_eq!([1, 2, 4, 16].map(|processors| spare(8, processors, 0)), [6, 5, 3, 0]);
    }
}
