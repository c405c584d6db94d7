//! A file, folder or batch of which the guest is slow is waited for by those who need it, and by
//! nobody else: what was planned ahead behind it is asked for by whoever comes to it.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use guestmnt::fs::Shows;
use guestmnt::fs::operations::Operations;
use guestmnt::fs::view::View;
use guestmnt_protocol::message::Request;
use guestmnt_tests::worlds::scripted::{Gate, answer, at_once, guest_of};
use guestmnt_tests::worlds::scripted_files::{Files, list, node, read_at, read_whole};

const LANES: usize = 6;

/// The guest may take for ever, as far as the tests go.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What does not wait for the slow one is done in this, on a busy machine too.
const GENEROUS: Duration = Duration::from_secs(60);

/// The files of a guest that answers what `is_slow` says once `gate` is open.
fn shown(
    files: &Files,
    gate: &Gate,
    is_slow: impl Fn(&Request) -> bool + Send + Sync + 'static,
) -> Arc<Operations> {
    let (files, gate) = (files.clone(), gate.clone());
    let guest = guest_of(LANES, FOR_EVER, move |_, request, seq| {
        if is_slow(request) {
            gate.pass();
        }
        let (outcome, payload) = files.answer(request);
        at_once(answer(seq, &outcome, &payload))
    });
    let guest = Arc::new(guest);
    Arc::new(Operations::new(guest, Vec::new(), Shows::Files, View::default()))
}

/// What `ask` gives, which must not wait for what is slow.
fn meanwhile<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = channel();
    thread::spawn(move || sender.send(ask()));
    done.recv_timeout(GENEROUS).expect("it waits for what is slow")
}

#[test]
fn a_file_is_read_in_sequence_while_another_ones_pieces_do_not_come() {
    const SIZE: u64 = 6 << 20;
    let files = Files::default().file("/slow", SIZE).file("/fast", SIZE);
    let gate = Gate::closed();
    // All that is read ahead of it.
    let operations = shown(&files, &gate, |request| {
        matches!(request, Request::Read { path, size, .. }
            if path.to_string() == "/slow" && *size == 1 << 20)
    });
    let [slow, fast] = ["/slow", "/fast"].map(|path| node(&operations, path));
    let reading = thread::spawn({
        let operations = Arc::clone(&operations);
        move || read_whole(&operations, slow, SIZE)
    });
    // Both threads that read ahead.
    gate.await_comers(2);
    let found = meanwhile(move || read_whole(&operations, fast, SIZE));
    assert!(found == Ok(files.bytes("/fast", 0, SIZE)));
    gate.open();
    assert!(reading.join().unwrap() == Ok(files.bytes("/slow", 0, SIZE)));
}

#[test]
fn small_files_of_a_folder_are_read_while_another_ones_batch_does_not_come() {
    const COUNT: usize = 300;
    let in_folder = |files: Files, folder: &str| {
        (0..COUNT)
            .fold(files.folder(folder), |files, n| files.file(&format!("{folder}/{n:03}"), 100))
    };
    let files = ["/slow", "/fast"].into_iter().fold(Files::default(), in_folder);
    let gate = Gate::closed();
    // The batch that is fetched before it is asked for.
    let operations = shown(&files, &gate, |request| {
        matches!(request, Request::ReadFiles { folder, files, .. }
            if folder.to_string() == "/slow" && files[0].file.name.as_bytes() > b"010")
    });
    let [slow, fast] = ["/slow", "/fast"].map(|path| list(&operations, node(&operations, path)));
    for &file in &slow.unwrap()[..3] {
        assert_eq!(read_at(&operations, file, 0, 4096).map(|bytes| bytes.len()), Ok(100));
    }
    gate.await_comers(1);
    let found = meanwhile(move || {
        let read = |file| read_at(&operations, file, 0, 4096);
        fast.unwrap().into_iter().map(read).collect::<Vec<_>>()
    });
    for (n, found) in found.into_iter().enumerate() {
        assert_eq!(found, Ok(files.bytes(&format!("/fast/{n:03}"), 0, 100)), "{n}");
    }
    gate.open();
}

#[test]
fn a_folder_is_listed_while_another_one_that_is_listed_ahead_does_not_come() {
    let files = (0..9).fold(Files::default(), |files, n| {
        files.folder(&format!("/{n}")).file(&format!("/{n}/f"), 1)
    });
    let gate = Gate::closed();
    let operations = shown(
        &files,
        &gate,
        |request| matches!(request, Request::ReadDir { path, .. } if path.to_string() == "/3"),
    );
    let folders = list(&operations, node(&operations, "/")).unwrap();
    for &folder in &folders[..3] {
        assert_eq!(list(&operations, folder).map(|files| files.len()), Ok(1));
    }
    // Folder 3 is being listed, and 4 is to be.
    gate.await_comers(1);
    let found = meanwhile(move || list(&operations, folders[4]).map(|files| files.len()));
    assert_eq!(found, Ok(1));
    gate.open();
}
