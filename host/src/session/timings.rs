//! Where a launch's time goes, for `--timings`.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::info;

/// A clock that notes when each step was done.
pub struct Timings {
    started: Instant,
    steps: Mutex<Vec<(&'static str, Duration)>>,
}

impl Timings {
    /// Begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now(), steps: Mutex::default() }
    }

    /// Notes that `step` is done. Of two threads that note one at once, the second to do it is later.
    pub fn done(&self, step: &'static str) {
        let mut steps = self.steps.lock().expect("nothing panics while it holds the steps");
        let at = self.started.elapsed();
        steps.push((step, at));
        drop(steps);
        info!("{step} after {:.1} ms", at.as_secs_f64() * 1e3);
    }
}

/// One line for each step: milliseconds since the step before, and since the start.
impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps.lock().expect("nothing panics while it holds the steps");
        let mut before = Duration::ZERO;
        write!(f, "{:<20} {:>9} {:>9}", "step", "ms", "since")?;
        for (step, at) in steps.iter() {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            write!(f, "\n{step:<20} {:>9.1} {:>9.1}", ms(*at - before), ms(*at))?;
            before = *at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn steps_of_several_threads_are_in_the_order_of_time() {
        let timings = Timings::start();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..2_000).for_each(|_| timings.done("step")));
            }
        });
        let steps = timings.steps.lock().unwrap();
        assert_eq!(steps.len(), 16_000);
        assert!(steps.is_sorted_by_key(|(_, at)| *at));
    }
}
