//! Bytes as the parts of the wire's messages: headers, bodies, pages. What is read is written again
//! and must be read as the same.
//!
//! The first byte says as what the others are read.

use std::fmt::Debug;

use guestmnt_protocol::attr::{DirEntry, Following, pop_entry, push_entry};
use guestmnt_protocol::batch::{pop_outcome, push_outcome};
use guestmnt_protocol::frame::{HEADER_LEN, Header, Place, decode_body, encode};
use guestmnt_protocol::limits::{MAX_BODY, MAX_LINK, MAX_NAME, MAX_PAYLOAD, SLOTS};
use guestmnt_protocol::message::{Outcome, Request};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::xattr::{pop_file, push_file};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads them.
///
/// # Panics
/// Where what was read is not as promised.
pub fn run(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind {
        0 => header(bytes),
        1 => body::<Request>(bytes),
        2 => body::<Outcome>(bytes),
        3 => directory(bytes),
        4 => page(bytes, pop_outcome, push_outcome),
        5 => page(bytes, pop_file, |page, file| assert!(push_file(page, file, usize::MAX))),
        _ => path(bytes),
    }
}

fn header(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else { return };
    if let Ok(header) = Header::decode(bytes) {
        assert!(header.body_len <= MAX_BODY && header.payload_len <= MAX_PAYLOAD);
        assert!(!matches!(header.place, Place::Slot(number) if usize::from(number) >= SLOTS));
        assert_eq!(header.encode(), *bytes);
    }
}

fn body<M: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = decode_body::<M>(bytes) else { return };
    let mut frame = Vec::new();
    // One that fills a body may be longer when it is written by us: numbers have several forms.
    if encode(&mut frame, 1, &message, 0, Place::Port).is_ok() {
        assert_eq!(decode_body::<M>(&frame[HEADER_LEN..]), Ok(message));
    }
}

fn directory(mut bytes: &[u8]) {
    if Following::pop(&mut bytes).is_none() {
        return;
    }
    page(bytes, pop_entry, |page, entry: &DirEntry| {
        let name = entry.name.as_bytes();
        assert!((1..=MAX_NAME).contains(&name.len()) && !name.iter().any(|b| b"/\0".contains(b)));
        assert!(name != b"." && name != b"..");
        let target = entry.target.as_ref().map_or(&b"x"[..], |target| target.as_bytes());
        assert!((1..=MAX_LINK).contains(&target.len()) && !target.contains(&0));
        assert!(push_entry(page, entry, usize::MAX));
    });
}

/// Things one behind the other, up to the first that is none.
fn page<T: PartialEq + Debug, E>(
    mut bytes: &[u8],
    pop: impl Fn(&mut &[u8]) -> Result<T, E>,
    push: impl Fn(&mut Vec<u8>, &T),
) {
    while !bytes.is_empty() {
        let before = bytes.len();
        let Ok(thing) = pop(&mut bytes) else { return };
        assert!(bytes.len() < before, "a thing of no bytes would be there for ever");
        let mut written = Vec::new();
        push(&mut written, &thing);
        let mut rest = written.as_slice();
        assert_eq!(pop(&mut rest).ok(), Some(thing));
        assert!(rest.is_empty());
    }
}

fn path(bytes: &[u8]) {
    if let Ok(path) = GuestPath::parse(bytes) {
        assert_eq!(GuestPath::new(path.as_bytes().to_vec()), Ok(path.clone()));
        let mut names = path.as_bytes().split(|&byte| byte == b'/');
        assert!(path.is_root() || names.all(|name| !matches!(name, b"" | b"." | b"..")));
    }
}
