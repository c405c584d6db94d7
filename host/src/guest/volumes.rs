//! The numbers by which this side tells volumes apart. A guest numbers them as it meets them, and
//! another guest of the same disks meets them in another order; so a file of each volume is
//! remembered, and the next guest asked what number that is on.
//!
//! Files of two volumes may have the same number in their filesystems: were volumes mixed up, one
//! file would be shown for another.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use guestmnt_protocol::path::GuestPath;
use nix::errno::Errno;

/// Bytes of the paths that are remembered. A guest can make up volumes as it likes.
const MAX_BYTES: usize = 1 << 20;

/// The volumes that were met, but the root's: that is number 0 for everybody.
#[derive(Default)]
pub struct Volumes(Mutex<State>);

#[derive(Default)]
struct State {
    /// A file of each, from our number 1 on.
    met: Vec<GuestPath>,
    bytes: usize,
    /// Our numbers, by VM and its guest's number.
    ours: HashMap<(u64, u16), u16>,
    /// A volume was met that could not be remembered.
    incomplete: bool,
}

/// Why another guest cannot go on with the files.
#[derive(Debug, PartialEq, Eq)]
pub enum Unlike {
    /// There are more volumes than can be told apart once more.
    TooMany,
    /// It shows other volumes than the guest before.
    OtherVolumes,
}

impl std::fmt::Display for Unlike {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooMany => "there are more volumes than are remembered",
            Self::OtherVolumes => "it shows other volumes than the one before",
        })
    }
}

impl Volumes {
    /// Our number of the volume that the guest in `vm` calls `theirs`, on which the file `path` is.
    /// `None` where there are no more numbers.
    pub fn number(
        &self,
        vm: u64,
        theirs: u16,
        path: impl FnOnce() -> Option<GuestPath>,
    ) -> Option<u16> {
        if theirs == 0 {
            return Some(0);
        }
        let mut state = self.lock();
        if let Some(&ours) = state.ours.get(&(vm, theirs)) {
            return Some(ours);
        }
        let ours = u16::try_from(state.met.len() + 1).ok()?;
        let known = if state.incomplete { None } else { path() };
        // The root is on volume 0, and tells nothing of another.
        let room = MAX_BYTES - state.bytes;
        let known = known.filter(|path| !path.is_root() && path.as_bytes().len() <= room);
        state.incomplete |= known.is_none();
        let path = known.unwrap_or_else(GuestPath::root);
        state.bytes += path.as_bytes().len();
        state.met.push(path);
        state.ours.insert((vm, theirs), ours);
        Some(ours)
    }

    /// Learns the numbers that the guest in `vm` has for the volumes that were met; `ask` gives its
    /// number for a file. Those of the VM before are kept, for answers that are still looked at.
    ///
    /// # Errors
    /// [`Unlike`]; then it must not be used.
    pub fn learn(
        &self,
        vm: u64,
        ask: impl Fn(GuestPath) -> Result<u16, Errno>,
    ) -> Result<(), Unlike> {
        let state = self.lock();
        if state.incomplete {
            return Err(Unlike::TooMany);
        }
        let met = state.met.clone();
        drop(state);
        let mut learnt = HashMap::new();
        for (ours, path) in (1..).zip(met) {
            let theirs = ask(path).map_err(|_| Unlike::OtherVolumes)?;
            if theirs == 0 || learnt.insert((vm, theirs), ours).is_some() {
                return Err(Unlike::OtherVolumes);
            }
        }
        let mut state = self.lock();
        state.ours.retain(|(of, _), _| *of + 1 >= vm);
        state.ours.extend(learnt);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the volumes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::parse(text.as_bytes()).unwrap()
    }

    /// As the guest in `vm` says that `file` is on `theirs`.
    fn number(volumes: &Volumes, vm: u64, theirs: u16, file: &str) -> Option<u16> {
        volumes.number(vm, theirs, || Some(path(file)))
    }

    #[test]
    fn another_guests_numbers_are_learnt_by_the_files_that_were_seen() {
        let volumes = Volumes::default();
        let first = [(0, "/x", 0), (7, "/a", 1), (3, "/b/c", 2), (7, "/a/d", 1)];
        for (theirs, file, ours) in first {
            assert_eq!(number(&volumes, 0, theirs, file), Some(ours), "{file}");
        }
        let ask = |file: GuestPath| match file.to_string().as_str() {
            "/a" => Ok(2),
            "/b/c" => Ok(1),
            other => panic!("{other}"),
        };
        assert_eq!(volumes.learn(1, ask), Ok(()));
        let second = [(0, "/y", 0), (2, "/a/e", 1), (1, "/b/f", 2), (5, "/g", 3)];
        for (theirs, file, ours) in second {
            assert_eq!(number(&volumes, 1, theirs, file), Some(ours), "{file}");
        }
        assert_eq!(number(&volumes, 0, 7, "/a"), Some(1), "an answer of the guest before");
    }

    #[test]
    fn a_guest_that_shows_other_volumes_is_refused() {
        let volumes = Volumes::default();
        number(&volumes, 0, 1, "/a");
        number(&volumes, 0, 2, "/b");
        let table: [fn(GuestPath) -> Result<u16, Errno>; 3] =
            [|_| Ok(1), |_| Ok(0), |_| Err(Errno::ENOENT)];
        for ask in table {
            assert_eq!(volumes.learn(1, ask), Err(Unlike::OtherVolumes));
        }
    }

    #[test]
    fn volumes_that_a_guest_makes_up_do_not_fill_the_memory() {
        let volumes = Volumes::default();
        let long = format!("/{}", ["x"; 20_000].join("/"));
        for theirs in 1..=u16::MAX {
            assert_eq!(number(&volumes, 0, theirs, &long), Some(theirs));
        }
        let kept: usize = volumes.lock().met.iter().map(|path| path.as_bytes().len()).sum();
        assert!(kept <= MAX_BYTES, "{kept}");
        assert_eq!(number(&volumes, 1, 1, "/a"), None, "there are no more numbers");
        assert_eq!(volumes.learn(1, |_| Ok(1)), Err(Unlike::TooMany));
    }
}
