//! Where the time of one mount goes, as guestmnt says it: for people who see a figure that missed its
//! target.

use std::path::Path;

use super::brief;
use super::experiments::start_of;
use super::ground::Ground;
use super::sides::{Guestmnt, Side, Start};
use crate::Error;

/// Of each way to start that one of the figures `missed` measures, the steps of one more mount.
#[must_use]
pub fn of_missed<'a>(ground: &Ground, missed: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut notes = Vec::new();
    for (start, figures) in by_start(missed) {
        let what = match start {
            Start::Normal => "a mount",
            Start::Cold => "a mount that boots",
            Start::NewUser => "a user's first mount",
        };
        let figures = figures.join(", ");
        notes.push(format!("where the time of {what} goes (missed: {figures}), as guestmnt says:"));
        match mount(ground, start) {
            Ok(printed) => {
                notes.extend(times(&printed).into_iter().map(|line| format!("  {line}")));
            }
            Err(error) => notes.push(format!("  {}", brief(&error))),
        }
    }
    notes
}

/// Ways to start, each once, with the figures that take it.
fn by_start<'a>(figures: impl Iterator<Item = &'a str>) -> Vec<(Start, Vec<&'a str>)> {
    let mut starts: Vec<(Start, Vec<&str>)> = Vec::new();
    for figure in figures {
        let start = start_of(figure);
        match starts.iter_mut().find(|(known, _)| *known == start) {
            Some((_, figures)) => figures.push(figure),
            None => starts.push((start, vec![figure])),
        }
    }
    starts
}

/// What guestmnt prints of one mount.
fn mount(ground: &Ground, start: Start) -> Result<String, Error> {
    let (side, spot) = (Guestmnt(start), ground.spot()?);
    let mut words = side.mount_words(ground, &ground.disks().chain(), &spot)?;
    words.push("-v".into());
    if ground.offers.has("--timings") {
        words.push("--timings".into());
    }
    let mut mount = side.command(ground, Path::new(&words[0]), &spot);
    mount.args(&words[1..]);
    let printed = ground.run(mount)?.printed;
    let words = side.unmount_words(ground, &spot);
    let mut unmount = side.command(ground, Path::new(&words[0]), &spot);
    unmount.args(&words[1..]);
    ground.run(unmount)?;
    Ok(printed)
}

/// The table of `--timings`, or the lines of `-v` that tell a time where there is none.
fn times(printed: &str) -> Vec<&str> {
    let table = printed.lines().skip_while(|line| !is_heading(line));
    let mut rows = table.enumerate().take_while(|(n, line)| *n == 0 || is_row(line)).peekable();
    if rows.peek().is_some() {
        return rows.map(|(_, line)| line).collect();
    }
    let tells_time = |line: &&str| {
        let mut words = line.split_ascii_whitespace();
        words.any(|word| {
            matches!(word.trim_matches(|c: char| !c.is_ascii_alphabetic()), "ms" | "us")
        })
    };
    printed.lines().filter(tells_time).collect()
}

/// `step   ms   since`.
fn is_heading(line: &str) -> bool {
    line.split_ascii_whitespace().eq(["step", "ms", "since"])
}

/// `QEMU up   37.8   39.8`.
fn is_row(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace().rev();
    let mut number = || words.next().is_some_and(|word| word.parse::<f64>().is_ok());
    number() && number() && words.next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `guestmnt -v --timings` printed, but for the rest of QEMU's command line.
    const PRINTED: &str = "\
guestmnt: chain opened after 1.0 ms
guestmnt: template found after 2.0 ms
guestmnt: /usr/bin/qemu-system-x86_64 -sandbox on -nodefaults -machine pc,usb=off,hpet=off
guestmnt: QEMU up after 39.8 ms
guestmnt: restored after 46.1 ms
guestmnt: disks attached after 52.3 ms
guestmnt: the guest's clock differs by 6 ms, its random pool gives [47, 36, e1, d9]
guestmnt: daemon awake after 85.8 ms
guestmnt: disks visible after 126.5 ms
guestmnt: mounting /dev/sda1 on /
guestmnt: mounted after 171.6 ms
guestmnt: FUSE ready after 173.3 ms
step                        ms     since
chain opened               1.0       1.0
template found             0.9       2.0
QEMU up                   37.8      39.8
restored                   6.3      46.1
disks attached             6.2      52.3
daemon awake              33.5      85.8
disks visible             40.7     126.5
mounted                   45.2     171.6
FUSE ready                 1.7     173.3
guestmnt: a line behind the table
";

    #[test]
    fn the_table_of_steps_is_shown_with_all_its_rows() {
        let shown = times(PRINTED);
        assert_eq!(shown.len(), 10, "{shown:?}");
        assert_eq!(shown[0], "step                        ms     since");
        assert_eq!(shown[3], "QEMU up                   37.8      39.8");
        assert_eq!(shown[9], "FUSE ready                 1.7     173.3");
    }

    #[test]
    fn without_a_table_lines_that_tell_a_time_are_shown() {
        let (said, _) = PRINTED.split_once("step ").unwrap();
        let shown = times(said);
        assert_eq!(shown.len(), 10, "{shown:?}");
        assert!(shown.contains(&"guestmnt: QEMU up after 39.8 ms"));
        assert!(!shown.iter().any(|line| line.contains("sandbox") || line.contains("mounting")));
    }

    #[test]
    fn a_missed_figure_is_explained_by_a_start_of_its_own_kind() {
        let found = by_start(["cold", "read", "template", "mount"].into_iter());
        let expected = [
            (Start::Cold, vec!["cold"]),
            (Start::Normal, vec!["read", "mount"]),
            (Start::NewUser, vec!["template"]),
        ];
        assert_eq!(found, expected);
    }
}
