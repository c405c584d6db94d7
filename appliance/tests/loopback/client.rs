//! A host without the host: asks a guest over one end of a socket pair.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guestmnt_appliance::guest::Guest;
use guestmnt_appliance::serve::{LaneError, serve};
use guestmnt_protocol::attr::{Attr, DirEntry, Following, pop_entry};
use guestmnt_protocol::frame::{self, HEADER_LEN, Header, Place};
use guestmnt_protocol::message::{Answer, Failure, Outcome, Request};
use guestmnt_protocol::path::GuestPath;

/// A path as a person writes it.
pub fn path(text: &str) -> GuestPath {
    GuestPath::parse(text.as_bytes()).unwrap()
}

/// One lane, and the thread that serves it.
pub struct Client {
    pub stream: UnixStream,
    server: JoinHandle<Result<(), LaneError>>,
    seq: u32,
}

impl Client {
    /// A lane to a guest over the folder `root`.
    pub fn over(root: &Path) -> Self {
        Self::of(std::sync::Arc::new(Guest::over(root).unwrap()))
    }

    /// One more lane to `guest`.
    pub fn of(guest: std::sync::Arc<Guest>) -> Self {
        let (stream, lane) = UnixStream::pair().unwrap();
        // Nothing here takes long; a test that would hang fails instead.
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let server = thread::spawn(move || serve(OwnedFd::from(lane), &guest));
        Self { stream, server, seq: 0 }
    }

    /// Sends a request, returns what came back with its payload.
    pub fn ask(&mut self, request: &Request) -> (Outcome, Vec<u8>) {
        self.seq += 1;
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, self.seq, request, 0, Place::Port).unwrap();
        self.stream.write_all(&bytes).unwrap();
        let (seq, outcome, payload) = self.receive();
        assert_eq!(seq, self.seq);
        (outcome, payload)
    }

    /// Reads one answer: sequence number, outcome, payload.
    pub fn receive(&mut self) -> (u32, Outcome, Vec<u8>) {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header).unwrap();
        let header = Header::decode(&header).unwrap();
        assert_eq!(header.place, Place::Port);
        let mut body = vec![0; header.body_len];
        self.stream.read_exact(&mut body).unwrap();
        let mut payload = vec![0; header.payload_len];
        self.stream.read_exact(&mut payload).unwrap();
        (header.seq, frame::decode_body(&body).unwrap(), payload)
    }

    /// Hangs up; returns how the lane's worker ended.
    pub fn hang_up(self) -> Result<(), LaneError> {
        drop(self.stream);
        self.server.join().unwrap()
    }

    /// The errno of a request that fails. Nothing else may come with it.
    pub fn errno(&mut self, request: &Request) -> i32 {
        match self.ask(request) {
            (Err(Failure { errno, detail }), payload) => {
                assert!(payload.is_empty());
                assert_eq!(detail, "", "requests on files are explained by their number");
                errno.into()
            }
            (Ok(answer), _) => panic!("{request:?} was answered by {answer:?}"),
        }
    }

    /// The payload of a request that succeeds.
    pub fn bytes(&mut self, request: &Request) -> Vec<u8> {
        match self.ask(request) {
            (Ok(Answer::Payload), payload) => payload,
            (other, _) => panic!("{request:?} was answered by {other:?}"),
        }
    }

    pub fn stat(&mut self, at: &str) -> Attr {
        match self.ask(&Request::Stat(path(at))) {
            (Ok(Answer::Attr(attr)), payload) if payload.is_empty() => attr,
            other => panic!("{other:?}"),
        }
    }

    pub fn read(&mut self, at: &str, offset: u64, size: u32) -> Vec<u8> {
        self.bytes(&Request::Read { path: path(at), offset, size })
    }

    pub fn page(&mut self, at: &str, from: u64, size: u32) -> Vec<DirEntry> {
        let page = self.bytes(&Request::ReadDir { path: path(at), from, size });
        assert!(page.len() <= size as usize);
        let mut rest = page.as_slice();
        Following::pop(&mut rest).unwrap();
        let mut entries = Vec::new();
        while !rest.is_empty() {
            entries.push(pop_entry(&mut rest).unwrap());
        }
        entries
    }

    /// A whole directory, by pages of `size` bytes.
    pub fn list(&mut self, at: &str, size: u32) -> Vec<DirEntry> {
        let mut all: Vec<DirEntry> = Vec::new();
        loop {
            let from = all.last().map_or(0, |entry| entry.next);
            let page = self.page(at, from, size);
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    }
}
