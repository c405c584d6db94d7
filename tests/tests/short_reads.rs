//! A guest that answers with fewer bytes than a file has: the kernel takes that for the file's end, and
//! on a mount that never changes for ever. So it is the end only where the file's size says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use guestmnt::fs::Shows;
use guestmnt::fs::operations::Operations;
use guestmnt::fs::view::View;
use guestmnt_protocol::message::Request;
use guestmnt_tests::worlds::scripted::{answer, at_once, guest_of};
use guestmnt_tests::worlds::scripted_files::{Files, REQUEST, node, read_at, read_whole};
use nix::errno::Errno;

const SIZE: u64 = 3 << 20;

/// The files of a guest that gives the part of what it should that `cut` says of the file's path, where
/// it begins and how many bytes there are.
struct Cut {
    files: Files,
    operations: Operations,
    reads: Arc<AtomicU64>,
}

impl Cut {
    fn new(cut: impl Fn(u64, usize) -> usize + Send + Sync + 'static) -> Self {
        let files = Files::default().file("/f", SIZE).file("/small", 5000);
        let reads = Arc::new(AtomicU64::new(0));
        let guest = guest_of(4, Duration::from_secs(60), {
            let (files, reads) = (files.clone(), Arc::clone(&reads));
            move |_, request, seq| {
                let (outcome, mut payload) = files.answer(request);
                if let Request::Read { offset, .. } = request {
                    reads.fetch_add(1, Ordering::Relaxed);
                    payload.truncate(cut(*offset, payload.len()));
                }
                at_once(answer(seq, &outcome, &payload))
            }
        });
        let operations =
            Operations::new(Arc::new(guest), Vec::new(), Shows::Files, View::default());
        Self { files, operations, reads }
    }

    fn read(&self, path: &str, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        read_at(&self.operations, node(&self.operations, path), offset, size)
    }
}

#[test]
fn the_rest_of_a_short_answer_is_asked_for() {
    // Whole requests of the kernel are cut, their rests are not.
    let cut = Cut::new(|_, length| if length >= REQUEST as usize { length / 2 } else { length });
    let found = cut.read("/f", 0, REQUEST);
    assert!(found == Ok(cut.files.bytes("/f", 0, REQUEST.into())));
    assert_eq!(cut.reads.load(Ordering::Relaxed), 2);
}

#[test]
fn the_rest_of_what_was_read_ahead_is_asked_for() {
    let cut = Cut::new(|_, length| if length > REQUEST as usize { length / 3 } else { length });
    let file = node(&cut.operations, "/f");
    assert!(read_whole(&cut.operations, file, SIZE) == Ok(cut.files.bytes("/f", 0, SIZE)));
}

#[test]
fn where_nothing_more_comes_or_hardly_anything_it_is_an_error() {
    for most in [0, 1, 4096] {
        let cut = Cut::new(move |_, length| length.min(most));
        assert_eq!(cut.read("/f", 0, REQUEST).map(|bytes| bytes.len()), Err(Errno::EIO), "{most}");
        assert_eq!(cut.reads.load(Ordering::Relaxed), 2, "{most}");
    }
    // The same in what is read ahead.
    let cut = Cut::new(|offset, length| if offset >= 1 << 20 { 0 } else { length });
    let file = node(&cut.operations, "/f");
    assert_eq!(read_whole(&cut.operations, file, SIZE), Err(Errno::EIO));
}

#[test]
fn at_the_end_of_a_file_nothing_more_is_asked_for() {
    let cut = Cut::new(|_, length| length);
    assert!(cut.read("/small", 0, REQUEST) == Ok(cut.files.bytes("/small", 0, 5000)));
    assert!(cut.read("/small", 4096, 4096) == Ok(cut.files.bytes("/small", 4096, 904)));
    assert_eq!(cut.read("/small", 8192, 4096), Ok(Vec::new()));
    assert_eq!(cut.reads.load(Ordering::Relaxed), 3);
}
