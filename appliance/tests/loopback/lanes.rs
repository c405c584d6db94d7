//! What a lane does with bytes that are no request, or not quite.

use std::fs;
use std::io::{Read, Write};

use crate::client::{Client, path};
use guestmnt_appliance::serve::LaneError;
use guestmnt_protocol::VERSION;
use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::frame::{self, FrameError, HEADER_LEN, Header, Place};
use guestmnt_protocol::limits::{MAX_BODY, MAX_PAYLOAD};
use guestmnt_protocol::message::{Answer, MountRequest, Request};
use guestmnt_protocol::path::GuestPath;

fn client() -> Client {
    Client::over(std::env::temp_dir().as_path())
}

fn header(seq: u32, body_len: usize, payload_len: usize) -> [u8; HEADER_LEN] {
    Header { seq, body_len, payload_len, place: Place::Port }.encode()
}

#[test]
fn hello_says_the_version() {
    let (outcome, payload) = client().ask(&Request::Hello);
    assert_eq!(outcome, Ok(Answer::Hello { version: VERSION, slots: Vec::new() }));
    assert!(payload.is_empty());
}

#[test]
fn a_guest_without_devices_says_so() {
    let mut client = client();
    let mount = MountRequest {
        device: DeviceName::whole(0).into(),
        at: GuestPath::root(),
        fstype: None,
        options: String::new(),
    };
    for request in [Request::AwaitDisks { count: 1 }, Request::Volumes, Request::Mount(mount)] {
        let failure = client.ask(&request).0.unwrap_err();
        assert_eq!(i32::from(failure.errno), libc::ENOSYS, "{request:?}");
        assert_eq!(failure.detail, "this guest has no devices");
    }
    let wake = Request::Wake { unix_time_ns: 0, entropy: [0; 32] };
    assert!(matches!(client.ask(&wake).0, Ok(Answer::Awake { .. })));
    assert_eq!(client.ask(&Request::Unmount).0, Ok(Answer::Done));
}

#[test]
fn an_answer_carries_its_requests_number() {
    let mut client = client();
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, u32::MAX, &Request::Hello, 0, Place::Port).unwrap();
    client.stream.write_all(&bytes).unwrap();
    assert_eq!(client.receive().0, u32::MAX);
}

#[test]
fn a_request_may_arrive_byte_by_byte_or_with_the_next_one() {
    let mut client = client();
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, 1, &Request::Stat(path("/")), 0, Place::Port).unwrap();
    for byte in &bytes {
        client.stream.write_all(&[*byte]).unwrap();
    }
    assert!(client.receive().1.is_ok());

    client.stream.write_all(&[bytes.clone(), bytes.clone(), bytes].concat()).unwrap();
    for _ in 0..3 {
        assert!(client.receive().1.is_ok());
    }
}

#[test]
fn the_longest_path_is_a_good_request() {
    let mut client = client();
    let longest = GuestPath::new([&b"x"[..]; 24 * 1024].join(&b'/')).unwrap();
    assert_eq!(client.errno(&Request::Stat(longest)), libc::ENOENT);
}

#[test]
fn a_body_that_is_no_request_is_answered_and_the_lane_goes_on() {
    let mut whole = Vec::new();
    frame::encode(&mut whole, 0, &Request::Stat(path("/a")), 0, Place::Port).unwrap();
    let good = &whole[HEADER_LEN..];
    let bodies: [&[u8]; 6] = [
        b"",                     // nothing
        &good[..good.len() - 1], // cut short
        &[good, b"x"].concat(),  // something behind it
        &[200],                  // no such request
        &[0xff; 20],             // no such number
        &[6, 2, b'.', b'.'],     // Stat of `..`
    ];
    let mut client = client();
    for (seq, body) in (7..).zip(bodies) {
        client.stream.write_all(&header(seq, body.len(), 0)).unwrap();
        client.stream.write_all(body).unwrap();
        let (answered, outcome, payload) = client.receive();
        assert_eq!(answered, seq);
        assert_eq!(i32::from(outcome.unwrap_err().errno), libc::EPROTO, "{body:?}");
        assert!(payload.is_empty());
    }
    assert!(client.ask(&Request::Hello).0.is_ok());
}

#[test]
fn every_request_cut_short_anywhere_is_answered() {
    let mut client = client();
    let requests = [
        Request::Read { path: path("/a/b"), offset: 300, size: 70_000 },
        Request::Wake { unix_time_ns: u64::MAX, entropy: [9; 32] },
        Request::GetXattr { path: path("/a"), name: b"user.a".to_vec() },
    ];
    for request in requests {
        let mut whole = Vec::new();
        frame::encode(&mut whole, 0, &request, 0, Place::Port).unwrap();
        for length in 0..whole.len() - HEADER_LEN {
            client.stream.write_all(&header(1, length, 0)).unwrap();
            client.stream.write_all(&whole[HEADER_LEN..HEADER_LEN + length]).unwrap();
            let (_, outcome, _) = client.receive();
            assert_eq!(i32::from(outcome.unwrap_err().errno), libc::EPROTO, "{length}");
        }
    }
}

#[test]
fn a_payload_that_no_request_has_is_skipped() {
    let mut client = client();
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, 3, &Request::Hello, MAX_PAYLOAD, Place::Port).unwrap();
    client.stream.write_all(&bytes).unwrap();
    assert_eq!(i32::from(client.receive().1.unwrap_err().errno), libc::EPROTO);
    client.stream.write_all(&vec![0xaa; MAX_PAYLOAD]).unwrap();
    assert!(client.ask(&Request::Hello).0.is_ok());
}

#[test]
fn a_header_that_is_none_ends_the_lane() {
    let with = |at: usize, byte: u8| {
        let mut bytes = header(1, 1, 0);
        bytes[at] = byte;
        bytes
    };
    let table = [
        (with(12, 9), FrameError::Reserved),
        (with(15, 1), FrameError::Reserved),
        (with(7, 0x80), FrameError::TooLong),
        (with(6, u8::try_from(MAX_BODY >> 16).unwrap() + 1), FrameError::TooLong),
        (with(11, 0xff), FrameError::TooLong),
    ];
    for (bytes, expected) in table {
        let mut client = client();
        client.stream.write_all(&bytes).unwrap();
        let mut nothing = Vec::new();
        client.stream.read_to_end(&mut nothing).unwrap();
        assert!(nothing.is_empty());
        match client.hang_up() {
            Err(LaneError::Frame(error)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_host_that_hangs_up_ends_the_lane_without_an_error() {
    assert!(client().hang_up().is_ok());

    let mut in_a_header = client();
    in_a_header.stream.write_all(&[1, 2, 3]).unwrap();
    assert!(in_a_header.hang_up().is_ok());

    let mut in_a_body = client();
    in_a_body.stream.write_all(&header(1, 100, 0)).unwrap();
    assert!(in_a_body.hang_up().is_ok());
}

#[test]
fn an_error_leaves_no_bytes_of_the_answer_before() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), b"left over").unwrap();
    let mut client = Client::over(root.path());
    assert_eq!(client.read("/file", 0, 100), b"left over");
    assert_eq!(client.errno(&Request::ReadLink(path("/file"))), libc::EINVAL);
    let (outcome, payload) = client.ask(&Request::Stat(path("/file")));
    assert!(outcome.is_ok());
    assert!(payload.is_empty());
}
