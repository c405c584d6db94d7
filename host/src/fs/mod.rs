//! The FUSE face: turns the kernel's requests into calls of the guest.
//!
//! [`GuestFs`] is the read-only mount, [`writable::WritableFs`] the other one. A read-only mount never changes, so the kernel may keep what it learnt for as long as it
//! likes: entries, attributes, contents, directories, and that a name does not exist.
//!
//! **Invariant:** this folder and `session` are the only places that name fuser, and nothing
//! here knows that the guest is a VM.

mod access_lists;
mod batches;
mod buffers;
pub mod changes;
mod crew;
mod cursors;
mod directory;
mod folders;
pub mod invalidation;
pub(crate) mod layouts;
mod listing;
mod names;
mod new_files;
mod new_folders;
pub mod nodes;
mod open_nodes;
pub mod operations;
mod page_cache;
mod read_ahead;
mod reads;
mod recent;
mod runs;
mod sequence;
mod small_files;
pub mod splice;
pub mod stats;
mod symlinks;
pub mod view;
mod walk;
pub mod writable;
mod write_errors;
mod xattrs;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use guestmnt_protocol::message::StatFs;
use guestmnt_protocol::path::Printable;
use log::{Level, log_enabled, trace};

use self::crew::Crew;
pub use self::directory::Line;
use self::nodes::{NodeId, ROOT};
use self::operations::{Found, Noted, Operations};
pub use self::page_cache::PageCache;
use self::stats::{Asked, Stats, Way};
use self::view::{Targets, View};
use crate::counts::Kind;
use crate::disk::DiskReader;
use crate::guest::Guest;

/// For ever, as far as the kernel's clock can say it: a hundred years.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Nodes are never used for another file while the kernel knows them.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have in flight in the background, for reading ahead.
const BACKGROUND_REQUESTS: u16 = 64;

/// The target of the `log` lines that `-x` shows of the kernel's requests; as [`crate::guest::TRACE`], no
/// module's path.
pub const TRACE: &str = "guestmnt::trace::fuse";

/// What the files of a guest are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// Files of filesystems, with the holes that those have.
    Files,
    /// Devices, with holes where the images store nothing.
    Devices,
}

/// The mounted filesystem.
pub struct GuestFs {
    operations: Arc<Operations>,
    crew: Crew,
    /// Whether the kernel has to ask before it opens a directory: it cannot take ENOSYS for an
    /// answer before Linux 5.1.
    opens_directories: bool,
    /// How long the kernel may keep what it is told of a file.
    lifetime: Duration,
}

impl GuestFs {
    /// The files of `guest`, shown as `view` says, by a thread for each of its lanes. Those of `disks`
    /// that this process can read need not go through the guest.
    #[must_use]
    pub fn new(
        guest: Arc<Guest>,
        disks: Vec<Option<DiskReader>>,
        shows: Shows,
        view: View,
    ) -> Self {
        let lanes = guest.lanes();
        let operations = Arc::new(Operations::new(guest, disks, shows, view));
        let crew = Crew::of(lanes, operations.page_cache.most());
        Self { operations, crew, opens_directories: true, lifetime: FOR_EVER }
    }

    /// What is counted.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.operations.stats
    }

    /// The kernel's page cache, which can be filled once it is connected.
    #[must_use]
    pub fn page_cache(&self) -> &Arc<PageCache> {
        &self.operations.page_cache
    }

    /// Tells the kernel what it may do, given what it is shown of links.
    fn negotiate(&mut self, config: &mut KernelConfig, targets: Targets) {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_MAX_PAGES,
        ];
        // Where a link is shown to lead depends on where it is, which can change.
        let symlinks = (targets == Targets::Raw).then_some(InitFlags::FUSE_CACHE_SYMLINKS);
        for flag in wanted.into_iter().chain(symlinks) {
            // What an older kernel lacks only costs speed.
            let _ = config.add_capabilities(flag);
        }
        if self.operations.enforces_access_lists() {
            // An older kernel checks the mode alone.
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        let _ = config.set_max_background(BACKGROUND_REQUESTS);
        let without = InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        self.opens_directories = !config.capabilities().contains(without);
    }

    /// Counts what was asked, and says for `-x` how it ended; `of` is what was asked for of the node.
    fn note<T>(
        &self,
        started: Instant,
        what: Asked,
        node: INodeNo,
        of: Of<'_>,
        result: &Result<T, nix::errno::Errno>,
    ) {
        self.stats().asked.request(what);
        if !log_enabled!(target: TRACE, Level::Trace) {
            return;
        }
        let path = self.operations.nodes.path(NodeId(node.0));
        let path = path.map_or_else(|_| format!("node {}", node.0), |path| path.to_string());
        let outcome: &dyn fmt::Display = match result {
            Ok(_) => &"ok",
            Err(errno) => errno,
        };
        let what = what.name();
        trace!(target: TRACE, "{what} {path}{of}: {outcome} ({} us)", started.elapsed().as_micros());
    }
}

/// What of a node is asked for, put into words only where somebody listens.
enum Of<'a> {
    /// All of it.
    All,
    /// What has this name.
    Name(&'a OsStr),
    /// So many bytes, from this one on.
    Bytes(usize, u64),
}

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Name(name) => write!(f, " {}", Printable(name.as_bytes())),
            Self::Bytes(size, offset) => write!(f, " {size}@{offset}"),
        }
    }
}

fn fuse(errno: nix::errno::Errno) -> Errno {
    Errno::from_i32(errno as i32)
}

/// Answers with what the operation `$call` gives, after telling `-x` of it and how long it took.
macro_rules! answer {
    ($self:ident, $what:ident, $node:expr, $name:expr, $reply:ident, $call:expr, $good:expr) => {{
        let started = Instant::now();
        let result = $call();
        $self.note(started, Asked::$what, $node, $name, &result);
        match result {
            Ok(value) => $good(value),
            Err(errno) => $reply.error(fuse(errno)),
        }
    }};
}

impl Filesystem for GuestFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Nothing moves here, so links always lead where they led.
        self.negotiate(config, Targets::Raw);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let call = || self.operations.look_up(NodeId(parent.0), name.as_bytes());
        answer!(self, Lookup, parent, Of::Name(name), reply, call, |found| match found {
            Found::File(attr) => reply.entry(&FOR_EVER, &attr, GENERATION),
            // Node 0 tells the kernel to remember that there is none.
            Found::Nothing => reply.entry(&FOR_EVER, &nothing(), GENERATION),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.operations.forget(NodeId(ino.0), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let call = || self.operations.get_attr(NodeId(ino.0));
        answer!(self, GetAttr, ino, Of::All, reply, call, |attr| reply.attr(&FOR_EVER, &attr));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let call = || self.operations.read_link(NodeId(ino.0));
        answer!(self, ReadLink, ino, Of::All, reply, call, |target: Vec<u8>| reply.data(&target));
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The guest needs no handle, so the kernel need not ask: from now on it opens files,
        // and keeps their contents cached, without a request (FUSE_NO_OPEN_SUPPORT).
        self.note(Instant::now(), Asked::Open, ino, Of::All, &Ok(()));
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let started = Instant::now();
        let mut reply = Some(reply);
        // Before the reply, as of every request: who was answered finds it counted.
        let part = || Of::Bytes(size as usize, offset);
        let note = |result| self.note(started, Asked::Read, ino, part(), result);
        let result = self.operations.read(NodeId(ino.0), offset, size, |bytes| {
            self.stats().asked.bytes(bytes.len());
            note(&Ok(()));
            reply.take().expect("called once").data(bytes);
        });
        match (result, reply) {
            (Ok(Way::Disk), _) => self.operations.store_ahead(NodeId(ino.0), offset, size),
            (Err(errno), Some(reply)) => {
                note(&Err(errno));
                return reply.error(fuse(errno));
            }
            _ => {}
        }
        self.crew.rest(started);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.note(Instant::now(), Asked::OpenDir, ino, Of::All, &Ok(()));
        if self.opens_directories {
            let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            return reply.opened(FileHandle(0), flags);
        }
        // As with files: from now on it opens directories, and keeps what is in them cached,
        // without a request.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let node = NodeId(ino.0);
        let mut call = || {
            self.operations.read_directory(node, offset, |line, next| {
                let full = match line {
                    Line::Dot => reply.add(ino, next, FileType::Directory, "."),
                    Line::DotDot => {
                        let parent = self.operations.nodes.parent(node);
                        reply.add(INodeNo(parent.0), next, FileType::Directory, "..")
                    }
                    Line::Entry(entry) => {
                        let id = entry.attr.as_ref().and_then(nodes::natural_id);
                        let kind =
                            entry.attr.map_or(FileType::RegularFile, |attr| view::kind(attr.mode));
                        // A directory's line must not have number 0: readers take it for a hole.
                        let ino = INodeNo(id.map_or(u64::MAX, |id| id.0));
                        reply.add(ino, next, kind, OsStr::from_bytes(entry.name.as_bytes()))
                    }
                };
                !full
            })
        };
        answer!(self, ReadDir, ino, Of::All, reply, call, |()| reply.ok());
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let node = NodeId(ino.0);
        let mut add = |attr: &FileAttr, valid: &Duration, next: u64, name: &OsStr| {
            reply.add(attr.ino, next, name, valid, attr, GENERATION)
        };
        let mut call = || {
            self.operations.read_directory(node, offset, |line, next| match line {
                // The kernel does not count look-ups of these two.
                Line::Dot => !add(&folder(node), &FOR_EVER, next, OsStr::new(".")),
                Line::DotDot => {
                    let parent = self.operations.nodes.parent(node);
                    !add(&folder(parent), &FOR_EVER, next, OsStr::new(".."))
                }
                Line::Entry(entry) => {
                    let (attr, valid) = match self.operations.note(node, entry) {
                        Some(Noted::File(attr)) => (attr, self.lifetime),
                        Some(Noted::Name(attr)) => (attr, Duration::ZERO),
                        None => return false,
                    };
                    let full = add(&attr, &valid, next, OsStr::from_bytes(entry.name.as_bytes()));
                    if full {
                        self.operations.forget(NodeId(attr.ino.0), 1);
                    }
                    !full
                }
            })
        };
        answer!(self, ReadDirPlus, ino, Of::All, reply, call, |()| reply.ok());
    }

    fn releasedir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.note(Instant::now(), Asked::ReleaseDir, ino, Of::All, &Ok(()));
        reply.ok();
    }

    fn flush(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing was written, so the kernel need not ask again.
        self.note(Instant::now(), Asked::Flush, ino, Of::All, &Ok(()));
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.note(Instant::now(), Asked::Release, ino, Of::All, &Ok(()));
        reply.ok();
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let call = || self.operations.stat_fs(NodeId(ino.0));
        answer!(self, StatFs, ino, Of::All, reply, call, |stat| stat_fs(stat, reply));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let call = || self.operations.get_xattr(NodeId(ino.0), name.as_bytes());
        answer!(self, GetXattr, ino, Of::Name(name), reply, call, |value| sized(
            reply, size, value
        ));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let call = || self.operations.list_xattr(NodeId(ino.0));
        answer!(self, ListXattr, ino, Of::All, reply, call, |names| sized(reply, size, names));
    }

    fn access(&self, _req: &Request, ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // Who may use the mount may read all of it, whatever the image's permissions say;
        // the kernel refuses writing by itself. ENOSYS tells it not to ask again.
        self.note(Instant::now(), Asked::Access, ino, Of::All, &Ok(()));
        reply.error(Errno::ENOSYS);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let call = || self.operations.seek(NodeId(ino.0), offset, whence);
        answer!(self, Seek, ino, Of::All, reply, call, |found| reply.offset(found));
    }
}

fn stat_fs(stat: StatFs, reply: ReplyStatfs) {
    let StatFs { block_size, blocks, free, available, files, free_files, name_len } = stat;
    reply.statfs(blocks, free, available, files, free_files, block_size, name_len, block_size);
}

/// The size of `value` where the kernel asks for it, else the value, if it fits.
fn sized(reply: ReplyXattr, size: u32, value: Vec<u8>) {
    let length = u32::try_from(value.len()).expect("checked against the protocol's limits");
    match size {
        0 => reply.size(length),
        _ if length > size => reply.error(Errno::ERANGE),
        _ => reply.data(&value),
    }
}

/// Attributes of no file.
fn nothing() -> FileAttr {
    View::default().of(NodeId(0), &guestmnt_protocol::attr::Attr::default())
}

/// Attributes for `.` and `..`, of which the kernel looks at the number and the type only.
fn folder(id: NodeId) -> FileAttr {
    let id = if id.0 == 0 { ROOT } else { id };
    let attr = guestmnt_protocol::attr::Attr { mode: libc::S_IFDIR, ..Default::default() };
    View::default().of(id, &attr)
}
