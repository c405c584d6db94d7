//! Why a disk cannot be opened, and what the user can do about it.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use guestmnt_protocol::path::Printable;
use nix::errno::Errno;

use super::descriptor::Cid;
use super::foreign::Foreign;
use super::format::Format;
use super::guid::Guid;
use super::line_problem::LineProblem;
use super::name::{FileName, NameError};
use super::unwritable::Unwritable;
use super::{MAX_DESCRIPTOR, MAX_DISK_SIZE, MAX_EXTENTS, MAX_LINKS, SECTOR_SIZE};

/// A disk that cannot be opened: the file at fault and what is wrong with it.
///
/// Shown in one line, and a second one with a hint where there is something to do.
#[derive(Debug)]
pub struct ImageError {
    path: PathBuf,
    problem: Problem,
}

impl ImageError {
    /// `problem` of the file at `path`.
    pub(super) fn new(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), problem }
    }

    /// The file at fault, or the one that refers to it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open {}: {}", show(&self.path), self.problem)?;
        match self.problem.hint() {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ImageError {}

/// What is wrong with a file of a disk.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// The system refused.
    Io(io::Error),
    /// Something else than a regular file; the text says what.
    NotRegular(&'static str),
    /// No bytes at all.
    Empty,
    /// No format that is known, and a name that does not pass for a raw disk.
    UnknownFormat,
    /// Something else than a disk image that is read here.
    Foreign(Foreign),
    /// Not in the format that the user named.
    NotInFormat(Format),
    /// Several disks, of which one has to be named; what to call them.
    SeveralDisks(Vec<PathBuf>),
    /// Several virtual machines, of which one has to be named; their descriptions.
    SeveralMachines(Vec<PathBuf>),
    /// No disk where one or more were expected.
    NoDisk,
    /// An archive without a certain file.
    NoMember {
        /// The file.
        name: PathBuf,
        /// What to call the disks that are there.
        disks: Vec<PathBuf>,
    },
    /// A piece of a split disk, and the first one, which should be opened.
    IsPiece(PathBuf),
    /// A number that none of the pieces has although later ones are there.
    PieceMissing(u32),
    /// A piece with this many bytes, which are not whole sectors, before others.
    OddPiece(u64),
    /// A piece with fewer bytes than another one that is not the last, or than the last.
    ShortPiece {
        /// Bytes of the piece.
        len: u64,
        /// Bytes of the other one.
        full: u64,
    },
    /// A problem of a piece of a split disk.
    Piece {
        /// The piece.
        name: PathBuf,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// A part of a disk, and the descriptor beside it that names it, if there is one.
    IsExtent(Option<PathBuf>),
    /// The file ends before `what` it must hold.
    Truncated {
        /// A part of the file.
        what: &'static str,
        /// Bytes of the file.
        len: u64,
    },
    /// Contradicts itself or the format; the text goes on after "the file is damaged:".
    Damaged(String),
    /// Line ends were rewritten within a binary file.
    TextModeCopy,
    /// A sound image of a kind that is not read.
    Unsupported {
        /// The kind.
        what: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A virtual disk beyond [`MAX_DISK_SIZE`].
    TooLarge,
    /// A descriptor beyond [`MAX_DESCRIPTOR`].
    DescriptorTooLong,
    /// More than [`MAX_EXTENTS`] extents.
    TooManyExtents,
    /// A line of a descriptor.
    Line {
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// Something that a descriptor must say and does not.
    Lacks(&'static str),
    /// A problem of a disk that a machine's description names.
    Disk {
        /// As it names it.
        name: FileName,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// A disk of a machine's description that is another one by its id.
    DiskId {
        /// By the description.
        expected: Guid,
        /// The disk's own.
        found: Guid,
    },
    /// A disk of which a machine's description only says the id, and that is in none of these
    /// folders.
    DiskUnknown {
        /// By the description.
        id: Guid,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// A snapshot's file that a machine's description names and that is not there.
    DeltaMissing {
        /// As the description names it.
        name: FileName,
        /// The disks that it may have been made over, the youngest first.
        there: Vec<PathBuf>,
    },
    /// A problem of an extent that the file names.
    Extent {
        /// As the descriptor names it.
        name: FileName,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// An extent whose header and whose line of the descriptor differ.
    ExtentSize {
        /// By the extent's header.
        header_sectors: u64,
        /// By the descriptor.
        line_sectors: u64,
    },
    /// A file that [`super::reach::Reach`] does not let an image name.
    OutsideFolder {
        /// Where it really is.
        real: PathBuf,
    },
    /// A raw extent that has other names too.
    HardLinked {
        /// Number of names.
        nlink: u64,
    },
    /// An extent whose bytes are in use already.
    Overlap,
    /// A problem of the parent at a path.
    Parent {
        /// The parent.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// A name of another file that is none.
    Name(NameError),
    /// A backing file in a format that is not known; its name.
    BackingFormat(String),
    /// A parent that is at none of these places.
    ParentMissing(Vec<PathBuf>),
    /// A file that has the name of a backing file which is not there, and cannot be it.
    OtherBacking {
        /// The backing file, as it is named.
        stated: FileName,
        /// What was found.
        found: PathBuf,
        /// Bytes of its disk.
        found_size: u64,
        /// Bytes of the child's.
        size: u64,
    },
    /// A parent in a format without content ids.
    ParentNotVmdk,
    /// A parent whose contents are not those that the child was made over.
    CidMismatch {
        /// By the child.
        expected: Cid,
        /// The parent's own.
        found: Cid,
        /// The parent.
        parent: PathBuf,
    },
    /// A parent by the right name that is another image, or was changed.
    ParentId {
        /// By the child.
        expected: Guid,
        /// The parent's own.
        found: Guid,
        /// The parent.
        parent: PathBuf,
    },
    /// A parent of which only an id is known, and that is in none of these folders.
    ParentUnknown {
        /// By the child.
        id: Guid,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// A parent larger than its child.
    ParentLarger {
        /// The parent.
        parent: PathBuf,
        /// Its bytes.
        parent_size: u64,
        /// The child's bytes.
        size: u64,
    },
    /// A parent that is a child as well.
    Cycle(PathBuf),
    /// A chain beyond [`MAX_LINKS`].
    TooDeep,
    /// A file that another program is writing to.
    BeingWritten,
    /// A disk that can be read and not be written.
    Unwritable(Unwritable),
}

impl From<io::Error> for Problem {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<Unwritable> for Problem {
    fn from(reason: Unwritable) -> Self {
        Self::Unwritable(reason)
    }
}

impl Problem {
    /// `Damaged` with a text.
    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }

    /// Whether a file was not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => match e.raw_os_error() {
                Some(errno) => f.write_str(Errno::from_raw(errno).desc()),
                None => write!(f, "{e}"),
            },
            Self::NotRegular(kind) => write!(f, "it is {kind}, not a file"),
            Self::Empty => f.write_str("it is empty"),
            Self::UnknownFormat => f.write_str(
                "not a VMDK, nor another disk image: neither a descriptor nor a known header",
            ),
            Self::Foreign(Foreign { what, .. }) => {
                write!(f, "it is {what}, not a disk that can be read")
            }
            Self::NotInFormat(format) => write!(f, "it is not in the format {format}"),
            Self::SeveralDisks(names) => {
                f.write_str("it holds several disks:")?;
                list(f, names)
            }
            Self::SeveralMachines(names) => {
                f.write_str("it holds several virtual machines:")?;
                list(f, names)
            }
            Self::NoDisk => f.write_str("it holds no disk"),
            Self::NoMember { name, disks } => {
                write!(f, "it holds no {}; its disks are:", show(name))?;
                list(f, disks)
            }
            Self::IsPiece(_) => f.write_str("it holds only a piece of a disk"),
            Self::PieceMissing(number) => write!(f, "its piece number {number} is missing"),
            Self::OddPiece(len) => {
                write!(f, "its {len} bytes are no multiple of {SECTOR_SIZE}, and others follow it")
            }
            Self::ShortPiece { len, full } => write!(
                f,
                "its {len} bytes are fewer than the {full} of others, so that it is not known where \
                 on the disk those of the pieces after it are"
            ),
            Self::Piece { name, problem } => write!(f, "its piece {}: {problem}", show(name)),
            Self::IsExtent(_) => f.write_str("it holds only an extent of a disk"),
            Self::Truncated { what, len } => {
                write!(f, "truncated: its {len} bytes end before the {what}")
            }
            Self::Damaged(what) => write!(f, "damaged: {what}"),
            Self::TextModeCopy => f.write_str("damaged: its line ends were converted by a copy"),
            Self::Unsupported { what, .. } => write!(f, "{what}, which is not supported"),
            Self::TooLarge => {
                write!(f, "its virtual disk is larger than {} TiB", MAX_DISK_SIZE >> 40)
            }
            Self::DescriptorTooLong => {
                write!(f, "its descriptor is longer than {} KiB", MAX_DESCRIPTOR >> 10)
            }
            Self::TooManyExtents => write!(f, "it names more than {MAX_EXTENTS} extents"),
            Self::Line { number, problem } => write!(f, "line {number} {problem}"),
            Self::Lacks(what) => write!(f, "its descriptor has no {what}"),
            Self::Extent { name, problem } if problem.is_missing() => {
                write!(f, "its extent {name} does not exist")
            }
            Self::Extent { name, problem } => write!(f, "its extent {name}: {problem}"),
            Self::DiskId { expected, found } => {
                write!(f, "it has the id {found} and not {expected}, as the description says")
            }
            Self::DiskUnknown { id, folders } => {
                write!(f, "its disk with the id {id} is missing; looked for in")?;
                list(f, folders)
            }
            Self::DeltaMissing { name, there } => {
                write!(f, "its disk {name} does not exist; of the same disk there is")?;
                list(f, there)
            }
            Self::Disk { name, problem } => write!(f, "its disk {name}: {problem}"),
            Self::ExtentSize { header_sectors, line_sectors } => {
                write!(f, "its header says {header_sectors} sectors, the descriptor {line_sectors}")
            }
            Self::OutsideFolder { real } => {
                write!(f, "it is outside of the image's folder, or hidden in it, at {}", show(real))
            }
            Self::HardLinked { nlink } => {
                write!(f, "it is also known by {} other names (hard links)", nlink - 1)
            }
            Self::Overlap => f.write_str("its sectors are in use by an earlier extent"),
            Self::Parent { path, problem } => write!(f, "its parent {}: {problem}", show(path)),
            Self::Name(e) => write!(f, "it {e}"),
            Self::BackingFormat(name) => {
                let name = Printable(name.as_bytes()).to_string();
                write!(f, "its backing file is in the format \"{name}\", which is not known")
            }
            Self::ParentMissing(tried) => {
                f.write_str("its parent is missing; looked for")?;
                for (i, path) in tried.iter().enumerate() {
                    write!(f, "{} {}", if i == 0 { "" } else { " and" }, show(path))?;
                }
                Ok(())
            }
            Self::OtherBacking { stated, found, found_size, size } => write!(
                f,
                "its backing file {stated} does not exist, and {} of that name is another one: it \
                 has {found_size} bytes, more than its own {size}",
                show(found)
            ),
            Self::ParentNotVmdk => f.write_str("it is not a VMDK, as a VMDK's parent must be"),
            Self::CidMismatch { expected, found, parent } => {
                write!(f, "parent CID {expected} expected, {} has {found}", show(parent))
            }
            Self::ParentId { expected, found, parent } => {
                write!(f, "parent with id {expected} expected, {} has {found}", show(parent))
            }
            Self::ParentUnknown { id, folders } => {
                write!(f, "its parent, with id {id}, is missing; looked for in")?;
                list(f, folders)
            }
            Self::ParentLarger { parent, parent_size, size } => write!(
                f,
                "its disk of {size} bytes is smaller than that of its parent {}, {parent_size}",
                show(parent)
            ),
            Self::Cycle(parent) => {
                write!(f, "its parent {} is also its child", show(parent))
            }
            Self::TooDeep => write!(f, "the chain has more than {MAX_LINKS} links"),
            Self::BeingWritten => f.write_str("another program is writing to it"),
            Self::Unwritable(reason) => reason.fmt(f),
        }
    }
}

/// One path below the other.
fn list(f: &mut fmt::Formatter<'_>, paths: &[PathBuf]) -> fmt::Result {
    paths.iter().try_for_each(|path| write!(f, "\n    {}", show(path)))
}

/// The bytes of a path, which need not be UTF-8.
pub fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// A path as it may go to a terminal.
pub fn show(path: &Path) -> impl fmt::Display {
    Printable(path_bytes(path))
}
