//! What an answer has to be like beyond its form, so that the kernel can be told of it.

use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::limits::MAX_RUNS;
use guestmnt_protocol::message::{Layout, Run};

/// `attr`, unless something in it could not be passed on to the kernel.
pub fn sane(attr: Attr) -> Option<Attr> {
    let kinds = [
        libc::S_IFREG,
        libc::S_IFDIR,
        libc::S_IFLNK,
        libc::S_IFIFO,
        libc::S_IFSOCK,
        libc::S_IFCHR,
        libc::S_IFBLK,
    ];
    let times = [attr.accessed, attr.modified, attr.changed];
    let good = kinds.contains(&(attr.mode & libc::S_IFMT))
        && attr.mode <= 0o177_777
        && i64::try_from(attr.size).is_ok()
        && times.iter().all(is_time);
    good.then_some(attr)
}

/// Whether a layout's runs are in order, and its numbers can be reckoned with.
pub fn is_layout(layout: &Layout) -> bool {
    let fits = |run: &Run| {
        run.length > 0
            && [run.at, run.stored].iter().all(|start| {
                start.checked_add(run.length).is_some_and(|end| i64::try_from(end).is_ok())
            })
    };
    i64::try_from(layout.size).is_ok()
        && layout.runs.len() <= MAX_RUNS
        && layout.runs.iter().all(fits)
        && layout.runs.is_sorted_by(|one, next| one.at + one.length <= next.at)
}

fn is_time(time: &Time) -> bool {
    time.nanos < 1_000_000_000 && time.secs.unsigned_abs() < 1 << 60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_that_cannot_be_reckoned_with_are_refused() {
        let run = |at, length, stored| Run { at, length, stored };
        let layout = |runs: &[Run]| Layout { disk: 0, size: 9, end: 9, runs: runs.to_vec() };
        assert!(is_layout(&layout(&[])));
        assert!(is_layout(&layout(&[run(0, 4, 100), run(4, 4, 0), run(9, 1, 50)])));
        let max = u64::MAX >> 1;
        let table: [&[Run]; 6] = [
            &[run(0, 0, 0)],
            &[run(0, 4, 0), run(3, 4, 8)],
            &[run(4, 4, 0), run(0, 4, 8)],
            &[run(max, 1, 0)],
            &[run(0, 1, u64::MAX)],
            &[run(0, 1, 0); MAX_RUNS + 1],
        ];
        for runs in table {
            assert!(!is_layout(&layout(runs)), "{runs:?}");
        }
        assert!(!is_layout(&Layout { size: u64::MAX, ..layout(&[]) }));
    }

    #[test]
    fn layouts_are_judged_as_with_numbers_that_cannot_overflow() {
        const MOST: u128 = i64::MAX as u128;
        let numbers = [0, 1, 4096, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX - 1, u64::MAX];
        let runs: Vec<Run> = numbers
            .into_iter()
            .flat_map(|at| numbers.map(|length| (at, length)))
            .flat_map(|(at, length)| numbers.map(|stored| Run { at, length, stored }))
            .collect();
        let end = |start: u64, run: &Run| u128::from(start) + u128::from(run.length);
        let fits =
            |run: &Run| run.length > 0 && end(run.at, run) <= MOST && end(run.stored, run) <= MOST;
        let judge = |runs: &[Run], good: bool| {
            let layout = Layout { disk: 0, size: 9, end: 9, runs: runs.to_vec() };
            assert_eq!(is_layout(&layout), good, "{runs:?}");
        };
        for one in &runs {
            judge(&[*one], fits(one));
            for next in &runs {
                let in_order = end(one.at, one) <= u128::from(next.at);
                judge(&[*one, *next], fits(one) && fits(next) && in_order);
            }
        }
    }

    #[test]
    fn attributes_that_the_kernel_would_choke_on_are_refused() {
        let good = Attr { mode: libc::S_IFREG | 0o644, ..Attr::default() };
        assert!(sane(good).is_some());
        let table = [
            ("no type", Attr { mode: 0o644, ..good }),
            ("an unknown type", Attr { mode: 0o050_644, ..good }),
            ("bits beyond the mode", Attr { mode: good.mode | 1 << 20, ..good }),
            ("a size of -1", Attr { size: u64::MAX, ..good }),
            ("a size of 2^63", Attr { size: 1 << 63, ..good }),
            ("nanoseconds", Attr { modified: Time { secs: 0, nanos: 1_000_000_000 }, ..good }),
            (
                "a time at the end of time",
                Attr { accessed: Time { secs: i64::MIN, nanos: 0 }, ..good },
            ),
        ];
        for (what, attr) in table {
            assert!(sane(attr).is_none(), "{what}");
        }
    }
}
