//! Steps of a chore, shown as they pass: a spinner on a terminal, and everywhere one line for
//! each with its duration.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::Error;

/// Runs `work`, shows its title while it runs, its duration and the detail that it returns beside
/// its result when it is done.
///
/// # Errors
/// Those of `work`, with the step's title in front.
pub fn step<T>(title: &str, work: impl FnOnce() -> Result<(T, String), Error>) -> Result<T, Error> {
    let start = Instant::now();
    // Hidden by itself where stderr is no terminal.
    let spinner = ProgressBar::new_spinner().with_message(title.to_owned()).with_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a constant template"),
    );
    spinner.enable_steady_tick(Duration::from_millis(100));
    let result = work();
    spinner.finish_and_clear();
    let (value, detail) = result
        .map_err(|source| Error::Step { step: title.to_owned(), source: Box::new(source) })?;
    line(title, start.elapsed(), &detail);
    Ok(value)
}

/// Prints a finished step's line.
pub fn line(title: &str, took: Duration, detail: &str) {
    eprintln!("{title:<28} {:>7.2} s  {detail}", took.as_secs_f64());
}

/// `bytes` as people read it.
#[must_use]
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
