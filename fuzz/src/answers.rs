//! Bytes as what a taken-over guest sends by its lane, all the way to what the kernel would be told.
//!
//! The first eight bytes say what is asked, one request after the other. The others come by the
//! lane, behind a proper hello, and then it closes. As far as they are frames, their sequence
//! numbers count from the one that is expected, so that zero is right for each.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use guestmnt::fs::Line;
use guestmnt::fs::Shows;
use guestmnt::fs::nodes::{NodeId, ROOT};
use guestmnt::fs::operations::{Found, Noted, Operations};
use guestmnt::fs::view::View;
use guestmnt::guest::{Guest, GuestError};
use guestmnt_protocol::VERSION;
use guestmnt_protocol::batch::{Numbered, Plain, Wanted};
use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::frame::{self, HEADER_LEN, Header, Place};
use guestmnt_protocol::limits::{MAX_LINK, MAX_RUNS, MAX_SAMPLE, MAX_XATTR};
use guestmnt_protocol::message::{Answer, Dirty, MountRequest, Outcome};
use guestmnt_protocol::path::{EntryName, GuestPath};
use guestmnt_protocol::volume::Mountable;

use crate::writing::{self, QUESTIONS, Writing};

/// Requests of one run.
const STEPS: usize = 8;

/// What fits into a socket that nobody reads.
const MOST: usize = 64 << 10;

/// Takes them.
///
/// # Panics
/// Where the kernel would be told what it must not be.
pub fn run(bytes: &[u8]) {
    let Some((steps, bytes)) = bytes.split_first_chunk::<STEPS>() else { return };
    let (ours, mut theirs) = UnixStream::pair().expect("sockets are to be had");
    let mut sent = Vec::new();
    let hello: Outcome = Ok(Answer::Hello { version: VERSION, slots: Vec::new() });
    frame::encode(&mut sent, 1, &hello, 0, Place::Port).expect("hello is short");
    sent.extend(numbered(&bytes[..bytes.len().min(MOST)], 2));
    theirs.write_all(&sent).expect("it fits into the socket");
    theirs.shutdown(Shutdown::Write).expect("it is open");

    let second = Duration::from_secs(1);
    let guest = Guest::connect(vec![ours], None, second, second).expect("it said hello");
    let mut kernel = Kernel::over(Arc::new(guest));
    steps.iter().for_each(|&step| kernel.ask(step));
}

/// `bytes`, with the numbers of the frames among them counted from `first` on.
fn numbered(bytes: &[u8], first: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    for expected in first.. {
        let Some(header) = bytes.get(at..).and_then(|rest| rest.first_chunk::<HEADER_LEN>()) else {
            break;
        };
        let Ok(header) = Header::decode(header) else { break };
        let seq = header.seq.wrapping_add(expected).to_le_bytes();
        bytes[at..at + seq.len()].copy_from_slice(&seq);
        let by_port = if header.place == Place::Port { header.payload_len } else { 0 };
        at += HEADER_LEN + header.body_len + by_port;
    }
    bytes
}

/// Asks as the kernel does, and holds what it was told of last.
struct Kernel {
    guest: Arc<Guest>,
    operations: Operations,
    node: NodeId,
    writing: Writing,
}

/// How many questions there are before those of [`QUESTIONS`].
const ANSWERED: usize = 17;

impl Kernel {
    fn over(guest: Arc<Guest>) -> Self {
        let operations =
            Operations::new(Arc::clone(&guest), Vec::new(), Shows::Files, View::default());
        let writing = Writing::over(&guest);
        Self { guest, operations, node: ROOT, writing }
    }

    fn ask(&mut self, step: u8) {
        const SIZE: u32 = 4096;
        let node = self.node;
        let questions = ANSWERED + QUESTIONS.len();
        match usize::from(step) % questions {
            0 => {
                if let Ok(Found::File(attr)) = self.operations.look_up(ROOT, b"file") {
                    self.told(&attr);
                }
            }
            1 => {
                if let Ok(attr) = self.operations.get_attr(node) {
                    self.told(&attr);
                }
            }
            2 => self.read_link(),
            3 | 4 => {
                let _ = self.operations.read(node, u64::from(step) << 8, SIZE, |bytes| {
                    assert!(bytes.len() <= SIZE as usize);
                });
            }
            5 | 6 => self.read_directory(),
            7 => drop(self.operations.stat_fs(node)),
            8 => {
                if let Ok(value) = self.operations.get_xattr(node, b"user.name") {
                    assert!(value.len() <= MAX_XATTR);
                }
            }
            9 => {
                if let Ok(names) = self.operations.list_xattr(node) {
                    assert!(names.last().is_none_or(|&last| last == 0));
                }
            }
            10 => {
                if let Ok(found) = self.operations.seek(node, 7, nix::libc::SEEK_DATA) {
                    assert!(found >= 7);
                }
            }
            11 => drop(self.guest.volumes().map(|volumes| format!("{volumes:?}"))),
            12 => drop(self.guest.listing()),
            13 => {
                if let Ok(layout) = self.guest.layout(GuestPath::root(), 0) {
                    let apart = layout.runs.is_sorted_by(|a, b| a.at + a.length <= b.at);
                    assert!(apart && layout.runs.iter().all(|run| run.length > 0));
                }
                if let Ok((layout, sample)) = self.guest.sampled_layout(GuestPath::root(), 0) {
                    assert!(layout.runs.len() <= MAX_RUNS && sample.len() <= MAX_SAMPLE);
                }
            }
            14 => self.read_files(),
            15 => self.launch(),
            16 => drop(self.guest.systems().map(|systems| format!("{systems:?}"))),
            further => QUESTIONS[further - ANSWERED](&mut self.writing),
        }
    }

    /// What a failed launch step says goes to a terminal.
    fn launch(&self) {
        let guest = &self.guest;
        let (device, at) = (DeviceName { disk: 0, partition: 1 }, GuestPath::root());
        let mount = MountRequest {
            device: Mountable::Volume(device.into()),
            at,
            fstype: None,
            options: String::new(),
        };
        let steps: [&dyn Fn() -> Result<(), GuestError>; 7] = [
            &|| guest.await_disks(2).map(drop),
            &|| guest.prepare(),
            &|| guest.show_blocks(),
            &|| guest.mount_folders(Vec::new()),
            &|| guest.mount(mount.clone()).map(drop),
            &|| guest.mount_writable(mount.clone(), Dirty::ReadOnly).map(drop),
            &|| guest.unmount(),
        ];
        for step in steps {
            if let Err(error) = step() {
                let said = error.to_string();
                assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
            }
        }
    }

    /// The kernel was told of a file.
    fn told(&mut self, attr: &fuser::FileAttr) {
        writing::told(attr);
        self.node = NodeId(attr.ino.0);
    }

    fn read_link(&self) {
        let Ok(target) = self.operations.read_link(self.node) else { return };
        assert!((1..=MAX_LINK).contains(&target.len()) && !target.contains(&0));
        // The files that are asked for are in the root.
        assert!(!target.starts_with(b"/"));
        let mut names = target.split(|&byte| byte == b'/');
        assert!(names.all(|name| name != b".."), "{}", target.escape_ascii());
    }

    fn read_directory(&mut self) {
        let mut entries = Vec::new();
        let read = self.operations.read_directory(ROOT, 0, |line, next| {
            if let Line::Entry(entry) = line {
                assert!(i64::try_from(next).is_ok(), "a position that is ours");
                entries.push(entry.clone());
            }
            true
        });
        if read.is_err() {
            return;
        }
        for entry in entries {
            if let Some(Noted::File(attr)) = self.operations.note(ROOT, &entry) {
                self.told(&attr);
            }
        }
    }

    fn read_files(&self) {
        let name = EntryName::new(b"file").expect("it is a name");
        let file = Numbered { name, number: 7 };
        let wanted = vec![Wanted { file: file.clone(), size: 3 }; 2];
        let mut files = 0;
        let read = self.guest.read_files(GuestPath::root(), Plain::Places, wanted, |index, _| {
            assert_eq!(index, files);
            files += 1;
        });
        assert_eq!(files, if read.is_ok() { 2 } else { 0 });
        if let Ok(found) = self.guest.read_xattrs(GuestPath::root(), vec![file]) {
            assert_eq!(found.len(), 1);
        }
    }
}
