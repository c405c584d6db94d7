//! How far long work has come: on a terminal, and nowhere else.

use std::time::Duration;

use guestmnt_protocol::path::Printable;
use indicatif::{ProgressBar, ProgressStyle};

/// A line that tells how far the work has come.
pub struct Progress(ProgressBar);

impl Progress {
    /// Of work on so many bytes.
    #[must_use]
    pub fn of_bytes(count: u64) -> Self {
        let template = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        Self::styled(ProgressBar::new(count), template)
    }

    /// Of work whose end cannot be foretold.
    #[must_use]
    pub fn open_ended() -> Self {
        Self::styled(ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec} {elapsed}")
    }

    fn styled(bar: ProgressBar, template: &'static str) -> Self {
        let style = ProgressStyle::with_template(template).expect("a constant template");
        // Hidden by itself where standard error is no terminal.
        let bar = bar.with_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// So many bytes of so many are done.
    pub fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// Prints a line about a file of the image on standard error.
    pub fn tell(&self, file: &[u8], what: &dyn std::fmt::Display) {
        self.0.suspend(|| eprintln!("guestimg: {}: {what}", Printable(file)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
