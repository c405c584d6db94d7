//! The wire against literal bytes: a change of these is a change of the protocol's version.
//! Every golden frame is also cut short and flipped at every position; nothing may panic, and
//! what is still read must be within the limits.

use guestmnt_protocol::attr::{Attr, Time};
use guestmnt_protocol::batch::{Numbered, Plain, Wanted};
use guestmnt_protocol::change::{
    Access, Afterwards, Change, EntryPath, Existing, FileAt, HeldFile, HeldRequest, NewAttributes,
    NewNode, NewTime, Owner, Removed, Renaming, Synced, XattrMode,
};
use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::frame::{self, FrameError, HEADER_LEN, Header, Place};
use guestmnt_protocol::limits::{MAX_BODY, MAX_PAYLOAD, SLOTS};
use guestmnt_protocol::message::{
    Answer, Content, Dirty, Extent, Failure, Listing, MountRequest, MountedAs, NameMatching,
    Outcome, PhysicalVolume, Request, StatFs, TableProblem, Volume, VolumeGroup,
};
use guestmnt_protocol::path::{EntryName, GuestPath, LinkTarget};
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::system::{Drive, DriveLetter, Family, MountPoint, System, User};
use guestmnt_protocol::volume::VolumeName;
use guestmnt_protocol::xattr::XattrName;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The number of [`Request::Change`].
const CHANGE: u8 = 24;
/// The number of [`Answer::Mounted`].
const MOUNTED: u8 = 11;

fn path(text: &str) -> GuestPath {
    GuestPath::parse(text.as_bytes()).expect("a good path")
}

fn name(text: &str) -> EntryName {
    EntryName::new(text.as_bytes()).expect("a good name")
}

fn numbered(text: &str, number: u64) -> Numbered {
    Numbered { name: name(text), number }
}

fn named(text: &str) -> VolumeName {
    text.parse().expect("a good name")
}

fn mount(device: &str) -> Request {
    let device = device.parse().expect("a good name");
    let at = GuestPath::root();
    Request::Mount(MountRequest { device, at, fstype: None, options: String::new() })
}

/// Requests with the bytes of their bodies.
fn requests() -> Vec<(Request, Vec<u8>)> {
    let mut wake = vec![1, 0x80, 0x94, 0xeb, 0xdc, 3, 32];
    wake.extend([7; 32]);
    vec![
        (Request::Hello, vec![0]),
        (Request::Wake { unix_time_ns: 1_000_000_000, entropy: [7; 32] }, wake),
        (Request::Prepare, vec![2]),
        (Request::AwaitDisks { count: 2 }, vec![3, 2]),
        (Request::Volumes, vec![4]),
        (
            Request::Mount(MountRequest {
                device: DeviceName { disk: 1, partition: 2 }.into(),
                at: path("/m"),
                fstype: Some("xfs".to_owned()),
                options: "a".to_owned(),
            }),
            b"\x05\x00\x00\x01\x02\x01m\x01\x03xfs\x01a".to_vec(),
        ),
        (mount("/dev/vg/lv"), b"\x05\x00\x01\x02vg\x02lv\x00\x00\x00".to_vec()),
        (mount("/dev/md0"), b"\x05\x00\x02\x010\x00\x00\x00".to_vec()),
        (mount("/dev/mapper/m"), b"\x05\x00\x03\x01m\x00\x00\x00".to_vec()),
        (mount("btrfsvol:/dev/sda2/@"), b"\x05\x01\x00\x00\x02\x01@\x00\x00\x00".to_vec()),
        (Request::Unmount, vec![6]),
        (Request::Stat(path("/a/b")), b"\x07\x03a/b".to_vec()),
        (Request::ReadLink(path("/l")), b"\x08\x01l".to_vec()),
        (
            Request::ReadDir { path: path("/"), from: 300, size: 4096 },
            vec![9, 0, 0xac, 2, 0x80, 0x20],
        ),
        (
            Request::Read { path: path("/f"), offset: 128, size: 65536 },
            vec![10, 1, b'f', 0x80, 1, 0x80, 0x80, 4],
        ),
        (
            Request::Seek { path: path("/f"), offset: 1, what: Extent::Hole },
            vec![11, 1, b'f', 1, 1],
        ),
        (Request::ListXattr(path("/f")), vec![12, 1, b'f']),
        (
            Request::GetXattr { path: path("/f"), name: b"user.x".to_vec() },
            b"\x0d\x01f\x06user.x".to_vec(),
        ),
        (Request::StatFs(path("/")), vec![14, 0]),
        (
            Request::ReadFiles {
                folder: path("/d"),
                plain: Plain::Places,
                files: vec![
                    Wanted { file: numbered("a", 300), size: 300 },
                    Wanted { file: numbered("b", 0), size: 1 },
                ],
            },
            b"\x0f\x01d\x01\x02\x01a\xac\x02\xac\x02\x01b\x00\x01".to_vec(),
        ),
        (
            Request::ReadXattrs {
                folder: path("/"),
                files: vec![numbered("a", 7), numbered("bc", 0)],
            },
            b"\x10\x00\x02\x01a\x07\x02bc\x00".to_vec(),
        ),
        (Request::Layout { path: path("/f"), from: 300 }, vec![17, 1, b'f', 0xac, 2]),
        (
            Request::Unlock {
                volume: DeviceName { disk: 0, partition: 2 }.into(),
                key: Secret::try_from(b"k".to_vec()).expect("short"),
            },
            b"\x12\x00\x00\x02\x01k".to_vec(),
        ),
        (Request::Listing, vec![19]),
        (Request::Blocks, vec![20]),
        (Request::Inspect, vec![21]),
        (Request::Folders(vec![name("a"), name("bc")]), b"\x16\x02\x01a\x02bc".to_vec()),
        (Request::SampledLayout { path: path("/f"), offset: 300 }, vec![27, 1, b'f', 0xac, 2]),
    ]
}

/// Requests of mounts that can be written, with the bytes of their bodies.
fn requests_for_writing() -> Vec<(Request, Vec<u8>)> {
    let entry = || EntryPath { folder: path("/d"), name: name("n") };
    let owner = Owner { uid: Some(1), gid: None };
    let attributes = NewAttributes {
        size: Some(300),
        owner,
        mode: None,
        accessed: Some(NewTime::Now),
        modified: Some(NewTime::At(Time { secs: -1, nanos: 5 })),
    };
    let mount = MountRequest {
        device: DeviceName { disk: 0, partition: 2 }.into(),
        at: path("/"),
        fstype: None,
        options: String::new(),
    };
    let (file, held) = (|| FileAt::Path(path("/f")), FileAt::Held(HeldFile(300)));
    let xattr = || XattrName::new(b"user.x").expect("a good name");
    let changes: Vec<(Change, &[u8])> = vec![
        (
            Change::Create { entry: entry(), mode: 0o644, owner, existing: Existing::Open },
            b"\x00\x01d\x01n\xa4\x03\x01\x01\x00\x01",
        ),
        (Change::Hold { file: file(), access: Access::Write }, b"\x01\x00\x01f\x01"),
        (Change::Write { file: HeldFile(1), offset: 128 }, b"\x02\x01\x80\x01"),
        (
            Change::SetAttr { file: held.clone(), attributes },
            b"\x03\x01\xac\x02\x01\xac\x02\x01\x01\x00\x00\x01\x00\x01\x01\x01\x05",
        ),
        (
            Change::Allocate { file: HeldFile(1), offset: 2, length: 3, mode: 3 },
            b"\x04\x01\x02\x03\x06",
        ),
        (
            Change::CopyRange {
                from: HeldFile(1),
                from_offset: 2,
                to: HeldFile(3),
                to_offset: 4,
                length: 5,
            },
            b"\x05\x01\x02\x03\x04\x05",
        ),
        (
            Change::Make { entry: entry(), node: NewNode::Directory(0o755), owner },
            b"\x06\x01d\x01n\x00\xed\x03\x01\x01\x00",
        ),
        (
            Change::Make {
                entry: entry(),
                node: NewNode::Link(LinkTarget::new(b"../t").expect("a good target")),
                owner: Owner::default(),
            },
            b"\x06\x01d\x01n\x01\x04../t\x00\x00",
        ),
        (
            Change::Make {
                entry: entry(),
                node: NewNode::Special { mode: 0o010_600, device: 7 },
                owner: Owner::default(),
            },
            b"\x06\x01d\x01n\x02\x80\x23\x07\x00\x00",
        ),
        (Change::Link { file: path("/f"), entry: entry() }, b"\x07\x01f\x01d\x01n"),
        (Change::Remove { entry: entry(), kind: Removed::Directory }, b"\x08\x01d\x01n\x01"),
        (
            Change::Rename { from: entry(), to: entry(), how: Renaming::Exchange },
            b"\x09\x01d\x01n\x01d\x01n\x02",
        ),
        (
            Change::Rename { from: entry(), to: entry(), how: Renaming::Whiteout },
            b"\x09\x01d\x01n\x01d\x01n\x03",
        ),
        (
            Change::Rename { from: entry(), to: entry(), how: Renaming::WhiteoutNoReplace },
            b"\x09\x01d\x01n\x01d\x01n\x04",
        ),
        (
            Change::SetXattr { file: file(), name: xattr(), how: XattrMode::Replace },
            b"\x0a\x00\x01f\x06user.x\x02",
        ),
        (Change::RemoveXattr { file: file(), name: xattr() }, b"\x0b\x00\x01f\x06user.x"),
        (Change::Sync { file: held, what: Synced::All }, b"\x0c\x01\xac\x02\x01"),
        (
            Change::Finish {
                file: HeldFile(1),
                offset: 128,
                attributes: NewAttributes { mode: Some(0o600), ..NewAttributes::default() },
                afterwards: Afterwards::Released,
            },
            b"\x0d\x01\x80\x01\x00\x00\x00\x01\x80\x03\x00\x00\x01",
        ),
        (
            Change::SetAttrAt {
                file: FileAt::Held(HeldFile(1)),
                attributes: NewAttributes { mode: Some(0o600), ..NewAttributes::default() },
                changed: Time { secs: -1, nanos: 128 },
            },
            b"\x0e\x01\x01\x00\x00\x00\x01\x80\x03\x00\x00\x01\x80\x01",
        ),
        (
            Change::FinishAt {
                file: HeldFile(1),
                offset: 128,
                attributes: NewAttributes { mode: Some(0o600), ..NewAttributes::default() },
                afterwards: Afterwards::Released,
                changed: Time { secs: 1, nanos: 5 },
            },
            b"\x0f\x01\x80\x01\x00\x00\x00\x01\x80\x03\x00\x00\x01\x02\x05",
        ),
    ];
    let change = |(change, bytes): (Change, &[u8])| {
        (Request::Change(change), [&[CHANGE][..], bytes].concat())
    };
    let held = |request, bytes: &[u8]| {
        (Request::Held(HeldFile(300), request), [&[CHANGE + 1, 0xac, 2], bytes].concat())
    };
    let mut all: Vec<_> = changes.into_iter().map(change).collect();
    all.extend([
        (
            Request::MountWritable { mount, dirty: Dirty::Force },
            vec![CHANGE - 1, 0, 0, 0, 2, 0, 0, 0, 1],
        ),
        held(HeldRequest::Stat, &[0]),
        held(HeldRequest::Read { offset: 1, size: 2 }, &[1, 1, 2]),
        held(HeldRequest::Seek { offset: 1, what: Extent::Hole }, &[2, 1, 1]),
        held(HeldRequest::Release, &[3]),
        held(HeldRequest::GetXattr { name: xattr() }, b"\x04\x06user.x"),
        held(HeldRequest::ListXattr, &[5]),
        (Request::StoredTarget(path("/l")), vec![CHANGE + 2, 1, b'l']),
    ]);
    all
}

/// Outcomes with the bytes of their bodies.
fn outcomes() -> Vec<(Outcome, Vec<u8>)> {
    let attr = Attr {
        ino: 64,
        volume: 1,
        mode: 0o100_644,
        nlink: 2,
        uid: 3,
        gid: 4,
        rdev: 5,
        size: 200,
        blocks: 6,
        block_size: 4096,
        accessed: Time { secs: -1, nanos: 7 },
        modified: Time { secs: 1, nanos: 8 },
        changed: Time { secs: 2, nanos: 9 },
    };
    let attr_bytes = [
        vec![0, 4, 64, 1, 0xa4, 0x83, 2, 2, 3, 4, 5, 0xc8, 1, 6, 0x80, 0x20],
        vec![1, 7, 2, 8, 4, 9],
    ]
    .concat();
    let volume = Volume {
        device: DeviceName { disk: 0, partition: 1 }.into(),
        size: 512,
        content: Content::Filesystem("ntfs".to_owned()),
        label: "V".to_owned(),
        uuid: String::new(),
    };
    let stat = StatFs {
        block_size: 1,
        blocks: 2,
        free: 3,
        available: 4,
        files: 5,
        free_files: 6,
        name_len: 255,
    };
    vec![
        (Ok(Answer::Done), vec![0, 0]),
        (
            Ok(Answer::Hello { version: 1, slots: vec![0x4000, 300] }),
            vec![0, 1, 1, 2, 0x80, 0x80, 1, 0xac, 2],
        ),
        (
            Ok(Answer::Awake { unix_time_ns: 1_000_000_000, random: [9; 16] }),
            [vec![0, 2, 0x80, 0x94, 0xeb, 0xdc, 3, 16], vec![9; 16]].concat(),
        ),
        (
            Ok(Answer::Volumes(vec![volume])),
            b"\x00\x03\x01\x00\x00\x00\x01\x80\x04\x00\x04ntfs\x01V\x00".to_vec(),
        ),
        (Ok(Answer::Attr(attr)), attr_bytes),
        (Ok(Answer::Payload), vec![0, 5]),
        (Ok(Answer::Offset(128)), vec![0, 6, 0x80, 1]),
        (Ok(Answer::StatFs(stat)), vec![0, 7, 1, 2, 3, 4, 5, 6, 0xff, 1]),
        (
            Ok(Answer::Listing(Listing {
                volumes: Vec::new(),
                partition_types: vec![(DeviceName { disk: 0, partition: 1 }, 7)],
                arrays: vec![(named("/dev/md0"), vec![named("/dev/sda")])],
                physical: vec![PhysicalVolume {
                    device: named("/dev/sdb"),
                    size: 5,
                    uuid: "p".to_owned(),
                    group: Some("g".parse().expect("plain")),
                }],
                groups: vec![VolumeGroup {
                    name: "g".parse().expect("plain"),
                    size: 4,
                    uuid: "u".to_owned(),
                }],
                logical: vec![(named("/dev/g/l"), "v".to_owned())],
            })),
            [
                b"\x00\x09\x00\x01\x00\x01\x07\x01\x02\x010\x01\x00\x00\x00".as_slice(),
                b"\x01\x00\x01\x00\x05\x01p\x01\x01g\x01\x01g\x04\x01u",
                b"\x01\x01\x01g\x01l\x01v",
            ]
            .concat(),
        ),
        (
            Ok(Answer::Systems(vec![System {
                root: named("/dev/sda1").into(),
                family: Family::Windows,
                product: "W".to_owned(),
                version: "6.1".to_owned(),
                host_name: "PC".to_owned(),
                users: vec![User { name: "u".to_owned(), home: "C:\\u".to_owned() }],
                mounts: vec![MountPoint {
                    device: named("/dev/sdb2").into(),
                    at: path("/m"),
                    options: "o".to_owned(),
                }],
                drives: vec![Drive {
                    letter: DriveLetter::try_from('C').expect("a letter"),
                    device: named("/dev/sda1").into(),
                }],
                missing: vec!["x".to_owned()],
            }])),
            [
                b"\x00\x0a\x01\x00\x00\x00\x01\x01\x01W\x036.1\x02PC\x01\x01u\x04C:\\u".as_slice(),
                b"\x01\x00\x00\x01\x02\x01m\x01o\x01\x01C\x00\x00\x00\x01\x01\x01x",
            ]
            .concat(),
        ),
        (
            Ok(Answer::Mounted(MountedAs {
                read_only: Some("r".to_owned()),
                names: NameMatching::Loose,
            })),
            vec![0, MOUNTED, 1, 1, b'r', 1],
        ),
        (Ok(Answer::Held(HeldFile(300))), vec![0, MOUNTED + 1, 0xac, 2]),
        (
            Ok(Answer::Created(HeldFile(1), Attr::default())),
            [vec![0, MOUNTED + 2, 1], vec![0; 16]].concat(),
        ),
        (Ok(Answer::Remarked(None, vec!["r".to_owned()])), vec![0, MOUNTED + 3, 0, 1, 1, b'r']),
        (
            Ok(Answer::Remarked(
                Some(MountedAs { read_only: None, names: NameMatching::Exact }),
                vec!["r".to_owned(), String::new()],
            )),
            vec![0, MOUNTED + 3, 1, 0, 0, 2, 1, b'r', 0],
        ),
        (
            Ok(Answer::Tables(vec![TableProblem {
                disk: DeviceName::whole(2),
                problem: "p".to_owned(),
                usable: true,
            }])),
            vec![0, MOUNTED + 5, 1, 2, 0, 1, b'p', 1],
        ),
        (Err(Failure::new(2)), vec![1, 2, 0]),
        (Err(Failure::with_detail(5, "no".to_owned())), b"\x01\x05\x02no".to_vec()),
    ]
}

fn check<M>(cases: Vec<(M, Vec<u8>)>)
where
    M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    for (message, body) in cases {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, 0x0102_0304, &message, 5, Place::Slot(9)).expect("it fits");
        let mut expected = vec![4, 3, 2, 1];
        expected.extend(u32::try_from(body.len()).expect("short").to_le_bytes());
        expected.extend([5, 0, 0, 0, 1, 9, 0, 0]);
        expected.extend(&body);
        assert_eq!(bytes, expected, "{message:?}");
        assert_eq!(frame::decode_body::<M>(&body), Ok(message));
        damage::<M>(&bytes);
    }
}

/// Reads `frame` cut at every length and with every bit flipped.
fn damage<M: DeserializeOwned + Serialize>(frame: &[u8]) {
    for length in HEADER_LEN..frame.len() {
        assert!(frame::decode_body::<M>(&frame[HEADER_LEN..length]).is_err(), "cut at {length}");
    }
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (header, body) = damaged.split_first_chunk::<HEADER_LEN>().expect("a frame");
        if let Ok(header) = Header::decode(header) {
            assert!(header.body_len <= MAX_BODY && header.payload_len <= MAX_PAYLOAD);
        }
        if let Ok(message) = frame::decode_body::<M>(body) {
            let mut again = Vec::new();
            frame::encode(&mut again, 0, &message, 0, Place::Port).expect("it fits again");
        }
    }
}

#[test]
fn requests_have_these_bytes() {
    check(requests());
    check(requests_for_writing());
}

#[test]
fn only_what_is_written_comes_with_a_request() {
    let with: Vec<Request> = requests()
        .into_iter()
        .chain(requests_for_writing())
        .map(|(request, _)| request)
        .filter(Request::has_payload)
        .collect();
    let expected = |request: &Request| {
        let Request::Change(change) = request else { return false };
        matches!(
            change,
            Change::Write { .. }
                | Change::SetXattr { .. }
                | Change::Finish { .. }
                | Change::FinishAt { .. }
        )
    };
    assert!(with.len() == 4 && with.iter().all(expected));
}

#[test]
fn answers_have_these_bytes() {
    check(outcomes());
}

#[test]
fn bytes_behind_a_message_are_refused() {
    assert_eq!(frame::decode_body::<Request>(&[0, 0]), Err(FrameError::Body));
}

#[test]
fn paths_that_climb_are_no_requests() {
    for body in [b"\x07\x02..".as_slice(), b"\x07\x04a/..", b"\x07\x02/a", b"\x07\x03a\0b"] {
        assert_eq!(frame::decode_body::<Request>(body), Err(FrameError::Body));
    }
}

#[test]
fn headers_out_of_bounds_are_refused() {
    let good = Header { seq: 1, body_len: MAX_BODY, payload_len: MAX_PAYLOAD, place: Place::Port };
    assert_eq!(Header::decode(&good.encode()), Ok(good));
    let table = [(4, FrameError::TooLong), (8, FrameError::TooLong), (12, FrameError::Reserved)];
    for (at, error) in table {
        let mut bytes = good.encode();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(error));
    }
}

#[test]
fn slots_that_there_cannot_be_are_refused() {
    let last = u8::try_from(SLOTS - 1).unwrap();
    let good = Header { seq: 1, body_len: 2, payload_len: 3, place: Place::Slot(last) };
    assert_eq!(Header::decode(&good.encode()), Ok(good));
    for (at, value) in [(13, last + 1), (12, 0), (12, 2), (14, 1), (15, 1)] {
        let mut bytes = good.encode();
        bytes[at] = value;
        assert_eq!(Header::decode(&bytes), Err(FrameError::Reserved), "byte {at} is {value}");
    }
}

#[test]
fn messages_beyond_the_limits_are_not_sent() {
    let mut bytes = Vec::new();
    let request = Request::GetXattr { path: path("/f"), name: vec![b'x'; MAX_BODY] };
    let encoded = frame::encode(&mut bytes, 1, &request, 0, Place::Port);
    assert_eq!((encoded, bytes.len()), (Err(FrameError::TooLong), 0));
    let encoded = frame::encode(&mut bytes, 1, &Request::Hello, MAX_PAYLOAD + 1, Place::Port);
    assert_eq!(encoded, Err(FrameError::TooLong));
}

/// Every place that a header can name, and every length about a limit.
#[test]
fn headers_are_read_as_they_are_written_or_refused() {
    let good = Header { seq: 7, body_len: 2, payload_len: 3, place: Place::Port }.encode();
    let (mut ports, mut slots) = (0, 0);
    for place in 0..=u16::MAX {
        for reserved in [[0, 0], [1, 0], [0, 1], [0, 0x80]] {
            let mut bytes = good;
            bytes[12..14].copy_from_slice(&place.to_le_bytes());
            bytes[14..16].copy_from_slice(&reserved);
            match Header::decode(&bytes) {
                Ok(header) => {
                    assert_eq!(header.encode(), bytes);
                    match header.place {
                        Place::Port => ports += 1,
                        Place::Slot(_) => slots += 1,
                    }
                }
                Err(error) => assert_eq!(error, FrameError::Reserved),
            }
        }
    }
    assert_eq!((ports, slots), (1, SLOTS));

    let about = |limit: usize| {
        let limit = u32::try_from(limit).unwrap();
        [0, 1, limit - 1, limit, limit + 1, limit * 2, 1 << 31, u32::MAX - 1, u32::MAX]
    };
    for body in about(MAX_BODY) {
        for payload in about(MAX_PAYLOAD) {
            let mut bytes = good;
            bytes[4..8].copy_from_slice(&body.to_le_bytes());
            bytes[8..12].copy_from_slice(&payload.to_le_bytes());
            let fits = body as usize <= MAX_BODY && payload as usize <= MAX_PAYLOAD;
            let expected = if fits { Ok(bytes) } else { Err(FrameError::TooLong) };
            assert_eq!(Header::decode(&bytes).map(|header| header.encode()), expected);
        }
    }
}
