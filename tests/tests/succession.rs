//! One guest after the other behind the same lanes, each a script: who is given up, who is waited
//! for, and who gets the next one's answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use guestmnt::guest::{Guest, Unlike};
use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::message::{Answer, Failure, Request};
use guestmnt_protocol::path::GuestPath;
use guestmnt_tests::worlds::scripted::{Said, answer, at_once, guest, lane};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LONG: Duration = Duration::from_secs(20);

fn path(text: &str) -> GuestPath {
    GuestPath::parse(text.as_bytes()).unwrap()
}

/// Every file has this size, and is on the volume that `volume` says by its path.
fn says(request: &Request, seq: u32, size: u64, volume: impl Fn(&str) -> u16) -> Said {
    let outcome = match request {
        Request::Stat(path) => {
            let mode = nix::libc::S_IFREG | 0o644;
            let volume = volume(&path.to_string());
            Ok(Answer::Attr(Attr { ino: 64, mode, size, volume, ..Attr::default() }))
        }
        _ => Err(Failure::new(5)),
    };
    at_once(answer(seq, &outcome, b""))
}

/// A guest that answers so.
fn honest(size: u64) -> Guest {
    guest(LONG, move |request, seq| says(request, seq, size, |_| 0))
}

fn is_given_up(guest: &Guest) -> bool {
    poll(&mut [PollFd::new(guest.given_up(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}

#[test]
fn a_guest_that_breaks_the_protocol_is_given_up_and_the_next_one_answers() {
    let guest = guest(LONG, |_, _| at_once(vec![0xaa; 64]));
    guest.expect_another();
    // What it was asked is not asked again: the answer was there.
    assert_eq!(guest.stat(path("/a")), Err(Errno::EIO));
    assert!(is_given_up(&guest));
    assert_eq!(
        guest.why_given_up().unwrap(),
        "the guest sent a malformed answer: a header out of bounds"
    );
    thread::scope(|scope| {
        // The lane is of no use any more: whoever comes by it waits.
        let waiting = scope.spawn(|| guest.stat(path("/a")).map(|attr| attr.size));
        guest.go_on_with(honest(7)).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(7));
    });
    assert!(!is_given_up(&guest) && guest.why_given_up().is_none());
}

#[test]
fn a_request_is_made_once_more_and_not_for_ever() {
    // They hang up on whatever they are asked.
    let asked = Arc::new(AtomicU64::new(0));
    let dying = |asked: &Arc<AtomicU64>| {
        let asked = Arc::clone(asked);
        guest(LONG, move |_, _| {
            asked.fetch_add(1, Ordering::Relaxed);
            panic!("this lane's thread ends here, and the lane with it")
        })
    };
    let guest = dying(&asked);
    guest.expect_another();
    thread::scope(|scope| {
        let asking = scope.spawn(|| guest.stat(path("/a")));
        while asked.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        guest.go_on_with(dying(&asked)).unwrap();
        assert_eq!(asking.join().unwrap(), Err(Errno::EIO));
    });
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    guest.go_on_with(honest(1)).unwrap();
    assert!(guest.stat(path("/a")).is_ok());
}

#[test]
fn without_another_to_come_requests_fail_at_once() {
    let guest = guest(LONG, |_, _| at_once(vec![0xaa; 64]));
    guest.expect_another();
    assert_eq!(guest.stat(path("/a")), Err(Errno::EIO));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.stat(path("/a")));
        guest.expect_none();
        assert_eq!(waiting.join().unwrap(), Err(Errno::EIO));
    });
    assert_eq!(guest.stat(path("/a")), Err(Errno::EIO));
}

#[test]
fn the_next_guest_may_number_volumes_otherwise_and_must_have_the_same() {
    let numbered = |a: u16, b: u16| {
        guest(LONG, move |request, seq| {
            let volume = move |path: &str| match path {
                "/a" => a,
                "/b" => b,
                _ => 0,
            };
            says(request, seq, 1, volume)
        })
    };
    let guest = numbered(1, 2);
    guest.expect_another();
    let volume = |name: &str| guest.stat(path(name)).unwrap().volume;
    let before = ["/b", "/a"].map(volume);
    assert_eq!(guest.go_on_with(numbered(3, 3)), Err(Unlike::OtherVolumes));
    assert_eq!(guest.go_on_with(numbered(0, 1)), Err(Unlike::OtherVolumes));
    assert_eq!(["/b", "/a"].map(volume), before, "nothing has changed");
    guest.go_on_with(numbered(9, 1)).unwrap();
    assert_eq!(["/b", "/a"].map(volume), before);
}

#[test]
fn a_slow_guest_that_runs_is_not_given_up() {
    // Its disk takes longer than the guest is trusted without a sign.
    let slow = Duration::from_secs(3);
    let guest = guest(LONG / 2, move |request, seq| {
        let said = says(request, seq, 5, |_| 0);
        said.into_iter().map(|(_, bytes)| (slow, bytes)).collect()
    });
    let guest = guest.with_pulse(lane(Arc::new(|_, _| Vec::new())));
    guest.expect_another();
    assert_eq!(guest.stat(path("/a")).map(|attr| attr.size), Ok(5));
    assert!(!is_given_up(&guest));
}

#[test]
fn a_guest_that_gives_no_sign_is_given_up_and_the_request_is_made_again() {
    let silent = guest(LONG / 2, |_, _| Vec::new());
    // Nobody answers there, not even a greeting.
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let silent = silent.with_pulse(ours);
    silent.expect_another();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| silent.stat(path("/a")).map(|attr| attr.size));
        let mut given_up = [PollFd::new(silent.given_up(), PollFlags::POLLIN)];
        poll(&mut given_up, PollTimeout::NONE).unwrap();
        silent.go_on_with(honest(3)).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(3));
    });
}
