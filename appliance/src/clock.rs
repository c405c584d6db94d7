//! The guest's clock, by which its kernel notes when a file was changed (`st_ctime`).
//!
//! The host's kernel caches what is written, and notes by its own clock when that was; it hands the
//! time over when it writes. No system call sets this time: a file gets the moment at which something
//! of it is changed. So something of it is changed while the clock shows the host's time.
//!
//! **Invariant:** only the guest of a VM has one of these: elsewhere the clock is the host's own.

use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FileStat, UtimensatFlags, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};

use guestmnt_protocol::attr::Time;

/// How often it is tried to change a file before the clock goes on: it goes on in steps of up to
/// 10 ms.
const TRIES: usize = 4;

/// What a filesystem may cut off a time, unless it has whole seconds.
const PRECISION_NS: i128 = 1_000;

/// The clock.
#[derive(Default)]
pub struct Clock {
    /// Nanoseconds from the monotonic clock to this one, once they were needed. Always the same, so
    /// that the clock does not drift.
    ahead: Mutex<Option<i64>>,
}

/// A moment at which a file was changed.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// The clock that is to show it.
    pub clock: &'a Clock,
    /// When.
    pub time: Time,
}

impl Clock {
    /// Sets the clock.
    ///
    /// # Errors
    /// As clock_settime(2).
    pub fn set(&self, time: TimeSpec) -> nix::Result<()> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        *ahead = None;
        clock_settime(ClockId::CLOCK_REALTIME, time)
    }

    /// Notes that the file at `path`, of which `stat` is known, was changed at `time`, as well as its
    /// filesystem can. Nothing else may be changed meanwhile.
    ///
    /// # Errors
    /// As clock_gettime(2), clock_settime(2) for a time that the clock cannot show, utimensat(2), and
    /// those of `stat_again`.
    pub fn stamp(
        &self,
        path: &str,
        stat: &FileStat,
        time: Time,
        stat_again: impl Fn() -> nix::Result<FileStat>,
    ) -> nix::Result<()> {
        let time = TimeSpec::new(time.secs, time.nanos.into());
        if is_stamped(stat, time) {
            return Ok(());
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = match *ahead {
            Some(ahead) => ahead,
            None => *ahead.insert(
                now(ClockId::CLOCK_REALTIME)?
                    .checked_sub(now(ClockId::CLOCK_MONOTONIC)?)
                    .ok_or(Errno::EINVAL)?,
            ),
        };
        let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        for _ in 0..TRIES {
            clock_settime(ClockId::CLOCK_REALTIME, time)?;
            let follow = UtimensatFlags::FollowSymlink;
            let changed = utimensat(AT_FDCWD, path, &TimeSpec::UTIME_OMIT, &modified, follow);
            let now = now(ClockId::CLOCK_MONOTONIC)?.saturating_add(ahead);
            clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::nanoseconds(now))?;
            changed?;
            if is_stamped(&stat_again()?, time) {
                break;
            }
        }
        Ok(())
    }
}

fn now(clock: ClockId) -> nix::Result<i64> {
    Ok(clock_gettime(clock)?.num_nanoseconds())
}

/// Whether a file has this time, or what a filesystem keeps of it.
fn is_stamped(stat: &FileStat, time: TimeSpec) -> bool {
    let nanoseconds = |secs: i64, nanos: i64| i128::from(secs) * 1_000_000_000 + i128::from(nanos);
    let kept = nanoseconds(stat.st_ctime, stat.st_ctime_nsec);
    (0..PRECISION_NS).contains(&(nanoseconds(time.tv_sec(), time.tv_nsec()) - kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_as_kept_if_little_of_it_is_cut_off() {
        let mut stat: FileStat = nix::sys::stat::stat("/").unwrap();
        (stat.st_ctime, stat.st_ctime_nsec) = (1_000_000_000, 500_000_100);
        let kept = |secs, nanos| is_stamped(&stat, TimeSpec::new(secs, nanos));
        assert!(kept(1_000_000_000, 500_000_100) && kept(1_000_000_000, 500_000_199));
        assert!(!kept(1_000_000_000, 500_000_099) && !kept(1_000_000_000, 504_000_100));
        assert!(!kept(999_999_999, 500_000_100));
    }
}
