//! A sample of what `cargo xtask corpus` does: mutants of the test's images, none of which may bring
//! about more than a mount, with errors in it or not, or a refusal. A program of its own, because it
//! adopts the processes that others leave behind.

use std::sync::Mutex;
use std::thread;

use guestmnt_tests::program::{Workplace, given};
use guestmnt_tests::specimens::specimens;
use xtask::corpus::trial::Outcome;
use xtask::corpus::{Built, Family, GRACE, Ground, Herd, subjects};
use xtask::skips::skip;

const SEED: u64 = 1;

/// Each of these is tried; what the table of `cargo xtask corpus` calls them.
const NAMES: [&str; 12] = [
    "ntfs",
    "vfat",
    "exfat",
    "xfs",
    "btrfs",
    "ext4",
    "iso9660",
    "hfsplus",
    "lvm on raid",
    "luks",
    "mbr",
    "gpt",
];

#[test]
fn of_damaged_images_come_mounts_and_refusals_and_nothing_else() {
    let place = Workplace::new();
    let built = Built {
        programs: given("GUESTMNT_BIN_DIR"),
        appliance: given("GUESTMNT_APPLIANCE"),
        cache: given("GUESTMNT_TEST_CACHE"),
    };
    let all = subjects(&specimens(), place.path()).unwrap();
    let mut chosen = Vec::new();
    for name in NAMES {
        match all.iter().position(|subject| subject.name == name) {
            Some(index) => chosen.push((&all[index], (all.len() + index) as u64)),
            None => skip(&format!("there is no image of {name} here")),
        }
    }
    let family = Family::new(GRACE).unwrap();
    let next = Mutex::new(chosen.into_iter());
    let outcomes = Mutex::new(Vec::new());
    let work = |ground: Ground| {
        let mut herd = Herd::new(&ground, SEED);
        loop {
            let Some((subject, number)) = next.lock().unwrap().next() else { return };
            let verdict = herd.try_mutant(subject, number, &family).unwrap();
            println!("{} {number}: {:?} in {:?}", subject.name, verdict.outcome, verdict.took);
            assert_eq!(verdict.faults, [], "{} {number}: {}", subject.name, verdict.said);
            outcomes.lock().unwrap().push(verdict.outcome);
        }
    };
    thread::scope(|scope| {
        for name in ["one", "two"] {
            let ground = Ground::new(place.path().join(name), &built).unwrap();
            scope.spawn(|| work(ground));
        }
    });
    // That all are refused would mean that nothing was tried.
    let outcomes = outcomes.into_inner().unwrap();
    let seen = |outcome: &Outcome| matches!(outcome, Outcome::Mounted(walk) if walk.bytes > 0);
    assert!(outcomes.iter().any(seen), "{outcomes:?}");
}
