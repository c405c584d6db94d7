//! Times that a driver makes up: of the root of a filesystem that keeps none for it, such as exFAT, and
//! of the guest's own filesystem. They are those of the mount, other ones each time. What is shown in
//! their place is the same each time: the beginning of 1970.

use std::ops::RangeInclusive;
use std::path::Path;

use nix::sys::stat::{FileStat, stat};
use nix::time::{ClockId, clock_gettime};

/// How far drivers round such a time down: exFAT's time of access has two seconds.
const PRECISION: Moment = 2_000_000_000;

/// A moment in nanoseconds since 1970.
type Moment = i128;

/// The root of a mount, and when the times are made up that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeUp {
    device: u64,
    inode: u64,
    when: RangeInclusive<Moment>,
}

/// Now, by the clock that filesystem drivers take their times from.
#[must_use]
pub fn now() -> Moment {
    clock_gettime(ClockId::CLOCK_REALTIME_COARSE)
        .map_or(Moment::MAX, |now| moment(now.tv_sec(), now.tv_nsec()))
}

fn moment(secs: i64, nanos: i64) -> Moment {
    Moment::from(secs) * 1_000_000_000 + Moment::from(nanos)
}

impl MadeUp {
    /// The root of what was mounted on `path` since `began`, if its times came from that: then no image
    /// can have kept the time of its last change.
    #[must_use]
    pub fn at(path: &Path, began: Moment) -> Option<Self> {
        let ended = now();
        let [_, _, changed] = times(&stat(path).ok()?);
        (began..=ended).contains(&changed).then_some(())?;
        Self::of(path, began.saturating_sub(PRECISION)..=ended)
    }

    /// The root of what is mounted on `path`, whatever its times.
    #[must_use]
    pub fn always(path: &Path) -> Option<Self> {
        Self::of(path, Moment::MIN..=Moment::MAX)
    }

    fn of(path: &Path, when: RangeInclusive<Moment>) -> Option<Self> {
        let root = stat(path).ok()?;
        Some(Self { device: root.st_dev, inode: root.st_ino, when })
    }

    /// `stat` without the times that were made up, if it is that root's.
    #[must_use]
    pub fn removed_from(&self, stat: FileStat) -> FileStat {
        if (stat.st_dev, stat.st_ino) != (self.device, self.inode) {
            return stat;
        }
        let mut shown = stat;
        let [accessed, modified, changed] = times(&stat).map(|time| self.when.contains(&time));
        if accessed {
            (shown.st_atime, shown.st_atime_nsec) = (0, 0);
        }
        if modified {
            (shown.st_mtime, shown.st_mtime_nsec) = (0, 0);
        }
        if changed {
            (shown.st_ctime, shown.st_ctime_nsec) = (0, 0);
        }
        shown
    }
}

fn times(stat: &FileStat) -> [Moment; 3] {
    [
        moment(stat.st_atime, stat.st_atime_nsec),
        moment(stat.st_mtime, stat.st_mtime_nsec),
        moment(stat.st_ctime, stat.st_ctime_nsec),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn only_times_of_the_mount_are_taken_from_its_root() {
        let began = now();
        let folder = tempfile::tempdir().unwrap();
        let made_up = MadeUp::at(folder.path(), began).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        File::open(folder.path()).unwrap().set_modified(old).unwrap();
        let root = stat(folder.path()).unwrap();
        let shown = made_up.removed_from(root);
        assert_eq!((shown.st_atime, shown.st_mtime), (0, 5));
        let always = MadeUp::always(folder.path()).unwrap();
        let shown = always.removed_from(root);
        assert_eq!((shown.st_atime, shown.st_mtime, shown.st_ctime), (0, 0, 0));
        let mut elsewhere = root;
        elsewhere.st_ino += 1;
        assert_eq!(always.removed_from(elsewhere), elsewhere);
    }

    #[test]
    fn a_root_with_times_of_its_own_keeps_them() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(MadeUp::at(folder.path(), now()), None);
    }
}
