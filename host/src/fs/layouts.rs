//! Reading files where they are on their disk, past the VM.
//!
//! The guest says where a file's bytes are; this process has the images open. So a file of which
//! more than one piece is asked for is read here, at the speed of the host, and the guest only
//! computes what takes a filesystem to compute.
//!
//! A layout is believed once it was seen to be right: it must give what the guest reads in one place,
//! and no bytes that are found in many places, as zeros are. A hostile guest can point anywhere on its
//! disks; those are bytes of the same image, which it could have sent itself.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use guestmnt_protocol::limits::{MAX_PAYLOAD, MAX_SAMPLE};
use guestmnt_protocol::message::{Extent, Layout};
use guestmnt_protocol::path::GuestPath;
use log::{debug, warn};
use nix::errno::Errno;

use super::nodes::NodeId;
use super::runs::{self, reaches};
use crate::disk::DiskReader;
use crate::guest::Guest;

/// Files of which something is kept: the latest.
const MAX_FILES: usize = 256;

/// Runs kept of all files, 24 bytes each. A file in more pieces is read by the guest.
const MAX_RUNS_KEPT: usize = 1 << 18;

const NO_PANIC: &str = "nothing panics while it holds the layouts";

/// The disks of a guest: `None` for those that cannot be read here.
pub type Disks = Arc<[Option<DiskReader>]>;

/// The disks of a guest, and where its files are on them.
pub struct Layouts {
    guest: Arc<Guest>,
    disks: Disks,
    /// The latest last.
    files: Mutex<Vec<(NodeId, Known)>>,
    /// Volumes of which the guest would not say where a file is.
    refused: Mutex<BTreeSet<u16>>,
    asking: Asking,
}

/// Bytes of a file that are asked for.
pub struct Asked {
    /// The file.
    pub node: NodeId,
    /// The volume that it is on, where that is known.
    pub volume: Option<u16>,
    /// The first of them.
    pub offset: u64,
    /// How many they are.
    pub size: u32,
    /// Whether it has more behind them.
    pub goes_on: bool,
}

/// What is known of a file.
#[derive(Clone)]
enum Known {
    /// It was read once; what came of that, once it came.
    ReadOnce(Option<Sample>),
    /// All that was read of it is the same all over. The guest reads it until something else comes.
    Untold,
    /// The guest has to read it.
    Guest,
    /// Where it is, as far as it was asked for.
    Here(Arc<Layout>),
}

/// What was learnt of where a file is.
enum Learnt {
    /// Here.
    Here(Arc<Layout>),
    /// Perhaps here, where bytes are that are in many places.
    Untold(Arc<Layout>),
    /// The guest has to read it.
    Guest,
}

/// Some bytes of a file, as the guest read them.
#[derive(Clone)]
struct Sample {
    offset: u64,
    bytes: Arc<[u8]>,
}

/// The files whose layouts the guest is being asked for. A file that is read in sequence is asked
/// for by several threads at once; one of them asks, and the others take what it learns.
#[derive(Default)]
struct Asking {
    nodes: Mutex<Vec<NodeId>>,
    ended: Condvar,
}

/// That one thread alone asks for a file's layout, until this is dropped.
struct Alone<'a> {
    asking: &'a Asking,
    node: NodeId,
}

impl Layouts {
    /// Of the files of `guest`, whose disks are `disks`.
    #[must_use]
    pub fn of(guest: Arc<Guest>, disks: Disks) -> Self {
        let (files, refused) = (Mutex::default(), Mutex::default());
        Self { guest, disks, files, refused, asking: Asking::default() }
    }

    /// Replaces `buffer` by what is asked for of a file, by fewer bytes only at its end. False where
    /// the guest has to read them; `buffer` holds nothing of use then.
    pub fn read(
        &self,
        asked: &Asked,
        path: impl Fn() -> Result<GuestPath, Errno>,
        buffer: &mut Vec<u8>,
    ) -> bool {
        if self.disks.iter().all(Option::is_none) {
            return false;
        }
        let &Asked { node, volume, offset, size, goes_on } = asked;
        let size = (size as usize).min(MAX_PAYLOAD);
        let end = offset.saturating_add(size as u64);
        let is_large = goes_on && volume.is_none_or(|volume| !self.refused().contains(&volume));
        let layout = match self.known(node, is_large) {
            Known::Guest | Known::Untold => return false,
            Known::Here(layout) if reaches(&layout, end) => layout,
            Known::Here(_) | Known::ReadOnce(_) => {
                match self.learnt(node, volume, &path, offset, end) {
                    Learnt::Here(layout) => layout,
                    Learnt::Untold(_) => return false,
                    Learnt::Guest => return self.leave_to_guest(node),
                }
            }
        };
        if let Err(error) = self.fill(&layout, offset, size, buffer) {
            warn!("an image cannot be read past the VM: {error}");
            return self.leave_to_guest(node);
        }
        true
    }

    /// Where the file `node` is up to its byte `end`, and on which disk. `None` where it ends before
    /// that, and where the guest would have to be asked.
    pub fn known_up_to(&self, node: NodeId, end: u64) -> Option<(Arc<Layout>, &DiskReader)> {
        let layout = self.files().iter().find_map(|(of, known)| match known {
            Known::Here(layout) if *of == node => Some(Arc::clone(layout)),
            _ => None,
        })?;
        let disk = self.disks.get(usize::from(layout.disk))?.as_ref()?;
        (end <= layout.size && reaches(&layout, end)).then_some((layout, disk))
    }

    /// Notes what the guest read of the file `node` at `offset`, by which its layout can be tried.
    pub fn was_read(&self, node: NodeId, offset: u64, bytes: &[u8]) {
        let mut files = self.files();
        let Some((_, known)) = files.iter_mut().find(|(of, _)| *of == node) else { return };
        if let Known::ReadOnce(None) | Known::Untold = known
            && let Some(sample) = Sample::of(offset, bytes)
        {
            *known = Known::ReadOnce(Some(sample));
        }
    }

    /// The layout of the file `node` up to byte `end`, by asking the guest unless somebody else has
    /// done so by then. It is tried by what is at `offset` where nothing was read yet.
    fn learnt(
        &self,
        node: NodeId,
        volume: Option<u16>,
        path: &impl Fn() -> Result<GuestPath, Errno>,
        offset: u64,
        end: u64,
    ) -> Learnt {
        let _alone = self.asking.alone(node);
        let layout = match self.known(node, true) {
            Known::Guest => return Learnt::Guest,
            Known::Here(layout) if reaches(&layout, end) => return Learnt::Here(layout),
            Known::Here(layout) => self.extended(&layout, path, end),
            Known::ReadOnce(Some(sample)) => {
                let layout = path().and_then(|path| self.guest.layout(path, 0));
                layout.ok().and_then(|layout| self.tried(&layout, path, &sample, end))
            }
            Known::ReadOnce(None) | Known::Untold => {
                let sampled = path().and_then(|path| self.guest.sampled_layout(path, offset));
                let (layout, bytes) = match sampled {
                    Ok(sampled) => sampled,
                    Err(errno) => {
                        if errno == Errno::EOPNOTSUPP {
                            self.refused().extend(volume);
                        }
                        return Learnt::Guest;
                    }
                };
                let sample = Sample { offset, bytes: bytes.into() };
                match self.tried(&layout, path, &sample, end) {
                    Some(layout) if !varies(&sample.bytes) => {
                        self.set(node, Known::Untold);
                        return Learnt::Untold(Arc::new(layout));
                    }
                    layout => layout,
                }
            }
        };
        layout.map_or(Learnt::Guest, |layout| Learnt::Here(self.note(node, layout)))
    }

    /// Where the next byte that is stored, or that is not, is from byte `offset` of the file `node`
    /// on. A byte is not stored where the images hold nothing for it. `None` where the guest has to
    /// be asked.
    ///
    /// # Errors
    /// `ENXIO` where there is none; that of [`DiskReader::find`].
    pub fn seek(
        &self,
        node: NodeId,
        path: impl Fn() -> Result<GuestPath, Errno>,
        offset: u64,
        what: Extent,
    ) -> Option<Result<u64, Errno>> {
        if self.disks.iter().all(Option::is_none) {
            return None;
        }
        let _ = self.known(node, true);
        // A device begins with zeros now and then, and where its holes are is asked first.
        let layout = match self.learnt(node, None, &path, offset, u64::MAX) {
            Learnt::Here(layout) | Learnt::Untold(layout) => layout,
            Learnt::Guest => return None,
        };
        let disk = self.disks.get(usize::from(layout.disk)).and_then(Option::as_ref)?;
        Some(runs::seek(disk, &layout, offset, what))
    }

    /// Has the guest read the file `node` from now on, since what is here of it cannot be right.
    pub fn distrust(&self, node: NodeId) {
        debug!("a layout of a file that ends before the file does");
        self.leave_to_guest(node);
    }

    /// Forgets a node, whose number may be given to another file.
    pub fn forget(&self, node: NodeId) {
        self.files().retain(|(known, _)| *known != node);
    }

    /// What is known of a file that is being read. The first time it is left to the guest, unless it
    /// is large: most files are small, and read at once.
    fn known(&self, node: NodeId, is_large: bool) -> Known {
        let mut files = self.files();
        if let Some(index) = files.iter().position(|(known, _)| *known == node) {
            let entry = files.remove(index);
            let known = entry.1.clone();
            files.push(entry);
            return known;
        }
        if files.len() == MAX_FILES {
            files.remove(0);
        }
        files.push((node, Known::ReadOnce(None)));
        if is_large { Known::ReadOnce(None) } else { Known::Guest }
    }

    /// `layout` and what follows it up to `end` at least, if it gives `sample` where the guest read
    /// that.
    fn tried(
        &self,
        layout: &Layout,
        path: &impl Fn() -> Result<GuestPath, Errno>,
        sample: &Sample,
        end: u64,
    ) -> Option<Layout> {
        let Sample { offset, bytes } = sample;
        if bytes.is_empty() {
            return None;
        }
        let layout = self.extended(layout, path, end.max(offset + bytes.len() as u64))?;
        let mut here = Vec::new();
        self.fill(&layout, *offset, bytes.len(), &mut here).ok()?;
        if *here != **bytes {
            debug!("a layout that does not give what the guest gives");
            return None;
        }
        Some(layout)
    }

    /// `layout` and what follows it, up to byte `end` of the file.
    fn extended(
        &self,
        layout: &Layout,
        path: &impl Fn() -> Result<GuestPath, Errno>,
        end: u64,
    ) -> Option<Layout> {
        let mut whole = layout.clone();
        while whole.end < end.min(whole.size) {
            let next = self.guest.layout(path().ok()?, whole.end).ok()?;
            let follows = next.disk == whole.disk
                && next.size == whole.size
                && next.end > whole.end
                && whole.runs.len() + next.runs.len() <= MAX_RUNS_KEPT / 4;
            if !follows {
                return None;
            }
            let covered = whole.runs.last().map_or(0, |run| run.at + run.length);
            whole.runs.extend(next.runs.into_iter().filter(|run| run.at >= covered));
            whole.end = next.end;
        }
        Some(whole)
    }

    /// Replaces `buffer` by what is at `offset` of a file, at most `size` bytes.
    fn fill(
        &self,
        layout: &Layout,
        offset: u64,
        size: usize,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let disk = self.disks.get(usize::from(layout.disk)).and_then(Option::as_ref);
        runs::fill(disk.ok_or(io::ErrorKind::Unsupported)?, layout, offset, size, buffer)
    }

    fn leave_to_guest(&self, node: NodeId) -> bool {
        self.set(node, Known::Guest);
        false
    }

    fn note(&self, node: NodeId, layout: Layout) -> Arc<Layout> {
        let layout = Arc::new(layout);
        self.set(node, Known::Here(Arc::clone(&layout)));
        layout
    }

    /// Notes what is known of a file, and forgets the oldest files where it is too much.
    fn set(&self, node: NodeId, known: Known) {
        let mut files = self.files();
        files.retain(|(other, _)| *other != node);
        files.push((node, known));
        let mut runs: usize = files.iter().map(|(_, known)| known.runs()).sum();
        while runs > MAX_RUNS_KEPT {
            runs -= files.remove(0).1.runs();
        }
    }

    fn refused(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.refused.lock().expect(NO_PANIC)
    }

    fn files(&self) -> MutexGuard<'_, Vec<(NodeId, Known)>> {
        self.files.lock().expect(NO_PANIC)
    }
}

impl Known {
    fn runs(&self) -> usize {
        match self {
            Self::Here(layout) => layout.runs.len(),
            Self::ReadOnce(_) | Self::Untold | Self::Guest => 0,
        }
    }
}

impl Sample {
    /// The beginning of `bytes`. `None` where it would tell little.
    fn of(offset: u64, bytes: &[u8]) -> Option<Self> {
        // A copy: what is looked at must not change meanwhile.
        let bytes: Arc<[u8]> = bytes[..bytes.len().min(MAX_SAMPLE)].into();
        varies(&bytes).then_some(Self { offset, bytes })
    }
}

/// Whether bytes tell something of their place: what is the same all over is found in many places.
pub fn varies(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| *byte != bytes[0])
}

impl Asking {
    /// Waits until nobody asks for the layout of `node`.
    fn alone(&self, node: NodeId) -> Alone<'_> {
        let mut nodes = self.nodes();
        while nodes.contains(&node) {
            nodes = self.ended.wait(nodes).expect(NO_PANIC);
        }
        nodes.push(node);
        Alone { asking: self, node }
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<NodeId>> {
        self.nodes.lock().expect(NO_PANIC)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.asking.nodes().retain(|node| *node != self.node);
        self.asking.ended.notify_all();
    }
}
