//! Files that exist in a script only, for tests that spoil or delay some of what is said of them;
//! and what the kernel would ask, without a kernel.

use std::collections::BTreeMap;

use guestmnt::fs::Line;
use guestmnt::fs::nodes::{NodeId, ROOT};
use guestmnt::fs::operations::{Found, Noted, Operations};
use guestmnt_protocol::attr::{Attr, DirEntry, Following, push_entry};
use guestmnt_protocol::batch::{self, Outcome as File};
use guestmnt_protocol::message::{Answer, Failure, Outcome, Request};
use guestmnt_protocol::path::{EntryName, GuestPath};
use nix::errno::Errno;
use nix::libc;

/// Bytes that the kernel asks for at once, in sequence.
pub const REQUEST: u32 = 128 << 10;

/// The files by their paths, with their sizes; `None` for folders. The root is always there.
#[derive(Clone, Default)]
pub struct Files {
    sizes: BTreeMap<String, Option<u64>>,
    /// How many zeros they begin with.
    zeros: BTreeMap<String, u64>,
}

impl Files {
    /// The same, and a file of so many bytes.
    #[must_use]
    pub fn file(mut self, path: &str, size: u64) -> Self {
        self.sizes.insert(path.to_owned(), Some(size));
        self
    }

    /// The same, and a folder.
    #[must_use]
    pub fn folder(mut self, path: &str) -> Self {
        self.sizes.insert(path.to_owned(), None);
        self
    }

    /// The same, where the file at `path` begins with so many zeros.
    #[must_use]
    pub fn led_by_zeros(mut self, path: &str, zeros: u64) -> Self {
        self.zeros.insert(path.to_owned(), zeros);
        self
    }

    /// Up to `size` bytes of a file from byte `offset` on. No two files have the same.
    #[must_use]
    pub fn bytes(&self, path: &str, offset: u64, size: u64) -> Vec<u8> {
        let whole = self.sizes.get(path).copied().flatten().unwrap_or(0);
        let seed = path.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
        let end = offset.saturating_add(size).min(whole);
        let zeros = self.zeros.get(path).copied().unwrap_or(0);
        let byte = |at: u64| {
            seed.wrapping_add(at / 3).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]
        };
        (offset..end).map(|at| if at < zeros { 0 } else { byte(at) }).collect()
    }

    /// What an honest guest says, that knows of no disks.
    pub fn answer(&self, request: &Request) -> (Outcome, Vec<u8>) {
        let failed = |errno: Errno| {
            let errno = u16::try_from(errno as i32).expect("they are small");
            (Err(Failure::new(errno)), Vec::new())
        };
        match request {
            Request::Stat(path) => match self.attr(&path.to_string()) {
                Some(attr) => (Ok(Answer::Attr(attr)), Vec::new()),
                None => failed(Errno::ENOENT),
            },
            Request::ReadDir { path, from, size } => {
                (Ok(Answer::Payload), self.page(path, *from, *size))
            }
            Request::Read { path, offset, size } => {
                (Ok(Answer::Payload), self.bytes(&path.to_string(), *offset, (*size).into()))
            }
            Request::ReadFiles { folder, files, .. } => {
                let (mut page, mut bytes) = (Vec::new(), Vec::new());
                for wanted in files {
                    let path = folder.join(&wanted.file.name).expect("it is short");
                    let found = self.bytes(&path.to_string(), 0, wanted.size.into());
                    let length = u32::try_from(found.len()).expect("it is small");
                    batch::push_outcome(&mut page, &File::Here(length));
                    bytes.extend(found);
                }
                (Ok(Answer::Payload), [page, bytes].concat())
            }
            _ => failed(Errno::EOPNOTSUPP),
        }
    }

    fn attr(&self, path: &str) -> Option<Attr> {
        let (number, size) = match self.sizes.iter().zip(2..).find(|((known, _), _)| *known == path)
        {
            Some(((_, size), number)) => (number, *size),
            None if path == "/" => (64, None),
            None => return None,
        };
        let (mode, nlink) =
            if size.is_some() { (libc::S_IFREG | 0o644, 1) } else { (libc::S_IFDIR | 0o755, 2) };
        Some(Attr { ino: 100 + number, mode, nlink, size: size.unwrap_or(0), ..Attr::default() })
    }

    fn page(&self, folder: &GuestPath, from: u64, size: u32) -> Vec<u8> {
        let prefix = format!("{}/", folder.to_string().trim_end_matches('/'));
        let names = self.sizes.keys().filter_map(|path| path.strip_prefix(&prefix));
        let names = names.filter(|name| !name.contains('/')).zip(1u64..);
        let mut page = vec![Following::Nothing.byte()];
        for (name, next) in names.filter(|(_, next)| *next > from) {
            let attr = self.attr(&format!("{prefix}{name}"));
            let name = EntryName::new(name.as_bytes()).expect("it is a name");
            if !push_entry(&mut page, &DirEntry { next, name, attr, target: None }, size as usize) {
                page[0] = Following::More.byte();
                break;
            }
        }
        page
    }
}

/// The node of the file at `path`, looked up step by step.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn node(operations: &Operations, path: &str) -> NodeId {
    path.split('/').filter(|name| !name.is_empty()).fold(ROOT, |folder, name| {
        match operations.look_up(folder, name.as_bytes()) {
            Ok(Found::File(attr)) => NodeId(attr.ino.0),
            _ => panic!("there is no {name} of {path}"),
        }
    })
}

/// Lists a folder as a program does, and gives the nodes in it.
///
/// # Errors
/// Those of [`Operations::read_directory`].
pub fn list(operations: &Operations, folder: NodeId) -> Result<Vec<NodeId>, Errno> {
    let mut nodes = Vec::new();
    let mut entries = Vec::new();
    operations.read_directory(folder, 0, |line, _| {
        if let Line::Entry(entry) = line {
            entries.push(entry.clone());
        }
        true
    })?;
    for entry in &entries {
        match operations.note(folder, entry) {
            Some(Noted::File(attr)) => nodes.push(NodeId(attr.ino.0)),
            _ => return Err(Errno::EIO),
        }
    }
    Ok(nodes)
}

/// What one request of the kernel gives.
///
/// # Errors
/// Those of [`Operations::read`].
pub fn read_at(
    operations: &Operations,
    file: NodeId,
    offset: u64,
    size: u32,
) -> Result<Vec<u8>, Errno> {
    let mut found = Vec::new();
    operations.read(file, offset, size, |bytes| found.extend_from_slice(bytes))?;
    Ok(found)
}

/// Reads the first `length` bytes of a file from front to back, as the kernel does for a program that
/// does so.
///
/// # Errors
/// Those of [`Operations::read`].
pub fn read_whole(operations: &Operations, file: NodeId, length: u64) -> Result<Vec<u8>, Errno> {
    let mut found = Vec::new();
    for offset in (0..length).step_by(REQUEST as usize) {
        found.extend(read_at(operations, file, offset, REQUEST)?);
    }
    Ok(found)
}
