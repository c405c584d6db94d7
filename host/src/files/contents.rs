//! What a regular file holds, in its order: stretches of data, and holes between them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::limits::MAX_PAYLOAD;
use guestmnt_protocol::message::Extent;
use guestmnt_protocol::path::GuestPath;
use nix::errno::Errno;

use super::pool::Awaited;
use super::{Files, Shared, Trouble};
use crate::fs::layouts::Asked;
use crate::fs::nodes::NodeId;
use crate::guest::Piece;

/// Bytes of one request.
const PIECE: u64 = MAX_PAYLOAD as u64;

/// Pieces that are under way at once. The guest's processor is what they wait for, so more would
/// only take memory.
const UNDER_WAY: usize = 4;

/// Stretches of one file. What is behind the last of so many is taken for data.
const MAX_STRETCHES: usize = 1 << 16;

/// Files below this size are not asked for their holes.
const WORTH_ASKING: u64 = 64 * 1024;

/// Bytes of a file that are stored, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first one's place in the file.
    pub at: u64,
    /// How many they are, at least one.
    pub length: u64,
}

/// What one file holds.
pub struct Contents<'a> {
    source: Source<'a>,
    size: u64,
}

enum Source<'a> {
    Here(&'a [u8]),
    Guest { files: &'a Files, path: &'a GuestPath, node: NodeId, may_have_holes: bool },
}

impl Files {
    /// What the regular file at `path` holds, of which `attr` is known.
    #[must_use]
    pub fn contents<'a>(&'a self, path: &'a GuestPath, attr: &Attr) -> Contents<'a> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Layouts are kept by number, and each reading has its own.
        let node = NodeId(NEXT.fetch_add(1, Ordering::Relaxed));
        // Of what takes no space at all, the guest may know that it is elsewhere.
        let is_worth_it = attr.size >= WORTH_ASKING || attr.blocks == 0;
        let may_have_holes = is_worth_it && attr.blocks.saturating_mul(512) < attr.size;
        let source = Source::Guest { files: self, path, node, may_have_holes };
        Contents { source, size: attr.size }
    }
}

impl<'a> Contents<'a> {
    /// Those that are here already.
    pub(crate) fn here(bytes: &'a [u8]) -> Self {
        Self { source: Source::Here(bytes), size: bytes.len() as u64 }
    }

    /// Bytes of the file, holes included.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The stretches of data, in order. All else are holes, which hold zeros.
    ///
    /// # Errors
    /// The guest's error, or `EIO`.
    pub fn stretches(&self) -> Result<Vec<Stretch>, Errno> {
        let whole = |at| Stretch { at, length: self.size - at };
        let Source::Guest { files, path, may_have_holes: true, .. } = &self.source else {
            return Ok(if self.size == 0 { Vec::new() } else { vec![whole(0)] });
        };
        let guest = &files.shared.guest;
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = 0;
        while at < self.size {
            if stretches.len() + 1 == MAX_STRETCHES {
                stretches.push(whole(at));
                break;
            }
            let start = match guest.seek((*path).clone(), at, Extent::Data) {
                Ok(start) if start < self.size => start,
                Ok(_) | Err(Errno::ENXIO) => break,
                Err(errno) => return Err(errno),
            };
            let end = guest.seek((*path).clone(), start, Extent::Hole)?.min(self.size);
            if end <= start {
                return Err(Errno::EIO);
            }
            stretches.push(Stretch { at: start, length: end - start });
            at = end;
        }
        Ok(stretches)
    }

    /// The stretches of a device that is shown as a file: those for which the images hold
    /// something, where that is known; else all of it.
    ///
    /// # Errors
    /// `EIO` where the images cannot be read.
    pub fn stored(&self) -> Result<Vec<Stretch>, Errno> {
        let whole = Stretch { at: 0, length: self.size };
        let Source::Guest { files, path, node, .. } = &self.source else {
            return self.stretches();
        };
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = 0;
        while at < self.size {
            if stretches.len() + 1 == MAX_STRETCHES {
                stretches.push(Stretch { at, length: self.size - at });
                break;
            }
            let found =
                |at, what| files.shared.layouts.seek(*node, || Ok((*path).clone()), at, what);
            let start = match found(at, Extent::Data) {
                None => return Ok(vec![whole]),
                Some(Err(Errno::ENXIO)) => break,
                Some(start) => start?,
            };
            let Some(end) = found(start, Extent::Hole) else { return Ok(vec![whole]) };
            let end = end?.min(self.size);
            if end <= start {
                return Err(Errno::EIO);
            }
            stretches.push(Stretch { at: start, length: end - start });
            at = end;
        }
        Ok(stretches)
    }

    /// Hands the bytes of a stretch to `take`, piece by piece, with the place of each in the file.
    /// `take` passes them on and does not look at them twice: they may change.
    ///
    /// # Errors
    /// [`Trouble::Guest`] with `EIO` also where the file ends before the stretch does; the host's
    /// are those of `take`.
    pub fn read(
        &self,
        stretch: Stretch,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        match &self.source {
            Source::Here(bytes) => {
                let at = usize::try_from(stretch.at).expect("it is in memory");
                let length = usize::try_from(stretch.length).expect("it is in memory");
                Ok(take(stretch.at, &bytes[at..at + length])?)
            }
            Source::Guest { files, path, node, .. } => {
                Reading { files, path, node: *node }.read(stretch, &mut take)
            }
        }
    }
}

impl Drop for Contents<'_> {
    fn drop(&mut self) {
        if let Source::Guest { files, node, .. } = &self.source {
            files.shared.layouts.forget(*node);
        }
    }
}

/// A file that is being read.
struct Reading<'a> {
    files: &'a Files,
    path: &'a GuestPath,
    node: NodeId,
}

impl Reading<'_> {
    fn read(
        &self,
        stretch: Stretch,
        take: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        let end = stretch.at + stretch.length;
        let mut at = stretch.at;
        let mut buffer = Vec::new();
        let mut under_way: VecDeque<(u64, Awaited<Result<Piece, Errno>>)> = VecDeque::new();
        let mut asked = at;
        while at < end {
            let size = PIECE.min(end - at);
            if under_way.is_empty() && self.past_the_vm(at, size, end, &mut buffer) {
                if buffer.len() as u64 != size {
                    return Err(Errno::EIO.into());
                }
                take(at, &buffer)?;
                at += size;
                asked = at;
                continue;
            }
            while asked < end && under_way.len() < UNDER_WAY {
                let size = PIECE.min(end - asked);
                under_way.push_back((size, self.ask(asked, size)));
                asked += size;
            }
            let (size, piece) = under_way.pop_front().expect("one was asked for");
            let piece = piece.wait().unwrap_or(Err(Errno::EIO))?;
            if piece.bytes().len() as u64 != size {
                return Err(Errno::EIO.into());
            }
            take(at, piece.bytes())?;
            at += size;
        }
        Ok(())
    }

    /// Replaces `buffer` by `size` bytes from `at` on of a stretch up to `end`, unless the guest has to
    /// read them.
    fn past_the_vm(&self, at: u64, size: u64, end: u64, buffer: &mut Vec<u8>) -> bool {
        let path = || Ok(self.path.clone());
        let (node, goes_on) = (self.node, at + size < end);
        let asked = Asked { node, volume: None, offset: at, size: piece(size), goes_on };
        self.files.shared.layouts.read(&asked, path, buffer)
    }

    fn ask(&self, at: u64, size: u64) -> Awaited<Result<Piece, Errno>> {
        let shared: Arc<Shared> = Arc::clone(&self.files.shared);
        let path = self.path.clone();
        self.files.pool.run(move || shared.guest.read_piece(path, at, piece(size)))
    }
}

fn piece(size: u64) -> u32 {
    u32::try_from(size).expect("at most a payload")
}
