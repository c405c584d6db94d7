//! Programs that people run over a tree of small files, each in a mount that nobody has looked
//! at before.

use std::fs;
use std::path::Path;

use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::{FILES_IN_TREE, FOLDERS_IN_TREE, TREE};
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::{Mounted, Side};
use crate::bench::worker::Timing;

const FIND: Figure =
    Figure::new("find", "find -printf %s, 2,000 files in 20 folders", Unit::Seconds)
        .bound(0.10)
        .times_guestmount(19.0);
const TAR: Figure = Figure::new("tar", "tar of 2,000 files, 5 MB", Unit::Seconds)
    .bound(0.30)
    .times_guestmount(14.0);
const RSYNC: Figure = Figure::new("rsync", "rsync -a of the same out of the mount", Unit::Seconds)
    .bound(0.60)
    .times_guestmount(10.0);
const COPY: Figure = Figure::new("cp", "cp -a of the same out of the mount", Unit::Seconds)
    .bound(0.60)
    .times_guestmount(10.0);
const LIST: Figure = Figure::new("ls", "ls -lR of the same, alone", Unit::Seconds);
const LIST_BESIDE: Figure =
    Figure::new("ls-beside", "ls -lR beside a second, idle mount", Unit::Seconds);
const LIST_RATIO: Figure =
    Figure::new("ls-ratio", "ls -lR beside an idle mount over alone", Unit::Times).bound(1.3);

pub(super) fn experiments() -> Vec<Experiment> {
    vec![
        Experiment::new(Who::All, [FIND], |ground, side| on_fresh(ground, side, FIND.name, find)),
        Experiment::new(Who::All, [TAR], |ground, side| on_fresh(ground, side, TAR.name, tar)),
        Experiment::new(Who::All, [RSYNC], |ground, side| {
            on_fresh(ground, side, RSYNC.name, rsync)
        }),
        Experiment::new(Who::All, [COPY], |ground, side| on_fresh(ground, side, COPY.name, copy)),
        Experiment::by_run(Who::All, [LIST, LIST_BESIDE, LIST_RATIO], list_beside),
    ]
}

/// One program over the tree.
pub(super) type Walk = fn(&Mounted<'_>) -> Result<Timing, Error>;

fn on_fresh(
    ground: &Ground,
    side: &dyn Side,
    name: &'static str,
    walk: Walk,
) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().chain())?;
    let walked = walk(&mounted)?;
    mounted.unmount()?;
    Ok(Values::of(name, walked.seconds))
}

/// What a second mount costs that nobody uses: its memory, and what QEMU does while its guest sleeps.
/// Two that are busy share the processors, which says nothing of the tool.
fn list_beside(ground: &Ground, side: &dyn Side, run: u32) -> Result<Values, Error> {
    let image = ground.disks().chain();
    let list_fresh = || -> Result<f64, Error> {
        let mounted = Mounted::new(ground, side, &image)?;
        let listed = list(&mounted)?.seconds;
        mounted.unmount()?;
        Ok(listed)
    };
    let beside = || -> Result<f64, Error> {
        let other = Mounted::new(ground, side, &image)?;
        let listed = list_fresh()?;
        other.unmount()?;
        Ok(listed)
    };
    let (alone, beside) = in_turn(run, list_fresh, beside)?;
    Ok(Values::of(LIST.name, alone)
        .and(LIST_BESIDE.name, beside)
        .and(LIST_RATIO.name, beside / alone))
}

/// Takes two values, the other one first in each second run, so that what the first leaves behind, a
/// warm cache for one, falls on both alike.
fn in_turn<T>(
    run: u32,
    one: impl FnOnce() -> Result<T, Error>,
    other: impl FnOnce() -> Result<T, Error>,
) -> Result<(T, T), Error> {
    if run.is_multiple_of(2) {
        let one = one()?;
        Ok((one, other()?))
    } else {
        let other = other()?;
        Ok((one()?, other))
    }
}

pub(super) fn find(mounted: &Mounted<'_>) -> Result<Timing, Error> {
    let tree = mounted.path(TREE);
    let timing =
        mounted.run(&["find".as_ref(), tree.as_ref(), "-printf".as_ref(), r"%s\n".as_ref()])?;
    check("find", "lines", timing.lines, u64::from(FILES_IN_TREE + FOLDERS_IN_TREE + 1))?;
    Ok(timing)
}

pub(super) fn tar(mounted: &Mounted<'_>) -> Result<Timing, Error> {
    let tree = mounted.path(TREE);
    let timing = mounted.run(&[
        "tar".as_ref(),
        "-cf".as_ref(),
        "-".as_ref(),
        "-C".as_ref(),
        tree.as_ref(),
        ".".as_ref(),
    ])?;
    // A header of 512 bytes and at least as much content for each file.
    check("tar", "bytes", timing.bytes, u64::from(FILES_IN_TREE) * 1024)?;
    Ok(timing)
}

pub(super) fn rsync(mounted: &Mounted<'_>) -> Result<Timing, Error> {
    let (tree, target) = (mounted.path(TREE), mounted.copies("rsync"));
    let timing = mounted.run(&["rsync".as_ref(), "-a".as_ref(), tree.as_ref(), target.as_ref()])?;
    check("rsync", "files", count_files(&target)?, u64::from(FILES_IN_TREE))?;
    Ok(timing)
}

pub(super) fn copy(mounted: &Mounted<'_>) -> Result<Timing, Error> {
    let (tree, target) = (mounted.path(TREE), mounted.copies("cp"));
    let timing = mounted.run(&["cp".as_ref(), "-a".as_ref(), tree.as_ref(), target.as_ref()])?;
    check("cp", "files", count_files(&target)?, u64::from(FILES_IN_TREE))?;
    Ok(timing)
}

fn list(mounted: &Mounted<'_>) -> Result<Timing, Error> {
    let tree = mounted.path(TREE);
    let timing = mounted.run(&["ls".as_ref(), "-lR".as_ref(), tree.as_ref()])?;
    check("ls", "lines", timing.lines, u64::from(FILES_IN_TREE + FOLDERS_IN_TREE))?;
    Ok(timing)
}

/// Guards against being fast by leaving something out.
pub(super) fn check(program: &str, what: &str, found: u64, least: u64) -> Result<(), Error> {
    if found >= least {
        return Ok(());
    }
    Err(Error::unfit(
        format!("{program} gave {found} {what}, at least {least} were expected"),
        "compare the mount with what bench/disk.rs puts on the disk",
    ))
}

fn count_files(folder: &Path) -> Result<u64, Error> {
    let mut count = 0;
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        count += if path.is_dir() { count_files(&path)? } else { 1 };
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn each_second_run_begins_with_the_other_value() {
        let order = RefCell::new(Vec::new());
        let take = |name| {
            order.borrow_mut().push(name);
            Ok(name)
        };
        for run in 0..3 {
            let taken = in_turn(run, || take("alone"), || take("beside")).unwrap();
            assert_eq!(taken, ("alone", "beside"));
        }
        let expected = ["alone", "beside", "beside", "alone", "alone", "beside"];
        assert_eq!(*order.borrow(), expected);
    }
}
