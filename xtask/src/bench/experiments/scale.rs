//! Whether the cost of a file, and the memory of the mount, stay the same from a thousand files to a
//! million.

use super::start::mebibytes;
use super::{Experiment, Values, Who};
use crate::Error;
use crate::bench::disk::TREE;
use crate::bench::figure::{Figure, Unit};
use crate::bench::ground::Ground;
use crate::bench::sides::{Mounted, Side};

/// The most files that guestmount is asked to walk through; it takes a millisecond or so for each.
const MOST_FOR_GUESTMOUNT: u32 = 10_000;

/// A point of the curve.
struct Point {
    files: u32,
    /// The cost of one of them.
    time: Figure,
    /// What the mount takes after the walk.
    memory: Figure,
}

impl Point {
    const fn new(files: u32, time: [&'static str; 2], memory: [&'static str; 2]) -> Self {
        Self {
            files,
            time: Figure::new(time[0], time[1], Unit::MicrosecondsPerFile),
            memory: Figure::new(memory[0], memory[1], Unit::Mebibytes),
        }
    }
}

const POINTS: [Point; 4] = [
    Point::new(
        1_000,
        ["scale-1k", "find, cost of one of 1,000 files"],
        ["scale-1k-memory", "own memory after find, 1,000 files"],
    ),
    Point::new(
        10_000,
        ["scale-10k", "find, cost of one of 10,000 files"],
        ["scale-10k-memory", "own memory after find, 10,000 files"],
    ),
    Point::new(
        100_000,
        ["scale-100k", "find, cost of one of 100,000 files"],
        ["scale-100k-memory", "own memory after find, 100,000 files"],
    ),
    Point::new(
        1_000_000,
        ["scale-1m", "find, cost of one of 1,000,000 files"],
        ["scale-1m-memory", "own memory after find, 1,000,000 files"],
    ),
];

/// Between the ends of the curve.
const RATIO: Figure = Figure::new(
    "scale-ratio",
    "find, cost of a file of the largest tree over one of 1,000",
    Unit::Times,
)
.bound(1.3);

pub(super) fn experiments(counts: &[u32]) -> Vec<Experiment> {
    let points: Vec<&Point> = POINTS.iter().filter(|point| counts.contains(&point.files)).collect();
    let Some((last, others)) = points.split_last() else { return Vec::new() };
    let mut all: Vec<Experiment> = others.iter().map(|point| alone(point)).collect();
    all.push(match others.first() {
        Some(first) => beside(last, first),
        None => alone(last),
    });
    all
}

/// A point by itself.
fn alone(point: &'static Point) -> Experiment {
    let walk = |ground: &Ground, side: &dyn Side| Ok(walk(ground, side, point)?.1);
    Experiment::new(Who::All, [point.time, point.memory], walk)
        .guestmount_at_most(u32::from(point.files <= MOST_FOR_GUESTMOUNT))
}

/// The point `last`, and right after it `first`, so that what else the machine does falls on both.
fn beside(last: &'static Point, first: &'static Point) -> Experiment {
    let both = |ground: &Ground, side: &dyn Side| {
        let (large, values) = walk(ground, side, last)?;
        let (small, _) = walk(ground, side, first)?;
        Ok(values.and(RATIO.name, large / small))
    };
    Experiment::new(Who::All, [last.time, last.memory, RATIO], both)
        .guestmount_at_most(u32::from(last.files <= MOST_FOR_GUESTMOUNT))
}

/// Walks through a tree: the time for a file of it, and the values of its point.
fn walk(ground: &Ground, side: &dyn Side, point: &Point) -> Result<(f64, Values), Error> {
    let mounted = Mounted::new(ground, side, &ground.disks().files(point.files))?;
    let tree = mounted.path(TREE);
    let found =
        mounted.run(&["find".as_ref(), tree.as_ref(), "-printf".as_ref(), r"%s\n".as_ref()])?;
    let memory = mounted.memory();
    mounted.unmount()?;
    if found.lines < u64::from(point.files) {
        return Err(Error::unfit(
            format!("find saw {} files of {}", found.lines, point.files),
            "compare the mount with what bench/disk.rs puts on the disk",
        ));
    }
    let time = found.seconds * 1e6 / f64::from(point.files);
    let values = Values::of(point.time.name, time);
    let values = match memory {
        Ok(memory) => values.and(point.memory.name, mebibytes(memory.own_kib)),
        Err(error) => values.without(point.memory.name, error.to_string()),
    };
    Ok((time, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_tree_is_compared_with_the_smallest() {
        let figures = |counts: &[u32]| -> Vec<Vec<&str>> {
            let names = |one: Experiment| one.figures.iter().map(|figure| figure.name).collect();
            experiments(counts).into_iter().map(names).collect()
        };
        assert_eq!(
            figures(&[1_000, 10_000]),
            [
                vec!["scale-1k", "scale-1k-memory"],
                vec!["scale-10k", "scale-10k-memory", "scale-ratio"]
            ]
        );
        assert_eq!(figures(&[1_000]), [["scale-1k", "scale-1k-memory"]]);
        assert_eq!(figures(&[1_000, 10_000, 100_000, 1_000_000]).len(), 4);
    }
}
