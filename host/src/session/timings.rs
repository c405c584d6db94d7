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

    /// Notes that `step` is done.
    pub fn done(&self, step: &'static str) {
        let at = self.started.elapsed();
        info!("{step} after {:.1} ms", at.as_secs_f64() * 1e3);
        self.steps.lock().expect("nothing panics while it holds the steps").push((step, at));
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
