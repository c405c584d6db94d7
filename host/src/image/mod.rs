//! What the files on the host mean, and which of them may be opened.
//!
//! Everything read here was written by whoever made the image. [`Disk::open`] follows a disk
//! from the file that the user names to its extents and parents, opens each file once and
//! read-only, [`Disk::open_for_writing`] those of its leaf for writing too, and hands on open files: QEMU gets those and no paths, so what is not opened
//! here is out of its reach.
//!
//! Followed are VMware's Virtual Disk Format 5.0, as far as QEMU's block/vmdk.c reads it, and
//! the headers of the single-file formats. Tables behind the headers are QEMU's business, but for
//! those of differencing disks in formats of which its drivers know none.
//!
//! **Invariant:** nothing here names QEMU's processes, QMP or FUSE; the names of QEMU's block
//! drivers are all it knows of QEMU's face.
//!
//! **Invariant:** no number from a file is used before it was checked against that file's
//! length or a limit of this module.

#![forbid(unsafe_code)]

mod allocation;
mod archive;
mod block_size;
mod chain;
mod content_id;
mod cowd;
mod crc32c;
mod create_type;
mod cut_short;
mod descriptor;
mod encoding;
mod error;
mod extent;
mod fields;
mod file;
mod fingerprint;
mod folder;
mod foreign;
mod format;
mod guid;
mod hint;
pub mod history;
mod line_problem;
mod lock;
mod machine;
mod memory;
mod missing;
mod name;
mod owner;
mod parallels;
mod parallels_bundle;
mod parent;
mod patches;
mod qcow2;
mod qed;
mod qemu_lock;
mod reach;
mod sector_map;
mod sesparse;
mod sparse;
mod split;
mod unwritable;
mod vbox;
mod vdi;
mod vhd;
mod vhdx;
mod vhdx_log;
mod vmdk;
mod vmx;
mod writing;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use block_size::{BlockSize, BlockSizeError};
pub use create_type::CreateType;
pub use descriptor::{Access, Cid, Descriptor, Extent, ParentBy, ParentLink, Storage};
pub use error::{ImageError, Problem};
pub use fingerprint::{DIGEST, Fingerprint};
pub use format::{Format, FormatError};
pub use guid::{Guid, ImageIds};
pub use line_problem::LineProblem;
pub use missing::{Missing, OnMissing};
pub use name::{FileName, NameError};
pub use unwritable::Unwritable;
pub use writing::Writing;

/// Bytes of a sector, the unit of VMDK's numbers.
pub const SECTOR_SIZE: u64 = 512;

/// The largest virtual disk, in bytes: 64 TiB, a little above VMware's 62 TiB.
pub const MAX_DISK_SIZE: u64 = 64 << 40;

/// Most links of a chain: VMware's most snapshots, 32, and the base below them.
pub const MAX_LINKS: usize = 33;

/// Most bytes of a VMDK descriptor.
pub const MAX_DESCRIPTOR: usize = 64 << 10;

/// Most extents of one VMDK descriptor.
pub const MAX_EXTENTS: usize = 4096;

/// What the user said about a disk beside its name.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The format, or `None` to tell it from the file's first bytes.
    pub format: Option<Format>,
    /// How large its sectors are, or `None` to go by the image where that says it.
    pub block_size: Option<BlockSize>,
    /// Files, and folders with all below them, that an image may name besides those of its
    /// own folder.
    pub allow_paths: Vec<PathBuf>,
    /// What reads of a disk yield where its files were cut short.
    pub on_missing: OnMissing,
}

/// A disk whose every file is open and checked.
#[derive(Debug)]
pub struct Disk {
    /// As the user named it.
    pub path: PathBuf,
    /// Bytes of the virtual disk, a multiple of [`SECTOR_SIZE`].
    pub size: u64,
    /// How large its sectors are for the guest.
    pub block_size: BlockSize,
    /// The files that make it up: the leaf first, each followed by its parent. Never empty,
    /// at most [`MAX_LINKS`].
    pub chain: Vec<Link>,
    /// What of it its files should hold and do not, because they were cut short.
    pub missing: Missing,
    /// What reads of that yield.
    pub on_missing: OnMissing,
    /// What the user should know although the disk could be opened; one sentence each, fit
    /// for a terminal.
    pub warnings: Vec<String>,
    /// What writing to the leaf takes, where it was opened for that.
    pub writing: Option<Writing>,
}

/// One image of a chain.
#[derive(Debug)]
pub struct Link {
    /// Where it was found.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Bytes of the virtual disk as this link has it; a parent may have fewer than its child.
    pub size: u64,
    /// What its descriptor says of itself, for VMDK.
    pub vmdk: Option<VmdkInfo>,
    /// How large sectors are in the machine that it was made for, in formats that say it.
    pub block_size: BlockSize,
    /// What the user should know of it although it could be opened; one sentence each.
    pub warnings: Vec<String>,
    /// Its open files.
    pub source: Source,
    /// What of its disk should be in its files and is past their end.
    pub missing: Missing,
}

/// What a VMDK's descriptor says of itself and its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmdkInfo {
    /// How it is stored.
    pub create_type: CreateType,
    /// Changes with the contents.
    pub cid: Cid,
    /// The parent's `cid` at the time of the snapshot; `None` without a parent, and where
    /// VirtualBox did not keep it.
    pub parent_cid: Option<Cid>,
}

/// The open files of a link. All are regular and close-on-exec; read-only but for those of a leaf
/// that was opened for writing.
#[derive(Debug)]
pub enum Source {
    /// One file that QEMU reads by itself.
    File(File),
    /// Bytes of a file that are an image, as in an archive.
    Part {
        /// The file.
        file: File,
        /// Where they begin.
        offset: u64,
        /// How many they are, a multiple of [`SECTOR_SIZE`].
        len: u64,
    },
    /// A text descriptor and what it names: a VMDK's, or one made here for the parts of a
    /// split disk.
    Described {
        /// The parsed text; [`Descriptor::rewritten`] makes QEMU's from it.
        descriptor: Descriptor,
        /// One file for each of `descriptor.extents`, in that order; for a ZERO extent a
        /// file of its length without data.
        extents: Vec<File>,
    },
    /// A file with changes that exist in memory only, such as a log that was replayed: parts of the
    /// file and of memory, joined by a descriptor. What that shows is of the link's format.
    Patched {
        /// Says how the parts are joined.
        descriptor: Descriptor,
        /// A file for each of `descriptor.extents`.
        extents: Vec<File>,
    },
    /// A differencing image in a format of which QEMU reads none: tables of qcow2 in memory
    /// and the file with the data, joined by a descriptor. What it shows is a qcow2.
    Mapped {
        /// Says how tables and data are joined.
        descriptor: Descriptor,
        /// The tables, then the file as often as the descriptor names it.
        extents: Vec<File>,
    },
}

impl Link {
    /// Its open files.
    #[must_use]
    pub fn files(&self) -> &[File] {
        match &self.source {
            Source::File(file) | Source::Part { file, .. } => std::slice::from_ref(file),
            Source::Described { extents, .. }
            | Source::Patched { extents, .. }
            | Source::Mapped { extents, .. } => extents,
        }
    }

    /// The block driver of QEMU that reads it: that of its format, but for what a descriptor
    /// puts together.
    #[must_use]
    pub fn qemu_driver(&self) -> &'static str {
        match self.source {
            Source::File(_) | Source::Part { .. } | Source::Patched { .. } => {
                self.format.qemu_driver()
            }
            Source::Described { .. } => Format::Vmdk.qemu_driver(),
            Source::Mapped { .. } => Format::Qcow2.qemu_driver(),
        }
    }
}

impl Disk {
    /// Bytes of the disk that the guest sees. What is not a whole sector at the end of a disk
    /// would be out of its reach.
    #[must_use]
    pub fn sectors_size(&self) -> u64 {
        self.size.next_multiple_of(self.block_size.bytes())
    }

    /// Opens the disk at `path` with its extents and parents.
    ///
    /// # Errors
    /// [`ImageError`], which names the file and, where another file refers to it, that one too.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        chain::open(path, options)
    }

    /// Opens the disk at `path` so that its leaf can be written. Nobody else can use that as long
    /// as this is there.
    ///
    /// # Errors
    /// [`ImageError`], with [`Problem::Unwritable`] where it could only be read.
    pub fn open_for_writing(path: &Path, options: &OpenOptions) -> Result<Self, ImageError> {
        writing::open(path, options)
    }

    /// Keeps others from writing to the files that are only read here, as long as this is there.
    ///
    /// # Errors
    /// [`Problem::BeingWritten`] where somebody is writing to one of them.
    pub fn lock(&self) -> Result<(), ImageError> {
        let written = usize::from(self.writing.is_some());
        for link in &self.chain[written..] {
            for file in link.files() {
                qemu_lock::for_reading(file)
                    .map_err(|problem| ImageError::new(&link.path, problem))?;
            }
        }
        Ok(())
    }

    /// The files that grow when the leaf is written, where it was opened for that.
    ///
    /// # Errors
    /// Those of fstat(2) and fcntl(2).
    pub fn growing_files(&self) -> io::Result<Vec<File>> {
        self.writing.as_ref().map_or(Ok(Vec::new()), |_| writing::growing(&self.chain[0]))
    }

    /// To be called before the first byte is written: gives the leaf another content id, so that
    /// whatever was made over what it held is not used over what it will hold. Once that was done,
    /// and where there is no such id, it does nothing.
    ///
    /// # Errors
    /// Those of pwrite(2) and fdatasync(2).
    pub fn begin_writing(&self) -> io::Result<()> {
        self.writing.as_ref().map_or(Ok(()), Writing::begin)
    }
}

/// The disks that `path` stands for: itself where it is a file, those of a virtual machine
/// where it is a folder, a `.vmx` or a `.vbox`.
///
/// A description says which disks there are, in the order of their buses. A folder without one is
/// its only disk, in its newest state, wherever around it the snapshots are.
///
/// # Errors
/// [`ImageError`], which lists what could be meant where that is not clear.
pub fn disks_of(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>, ImageError> {
    folder::disks(path, options)
}

#[cfg(test)]
mod backing_tests;
#[cfg(test)]
mod differencing_tests;
#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod header_tests;
#[cfg(test)]
mod number_tests;
#[cfg(test)]
mod vhdx_log_tests;
