//! Whether the cost of a file stays the same from a thousand files to a million.

use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::TREE;
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::{Mounted, Side};

/// The most files that guestmount is asked to walk through; it takes a millisecond or so for each.
const MOST_FOR_GUESTMOUNT: u32 = 10_000;

/// Names and titles of the curve's points.
const POINTS: [(u32, &str, &str); 4] = [
    (1_000, "scale-1k", "find, cost of one of 1,000 files"),
    (10_000, "scale-10k", "find, cost of one of 10,000 files"),
    (100_000, "scale-100k", "find, cost of one of 100,000 files"),
    (1_000_000, "scale-1m", "find, cost of one of 1,000,000 files"),
];

pub(super) fn experiments(counts: &[u32]) -> Vec<Experiment> {
    let points = POINTS.into_iter().filter(|(count, ..)| counts.contains(count));
    let experiment = |(count, name, title)| {
        let figure = Figure::new(name, title, Unit::MicrosecondsPerFile);
        let walk = move |ground: &Ground, side: &dyn Side| walk(ground, side, name, count);
        Experiment::new(Who::All, [figure], walk)
            .guestmount_at_most(u32::from(count <= MOST_FOR_GUESTMOUNT))
    };
    points.map(experiment).collect()
}

fn walk(ground: &Ground, side: &dyn Side, name: &'static str, count: u32) -> Result<Values, Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().files(count))?;
    let tree = mounted.path(TREE);
    let found =
        mounted.run(&["find".as_ref(), tree.as_ref(), "-printf".as_ref(), r"%s\n".as_ref()])?;
    mounted.unmount()?;
    if found.lines < u64::from(count) {
        return Err(Error::unfit(
            format!("find saw {} files of {count}", found.lines),
            "compare the mount with what bench/disk.rs puts on the disk",
        ));
    }
    Ok(Values::of(name, found.seconds * 1e6 / f64::from(count)))
}
