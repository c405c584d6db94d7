//! A guest that says of bytes that they are where others are, in all due form: what is shown are the
//! bytes that it gives itself, and what is on the disk only where that was seen to be the same.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use guestmnt::disk::DiskReader;
use guestmnt::fs::Shows;
use guestmnt::fs::operations::Operations;
use guestmnt::fs::view::View;
use guestmnt::image::{Disk, Format, OpenOptions};
use guestmnt_protocol::batch::{self, Outcome as File, Plain, Stored};
use guestmnt_protocol::limits::MAX_SAMPLE;
use guestmnt_protocol::message::{Answer, Layout, Outcome, Request, Run};
use guestmnt_tests::worlds::scripted::{answer, at_once, guest_of};
use guestmnt_tests::worlds::scripted_files::{Files, REQUEST, list, node, read_at, read_whole};
use tempfile::TempDir;

/// Bytes of the disk: `/f` at [`PLACE`], the small files behind [`SMALL`] in blocks of their own, zeros
/// before them, and other bytes everywhere else.
const DISK: u64 = 8 << 20;
const PLACE: u64 = 2 << 20;
const SIZE: u64 = 1 << 20;
const SMALL: u64 = 4 << 20;
const ZEROS: u64 = 6 << 20;
const BLOCK: u64 = 4096;
const COUNT: u64 = 40;

/// A disk and the operations on what is on it, by a guest that answers with `spoilt` where that says
/// something.
struct Shown {
    files: Files,
    operations: Operations,
    /// Reads of single files that the guest was asked for.
    reads: Arc<AtomicU64>,
    _folder: TempDir,
}

fn small_file(n: u64) -> String {
    format!("/folder/{n:02}")
}

fn files(leading_zeros: u64) -> Files {
    let files = Files::default().led_by_zeros("/f", leading_zeros).file("/f", SIZE);
    (0..COUNT).fold(files.folder("/folder"), |files, n| files.file(&small_file(n), 1000))
}

fn shown(
    files: Files,
    spoilt: impl Fn(&Request) -> Option<(Outcome, Vec<u8>)> + Send + Sync + 'static,
) -> Shown {
    let mut disk: Vec<u8> = (0..DISK).map(|at| (at / 5).to_le_bytes()[0]).collect();
    let mut store = |place: u64, bytes: &[u8]| {
        let place = usize::try_from(place).unwrap();
        disk[place..place + bytes.len()].copy_from_slice(bytes);
    };
    store(PLACE, &files.bytes("/f", 0, SIZE));
    (0..COUNT).for_each(|n| store(SMALL + n * BLOCK, &files.bytes(&small_file(n), 0, 1000)));
    store(ZEROS, &[0; 1 << 20]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    fs::write(&path, disk).unwrap();
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let disk = DiskReader::of(&Disk::open(&path, &options).unwrap()).unwrap();

    let reads = Arc::new(AtomicU64::new(0));
    let guest = guest_of(4, Duration::from_secs(60), {
        let (files, reads) = (files.clone(), Arc::clone(&reads));
        move |_, request, seq| {
            reads.fetch_add(matches!(request, Request::Read { .. }).into(), Ordering::Relaxed);
            let (outcome, payload) = spoilt(request).unwrap_or_else(|| files.answer(request));
            at_once(answer(seq, &outcome, &payload))
        }
    });
    let operations = Operations::new(Arc::new(guest), vec![disk], Shows::Files, View::default());
    Shown { files, operations, reads, _folder: folder }
}

/// The layout of `/f` that the guest tells.
fn told(layout: Layout, leading_zeros: u64) -> Shown {
    let files = files(leading_zeros);
    shown(files.clone(), move |request| match request {
        Request::Layout { .. } => Some((Ok(Answer::Layout(layout.clone())), Vec::new())),
        Request::SampledLayout { offset, .. } => {
            let sample = files.bytes("/f", *offset, MAX_SAMPLE as u64);
            let layout = layout.clone();
            Some((Ok(Answer::SampledLayout { layout, sample }), Vec::new()))
        }
        _ => None,
    })
}

fn layout(runs: &[(u64, u64, u64)]) -> Layout {
    let run = |&(at, length, stored): &(u64, u64, u64)| Run { at, length, stored };
    Layout { disk: 0, size: SIZE, end: SIZE, runs: runs.iter().map(run).collect() }
}

/// Whether all of `/f` is as the guest gives it, read from front to back and then from back to front.
fn is_right(shown: &Shown) -> bool {
    let file = node(&shown.operations, "/f");
    let is_right = |offset: u64| {
        read_at(&shown.operations, file, offset, REQUEST)
            == Ok(shown.files.bytes("/f", offset, REQUEST.into()))
    };
    read_whole(&shown.operations, file, SIZE) == Ok(shown.files.bytes("/f", 0, SIZE))
        && (0..SIZE / u64::from(REQUEST)).rev().all(|n| is_right(n * u64::from(REQUEST)))
}

#[test]
fn a_layout_that_is_right_spares_the_guest() {
    let shown = told(layout(&[(0, SIZE, PLACE)]), 0);
    assert!(is_right(&shown));
    assert_eq!(shown.reads.load(Ordering::Relaxed), 0);
}

#[test]
fn a_layout_that_leads_to_other_bytes_is_not_believed() {
    let half = SIZE / 2;
    let right = layout(&[(0, SIZE, PLACE)]);
    let table = [
        ("a block too far", layout(&[(0, SIZE, PLACE + BLOCK)])),
        ("a byte too far", layout(&[(0, SIZE, PLACE + 1)])),
        ("the start of the disk", layout(&[(0, SIZE, 0)])),
        ("halves in each other's places", layout(&[(0, half, PLACE + half), (half, half, PLACE)])),
        ("a hole", layout(&[])),
        ("a hole where it begins", layout(&[(half, half, PLACE + half)])),
        ("zeros", layout(&[(0, SIZE, ZEROS)])),
        ("beyond the disk", layout(&[(0, SIZE, DISK)])),
        ("another disk", Layout { disk: 1, ..right.clone() }),
        ("no byte", Layout { size: 0, end: 0, runs: Vec::new(), ..right.clone() }),
        ("an end before the file's", Layout { size: half, end: half, ..right.clone() }),
    ];
    for (what, layout) in table {
        assert!(is_right(&told(layout, 0)), "{what}");
    }
}

#[test]
fn bytes_that_are_the_same_everywhere_make_no_layout_believed() {
    // The file begins with zeros, which are in other places as well.
    let zeros = 3 * u64::from(REQUEST);
    for (what, stored) in [("zeros and then others", ZEROS), ("its own place", PLACE)] {
        assert!(is_right(&told(layout(&[(0, SIZE, stored)]), zeros)), "{what}");
    }
    // Once there is something to tell it by, it is.
    let shown = told(layout(&[(0, SIZE, PLACE)]), zeros);
    assert!(is_right(&shown));
    let reads = shown.reads.load(Ordering::Relaxed);
    assert!(
        is_right(&shown) && shown.reads.load(Ordering::Relaxed) == reads,
        "it is never believed"
    );
}

/// The guest says so of the `n`-th small file.
fn placed(leading_zeros: u64, place: impl Fn(u64) -> Stored + Send + Sync + 'static) -> Shown {
    let files = files(0).led_by_zeros(&small_file(1), leading_zeros);
    shown(files, move |request| match request {
        Request::ReadFiles { plain: Plain::Places, files, .. } => {
            let mut page = Vec::new();
            for wanted in files {
                let n = std::str::from_utf8(wanted.file.name.as_bytes()).unwrap().parse().unwrap();
                batch::push_outcome(&mut page, &File::Stored(place(n)));
            }
            Some((Ok(Answer::Payload), page))
        }
        _ => None,
    })
}

/// Whether all small files are as the guest gives them.
fn are_right(shown: &Shown) -> bool {
    let files = list(&shown.operations, node(&shown.operations, "/folder")).unwrap();
    (0..COUNT).zip(files).all(|(n, file)| {
        let expected = shown.files.bytes(&small_file(n), 0, 1000);
        read_at(&shown.operations, file, 0, 4096) == Ok(expected)
    })
}

fn at(place: u64) -> Stored {
    Stored { disk: 0, place, length: 1000 }
}

#[test]
fn places_of_small_files_that_are_right_spare_the_guest() {
    let shown = placed(0, |n| at(SMALL + n * BLOCK));
    assert!(are_right(&shown));
    // The first, and the one that the places are tried by.
    assert_eq!(shown.reads.load(Ordering::Relaxed), 2);
}

#[test]
fn places_of_small_files_that_hold_other_bytes_are_not_believed() {
    assert!(are_right(&placed(0, |n| at(SMALL + (n + 1) * BLOCK))), "the next one's");
    assert!(are_right(&placed(0, |n| at(SMALL + n * BLOCK + 1))), "a byte too far");
    assert!(are_right(&placed(0, |_| at(0))), "the start of the disk");
    assert!(are_right(&placed(0, |_| at(ZEROS))), "zeros");
    assert!(are_right(&placed(0, |_| at(DISK))), "beyond the disk");
    assert!(are_right(&placed(0, |n| Stored { disk: 1, ..at(SMALL + n * BLOCK) })), "another disk");
}

#[test]
fn a_small_file_that_is_the_same_all_over_makes_no_place_believed() {
    // The first that is fetched with others holds zeros, and so does its place.
    let place = |n| if n == 1 { at(ZEROS) } else { at(SMALL + (n + 1) * BLOCK) };
    assert!(are_right(&placed(1000, place)));
}
