//! The seeds that the fuzzer starts from: they are what they are called, and neither they nor what
//! is made of them by a few thousand small changes is a finding.
//!
//! Those of the wire are written by this test with `UPDATE_SEEDS=1`; a message at the end of an
//! enum leaves them as they are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use guestmnt_fuzz::{TARGETS, record};
use guestmnt_protocol::VERSION;
use guestmnt_protocol::attr::{Attr, DirEntry, Following, Time, push_entry};
use guestmnt_protocol::batch::{self, Numbered, Plain, Stored, Wanted, push_outcome};
use guestmnt_protocol::change::{
    Access, Afterwards, Change, EntryPath, Existing, FileAt, HeldFile, HeldRequest, NewAttributes,
    NewNode, NewTime, Owner, Removed, Renaming, Synced, XattrMode,
};
use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::frame::{HEADER_LEN, Place, encode};
use guestmnt_protocol::message::{
    Answer, Dirty, Extent, Failure, Layout, Listing, MountRequest, MountedAs, NameMatching,
    Outcome, Request, Run, StatFs, TableProblem,
};
use guestmnt_protocol::path::{EntryName, GuestPath, LinkTarget};
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::volume::{Mountable, VolumeName};
use guestmnt_protocol::xattr::{FileXattrs, SmallValue, Xattr, XattrName, push_file};
use serde::Serialize;
use serde::de::DeserializeOwned;

type Seed = (String, Vec<u8>);

/// `cargo xtask test` puts them where an ordinary user can read them.
fn folder(target: &str) -> PathBuf {
    let placed = std::env::var_os("GUESTMNT_SEEDS").map(PathBuf::from);
    placed.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds")).join(target)
}

fn seeds(target: &str) -> Vec<Seed> {
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    let mut seeds: Vec<Seed> =
        fs::read_dir(folder(target)).unwrap().map(|entry| read(entry.unwrap())).collect();
    seeds.sort();
    seeds
}

fn frame(message: &impl Serialize, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    // The targets count the numbers themselves.
    encode(&mut frame, 0, message, payload.len(), Place::Port).unwrap();
    [&frame, payload].concat()
}

fn path(text: &str) -> GuestPath {
    GuestPath::parse(text.as_bytes()).unwrap()
}

fn name(text: &str) -> EntryName {
    EntryName::new(text.as_bytes()).unwrap()
}

fn attr(mode: u32) -> Attr {
    Attr { ino: 70, mode, nlink: 1, size: 3, blocks: 8, block_size: 4096, ..Attr::default() }
}

fn directory_page() -> Vec<u8> {
    let file = attr(nix::libc::S_IFREG | 0o644);
    let link = Attr { ino: 71, ..attr(nix::libc::S_IFLNK | 0o777) };
    let target = LinkTarget::new(b"../../etc/passwd").unwrap();
    let entries = [
        DirEntry { next: 1, name: name("file"), attr: Some(file), target: None },
        DirEntry { next: 2, name: name("link"), attr: Some(link), target: Some(target) },
        DirEntry { next: 3, name: name("bad"), attr: None, target: None },
    ];
    let mut page = vec![Following::Nothing.byte()];
    assert!(entries.iter().all(|entry| push_entry(&mut page, entry, 4096)));
    page
}

fn outcomes_page() -> Vec<u8> {
    let stored = Stored { disk: 0, place: 4096, length: 3 };
    let mut page = Vec::new();
    for outcome in [batch::Outcome::Here(3), batch::Outcome::Stored(stored)] {
        push_outcome(&mut page, &outcome);
    }
    page
}

fn xattrs_page() -> Vec<u8> {
    let name = XattrName::new(b"user.name").unwrap();
    let file: FileXattrs = Ok(vec![Xattr { name, value: SmallValue::new(b"value").ok() }]);
    let mut page = Vec::new();
    assert!(push_file(&mut page, &file, 4096));
    page
}

/// One of each kind, with a payload where it has one.
fn requests() -> Vec<(&'static str, Request, &'static [u8])> {
    let numbered = |text| Numbered { name: name(text), number: 300 };
    let wanted =
        vec![Wanted { file: numbered("file"), size: 9 }, Wanted { file: numbered("no"), size: 1 }];
    let device = VolumeName::from(DeviceName { disk: 0, partition: 1 });
    let mount = MountRequest {
        device: Mountable::Volume(device.clone()),
        at: path("/"),
        fstype: Some("ext4".into()),
        options: "noatime".into(),
    };
    let read_only = Request::Mount(mount.clone());
    let writable = Request::MountWritable { mount, dirty: Dirty::Force };
    let plain: Vec<(&str, Request)> = vec![
        ("hello", Request::Hello),
        ("wake", Request::Wake { unix_time_ns: 1 << 60, entropy: [7; 32] }),
        ("prepare", Request::Prepare),
        ("await-disks", Request::AwaitDisks { count: 1 }),
        ("volumes", Request::Volumes),
        ("mount", read_only),
        ("unmount", Request::Unmount),
        ("stat", Request::Stat(path("/folder/other"))),
        ("readlink", Request::ReadLink(path("/link"))),
        ("stored-target", Request::StoredTarget(path("/link"))),
        ("readdir", Request::ReadDir { path: path("/"), from: 0, size: 4096 }),
        ("read", Request::Read { path: path("/file"), offset: 2, size: 4096 }),
        ("seek", Request::Seek { path: path("/file"), offset: 1, what: Extent::Hole }),
        ("listxattr", Request::ListXattr(path("/file"))),
        ("getxattr", Request::GetXattr { path: path("/file"), name: b"user.x".to_vec() }),
        ("statfs", Request::StatFs(path("/"))),
        (
            "read-files",
            Request::ReadFiles { folder: path("/"), plain: Plain::Places, files: wanted },
        ),
        ("read-xattrs", Request::ReadXattrs { folder: path("/"), files: vec![numbered("file")] }),
        ("layout", Request::Layout { path: path("/file"), from: 0 }),
        ("sampled-layout", Request::SampledLayout { path: path("/file"), offset: 1 }),
        (
            "unlock",
            Request::Unlock { volume: device, key: Secret::try_from(b"key".to_vec()).unwrap() },
        ),
        ("listing", Request::Listing),
        ("blocks", Request::Blocks),
        ("inspect", Request::Inspect),
        ("folders", Request::Folders(vec![name("sda1")])),
        ("mount-writable", writable),
    ];
    let held = held_requests().into_iter().map(|(name, request)| (name, HELD, request));
    let held = held.map(|(name, file, request)| (name, Request::Held(file, request)));
    let held = held.map(|(name, request)| (name, request, &b""[..]));
    let plain = plain.into_iter().map(|(name, request)| (name, request, &b""[..]));
    let changes = changes().into_iter().map(|(name, change)| {
        let payload: &[u8] = if change.has_payload() { b"bytes" } else { b"" };
        (name, Request::Change(change), payload)
    });
    plain.chain(changes).chain(held).collect()
}

/// The first file that a daemon holds.
const HELD: HeldFile = HeldFile(1);

fn held_requests() -> Vec<(&'static str, HeldRequest)> {
    vec![
        ("held-stat", HeldRequest::Stat),
        ("held-read", HeldRequest::Read { offset: 1, size: 4096 }),
        ("held-seek", HeldRequest::Seek { offset: 1, what: Extent::Data }),
        ("held-release", HeldRequest::Release),
        ("held-get-xattr", HeldRequest::GetXattr { name: XattrName::new(b"user.x").unwrap() }),
        ("held-list-xattr", HeldRequest::ListXattr),
    ]
}

fn changes() -> Vec<(&'static str, Change)> {
    let entry = |folder: &str, new: &str| EntryPath { folder: path(folder), name: name(new) };
    let (held, file) = (FileAt::Held(HELD), FileAt::Path(path("/file")));
    let (owner, xattr) = (Owner::default(), XattrName::new(b"user.x").unwrap());
    let new = entry("/folder", "new");
    let attributes = NewAttributes {
        size: Some(9),
        mode: Some(0o600),
        accessed: Some(NewTime::Now),
        modified: Some(NewTime::At(Time { secs: 1, nanos: 2 })),
        owner,
    };
    let afterwards = Afterwards::Released;
    let changed = Time { secs: 1, nanos: 3 };
    let node = NewNode::Link(LinkTarget::new(b"../file").unwrap());
    let (from, to) = (new.clone(), entry("/", "moved"));
    vec![
        (
            "create",
            Change::Create { entry: new.clone(), mode: 0o644, owner, existing: Existing::Open },
        ),
        ("hold", Change::Hold { file: file.clone(), access: Access::Write }),
        ("write", Change::Write { file: HELD, offset: 3 }),
        ("set-attr", Change::SetAttr { file: held.clone(), attributes }),
        ("allocate", Change::Allocate { file: HELD, offset: 0, length: 8192, mode: 0 }),
        (
            "copy-range",
            Change::CopyRange { from: HELD, from_offset: 0, to: HELD, to_offset: 9, length: 5 },
        ),
        ("make", Change::Make { entry: entry("/", "made"), node, owner }),
        ("link", Change::Link { file: path("/file"), entry: entry("/", "second") }),
        ("set-xattr", Change::SetXattr { file, name: xattr.clone(), how: XattrMode::Set }),
        ("remove-xattr", Change::RemoveXattr { file: held.clone(), name: xattr }),
        ("sync", Change::Sync { file: held, what: Synced::All }),
        ("rename", Change::Rename { from, to: to.clone(), how: Renaming::Replace }),
        ("remove", Change::Remove { entry: to, kind: Removed::File }),
        ("finish", Change::Finish { file: HELD, offset: 3, attributes, afterwards }),
        ("set-attr-at", Change::SetAttrAt { file: FileAt::Held(HELD), attributes, changed }),
        ("finish-at", Change::FinishAt { file: HELD, offset: 3, attributes, afterwards, changed }),
    ]
}

/// What answers each step of `answers`, behind the number of the step.
fn answers() -> Vec<(&'static str, u8, Outcome, Vec<u8>)> {
    let file = attr(nix::libc::S_IFREG | 0o644);
    let run = Run { at: 0, length: 3, stored: 4096 };
    let layout = Layout { disk: 0, size: 3, end: 3, runs: vec![run] };
    let read_only = Some("bad \x1b[31m journal".to_owned());
    let remark = "no \x1b[31m journal".to_owned();
    let mounted = MountedAs { read_only, names: NameMatching::Loose };
    let failure = Failure::with_detail(5, "bad \x1b[31m device".to_owned());
    let problem = "bad \x1b[31m table".to_owned();
    let table = TableProblem { disk: DeviceName::whole(2), problem, usable: true };
    vec![
        ("look-up", 0, Ok(Answer::Attr(file)), vec![]),
        ("get-attr", 1, Ok(Answer::Attr(file)), vec![]),
        ("read-link", 2, Ok(Answer::Payload), b"/etc/../../passwd".to_vec()),
        ("read", 3, Ok(Answer::Payload), b"bytes".to_vec()),
        ("read-directory", 5, Ok(Answer::Payload), directory_page()),
        ("statfs", 7, Ok(Answer::StatFs(StatFs::default())), vec![]),
        ("get-xattr", 8, Ok(Answer::Payload), xattrs_page()),
        ("list-xattr", 9, Ok(Answer::Payload), b"user.name\0".to_vec()),
        ("seek", 10, Ok(Answer::Offset(9)), vec![]),
        ("volumes", 11, Ok(Answer::Volumes(vec![])), vec![]),
        ("layout", 13, Ok(Answer::Layout(layout.clone())), vec![]),
        ("sampled", 13, Ok(Answer::SampledLayout { layout, sample: b"one".to_vec() }), vec![]),
        ("read-files", 14, Ok(Answer::Payload), [outcomes_page(), b"one".to_vec()].concat()),
        ("failure", 15, Err(failure), vec![]),
        ("done", 15, Ok(Answer::Done), vec![]),
        ("systems", 16, Ok(Answer::Systems(vec![])), vec![]),
        ("create", 17, Ok(Answer::Created(HELD, file)), vec![]),
        ("hold", 18, Ok(Answer::Held(HELD)), vec![]),
        ("set-attr", 22, Ok(Answer::Attr(file)), vec![]),
        ("link", 24, Ok(Answer::Attr(file)), vec![]),
        ("sync", 27, Ok(Answer::Done), vec![]),
        ("awake", 0, Ok(Answer::Awake { unix_time_ns: 1 << 60, random: [7; 16] }), vec![]),
        ("hello-again", 0, Ok(Answer::Hello { version: VERSION, slots: vec![0] }), vec![]),
        ("listing", 12, Ok(Answer::Listing(Listing::default())), vec![]),
        ("remarked", 15, Ok(Answer::Remarked(Some(mounted.clone()), vec![remark])), vec![]),
        ("mounted", 15, Ok(Answer::Mounted(mounted)), vec![]),
        ("tables", 15, Ok(Answer::Tables(vec![table])), vec![]),
    ]
}

/// The seeds of the wire.
fn of_wire() -> Vec<(&'static str, Vec<Seed>)> {
    let body = |kind: u8, message: &[u8]| [&[kind], &message[HEADER_LEN..]].concat();
    let mut frames: Vec<Seed> = vec![
        ("header".into(), [&[0], &frame(&Request::Hello, b"")[..HEADER_LEN]].concat()),
        ("page-of-entries".into(), [vec![3], directory_page()].concat()),
        ("page-of-outcomes".into(), [vec![4], outcomes_page()].concat()),
        ("page-of-xattrs".into(), [vec![5], xattrs_page()].concat()),
        ("path".into(), b"\x06/a//./b/".to_vec()),
    ];
    for (name, request, _) in requests() {
        frames.push((format!("request-{name}"), body(1, &frame(&request, b""))));
    }
    for (name, _, outcome, _) in answers() {
        frames.push((format!("answer-{name}"), body(2, &frame(&outcome, b""))));
    }
    let one_by_one = answers().into_iter().map(|(name, step, outcome, payload)| {
        (name.to_owned(), [vec![step; 8], frame(&outcome, &payload).repeat(8)].concat())
    });
    // A file is held for those that name one by its number.
    let hold = Change::Hold { file: FileAt::Path(path("/file")), access: Access::Write };
    let hold = frame(&Request::Change(hold), b"");
    let mut served: Vec<Seed> = requests()
        .iter()
        .map(|(name, request, given)| {
            let before = match request {
                Request::Change(_) | Request::Held(..) => hold.as_slice(),
                _ => &[],
            };
            ((*name).into(), [before, &frame(request, given)].concat())
        })
        .collect();
    let all = requests().iter().flat_map(|(_, request, given)| frame(request, given)).collect();
    served.push(("all".into(), all));
    vec![("frames", frames), ("answers", one_by_one.collect()), ("requests", served)]
}

#[test]
fn seeds_of_the_wire_are_what_the_protocol_writes() {
    assert_eq!(VERSION, 8, "write the seeds anew: UPDATE_SEEDS=1");
    for (target, mut made) in of_wire() {
        if std::env::var_os("UPDATE_SEEDS").is_some() {
            fs::create_dir_all(folder(target)).unwrap();
            made.iter()
                .for_each(|(name, seed)| fs::write(folder(target).join(name), seed).unwrap());
        }
        let kept = seeds(target);
        made.sort();
        for seed in made {
            assert!(kept.contains(&seed), "{target}/{}", seed.0);
        }
    }
}

/// How many kinds a message has: the first number that stands for none is not one of a message that
/// ends too soon. Source: postcard's wire format, tagged unions.
fn kinds<M: DeserializeOwned>() -> usize {
    let unknown = |kind: &u8| {
        let read = postcard::from_bytes::<M>(&[*kind]);
        matches!(read, Err(postcard::Error::SerdeDeCustom))
    };
    (0..0x80).find(unknown).unwrap().into()
}

/// The kinds that there are among messages.
fn found<'a, M: Serialize + 'a>(messages: impl IntoIterator<Item = &'a M>) -> usize {
    let kind = |message: &M| postcard::to_allocvec(message).unwrap()[0];
    messages.into_iter().map(kind).collect::<BTreeSet<_>>().len()
}

#[test]
fn there_is_a_seed_of_each_kind_of_message() {
    let requests: Vec<_> = requests().into_iter().map(|(_, request, _)| request).collect();
    let changes: Vec<_> = changes().into_iter().map(|(_, change)| change).collect();
    let held: Vec<_> = held_requests().into_iter().map(|(_, request)| request).collect();
    let answers: Vec<_> =
        answers().into_iter().filter_map(|(_, _, answer, _)| answer.ok()).collect();
    assert_eq!(found(&requests), kinds::<Request>());
    assert_eq!(found(&changes), kinds::<Change>());
    assert_eq!(found(&held), kinds::<HeldRequest>());
    assert_eq!(found(&answers), kinds::<Answer>());
}

#[test]
fn every_target_has_a_program_and_a_folder_of_seeds() {
    let manifest = include_str!("../Cargo.toml");
    let programs: Vec<&str> =
        manifest.lines().filter_map(|line| line.strip_prefix("path = \"targets/")).collect();
    let targets = TARGETS.map(|target| format!("{}.rs\"", target.name));
    assert_eq!(programs, targets);
    let mut folders: Vec<String> = fs::read_dir(folder(""))
        .unwrap()
        .map(|entry| format!("{}.rs\"", entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    folders.sort();
    let mut targets = targets.to_vec();
    targets.sort();
    assert_eq!(folders, targets);
}

#[test]
fn records_are_ordinary_where_they_are_called_so() {
    let found = seeds("record").into_iter().map(|(name, seed)| (name, record::is_ordinary(&seed)));
    let expected = ["dir", "own-dir", "own-resident", "own-stored", "resident", "stored"]
        .map(|name| (name.to_owned(), matches!(name, "resident" | "stored")));
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn neither_seeds_nor_their_mutants_are_findings() {
    const MUTANTS: usize = 150;
    for target in TARGETS {
        let seeds = seeds(target.name);
        assert!(!seeds.is_empty(), "{}", target.name);
        for (name, seed) in seeds {
            println!("{}/{name}", target.name);
            (target.run)(&seed);
            let mut random = Random(seed.len() as u64 + 1);
            for _ in 0..MUTANTS {
                (target.run)(&random.mutant(&seed));
            }
        }
    }
}

/// Xorshift; the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// `seed` with up to four small changes.
    fn mutant(&mut self, seed: &[u8]) -> Vec<u8> {
        const STRIKING: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len().max(1));
            match (self.below(4), bytes.get_mut(at)) {
                (0, Some(byte)) => *byte ^= 1 << self.below(8),
                (1, Some(byte)) => *byte = STRIKING[self.below(STRIKING.len())],
                (2, Some(_)) => bytes.truncate(at),
                _ => bytes.insert(at, STRIKING[self.below(STRIKING.len())]),
            }
        }
        bytes
    }
}
