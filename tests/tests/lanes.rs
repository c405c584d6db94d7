//! Guests that answer on some lanes and not on others: whoever met the bad one may fail, and nobody
//! else waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use guestmnt::guest::Guest;
use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::message::{Answer, Failure, Outcome, Request};
use guestmnt_protocol::path::GuestPath;
use guestmnt_tests::worlds::scripted::{Gate, Said, answer, at_once, guest_of, pulse};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LANES: usize = 4;

/// Requests of each thread while a lane is stuck.
const STATS: u64 = 12;

/// For what the test does not wait out.
const LONG: Duration = Duration::from_secs(60);

/// For what it does: others have to be answered in it, on a busy machine too.
const SHORT: Duration = Duration::from_secs(4);

/// What the first answer on lane 0 is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misdeed {
    /// Half of it, and no more.
    Short,
    /// Whole, when the test lets it.
    Late,
    Never,
    Garbage,
}

const MISDEEDS: [Misdeed; 4] = [Misdeed::Short, Misdeed::Late, Misdeed::Never, Misdeed::Garbage];

impl Misdeed {
    /// What is said instead of `whole`.
    fn commit(self, whole: Vec<u8>, gate: &Gate) -> Said {
        match self {
            Self::Short => at_once(whole[..whole.len() - 1].to_vec()),
            Self::Late => {
                gate.pass();
                at_once(whole)
            }
            Self::Never => Vec::new(),
            Self::Garbage => at_once(vec![0xaa; 64]),
        }
    }
}

/// The file `/N` has N bytes.
fn size(guest: &Guest, n: u64) -> Result<u64, Errno> {
    guest.stat(GuestPath::parse(format!("/{n}").as_bytes()).unwrap()).map(|attr| attr.size)
}

fn truth(request: &Request) -> (u64, Outcome) {
    let Request::Stat(path) = request else { return (0, Err(Failure::new(5))) };
    let size = path.to_string().trim_start_matches('/').parse().unwrap();
    let mode = nix::libc::S_IFREG | 0o644;
    (size, Ok(Answer::Attr(Attr { ino: 64, mode, size, ..Attr::default() })))
}

/// A guest that answers about files below [`LANES`] when it was asked about one on each lane, so that
/// as many threads use all of them. The first answer on lane 0 goes through `spoil`.
fn guest_in_step(
    timeout: Duration,
    spoil: impl Fn(Vec<u8>) -> Said + Send + Sync + 'static,
) -> Guest {
    let (together, begun) = (Barrier::new(LANES), AtomicBool::new(false));
    guest_of(LANES, timeout, move |lane, request, seq| {
        let (n, outcome) = truth(request);
        if n < LANES as u64 {
            together.wait();
        }
        let whole = answer(seq, &outcome, b"");
        if lane == 0 && !begun.swap(true, Ordering::Relaxed) {
            spoil(whole)
        } else {
            at_once(whole)
        }
    })
}

/// What comes of as many requests at once as there are lanes, each of which takes part in that.
fn on_each_lane(guest: &Guest, then: impl Fn(u64) + Sync) -> Vec<Result<u64, Errno>> {
    thread::scope(|scope| {
        let ask = |n| {
            let then = &then;
            scope.spawn(move || {
                let found = size(guest, n);
                then(n);
                found
            })
        };
        let asking: Vec<_> = (0..LANES as u64).map(ask).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    })
}

fn all_are_right(found: &[Result<u64, Errno>]) -> bool {
    found.iter().zip(0..).all(|(found, n)| *found == Ok(n))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Successor {
    None,
    Expected,
}

/// The first answer on lane 0 is bad, and the lane stuck from then on.
fn meet(misdeed: Misdeed, successor: Successor) {
    let what = format!("{misdeed:?}, successor {successor:?}");
    let gate = Gate::closed();
    let guest = guest_in_step(SHORT, {
        let gate = gate.clone();
        move |whole| misdeed.commit(whole, &gate)
    });
    if successor == Successor::Expected {
        guest.expect_another();
    }
    let found = on_each_lane(&guest, |thread| {
        for n in (1..=STATS).map(|n| 100 * (thread + 1) + n) {
            assert_eq!(size(&guest, n), Ok(n), "{what}");
        }
    });
    let failed = found.iter().filter(|found| found.is_err()).count();
    assert_eq!(failed, 1, "{what}: {found:?}");
    gate.open();
    if misdeed == Misdeed::Late {
        // It can be a while until the answer is seen.
        assert!(all_are_right(&on_each_lane(&guest, |_| ())), "{what}: lane 0 is not used");
    }
    if successor == Successor::Expected {
        guest.go_on_with(guest_in_step(LONG, at_once)).unwrap();
        assert!(all_are_right(&on_each_lane(&guest, |_| ())), "{what}: not all of the next one's");
    }
}

#[test]
fn only_the_request_that_meets_a_bad_answer_fails_and_the_lane_is_used_once_it_is_good() {
    thread::scope(|scope| {
        for misdeed in MISDEEDS {
            for successor in [Successor::None, Successor::Expected] {
                scope.spawn(move || meet(misdeed, successor));
            }
        }
    });
}

#[test]
fn who_finds_all_lanes_busy_takes_the_first_that_comes_free() {
    let gates = [Gate::closed(), Gate::closed()];
    let guest = guest_of(2, LONG, {
        let gates = gates.clone();
        move |lane, request, seq| {
            let (n, outcome) = truth(request);
            if n == 0 {
                gates[lane].pass();
            }
            at_once(answer(seq, &outcome, b""))
        }
    });
    let waiting = 6;
    thread::scope(|scope| {
        let stuck = [(); 2].map(|()| scope.spawn(|| size(&guest, 0)));
        gates.iter().for_each(|gate| gate.await_comers(1));
        let guest = &guest;
        let ask = |n| scope.spawn(move || size(guest, n));
        let asking: Vec<_> = (1..=waiting).map(ask).collect();
        // Each is counted before it looks for a lane.
        while guest.counts().total() < 2 + waiting {
            thread::yield_now();
        }
        gates[0].open();
        let found: Vec<_> = asking.into_iter().map(|asking| asking.join().unwrap()).collect();
        let right: Vec<_> = (1..=waiting).map(Ok).collect();
        assert_eq!(found, right, "they wait for lane 1");
        gates[1].open();
        assert_eq!(stuck.map(|stuck| stuck.join().unwrap()), [Ok(0), Ok(0)]);
    });
}

#[test]
fn a_guest_that_freezes_while_every_lane_owes_is_given_up() {
    let gate = Gate::closed();
    // Long enough for a sign of the guest to be asked for.
    let guest = guest_of(2, Duration::from_secs(5), {
        let gate = gate.clone();
        move |_, _, _| {
            gate.pass();
            Vec::new()
        }
    });
    let runs = Arc::new(AtomicBool::new(true));
    let guest = guest.with_pulse(pulse(Arc::clone(&runs)));
    guest.expect_another();
    thread::scope(|scope| {
        let late = [(); 2].map(|()| scope.spawn(|| size(&guest, 0)));
        assert_eq!(late.map(|late| late.join().unwrap()), [Err(Errno::EIO); 2]);
        runs.store(false, Ordering::Relaxed);
        let waiting = scope.spawn(|| size(&guest, 7));
        let mut given_up = [PollFd::new(guest.given_up(), PollFlags::POLLIN)];
        poll(&mut given_up, PollTimeout::NONE).unwrap();
        let next =
            guest_of(2, LONG, |_, request, seq| at_once(answer(seq, &truth(request).1, b"")));
        guest.go_on_with(next).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(7));
    });
}

#[test]
fn a_guest_whose_late_answer_is_garbage_is_given_up() {
    let gate = Gate::closed();
    let guest = guest_of(2, Duration::from_millis(500), {
        let gate = gate.clone();
        move |_, request, seq| {
            let (n, outcome) = truth(request);
            if n > 0 {
                return at_once(answer(seq, &outcome, b""));
            }
            gate.pass();
            at_once(vec![0xaa; 64])
        }
    });
    guest.expect_another();
    assert_eq!(size(&guest, 0), Err(Errno::EIO));
    gate.open();
    while guest.why_given_up().is_none() {
        // Whoever looks for a lane looks what that one owes.
        let _ = size(&guest, 1);
    }
}
