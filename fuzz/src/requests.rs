//! Bytes as what a host sends to the daemon by a lane. Whatever comes, the daemon answers frames
//! that can be read, in the order of the requests, and goes on or hangs up.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

use guestmnt_appliance::guest::Guest;
use guestmnt_appliance::serve::serve;
use guestmnt_protocol::frame::{HEADER_LEN, Header, Place, decode_body};
use guestmnt_protocol::message::{Answer, Outcome};
use tempfile::TempDir;

/// What fits into a socket that nobody reads.
const MOST: usize = 64 << 10;

thread_local! {
    static TREE: TempDir = tree();
}

/// A few files for the requests that mean some.
fn tree() -> TempDir {
    let tree = tempfile::tempdir().expect("a folder is to be had");
    let at = |name: &str| tree.path().join(name);
    std::fs::create_dir(at("folder")).expect("it is ours");
    std::fs::write(at("file"), "some text").expect("it is ours");
    std::fs::write(at("folder/other"), [7; 5000]).expect("it is ours");
    symlink("file", at("link")).expect("it is ours");
    tree
}

/// Serves them.
///
/// # Panics
/// Where an answer is none.
pub fn run(bytes: &[u8]) {
    let guest = TREE.with(|tree| Guest::over(tree.path()).expect("it is a folder"));
    let (ours, mut theirs) = UnixStream::pair().expect("sockets are to be had");
    theirs.write_all(&bytes[..bytes.len().min(MOST)]).expect("it fits into the socket");
    theirs.shutdown(Shutdown::Write).expect("it is open");
    let answers = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut answers = Vec::new();
            // It may hang up before it has read all, which is an error behind the answers.
            let _ = theirs.read_to_end(&mut answers);
            answers
        });
        let _ = serve(ours, &guest);
        reading.join().expect("it only reads")
    });
    check(&answers);
}

fn check(mut answers: &[u8]) {
    while !answers.is_empty() {
        let header = answers.first_chunk::<HEADER_LEN>().expect("a whole header");
        let header = Header::decode(header).expect("a header");
        // The folder has no bulk memory.
        assert_eq!(header.place, Place::Port);
        let (body, rest) = answers[HEADER_LEN..].split_at(header.body_len);
        let outcome = decode_body::<Outcome>(body).expect("an outcome");
        assert!(header.payload_len == 0 || outcome == Ok(Answer::Payload));
        answers = &rest[header.payload_len..];
    }
}
