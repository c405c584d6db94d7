//! What the guest does not take of a new file is told to somebody, whatever is asked of it first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guestmnt::fs::changes::{Changes, Lost};
use guestmnt::fs::nodes::{NodeId, ROOT};
use guestmnt::fs::operations::Operations;
use guestmnt::fs::view::View;
use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::change::{
    Change, HeldFile, HeldRequest, NewAttributes, NewNode, NewTime, Owner, Removed, Synced,
};
use guestmnt_protocol::message::{Answer, Failure, NameMatching, Outcome, Request};
use guestmnt_protocol::path::GuestPath;
use guestmnt_tests::worlds::scripted::{answer, at_once, guest};
use nix::errno::Errno;
use nix::libc;

/// What it is told to be.
const FILE: Attr = Attr {
    ino: 64,
    volume: 0,
    mode: libc::S_IFREG | 0o644,
    nlink: 1,
    uid: 0,
    gid: 0,
    rdev: 0,
    size: 0,
    blocks: 0,
    block_size: 4096,
    accessed: EPOCH,
    modified: EPOCH,
    changed: EPOCH,
};
const EPOCH: Time = Time { secs: 0, nanos: 0 };

/// What a guest says whose disk became full when a file was made.
fn full(request: &Request) -> Outcome {
    match request {
        Request::Change(Change::Create { .. }) => Ok(Answer::Created(HeldFile(1), FILE)),
        Request::Change(Change::Finish { .. }) => {
            Err(Failure::new(u16::try_from(libc::ENOSPC).unwrap()))
        }
        Request::Stat(_) => Ok(Answer::Attr(FILE)),
        Request::Change(Change::SetAttr { .. }) => Ok(Answer::Attr(FILE)),
        Request::Held(_, HeldRequest::Read { .. }) => Ok(Answer::Payload),
        Request::Held(_, HeldRequest::Release) | Request::Change(_) => Ok(Answer::Done),
        _ => panic!("this is not asked: {request:?}"),
    }
}

/// A new file with bytes that the guest has no room for.
fn new_file() -> (Changes, NodeId) {
    new_file_in(full)
}

/// A new file with some bytes in a guest that answers like that.
fn new_file_in(
    guest_says: impl Fn(&Request) -> Outcome + Send + Sync + 'static,
) -> (Changes, NodeId) {
    let said = move |request: &Request, seq| at_once(answer(seq, &guest_says(request), b""));
    let guest = Arc::new(guest(Duration::from_secs(20), said));
    let operations = Arc::new(Operations::changing(Arc::clone(&guest), View::default()));
    let changes = Changes::new(guest, operations, Owner::default(), NameMatching::Exact);
    let made = changes.create(ROOT, b"new", 0o644, libc::O_WRONLY | libc::O_EXCL).unwrap();
    let node = NodeId(made.ino.0);
    changes.write(node, 0, b"bytes").unwrap();
    (changes, node)
}

/// Closes the file, and gives what was not told to anybody.
fn untold(changes: &Changes, node: NodeId) -> Option<Lost> {
    changes.close(node);
    changes.lost()
}

#[test]
fn who_closes_a_new_file_is_told_what_the_guest_did_not_take() {
    let (changes, node) = new_file();
    assert_eq!(changes.flush(node), Err(Errno::ENOSPC));
    assert_eq!(changes.flush(node), Ok(()), "once");
    assert_eq!(untold(&changes, node), None);
}

#[test]
fn who_closes_or_syncs_it_is_told_what_failed_when_something_else_was_asked() {
    let asked: [fn(&Changes, NodeId); 5] = [
        |changes, node| assert_eq!(changes.read(node, 0, 9, |_| ()), Ok(())),
        |changes, _| {
            changes.look_up(ROOT, b"new").unwrap();
        },
        |changes, _| drop(changes.settled_for_listing()),
        |changes, node| {
            let shorter = NewAttributes { size: Some(1), ..NewAttributes::default() };
            changes.set_attr(node, shorter).unwrap();
        },
        |changes, _| changes.remove(ROOT, b"new", Removed::File).unwrap(),
    ];
    for ask in asked {
        let (changes, node) = new_file();
        ask(&changes, node);
        assert_eq!(changes.flush(node), Err(Errno::ENOSPC));
        assert_eq!(untold(&changes, node), None);
    }
    let (changes, node) = new_file();
    assert_eq!(changes.get_attr(node).unwrap().size, 5);
    drop(changes.settled_for_listing());
    assert_eq!(changes.sync(node, Synced::All), Err(Errno::ENOSPC));
    assert_eq!((changes.flush(node), untold(&changes, node)), (Ok(()), None));
}

#[test]
fn what_is_refused_takes_nothing_along_that_was_kept() {
    let kept = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&kept);
    let (changes, node) = new_file_in(move |request| match request {
        Request::Change(Change::Finish { attributes, .. })
            if attributes.owner == Owner::default() =>
        {
            seen.store(attributes.modified.is_some(), Ordering::Relaxed);
            Ok(Answer::Attr(FILE))
        }
        Request::Change(Change::Finish { .. }) => {
            Err(Failure::new(u16::try_from(libc::EPERM).unwrap()))
        }
        other => full(other),
    });
    let time = Some(NewTime::At(Time { secs: 1, nanos: 0 }));
    changes.set_attr(node, NewAttributes { modified: time, ..NewAttributes::default() }).unwrap();
    let owner = Owner { uid: Some(7), gid: None };
    let given = changes.set_attr(node, NewAttributes { owner, ..NewAttributes::default() });
    assert_eq!(given.err(), Some(Errno::EPERM));
    assert!(kept.load(Ordering::Relaxed), "the time was answered for");
    assert_eq!((changes.flush(node), untold(&changes, node)), (Ok(()), None));
}

#[test]
fn what_nobody_was_told_is_lost_when_it_ends() {
    let (changes, node) = new_file();
    let path = GuestPath::parse(b"/new").unwrap();
    assert_eq!(untold(&changes, node), Some(Lost { path, errno: Errno::ENOSPC }));
}

#[test]
fn errors_of_the_guests_filesystem_arrive_as_themselves() {
    use Errno::{EDQUOT, EEXIST, EFBIG, EIO, EMLINK, ENAMETOOLONG, ENOSPC, EPERM, EROFS};
    for errno in [EDQUOT, EEXIST, EFBIG, EIO, EMLINK, ENAMETOOLONG, ENOSPC, EPERM, EROFS] {
        let failure = Failure::new(u16::try_from(errno as i32).unwrap());
        let (changes, node) = new_file_in(move |request| match request {
            Request::Change(Change::Sync { .. } | Change::Make { .. }) => Err(failure.clone()),
            Request::Change(Change::Finish { .. }) => Ok(Answer::Attr(FILE)),
            other => full(other),
        });
        let made = changes.make(ROOT, b"folder", NewNode::Directory(0o755));
        assert_eq!(made.err(), Some(errno));
        assert_eq!(changes.sync(node, Synced::All), Err(errno));
    }
}
