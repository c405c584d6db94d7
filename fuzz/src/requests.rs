//! Bytes as what a host sends to the daemon by a lane. Whatever comes, the daemon answers frames
//! that can be read, in the order of the requests, and goes on or hangs up. What it is asked to
//! change, it changes, in a folder that is new each time.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

use guestmnt_appliance::guest::Guest;
use guestmnt_appliance::serve::serve;
use guestmnt_protocol::frame::{HEADER_LEN, Header, Place, decode_body};
use guestmnt_protocol::message::{Answer, Outcome};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use tempfile::TempDir;

/// What fits into a socket that nobody reads, and asks for no more than some hundred files.
const MOST: usize = 4 << 10;

/// Bytes of the longest file that is made: a request is short that asks for a long one.
const LONGEST: u64 = 8 << 20;

/// A few files for the requests that mean some, in memory where that can be.
fn tree() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let tree = tempfile::tempdir_in(folder).expect("a folder is to be had");
    let at = |name: &str| tree.path().join(name);
    std::fs::create_dir(at("folder")).expect("it is ours");
    std::fs::write(at("file"), "some text").expect("it is ours");
    std::fs::write(at("folder/other"), [7; 5000]).expect("it is ours");
    symlink("file", at("link")).expect("it is ours");
    tree
}

/// Takes the tree away, whatever permissions its folders were given.
fn clear(folder: &Path) {
    let _ = std::fs::set_permissions(folder, Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            clear(&entry.path());
        }
    }
}

/// Has no file of this process grow longer than [`LONGEST`].
fn limit() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().expect("a signal can be blocked");
    let (_, most) = getrlimit(Resource::RLIMIT_FSIZE).expect("it can be asked for");
    setrlimit(Resource::RLIMIT_FSIZE, LONGEST.min(most), most).expect("it can be lowered");
}

/// Serves them.
///
/// # Panics
/// Where an answer is none.
pub fn run(bytes: &[u8]) {
    limit();
    let tree = tree();
    let guest = Guest::over(tree.path()).expect("it is a folder");
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
    drop(guest);
    clear(tree.path());
    tree.close().expect("nothing is left that cannot be removed");
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
