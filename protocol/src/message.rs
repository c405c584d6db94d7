//! The requests that the host sends and the answers that the guest gives.
//!
//! One request, one answer, on the lane it came by. Launch requests go over lane 0. An answer that
//! is too long for a body, which lists of very many volumes are, comes as a payload: the body says
//! [`Answer::Payload`], and the payload is what would have been the answer's body.

use serde::{Deserialize, Serialize};

use crate::attr::Attr;
use crate::batch::{Numbered, Plain, Wanted};
use crate::change::{Change, HeldFile, HeldRequest};
use crate::device::DeviceName;
use crate::limits::MAX_DETAIL;
use crate::path::{EntryName, GuestPath};
use crate::secret::Secret;
use crate::system::System;
use crate::volume::{Mountable, PlainName, VolumeName};

/// What the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first request on each lane. Answer: [`Answer::Hello`].
    Hello,
    /// Sets the clock and feeds the random pool; sent at launch, before anything is mounted.
    /// Answer: [`Answer::Awake`].
    Wake {
        /// Nanoseconds since 1970, UTC.
        unix_time_ns: u64,
        /// From the host's random pool.
        #[serde(with = "serde_bytes")]
        entropy: [u8; 32],
    },
    /// Loads every module of the appliance that may be needed, so that a template holds them.
    /// Answer: [`Answer::Done`].
    Prepare,
    /// Waits until the disks with LUN 0 to `count - 1` are there and their partition tables
    /// have been read. Answer: [`Answer::Done`] or [`Answer::Tables`], or `ETIMEDOUT` naming the missing ones.
    AwaitDisks {
        /// Number of disks.
        count: u8,
    },
    /// Assembles what can be assembled from the disks, and probes all. Answer: [`Answer::Volumes`].
    Volumes,
    /// Mounts a filesystem. Answer: [`Answer::Done`] or [`Answer::Remarked`], or the kernel's error
    /// with what it logged.
    Mount(MountRequest),
    /// Writes everything back and unmounts all. Answer: [`Answer::Done`].
    Unmount,

    /// Attributes of a file; symbolic links are not followed. Answer: [`Answer::Attr`].
    Stat(GuestPath),
    /// A symbolic link's target; of a link of Windows that is absolute, where that is in the tree.
    /// Answer: [`Answer::Payload`].
    ReadLink(GuestPath),
    /// A page of a directory's entries with attributes and targets of links, see
    /// [`crate::attr::push_entry`]. Answer: [`Answer::Payload`].
    ReadDir {
        /// The directory.
        path: GuestPath,
        /// 0 for the start, or an entry's `next`.
        from: u64,
        /// Most bytes of the page.
        size: u32,
    },
    /// Bytes of a regular file; fewer than `size` only at its end. Answer: [`Answer::Payload`].
    Read {
        /// The file.
        path: GuestPath,
        /// First byte.
        offset: u64,
        /// Most bytes.
        size: u32,
    },
    /// Where the next data or hole is, as lseek(2) finds it. Answer: [`Answer::Offset`].
    Seek {
        /// The file.
        path: GuestPath,
        /// First byte that counts.
        offset: u64,
        /// What is looked for.
        what: Extent,
    },
    /// Names of a file's extended attributes, each with a NUL behind it. Answer: [`Answer::Payload`].
    ListXattr(GuestPath),
    /// The value of an extended attribute. Answer: [`Answer::Payload`].
    GetXattr {
        /// The file.
        path: GuestPath,
        /// The attribute's name with its namespace, without NUL.
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// Size and usage of the filesystem that a file is on. Answer: [`Answer::StatFs`].
    StatFs(GuestPath),
    /// The first bytes of several regular files of one directory, see [`crate::batch`].
    /// Answer: [`Answer::Payload`].
    ReadFiles {
        /// The directory.
        folder: GuestPath,
        /// What is wanted of those that the host can read itself.
        plain: Plain,
        /// The files.
        files: Vec<Wanted>,
    },
    /// Extended attributes of several files of one directory, small values among them, see
    /// [`crate::xattr::push_file`]; for as many files, from the first on, as fit into a payload,
    /// and for one at least. Answer: [`Answer::Payload`].
    ReadXattrs {
        /// The directory.
        folder: GuestPath,
        /// The files; symbolic links are not followed.
        files: Vec<Numbered>,
    },
    /// Where on its disk a regular file's bytes are. Answer: [`Answer::Layout`], or `EOPNOTSUPP`
    /// where only the guest can read them.
    Layout {
        /// The file.
        path: GuestPath,
        /// The first byte of interest.
        from: u64,
    },
    /// Opens an encrypted volume, so that what is in it is there by [`VolumeName::Mapper`], by
    /// the encrypted one's own name, and for all that is assembled from it. Answer:
    /// [`Answer::Done`], or `EACCES` for a key that does not fit.
    Unlock {
        /// The encrypted volume.
        volume: VolumeName,
        /// A passphrase, recovery key or key.
        key: Secret,
    },
    /// As [`Request::Volumes`], with what they are made of. Answer: [`Answer::Listing`].
    Listing,
    /// Assembles what can be assembled from the disks, and shows all devices as regular files of
    /// the root directory, by [`VolumeName::file_name`], where nothing is mounted. Answer:
    /// [`Answer::Done`].
    Blocks,
    /// Looks for operating systems on all filesystems, of which none stays mounted. Answer:
    /// [`Answer::Systems`].
    Inspect,
    /// Puts a filesystem of the guest's own on `/`, with nothing in it but these empty folders, for
    /// others to be mounted in. Answer: [`Answer::Done`].
    Folders(Vec<EntryName>),
    /// Mounts a filesystem for writing too, unless it had better not be written. Answer:
    /// [`Answer::Mounted`] or [`Answer::Remarked`], or as [`Request::Mount`].
    MountWritable {
        /// What is mounted where.
        mount: MountRequest,
        /// What to do with one that was not unmounted.
        dirty: Dirty,
    },
    /// Changes something on a mount that can be written; `EROFS` on one that cannot.
    Change(Change),
    /// Asks about a file that is held open.
    Held(HeldFile, HeldRequest),
    /// A symbolic link's target as the image has it, where [`Request::ReadLink`] tells where it leads
    /// in the tree: a link of Windows names a drive or volume. Answer: [`Answer::Payload`].
    StoredTarget(GuestPath),
    /// As [`Request::Layout`] from the first byte on, with some bytes by which it can be tried. Answer:
    /// [`Answer::SampledLayout`].
    SampledLayout {
        /// The file.
        path: GuestPath,
        /// The first of these bytes.
        offset: u64,
    },
}

/// What to do with a filesystem whose last user did not unmount it, and that has no journal for
/// that: an NTFS that Windows hibernated with, or whose dirty bit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dirty {
    /// It is not written to.
    ReadOnly,
    /// It is written to all the same.
    Force,
}

/// How a filesystem that was to be writable was mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedAs {
    /// Why it cannot be written, if it cannot, as the end of the sentence "It is read-only: …".
    pub read_only: Option<String>,
    /// How it compares names.
    pub names: NameMatching,
}

/// How a filesystem compares names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameMatching {
    /// Byte by byte: a file is found by the names that it has.
    Exact,
    /// A file may be found by other names as well, such as in other case.
    Loose,
}

/// What is mounted where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// What is mounted.
    pub device: Mountable,
    /// Where: the root first, others in a directory of what is mounted already.
    pub at: GuestPath,
    /// The filesystem's type by the kernel's name or libblkid's, or `None` to probe.
    pub fstype: Option<String>,
    /// Options for the filesystem, comma-separated.
    pub options: String,
}

/// What [`Request::Seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extent {
    /// Stored bytes (`SEEK_DATA`).
    Data,
    /// A hole, or the end (`SEEK_HOLE`).
    Hole,
}

/// What a request that went well brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done, and there is nothing to say.
    Done,
    /// The daemon is there.
    Hello {
        /// Its [`crate::VERSION`].
        version: u32,
        /// Where in the guest's memory each slot of bulk memory begins, in bytes; empty where the
        /// guest has none.
        slots: Vec<u64>,
    },
    /// Clock and random pool are set.
    Awake {
        /// The guest's clock now, in nanoseconds since 1970, UTC.
        unix_time_ns: u64,
        /// What its random pool gives now.
        #[serde(with = "serde_bytes")]
        random: [u8; 16],
    },
    /// What is on the disks, by disk and partition.
    Volumes(Vec<Volume>),
    /// Attributes.
    Attr(Attr),
    /// The result is the frame's payload.
    Payload,
    /// A position in a file.
    Offset(u64),
    /// Size and usage of a filesystem.
    StatFs(StatFs),
    /// Where a file's bytes are.
    Layout(Layout),
    /// What is on the disks, and what it is made of.
    Listing(Listing),
    /// The operating systems on the disks.
    Systems(Vec<System>),
    /// How a filesystem was mounted.
    Mounted(MountedAs),
    /// A file is held.
    Held(HeldFile),
    /// A file was made, or found, and is held.
    Created(HeldFile, Attr),
    /// In the place of [`Answer::Done`] and [`Answer::Mounted`] where a filesystem was mounted, but
    /// not as it should be; with what is to be said of it, one sentence each.
    Remarked(Option<MountedAs>, Vec<String>),
    /// Where a file's bytes are, and some of them.
    SampledLayout {
        /// Where they are.
        layout: Layout,
        /// What the guest reads from the wanted byte on: [`crate::limits::MAX_SAMPLE`] bytes, fewer
        /// only at the file's end.
        #[serde(with = "serde_bytes")]
        sample: Vec<u8>,
    },
    /// In the place of [`Answer::Done`] where the disks are there, and something is the matter with
    /// partition tables: [`crate::limits::MAX_REMARKS`] of these at most.
    Tables(Vec<TableProblem>),
}

/// What is the matter with a disk's partition table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProblem {
    /// The disk.
    pub disk: DeviceName,
    /// What is the matter, as the end of the sentence "/dev/sda: …", and perhaps a line with a hint.
    pub problem: String,
    /// Whether partitions were found all the same.
    pub usable: bool,
}

/// What is on the disks, and what it is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Everything that holds something, as for [`Request::Volumes`].
    pub volumes: Vec<Volume>,
    /// Types of the partitions of MBRs.
    pub partition_types: Vec<(DeviceName, u8)>,
    /// Arrays, each with its members.
    pub arrays: Vec<(VolumeName, Vec<VolumeName>)>,
    /// LVM's physical volumes.
    pub physical: Vec<PhysicalVolume>,
    /// LVM's volume groups.
    pub groups: Vec<VolumeGroup>,
    /// UUIDs of LVM's logical volumes.
    pub logical: Vec<(VolumeName, String)>,
}

/// A physical volume of LVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhysicalVolume {
    /// Its device.
    pub device: VolumeName,
    /// Bytes.
    pub size: u64,
    /// LVM's UUID of it.
    pub uuid: String,
    /// The group that it belongs to, if to any.
    pub group: Option<PlainName>,
}

/// A volume group of LVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeGroup {
    /// Its name.
    pub name: PlainName,
    /// Bytes.
    pub size: u64,
    /// LVM's UUID of it.
    pub uuid: String,
}

/// Where on its disk a file's bytes are: in the runs, and zeros between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The disk's number.
    pub disk: u8,
    /// Bytes of the file.
    pub size: u64,
    /// The byte of the file up to which this layout goes; another one begins there.
    pub end: u64,
    /// In the file's order, at most [`crate::limits::MAX_RUNS`].
    pub runs: Vec<Run>,
}

/// Bytes of a file that are stored one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first one's place in the file.
    pub at: u64,
    /// How many they are; some may be beyond the file's end.
    pub length: u64,
    /// The first one's place on the disk.
    pub stored: u64,
}

/// A disk, partition or assembled volume and what libblkid found on it; or a subvolume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub device: Mountable,
    /// Bytes; of a subvolume, those of its device.
    pub size: u64,
    /// What it holds.
    pub content: Content,
    /// The filesystem's label, empty where it has none.
    pub label: String,
    /// The filesystem's UUID as libblkid prints it, empty where it has none.
    pub uuid: String,
}

/// What a disk or partition holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A filesystem, with libblkid's name for it (`ntfs`, `ext4`).
    Filesystem(String),
    /// A partition table, with libblkid's name for it (`dos`, `gpt`).
    Partitions(String),
    /// Something that is no filesystem: swap, an LVM or RAID member, an encrypted volume; with
    /// libblkid's name for it.
    Other(String),
    /// An extended partition, which only holds others.
    Extended,
    /// Nothing that libblkid knows.
    Unknown,
}

/// What statvfs(3) says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub free: u64,
    /// Blocks that are free for users.
    pub available: u64,
    /// Files that there can be in all.
    pub files: u64,
    /// Files that can still be made.
    pub free_files: u64,
    /// Bytes of the longest name.
    pub name_len: u32,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Linux' error number of x86-64. The host lets only 1 to 4095 through.
    pub errno: u16,
    /// For launch requests, what a person should know; empty for requests on files.
    pub detail: String,
}

impl Request {
    /// Whether the request brings a payload.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        matches!(self, Self::Change(change) if change.has_payload())
    }
}

impl Failure {
    /// A failure that its number explains.
    #[must_use]
    pub fn new(errno: u16) -> Self {
        Self { errno, detail: String::new() }
    }

    /// A failure with a text, cut to [`MAX_DETAIL`] bytes.
    #[must_use]
    pub fn with_detail(errno: u16, mut detail: String) -> Self {
        detail.truncate(detail.floor_char_boundary(MAX_DETAIL));
        Self { errno, detail }
    }
}

/// The body of an answer's frame.
pub type Outcome = Result<Answer, Failure>;
