//! Disk images out of the tests of other projects: a quick part of what `cargo xtask corpora` does. A
//! program of its own, because it adopts the processes that others leave behind.

use std::os::unix::fs::symlink;
use std::sync::Mutex;
use std::thread;

use guestmnt_tests::program::{Workplace, given};
use guestmnt_tests::specimens::specimen;
use xtask::corpora::{CORPORA, Outcome, Row, SOURCES, check, quick_rows};
use xtask::corpus::{Built, Family, GRACE, Ground};
use xtask::digest;
use xtask::disks::filesystems::Kind;
use xtask::skips::skip;

fn built() -> Built {
    Built {
        programs: given("GUESTMNT_BIN_DIR"),
        appliance: given("GUESTMNT_APPLIANCE"),
        cache: given("GUESTMNT_TEST_CACHE"),
    }
}

#[test]
fn what_the_table_does_not_expect_is_a_difference() {
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    symlink(&image, place.path().join("ext4.img")).unwrap();
    let ground = Ground::new(place.path().join("ground"), &built()).unwrap();
    let family = Family::new(GRACE).unwrap();
    let mut row = Row::unlisted("ext4.img".to_owned());

    row.sha256 = digest::of_file(&image).unwrap();
    let outcome = check(&row, place.path(), &ground, &family).unwrap();
    let Outcome::Different(lines) = outcome else { panic!("{outcome:?}") };
    assert!(lines.iter().any(|line| line.starts_with("contents: ")), "{lines:?}");
    assert!(lines.contains(&"status: 0, not -".to_owned()), "{lines:?}");

    row.sha256 = "of another image".to_owned();
    let outcome = check(&row, place.path(), &ground, &family).unwrap();
    assert!(matches!(outcome, Outcome::Skipped(_)), "{outcome:?}");
}

#[test]
fn images_of_other_projects_are_read_as_the_tables_expect() {
    let place = Workplace::new();
    let built = built();
    let corpora = given(CORPORA);
    let mut rows = Vec::new();
    for source in SOURCES {
        let root = corpora.join(source.name);
        let quick = quick_rows(source);
        if !quick.is_empty() && !root.exists() {
            skip(&format!("the images of {} could not be fetched", source.name));
            continue;
        }
        rows.extend(quick.into_iter().map(|row| (root.clone(), row)));
    }
    let family = Family::new(GRACE).unwrap();
    let next = Mutex::new(rows.into_iter());
    let wrong = Mutex::new(Vec::new());
    let work = |ground: Ground| {
        loop {
            let Some((root, row)) = next.lock().unwrap().next() else { return };
            match check(&row, &root, &ground, &family).unwrap() {
                Outcome::AsExpected => println!("{} is as expected", row.image),
                Outcome::Different(lines) => wrong.lock().unwrap().push((row.image, lines)),
                Outcome::Skipped(why) => skip(&format!("{}: {why}", row.image)),
            }
        }
    };
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let ground = Ground::new(place.path().join(name), &built).unwrap();
            scope.spawn(|| work(ground));
        }
    });
    assert_eq!(wrong.into_inner().unwrap(), []);
    assert_eq!(family.orphans().unwrap(), []);
}
