//! How long a booting guest is waited for: as long as it prints.
//!
//! How fast a guest boots says nothing of whether it will: under a nested KVM, or a TCG that is itself
//! emulated, it takes a hundred times as long as on plain hardware. A guest that hangs stops printing.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::accelerator::Accelerator;
use crate::guest::lane::Wait;

/// How long the guest may be silent. The firmware prints at once, the kernel first when half of its
/// boot is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Before its first byte on the console.
    pub first: Duration,
    /// After it, at a time.
    pub silence: Duration,
    /// Altogether, even where it never stops printing.
    pub total: Duration,
}

/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(250);

impl Patience {
    /// With a guest that `accelerator` runs. Under a KVM that works the guest prints within a tenth of a
    /// second, and TCG follows where it does not; after TCG there is nothing to try.
    #[must_use]
    pub fn with(accelerator: Accelerator) -> Self {
        let [first, silence, total] = match accelerator {
            Accelerator::Kvm => [8, 30, 300],
            Accelerator::Tcg => [60, 120, 900],
        };
        let seconds = Duration::from_secs;
        Self { first: seconds(first), silence: seconds(silence), total: seconds(total) }
    }

    /// With one that `accelerator` goes on with from a template. It has nothing to print, and needs a
    /// twentieth of a second.
    #[must_use]
    pub fn restoring(accelerator: Accelerator) -> Self {
        let limit = Duration::from_secs(match accelerator {
            Accelerator::Kvm => 8,
            Accelerator::Tcg => 15,
        });
        Self { first: limit, silence: limit, total: limit }
    }
}

/// What has come from a guest's console so far.
#[derive(Clone, Debug, Default)]
pub struct Console(Arc<AtomicU64>);

impl Console {
    /// Takes note of `count` more bytes.
    pub(super) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Calls `wait_for` with a wait that ends when `patience` does.
    pub fn while_printing<T>(&self, patience: Patience, wait_for: impl FnOnce(Wait<'_>) -> T) -> T {
        let seen = Cell::new((0, Instant::now()));
        let runs = || {
            let (before, since) = seen.get();
            let printed = self.0.load(Ordering::Relaxed);
            if printed != before {
                seen.set((printed, Instant::now()));
                return true;
            }
            since.elapsed() < if printed == 0 { patience.first } else { patience.silence }
        };
        let deadline = Instant::now() + patience.total;
        wait_for(Wait { deadline, patience: LOOK.min(patience.first), runs: &runs })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;
    use crate::guest::lane::LaneError;
    use crate::guest::{Guest, GuestError};

    const SECOND: Duration = Duration::from_secs(1);

    /// Why a guest that never answers, and prints as `print` does, is given up.
    fn given_up(patience: Patience, print: impl FnOnce(&Console) + Send) -> LaneError {
        let (host, _guest) = UnixStream::pair().unwrap();
        let console = Console::default();
        let connected = thread::scope(|scope| {
            scope.spawn(|| print(&console));
            console.while_printing(patience, |wait| Guest::connect(vec![host], None, wait, SECOND))
        });
        match connected {
            Err(GuestError::Lane(error)) => error,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("nobody answered"),
        }
    }

    #[test]
    fn a_guest_that_never_prints_is_given_up_first() {
        let patience =
            Patience { first: SECOND / 10, silence: 3600 * SECOND, total: 3600 * SECOND };
        assert!(matches!(given_up(patience, |_| {}), LaneError::Silent));
    }

    #[test]
    fn a_guest_that_stops_printing_is_given_up() {
        let patience = Patience { first: 3600 * SECOND, silence: SECOND, total: 3600 * SECOND };
        assert!(matches!(given_up(patience, |console| console.add(20)), LaneError::Silent));
    }

    #[test]
    fn a_guest_that_prints_is_waited_for_until_the_total() {
        let patience = Patience { first: SECOND, silence: SECOND, total: 4 * SECOND };
        let print = |console: &Console| {
            for _ in 0..50 {
                console.add(1);
                thread::sleep(SECOND / 10);
            }
        };
        assert!(matches!(given_up(patience, print), LaneError::Late));
    }
}
