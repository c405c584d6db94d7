//! A guest that was taken over says whatever it likes: each request gets a valid answer or EIO, and
//! never what another request was answered.

use std::fmt::Debug;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guestmnt::counts::Kind;
use guestmnt::fs::Shows;
use guestmnt::guest::asked::Asked;
use guestmnt::guest::{Contents, Guest, GuestError};
use guestmnt::session::fuse_options::FuseOptions;
use guestmnt::session::mountpoint::Mountpoint;
use guestmnt::session::serving::{Files, Serving};
use guestmnt_protocol::attr::{Attr, DirEntry, Following, Time, push_entry};
use guestmnt_protocol::batch::{self, Numbered, Outcome as File, Plain, Stored, Wanted};
use guestmnt_protocol::change::{
    Access, EntryPath, Existing, FileAt, HeldFile, NewAttributes, NewNode, Owner, Synced,
};
use guestmnt_protocol::frame::{self, HEADER_LEN, Place};
use guestmnt_protocol::limits::{MAX_LINK, MAX_NAME, MAX_PAYLOAD, MAX_RUNS, MAX_SAMPLE, MAX_XATTR};
use guestmnt_protocol::message::{
    Answer, Dirty, Extent, Failure, Layout, Listing, MountRequest, MountedAs, NameMatching,
    Outcome, Request, Run, StatFs,
};
use guestmnt_protocol::path::{EntryName, GuestPath};
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::volume::Mountable;
use guestmnt_protocol::xattr::{Xattr, XattrName, push_file};
use guestmnt_tests::worlds::scripted::{Said, answer, at_once, guest};
use nix::errno::Errno;

const SIZE: u32 = 4096;

fn path(text: &str) -> GuestPath {
    GuestPath::parse(text.as_bytes()).unwrap()
}

fn numbered(text: &str) -> Numbered {
    Numbered { name: name(text), number: 0 }
}

fn name(text: &str) -> EntryName {
    EntryName::new(text.as_bytes()).unwrap()
}

/// What the host makes of the answer to a request of this kind.
fn ask(kind: Asked, guest: &Guest) -> Result<String, Errno> {
    let shown = |value: &dyn Debug| format!("{value:?}");
    let file = path("/file");
    match kind {
        Asked::Stat => guest.stat(file).map(|attr| shown(&attr)),
        Asked::ReadLink => guest.read_link(file).map(|target| shown(&target)),
        Asked::ReadDir => guest.read_dir(file, 0, SIZE).map(|page| shown(&page)),
        Asked::Read => guest.read(file, 0, SIZE, |bytes| shown(&bytes)),
        Asked::ReadFiles => {
            let mut files = Vec::new();
            let wanted = ["1", "2"].map(|text| Wanted { file: numbered(text), size: 3 });
            let take = |_: usize, contents: Result<Contents, Errno>| files.push(shown(&contents));
            guest.read_files(file, Plain::Places, wanted.into(), take).map(|()| shown(&files))
        }
        Asked::Layout => guest.layout(file, 0).map(|layout| shown(&layout)),
        Asked::SampledLayout => guest.sampled_layout(file, 0).map(|sampled| shown(&sampled)),
        Asked::Seek => guest.seek(file, 9, Extent::Data).map(|found| shown(&found)),
        Asked::ListXattr => guest.list_xattr(file).map(|names| shown(&names)),
        Asked::GetXattr => guest.get_xattr(file, b"user.a").map(|value| shown(&value)),
        Asked::ReadXattrs => {
            guest.read_xattrs(file, ["1", "2"].map(numbered).into()).map(|files| shown(&files))
        }
        Asked::StatFs => guest.stat_fs(file).map(|stat| shown(&stat)),
        Asked::Create => {
            let (owner, existing) = (Owner::default(), Existing::Open);
            guest.create(new(), 0o644, owner, existing).map(|made| shown(&made))
        }
        Asked::Hold => guest.hold(FileAt::Path(file), Access::Read).map(|held| shown(&held)),
        Asked::SetAttr => {
            let nothing = NewAttributes::default();
            guest.set_attr(FileAt::Path(file), nothing).map(|attr| shown(&attr))
        }
        Asked::Finish => {
            let set = guest.write_and_set(HeldFile(1), b"bytes", NewAttributes::default());
            set.map(|attr| shown(&attr))
        }
        Asked::Change => {
            let made = guest.make(new(), NewNode::Directory(0o755), Owner::default());
            made.map(|attr| shown(&attr))
        }
        Asked::Write | Asked::Sync | Asked::Release => unreachable!("they tell nothing"),
    }
}

fn new() -> EntryPath {
    EntryPath { folder: path("/"), name: name("file") }
}

/// The kinds of requests whose answers tell something beside how it ended.
fn telling() -> impl Iterator<Item = Asked> {
    let silent = |kind: &Asked| matches!(kind, Asked::Write | Asked::Sync | Asked::Release);
    Asked::ALL.iter().copied().filter(move |kind| !silent(kind))
}

/// A proper answer to a request of this kind; another one for each number.
fn honest(kind: Asked, number: u8) -> (Outcome, Vec<u8>) {
    let payload = |bytes: Vec<u8>| (Ok(Answer::Payload), bytes);
    let wide = u64::from(number);
    match kind {
        Asked::Stat => (Ok(Answer::Attr(Attr { size: wide, ..file() })), Vec::new()),
        Asked::ReadLink | Asked::GetXattr | Asked::Read => payload(vec![b'a' + number; 5]),
        Asked::ReadDir => payload(page(&[entry(&format!("file{number}"), 7)], Following::Nothing)),
        Asked::ReadFiles => {
            let mut page = Vec::new();
            batch::push_outcome(&mut page, &File::Here(1));
            let stored = Stored { disk: 0, place: wide, length: 3 };
            batch::push_outcome(&mut page, &File::Stored(stored));
            page.push(number);
            payload(page)
        }
        Asked::Layout => (Ok(Answer::Layout(layout(&[run(0, 4, wide)]))), Vec::new()),
        Asked::SampledLayout => (Ok(sampled(&[run(0, 4, wide)], usize::from(number))), Vec::new()),
        Asked::Seek => (Ok(Answer::Offset(9 + wide)), Vec::new()),
        Asked::ListXattr => payload(vec![b'a' + number, 0]),
        Asked::ReadXattrs => {
            let name = XattrName::new(&[b'a' + number]).unwrap();
            let mut page = Vec::new();
            assert!(push_file(&mut page, &Ok(vec![Xattr { name, value: None }]), MAX_PAYLOAD));
            payload(page)
        }
        Asked::StatFs => {
            let stat = StatFs { blocks: wide, ..StatFs::default() };
            (Ok(Answer::StatFs(stat)), Vec::new())
        }
        Asked::Create => (Ok(Answer::Created(HeldFile(wide), file())), Vec::new()),
        Asked::Hold => (Ok(Answer::Held(HeldFile(wide))), Vec::new()),
        Asked::SetAttr | Asked::Finish | Asked::Change => {
            (Ok(Answer::Attr(Attr { size: wide, ..file() })), Vec::new())
        }
        Asked::Write | Asked::Sync | Asked::Release => unreachable!("they tell nothing"),
    }
}

fn file() -> Attr {
    Attr { ino: 64, mode: nix::libc::S_IFREG | 0o644, nlink: 1, ..Attr::default() }
}

fn entry(text: &str, next: u64) -> DirEntry {
    DirEntry { next, name: name(text), attr: Some(file()), target: None }
}

fn page(entries: &[DirEntry], following: Following) -> Vec<u8> {
    let mut page = vec![following.byte()];
    for entry in entries {
        assert!(push_entry(&mut page, entry, SIZE as usize));
    }
    page
}

fn run(at: u64, length: u64, stored: u64) -> Run {
    Run { at, length, stored }
}

fn layout(runs: &[Run]) -> Layout {
    Layout { disk: 0, size: 4, end: 4, runs: runs.to_vec() }
}

fn sampled(runs: &[Run], bytes: usize) -> Answer {
    Answer::SampledLayout { layout: layout(runs), sample: vec![7; bytes] }
}

/// How an answer is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misdeed {
    Garbage,
    NoBody,
    BodyOf4GiB,
    PayloadOf4GiB,
    HalfAFrame,
    Late,
    Twice,
    OtherAnswer,
    OtherNumber,
    ByteByByte,
    Dripping,
    Never,
    MoreThanWasAsked,
    InASlot,
    UnknownError,
}

const MISDEEDS: [Misdeed; 15] = [
    Misdeed::Garbage,
    Misdeed::NoBody,
    Misdeed::BodyOf4GiB,
    Misdeed::PayloadOf4GiB,
    Misdeed::HalfAFrame,
    Misdeed::Late,
    Misdeed::Twice,
    Misdeed::OtherAnswer,
    Misdeed::OtherNumber,
    Misdeed::ByteByByte,
    Misdeed::Dripping,
    Misdeed::Never,
    Misdeed::MoreThanWasAsked,
    Misdeed::InASlot,
    Misdeed::UnknownError,
];

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(20);

impl Misdeed {
    fn commit(self, seq: u32, outcome: &Outcome, payload: &[u8]) -> Said {
        let whole = answer(seq, outcome, payload);
        let with = |range: std::ops::Range<usize>, byte: u8| {
            let mut bytes = whole.clone();
            bytes[range].fill(byte);
            at_once(bytes)
        };
        match self {
            Self::Garbage => at_once(vec![0xaa; 64]),
            Self::NoBody => at_once([&whole[..4], &[0; HEADER_LEN - 4][..]].concat()),
            Self::BodyOf4GiB => with(4..8, 0xff),
            Self::PayloadOf4GiB => with(8..12, 0xff),
            Self::HalfAFrame => at_once(whole[..whole.len() - 1].to_vec()),
            Self::Late => vec![(2 * SHORT, whole)],
            Self::Twice => at_once([whole.clone(), whole].concat()),
            Self::OtherAnswer => {
                let other = Ok(Answer::Hello { version: 0, slots: Vec::new() });
                at_once(answer(seq, &other, b""))
            }
            Self::OtherNumber => at_once(answer(seq + 1, outcome, payload)),
            Self::ByteByByte => whole.iter().map(|&byte| (Duration::ZERO, vec![byte])).collect(),
            Self::Dripping => whole.iter().map(|&byte| (SHORT / 3, vec![byte])).collect(),
            Self::Never => Vec::new(),
            Self::MoreThanWasAsked => {
                at_once(answer(seq, &Ok(Answer::Payload), &vec![1; MAX_PAYLOAD]))
            }
            Self::InASlot => {
                let mut bytes = Vec::new();
                let length = payload.len().max(1);
                frame::encode(&mut bytes, seq, outcome, length, Place::Slot(3)).unwrap();
                at_once(bytes)
            }
            Self::UnknownError => at_once(answer(seq, &Err(Failure::new(4095)), b"")),
        }
    }

    /// Whether the host waits for what does not come in time.
    fn is_slow(self) -> bool {
        matches!(self, Self::HalfAFrame | Self::Late | Self::Dripping | Self::Never)
    }

    /// How long the host may wait for anything.
    fn timeout(self) -> Duration {
        if self.is_slow() { SHORT } else { LONG }
    }

    /// Whether the answer is good all the same.
    fn is_harmless(self) -> bool {
        matches!(self, Self::Twice | Self::ByteByByte)
    }
}

/// Most kilobytes of memory that this process has had.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Asks twice; the first answer is spoilt. What came of both.
fn twice(kind: Asked, misdeed: Misdeed) -> [Result<String, Errno>; 2] {
    let guest = guest(misdeed.timeout(), move |_, seq| {
        // Hello was 1.
        let first = seq == 2;
        let (outcome, payload) = honest(kind, if first { 1 } else { 2 });
        if first {
            misdeed.commit(seq, &outcome, &payload)
        } else {
            at_once(answer(seq, &outcome, &payload))
        }
    });
    let first = ask(kind, &guest);
    if misdeed == Misdeed::Late {
        // Until what was late has come.
        thread::sleep(2 * SHORT);
    }
    [first, ask(kind, &guest)]
}

/// What a guest that answers properly has the host say.
fn truth(kind: Asked, number: u8) -> Result<String, Errno> {
    let guest = guest(LONG, move |_, seq| {
        let (outcome, payload) = honest(kind, number);
        at_once(answer(seq, &outcome, &payload))
    });
    ask(kind, &guest)
}

#[test]
fn every_request_gets_its_answer_or_eio_whatever_the_guest_does_to_it() {
    let before = peak_kib();
    thread::scope(|scope| {
        for kind in telling() {
            scope.spawn(move || {
                let [first, second] = [1, 2].map(|number| truth(kind, number));
                assert!(first.is_ok() && second.is_ok() && first != second, "{kind:?}");
                for misdeed in MISDEEDS {
                    let [one, two] = twice(kind, misdeed);
                    let expected = if misdeed.is_harmless() { &first } else { &Err(Errno::EIO) };
                    assert_eq!(&one, expected, "{kind:?} {misdeed:?}");
                    // Afterwards the lane is in order or of no use.
                    assert!(
                        two == second || two == Err(Errno::EIO),
                        "{kind:?} {misdeed:?}: {two:?}"
                    );
                }
            });
        }
    });
    let grown = peak_kib() - before;
    assert!(grown < 256 << 10, "{grown} KiB for what was not there");
}

/// Answers of this kind in proper frames that cannot be true.
fn lies(kind: Asked) -> Vec<(&'static str, Outcome, Vec<u8>)> {
    let payload = |what, bytes: &[u8]| (what, Ok(Answer::Payload), bytes.to_vec());
    let attr = |what, attr| (what, Ok(Answer::Attr(attr)), Vec::new());
    let body = |what, answer| (what, Ok(answer), Vec::new());
    // A directory's page with one entry: where it goes on, its name, no attributes, no target.
    let named = |what, name: &[u8]| {
        let length = u8::try_from(name.len().min(127)).unwrap();
        (what, Ok(Answer::Payload), [&[1, 7, length], name, &[0, 0]].concat())
    };
    match kind {
        Asked::Stat | Asked::SetAttr | Asked::Finish | Asked::Change => vec![
            attr("a size of -1", Attr { size: u64::MAX, ..file() }),
            attr("a size of 2^63", Attr { size: 1 << 63, ..file() }),
            attr("no type", Attr { mode: 0o644, ..file() }),
            attr("nanoseconds", Attr { changed: Time { secs: 0, nanos: u32::MAX }, ..file() }),
        ],
        Asked::ReadLink => vec![
            payload("no target", b""),
            payload("NUL", b"a\0b"),
            payload("beyond PATH_MAX", &[b'a'; MAX_LINK + 1]),
        ],
        Asked::ReadDir => vec![
            payload("nothing", b""),
            payload("no word on what follows", b"\x02"),
            payload("half an entry", b"\x01\x07\x04fi"),
            payload("a name of 4 GiB", b"\x01\x07\xff\xff\xff\xff\x0ffile"),
            named("an empty name", b""),
            named("the folder", b"."),
            named("the folder above", b".."),
            named("a slash", b"a/b"),
            named("NUL", b"a\0b"),
            payload("a name too long", &long_name(MAX_NAME + 1)),
            payload("an empty target", b"\x01\x07\x01a\x00\x01\x00"),
            payload("a target with NUL", b"\x01\x07\x01a\x00\x01\x01\x00"),
        ],
        Asked::Read => vec![payload("a byte more", &[1; SIZE as usize + 1])],
        Asked::ReadFiles => vec![
            payload("one file of two", b"\x00\x03one"),
            payload("three files of two", b"\x00\x01\x00\x01\x00\x01abc"),
            payload("more than was wanted", b"\x00\x04\x00\x00onee"),
            payload("fewer bytes than it says", b"\x00\x03\x00\x03onetw"),
            payload("a file of 4 GiB", b"\x00\xff\xff\xff\xff\x0f\x00\x00"),
            payload("a place of other bytes", b"\x01\x00\x07\x02\x00\x03two"),
        ],
        Asked::Layout => vec![
            body("runs over each other", Answer::Layout(layout(&[run(0, 4, 0), run(3, 4, 8)]))),
            body("runs out of order", Answer::Layout(layout(&[run(4, 4, 0), run(0, 4, 8)]))),
            body("a run without bytes", Answer::Layout(layout(&[run(0, 0, 0)]))),
            body("a run beyond 2^63", Answer::Layout(layout(&[run(0, 4, i64::MAX as u64)]))),
            body("a run that wraps", Answer::Layout(layout(&[run(u64::MAX, 4, 0)]))),
            body("too many", Answer::Layout(layout(&[run(0, 1, 0); MAX_RUNS + 1]))),
        ],
        Asked::SampledLayout => vec![
            body("runs out of order", sampled(&[run(4, 4, 0), run(0, 4, 8)], 4)),
            body("too many runs", sampled(&[run(0, 1, 0); MAX_RUNS + 1], 4)),
            body("a byte more", sampled(&[run(0, 4, 0)], MAX_SAMPLE + 1)),
        ],
        Asked::Seek => vec![
            body("before the place", Answer::Offset(8)),
            body("-1", Answer::Offset(u64::MAX)),
            body("2^63", Answer::Offset(1 << 63)),
        ],
        Asked::ListXattr => vec![
            payload("half a name", b"user.a\0user.b"),
            payload("more than there can be", &[0; MAX_XATTR + 1]),
        ],
        Asked::GetXattr => vec![payload("more than there can be", &[0; MAX_XATTR + 1])],
        Asked::ReadXattrs => vec![
            payload("nothing", b""),
            payload("three files of two", b"\x00\x00\x00\x00\x00\x00"),
            payload("a list of 4 GiB", b"\x00\xff\xff\xff\xff\x0f"),
            payload("an empty name", b"\x00\x01\x00\x00"),
        ],
        // The kernel may be told any numbers.
        Asked::StatFs | Asked::Hold => vec![payload("bytes", b"1")],
        Asked::Create => {
            let no_type = Attr { mode: 0o644, ..file() };
            vec![body("no type", Answer::Created(HeldFile(1), no_type))]
        }
        Asked::Write | Asked::Sync | Asked::Release => unreachable!("they tell nothing"),
    }
}

/// A directory's page with one name of so many bytes.
fn long_name(bytes: usize) -> Vec<u8> {
    let [low, high] = [bytes & 0x7f | 0x80, bytes >> 7].map(|part| u8::try_from(part).unwrap());
    let length = [low, high];
    [&[1, 7][..], &length, &vec![b'a'; bytes], &[0, 0]].concat()
}

#[test]
fn answers_that_cannot_be_true_are_eio_and_the_next_one_is_heard() {
    for kind in telling() {
        for (what, outcome, payload) in lies(kind) {
            let guest = guest(LONG, move |_, seq| {
                let said =
                    if seq == 2 { (outcome.clone(), payload.clone()) } else { honest(kind, 1) };
                at_once(answer(seq, &said.0, &said.1))
            });
            assert_eq!(ask(kind, &guest), Err(Errno::EIO), "{kind:?} {what}");
            let next = ask(kind, &guest);
            assert!(next == truth(kind, 1) || next == Err(Errno::EIO), "{kind:?} {what}: {next:?}");
        }
    }
}

#[test]
fn names_that_linux_allows_are_passed_on() {
    for (what, page, names) in [
        (
            "bytes that are no UTF-8",
            b"\x01\x07\x02\xff\xfe\x00\x00".to_vec(),
            vec![vec![0xff, 0xfe]],
        ),
        ("the longest", long_name(MAX_NAME), vec![vec![b'a'; MAX_NAME]]),
        (
            "twice the same",
            page(&[entry("a", 1), entry("a", 2)], Following::Nothing),
            vec![b"a".to_vec(), b"a".to_vec()],
        ),
    ] {
        let guest = guest(LONG, move |_, seq| at_once(answer(seq, &Ok(Answer::Payload), &page)));
        let (entries, _) = guest.read_dir(path("/"), 0, SIZE).unwrap();
        let found: Vec<_> = entries.iter().map(|entry| entry.name.as_bytes().to_vec()).collect();
        assert_eq!(found, names, "{what}");
    }
}

#[test]
fn a_directory_without_end_ends_for_those_who_list_it() {
    // Two pages that lead to each other.
    let guest = guest(LONG, |request, seq| {
        let (outcome, payload) = match request {
            Request::ReadDir { from, .. } => {
                let next = if *from == 8 { 9 } else { 8 };
                let entries = [entry("one", 7), entry("two", next)];
                (Ok(Answer::Payload), page(&entries, Following::More))
            }
            Request::Stat(_) => {
                let mode = nix::libc::S_IFDIR | 0o755;
                (Ok(Answer::Attr(Attr { mode, ..file() })), Vec::new())
            }
            _ => (Err(Failure::new(5)), Vec::new()),
        };
        at_once(answer(seq, &outcome, &payload))
    });
    let folder = tempfile::tempdir().unwrap();
    let mountpoint = Mountpoint::check(folder.path()).unwrap();
    let options = FuseOptions::default();
    let files = Files::ReadOnly { disks: Vec::new(), shows: Shows::Files };
    let _serving = Serving::start(Arc::new(guest), files, &mountpoint, &options).unwrap();
    let outcomes: Vec<_> = fs::read_dir(folder.path()).unwrap().take(1000).collect();
    let error = outcomes.into_iter().find_map(Result::err).expect("it has no end");
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
}

/// Asks what is answered by nothing but how it ended.
fn ask_silent(kind: Asked, guest: &Guest) -> Option<Result<(), Errno>> {
    let file = HeldFile(1);
    match kind {
        Asked::Write => Some(guest.write(file, 0, b"bytes")),
        Asked::Sync => Some(guest.sync(FileAt::Held(file), Synced::All)),
        Asked::Release => Some(guest.release(file)),
        Asked::Finish => Some(guest.finish(file, b"bytes", NewAttributes::default())),
        _ => None,
    }
}

#[test]
fn what_is_written_is_there_or_eio_whatever_the_guest_does_to_its_answer() {
    for misdeed in MISDEEDS {
        for &kind in Asked::ALL {
            let (timeout, done) = (misdeed.timeout(), Ok(Answer::Done));
            let guest = guest(timeout, move |_, seq| misdeed.commit(seq, &done, b""));
            let guest = guest.within(timeout);
            let Some(found) = ask_silent(kind, &guest) else { continue };
            let expected = if misdeed.is_harmless() { Ok(()) } else { Err(Errno::EIO) };
            assert_eq!(found, expected, "{kind:?} {misdeed:?}");
        }
    }
}

/// What a step of a launch makes of its answer.
type Step<'a> = &'a (dyn Fn(&Guest) -> Result<(), GuestError> + Sync);

#[test]
fn launches_fail_in_time_whatever_the_guest_does_to_their_answers() {
    let mount = || {
        let device: Mountable = "/dev/sda".parse().unwrap();
        MountRequest { device, at: GuestPath::root(), fstype: None, options: String::new() }
    };
    let awake = Answer::Awake { unix_time_ns: 0, random: [1; 16] };
    let mounted = Answer::Mounted(MountedAs { read_only: None, names: NameMatching::Exact });
    let steps: [(&str, Answer, Step); 12] = [
        ("wake", awake, &|guest| guest.wake([1; 32])),
        ("prepare", Answer::Done, &Guest::prepare),
        ("await disks", Answer::Done, &|guest| guest.await_disks(1).map(drop)),
        ("volumes", Answer::Volumes(Vec::new()), &|guest| guest.volumes().map(drop)),
        ("listing", Answer::Listing(Listing::default()), &|guest| guest.listing().map(drop)),
        ("systems", Answer::Systems(Vec::new()), &|guest| guest.systems().map(drop)),
        ("mount", Answer::Done, &|guest| guest.mount(mount()).map(drop)),
        ("mount for writing", mounted, &|guest| {
            guest.mount_writable(mount(), Dirty::ReadOnly).map(drop)
        }),
        ("show blocks", Answer::Done, &Guest::show_blocks),
        ("mount folders", Answer::Done, &|guest| guest.mount_folders(vec![name("sda1")])),
        ("unlock", Answer::Done, &|guest| {
            let key = Secret::try_from(b"key".to_vec()).unwrap();
            guest.unlock("/dev/sda".parse().unwrap(), key)
        }),
        ("unmount", Answer::Done, &Guest::unmount),
    ];
    thread::scope(|scope| {
        for (what, honest, step) in steps {
            scope.spawn(move || {
                for misdeed in MISDEEDS {
                    let (timeout, honest) = (misdeed.timeout(), Ok(honest.clone()));
                    let guest = guest(LONG, move |_, seq| misdeed.commit(seq, &honest, b""));
                    let outcome = step(&guest.within(timeout));
                    assert_eq!(outcome.is_ok(), misdeed.is_harmless(), "{what} {misdeed:?}");
                }
            });
        }
    });
}
