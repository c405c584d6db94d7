//! What a read takes of the allocator, once all buffers have grown: nothing where its bytes are on this
//! side, and where the guest is asked its path, once to be sent and once more by the serializer.
#![expect(clippy::unwrap_used, reason = "it is a test")]

use std::alloc::{GlobalAlloc, Layout as Shape, System};
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guestmnt::disk::DiskReader;
use guestmnt::fs::nodes::{NodeId, ROOT};
use guestmnt::fs::operations::{Found, Noted, Operations};
use guestmnt::fs::view::View;
use guestmnt::fs::{Line, Shows};
use guestmnt::guest::Guest;
use guestmnt::guest::bulk::SharedMemory;
use guestmnt::image::{Disk, Format, OpenOptions};
use guestmnt_protocol::VERSION;
use guestmnt_protocol::attr::{Attr, DirEntry, Following, push_entry};
use guestmnt_protocol::batch::{self, Outcome as Plan, Stored};
use guestmnt_protocol::frame::{self, HEADER_LEN, Header, Place};
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::{Answer, Failure, Layout, Outcome, Request, Run};
use guestmnt_protocol::path::EntryName;

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: `System` does all of it. The counter is a plain number of the thread's own, which takes no
// allocation and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, shape: Shape) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(shape) }
    }

    unsafe fn dealloc(&self, place: *mut u8, shape: Shape) {
        // SAFETY: as above; the place is from `System`.
        unsafe { System.dealloc(place, shape) }
    }

    unsafe fn realloc(&self, place: *mut u8, shape: Shape, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(place, shape, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const READS: u64 = 1000;
const SIZE: u32 = 4096;

/// Bytes of the large file; where the images have it, of the disk.
const LARGE: u64 = 1 << 30;
const STORED: u64 = 1 << 20;
const SMALL: u32 = 1000;
const SMALL_FILES: u64 = 20;

/// Where the guest says that files are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    /// It does not say.
    Guest,
    /// On the disk, which is where they are.
    Disk,
}

fn large(files: Files) -> u64 {
    if files == Files::Disk { STORED } else { LARGE }
}

/// What the guest says of `/folder/large` and the small files beside it. Byte N of the disk and of all
/// files tells N.
fn said(request: &Request, files: Files) -> (Outcome, Vec<u8>) {
    let folder = Attr { ino: 64, mode: 0o040_755, nlink: 2, ..Attr::default() };
    let file = |number: u64, size: u64| Attr {
        ino: 100 + number,
        mode: 0o100_644,
        nlink: 1,
        size,
        ..Attr::default()
    };
    match request {
        Request::Stat(path) if path.to_string().ends_with("large") => {
            (Ok(Answer::Attr(file(99, large(files)))), Vec::new())
        }
        Request::Stat(_) => (Ok(Answer::Attr(folder)), Vec::new()),
        Request::ReadDir { size, .. } => {
            let mut page = vec![Following::Nothing.byte()];
            for n in 0..SMALL_FILES {
                let name = EntryName::new(format!("{n:02}").as_bytes()).unwrap();
                let attr = Some(file(n, SMALL.into()));
                let entry = DirEntry { next: n + 1, name, attr, target: None };
                assert!(push_entry(&mut page, &entry, *size as usize));
            }
            (Ok(Answer::Payload), page)
        }
        Request::Read { path, offset, size } => {
            let size = if path.to_string().ends_with("large") { *size } else { SMALL };
            (Ok(Answer::Payload), bytes(*offset, size))
        }
        Request::ReadFiles { files, .. } => {
            let mut page = Vec::new();
            for _ in files {
                let stored = Stored { disk: 0, place: 0, length: SMALL };
                batch::push_outcome(&mut page, &Plan::Stored(stored));
            }
            (Ok(Answer::Payload), page)
        }
        Request::SampledLayout { offset, .. } if files == Files::Disk => {
            let runs = vec![Run { at: 0, length: STORED, stored: 0 }];
            let layout = Layout { disk: 0, size: STORED, end: STORED, runs };
            let sample = bytes(*offset, SMALL);
            (Ok(Answer::SampledLayout { layout, sample }), Vec::new())
        }
        _ => (Err(Failure::new(95)), Vec::new()),
    }
}

fn bytes(offset: u64, size: u32) -> Vec<u8> {
    (offset..offset + u64::from(size)).map(|at| (at / 3).to_le_bytes()[0]).collect()
}

/// Answers what comes, by the slot that is offered where there is one.
fn serve(mut lane: UnixStream, files: Files, slots: &[u64]) -> Option<()> {
    loop {
        let mut header = [0; HEADER_LEN];
        lane.read_exact(&mut header).ok()?;
        let header = Header::decode(&header).unwrap();
        let mut body = vec![0; header.body_len];
        lane.read_exact(&mut body).ok()?;
        let (outcome, payload) = match frame::decode_body(&body).unwrap() {
            Request::Hello => {
                (Ok(Answer::Hello { version: VERSION, slots: slots.to_vec() }), Vec::new())
            }
            request => said(&request, files),
        };
        let mut answer = Vec::new();
        frame::encode(&mut answer, header.seq, &outcome, payload.len(), header.place).unwrap();
        if header.place == Place::Port {
            answer.extend(payload);
        }
        lane.write_all(&answer).ok()?;
    }
}

fn operations(files: Files, memory: Option<&SharedMemory>) -> Operations {
    let slots = memory.map_or(Vec::new(), |memory| vec![memory.address]);
    let lanes = [(); 2].map(|()| {
        let (host, guest) = UnixStream::pair().unwrap();
        let slots = slots.clone();
        thread::spawn(move || serve(guest, files, &slots));
        host
    });
    let minute = Duration::from_secs(60);
    let guest = Guest::connect(lanes.into(), memory, minute, minute).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    fs::write(&path, bytes(0, u32::try_from(STORED).unwrap())).unwrap();
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let disk = DiskReader::of(&Disk::open(&path, &options).unwrap()).unwrap();
    let disks = if files == Files::Disk { vec![disk] } else { Vec::new() };
    Operations::new(Arc::new(guest), disks, Shows::Files, View::default())
}

fn look_up(operations: &Operations, folder: NodeId, name: &str) -> NodeId {
    match operations.look_up(folder, name.as_bytes()) {
        Ok(Found::File(attr)) => NodeId(attr.ino.0),
        _ => panic!("there is no {name}"),
    }
}

/// Allocations of the reads that `read` makes, after as many to get warm.
fn counted(read: impl Fn(u64)) -> u64 {
    (0..READS).for_each(&read);
    let before = ALLOCATIONS.get();
    (0..READS).for_each(&read);
    ALLOCATIONS.get() - before
}

/// Allocations of reads here and there in the large file.
fn of_the_large_file(operations: &Operations, files: Files) -> u64 {
    let folder = look_up(operations, ROOT, "folder");
    let file = look_up(operations, folder, "large");
    let blocks = large(files) / u64::from(SIZE);
    counted(|n| {
        let offset = n * 7919 % blocks * u64::from(SIZE);
        let mut count = 0;
        operations.read(file, offset, SIZE, |bytes| count = bytes.len()).unwrap();
        assert_eq!(count, SIZE as usize);
    })
}

#[test]
fn reads_past_the_vm_take_nothing_of_the_allocator() {
    assert_eq!(of_the_large_file(&operations(Files::Disk, None), Files::Disk), 0);
}

#[test]
fn reads_of_small_files_whose_places_are_known_take_nothing_of_the_allocator() {
    let operations = operations(Files::Disk, None);
    let folder = look_up(&operations, ROOT, "folder");
    let mut entries = Vec::new();
    let take = |line: &Line, _| {
        if let Line::Entry(entry) = line {
            entries.push(entry.clone());
        }
        true
    };
    operations.read_directory(folder, 0, take).unwrap();
    let node = |entry| match operations.note(folder, entry) {
        Some(Noted::File(attr)) => NodeId(attr.ino.0),
        _ => panic!("it has no attributes"),
    };
    let files: Vec<NodeId> = entries.iter().map(node).collect();
    let read = |file: NodeId| {
        let mut count = 0;
        operations.read(file, 0, SIZE, |bytes| count = bytes.len()).unwrap();
        assert_eq!(count, SMALL as usize);
    };
    // By itself, as nobody knows yet that others follow.
    read(files[0]);
    let count = counted(|n| read(files[usize::try_from(1 + n % (SMALL_FILES - 1)).unwrap()]));
    assert_eq!(count, 0);
}

#[test]
fn reads_by_the_guest_take_their_path_of_the_allocator_and_no_more() {
    assert_eq!(
        of_the_large_file(&operations(Files::Guest, None), Files::Guest),
        2 * READS,
        "by a lane"
    );
    let file: File = tempfile::tempfile().unwrap();
    file.set_len(MAX_PAYLOAD as u64).unwrap();
    let memory = SharedMemory { file, address: 0, length: MAX_PAYLOAD as u64 };
    let operations = operations(Files::Guest, Some(&memory));
    assert_eq!(of_the_large_file(&operations, Files::Guest), 2 * READS, "by a slot");
}
