//! Gives the files of images to QEMU: as descriptors, with every format named and every
//! backing file stated, so that QEMU never opens a path and never probes.
//!
//! The files stand on the command line, which costs nothing; QEMU reads its monitor byte by
//! byte, so that what comes by it should be short.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use guestmnt_protocol::bay;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use super::VmError;
use super::kept_overlay::KeptOverlay;
use super::overlay;
use super::qmp::Command;
use crate::image::{BlockSize, Descriptor, Disk, Format, Link, OnMissing, Source};

/// Bytes of an empty bay.
const EMPTY_BAY: u64 = bay::EMPTY_SECTORS * 512;

/// The files of some disks, on their way to QEMU. Each disk gets a qcow2 overlay, which takes
/// the guest's writes, unless it was opened for writing itself.
#[derive(Default)]
pub struct DiskFiles<'d> {
    files: Vec<Passed<'d>>,
    /// Block nodes that are there when the machine begins.
    nodes: Vec<Value>,
    /// Those of the disks that are plugged in when it runs. A restored QEMU does not activate nodes
    /// that no device has: it would die of the first write.
    later: Vec<Value>,
    tops: Vec<Top>,
    /// Which image each node is of.
    images: NodeNames,
    /// Bytes of the longest image that is written.
    longest_written: u64,
}

/// What takes the guest's writes.
#[derive(Clone, Copy)]
pub enum Overlays<'a> {
    /// Unnamed files of a folder, which are gone when the VM is; over these, one for each disk, if
    /// there are some.
    In(&'a Path, &'a [KeptOverlay]),
    /// One of these for each disk, in their order.
    Kept(&'a [KeptOverlay]),
}

/// What the guest sees of a disk.
struct Top {
    /// The overlay's node, or the leaf's.
    node: String,
    /// The leaf's node.
    leaf: String,
    /// Bytes.
    size: u64,
    block_size: BlockSize,
    place: Place,
}

/// Where a disk is in the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the bay that has its number.
    Bay,
    /// On the SCSI controller, the LUN that has its number.
    Lun,
}

enum Passed<'d> {
    Borrowed(&'d File),
    Owned(OwnedFd),
}

impl AsFd for Passed<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(file) => file.as_fd(),
            Self::Owned(fd) => fd.as_fd(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

/// Nodes of images, each with its image.
#[derive(Clone, Debug, Default)]
pub struct NodeNames(Vec<(String, PathBuf)>);

impl NodeNames {
    /// The image that `message` of QEMU's is about: the one whose node it names, or the only one.
    #[must_use]
    pub fn image_in(&self, message: &str) -> Option<PathBuf> {
        let is_named = |node: &str| {
            [format!("\"{node}\""), format!("'{node}'")].iter().any(|name| message.contains(name))
        };
        let mut images: Vec<&PathBuf> = self.0.iter().map(|(_, image)| image).collect();
        images.dedup();
        match images.as_slice() {
            [only] => Some((*only).clone()),
            _ => self.0.iter().find(|(node, _)| is_named(node)).map(|(_, image)| image.clone()),
        }
    }
}

impl<'d> DiskFiles<'d> {
    /// Those of `disks`, with `overlays` over them.
    ///
    /// # Errors
    /// [`VmError`] where an overlay cannot be made.
    pub fn of(disks: &'d [Disk], overlays: Overlays<'d>) -> Result<Self, VmError> {
        let mut all = Self::default();
        for (number, disk) in disks.iter().enumerate() {
            let is_written = disk.writing.is_some();
            let (size, block_size) = (disk.sectors_size(), disk.block_size);
            // The guest has seen sectors of the usual size there, and will not look again. And
            // what tells it of another size, not every format lets be done to an image.
            let fits = size != EMPTY_BAY && block_size == BlockSize::default() && !is_written;
            let place = if fits && number < bay::BAYS.into() { Place::Bay } else { Place::Lun };
            let first = all.nodes.len();
            let mut below = Value::Null;
            for (depth, link) in disk.chain.iter().enumerate().rev() {
                let is_leaf = is_written && depth == 0;
                let access = if is_leaf { Access::ReadWrite } else { Access::ReadOnly };
                let before = all.nodes.len();
                below = Value::String(all.link(link, &below, access)?);
                let names =
                    all.nodes[before..].iter().filter_map(|node| node["node-name"].as_str());
                let named = names.map(|name| (name.to_owned(), link.path.clone()));
                all.images.0.extend(named.collect::<Vec<_>>());
            }
            let leaf = below.as_str().expect("a chain has a link").to_owned();
            if !disk.missing.is_empty() {
                below = Value::String(all.cut_short(disk, &below)?);
            }
            let node = match overlays {
                Overlays::In(..) if is_written => leaf.clone(),
                _ => all.overlay(number, size, below, overlays)?,
            };
            if place == Place::Lun {
                all.later.extend(all.nodes.drain(first..));
            }
            if is_written {
                let files = disk.chain[0].files().iter().filter_map(|file| file.metadata().ok());
                let longest = files.map(|stat| stat.len()).max().unwrap_or(0);
                all.longest_written = all.longest_written.max(longest);
            }
            all.tops.push(Top { node, leaf, size, block_size, place });
        }
        for n in 0..usize::from(bay::BAYS) {
            if all.in_bay(n).is_none() {
                all.nodes.push(json!({
                    "node-name": empty(n), "driver": "null-co", "size": EMPTY_BAY,
                    "read-zeroes": true,
                }));
            }
        }
        Ok(all)
    }

    /// Which image each node is of.
    #[must_use]
    pub fn node_names(&self) -> &NodeNames {
        &self.images
    }

    /// The descriptors that QEMU has to inherit.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd)
    }

    /// Bytes that a file may grow to: a disk that was written whole, with its tables, beside what
    /// was in the file before.
    #[must_use]
    pub fn largest_file(&self) -> u64 {
        let largest = self.tops.iter().map(|top| top.size).max().unwrap_or(0);
        let whole = largest.saturating_add(largest / 64).saturating_add(64 << 20);
        whole.saturating_add(self.longest_written)
    }

    /// The words on QEMU's command line.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        for (set, file) in (1..).zip(&self.files) {
            let file = file.as_fd().as_raw_fd();
            words.extend(["-add-fd".into(), format!("fd={file},set={set}").into()]);
        }
        for node in &self.nodes {
            words.extend(["-blockdev".into(), node.to_string().into()]);
        }
        words
    }

    /// The node that each bay shows.
    #[must_use]
    pub fn bays(&self) -> Vec<String> {
        let node = |n| self.in_bay(n).map_or_else(|| empty(n), |top| top.node.clone());
        (0..bay::BAYS.into()).map(node).collect()
    }

    /// The node of what takes the writes to the first disk, and of what is right below it.
    ///
    /// # Panics
    /// Without a disk.
    #[must_use]
    pub fn first(&self) -> (&str, &str) {
        let Top { node, leaf, .. } = &self.tops[0];
        (node, leaf)
    }

    /// The commands that make the nodes of the disks without a bay.
    pub fn additions(&self) -> impl Iterator<Item = Command<'static>> {
        self.later.iter().map(|node| Command::new("blockdev-add", node.clone()))
    }

    /// The commands that plug the disks without a bay into the running machine.
    pub fn plugs(&self) -> impl Iterator<Item = Command<'static>> {
        let plugged = (0..).zip(&self.tops).filter(|(_, top)| top.place == Place::Lun);
        self.additions().chain(plugged.map(|(lun, Top { node, block_size, .. }): (usize, _)| {
            // QEMU's default pauses the whole VM on a full disk, which would hang the mount.
            let mut device = json!({
                "driver": "scsi-hd", "id": format!("disk{lun}"), "bus": "scsi0.0", "lun": lun,
                "drive": node, "werror": "report", "rerror": "report",
            });
            if *block_size != BlockSize::default() {
                device["logical_block_size"] = block_size.bytes().into();
                device["physical_block_size"] = block_size.bytes().into();
            }
            Command::new("device_add", device)
        }))
    }

    /// The commands that have a guest learn what is in the bays that it saw empty. They set the
    /// size that the disks have; what counts is that QEMU then tells the guest.
    pub fn size_changes(&self) -> impl Iterator<Item = Command<'static>> {
        let filled = self.tops.iter().filter(|top| top.place == Place::Bay);
        filled.map(|Top { node, size, .. }| {
            Command::new("block_resize", json!({ "node-name": node, "size": size }))
        })
    }

    fn in_bay(&self, number: usize) -> Option<&Top> {
        self.tops.get(number).filter(|top| top.place == Place::Bay)
    }

    /// Adds an overlay that is only read over the node `below`, and names its node.
    fn read_only(&mut self, kept: &KeptOverlay, below: &Value) -> Result<String, VmError> {
        // QEMU takes no descriptor for a read-only node that could be written by.
        let path = format!("/proc/self/fd/{}", kept.file().as_raw_fd());
        let file = File::open(path)
            .map_err(|error| VmError::Overlay { folder: kept.path().to_owned(), error })?;
        let file = self.file(Passed::Owned(file.into()), Access::ReadOnly);
        let node = self.name("kept");
        self.nodes.push(json!({
            "node-name": node, "driver": "qcow2", "file": file, "backing": below,
            "read-only": true, "auto-read-only": false,
        }));
        Ok(node)
    }

    /// Adds what takes the writes to the disk `number`, of `size` bytes, over the node `below`, and
    /// names its node.
    fn overlay(
        &mut self,
        number: usize,
        size: u64,
        mut below: Value,
        overlays: Overlays<'d>,
    ) -> Result<String, VmError> {
        let overlay = match overlays {
            Overlays::Kept(files) => Passed::Borrowed(files[number].file()),
            Overlays::In(folder, kept) => {
                if let Some(kept) = kept.get(number) {
                    below = Value::String(self.read_only(kept, &below)?);
                }
                let failed = |error| VmError::Overlay { folder: folder.to_owned(), error };
                Passed::Owned(overlay::create(folder, size).map_err(failed)?.into())
            }
        };
        let file = self.file(overlay, Access::ReadWrite);
        let node = format!("overlay{number}");
        self.nodes.push(json!({
            "node-name": node, "driver": "qcow2", "file": file, "backing": below,
        }));
        Ok(node)
    }

    /// Adds one link over the node `below`, and names its node.
    fn link(&mut self, link: &'d Link, below: &Value, access: Access) -> Result<String, VmError> {
        let file_node = match &link.source {
            Source::File(file) => self.file(Passed::Borrowed(file), access),
            Source::Part { file, offset, len } => {
                let whole = self.file(Passed::Borrowed(file), Access::ReadOnly);
                self.part(&whole, *offset, *len)
            }
            Source::Described { descriptor, extents } => {
                self.described(descriptor, extents, access)?
            }
            Source::Patched { descriptor, extents } | Source::Mapped { descriptor, extents } => {
                let text = self.described(descriptor, extents, Access::ReadOnly)?;
                self.joined(&text)
            }
        };
        let node = self.name("link");
        let driver = link.qemu_driver();
        let mut options = json!({
            "node-name": node, "driver": driver, "file": file_node,
            "read-only": access == Access::ReadOnly, "auto-read-only": false,
        });
        // Without it QEMU would follow the path in the file. Other formats know no parents.
        if [Format::Vmdk, Format::Qcow2, Format::Qed].map(Format::qemu_driver).contains(&driver) {
            options["backing"] = below.clone();
        }
        self.nodes.push(options);
        Ok(node)
    }

    /// Adds a node over the node `below` that reads as what of `disk` is missing is to, and names it.
    ///
    /// What is past the end of a file reads as zeros in QEMU. A qcow2 in memory has data of its own
    /// just there: in a node in which every read fails. It is the topmost one, since QEMU lets
    /// only a VMDK be the parent of a VMDK.
    fn cut_short(&mut self, disk: &Disk, below: &Value) -> Result<String, VmError> {
        /// No cluster of such a qcow2 is larger, and the node has to have the last one whole.
        const LARGEST_CLUSTER: u64 = 2 << 20;
        let failed = |error| VmError::Missing { path: disk.path.clone(), error };
        let tables = disk.missing.tables(disk.size).map_err(failed)?;
        let tables = self.file(Passed::Owned(tables.into()), Access::ReadOnly);
        let mut data = self.name("missing");
        self.nodes.push(json!({
            "node-name": data, "driver": "null-co", "read-zeroes": true, "read-only": true,
            "size": disk.size.next_multiple_of(LARGEST_CLUSTER),
        }));
        if disk.on_missing == OnMissing::Fail {
            let failing = self.name("failing");
            self.nodes.push(json!({
                "node-name": failing, "driver": "blkdebug", "image": data, "read-only": true,
                "inject-error": [{
                    "event": "none", "iotype": "read", "errno": libc::EIO, "once": false,
                    "immediately": true,
                }],
            }));
            data = failing;
        }
        let node = self.name("cut");
        self.nodes.push(json!({
            "node-name": node, "driver": "qcow2", "file": tables, "data-file": data,
            "backing": below, "read-only": true, "auto-read-only": false,
        }));
        Ok(node)
    }

    /// Adds the protocol node of a file, and names it.
    fn file(&mut self, file: Passed<'d>, access: Access) -> String {
        let set = self.pass(file);
        let node = format!("file{set}");
        self.nodes.push(json!({
            "node-name": node, "driver": "file", "filename": file_name(set),
            "read-only": access == Access::ReadOnly, "auto-read-only": false,
        }));
        node
    }

    /// Adds a descriptor of files that are known to QEMU by their sets, and names its node.
    fn described(
        &mut self,
        descriptor: &Descriptor,
        extents: &'d [File],
        access: Access,
    ) -> Result<String, VmError> {
        let sets: Vec<u32> = extents.iter().map(|file| self.pass(Passed::Borrowed(file))).collect();
        let text = descriptor.rewritten(|extent| file_name(sets[extent]));
        let memory = memory_of(&text, access).map_err(VmError::Descriptor)?;
        Ok(self.file(Passed::Owned(memory), access))
    }

    /// Adds a node of the bytes that the descriptor `text` joins, and names it.
    fn joined(&mut self, text: &str) -> String {
        let node = self.name("joined");
        self.nodes.push(json!({
            "node-name": node, "driver": "vmdk", "file": text, "backing": null,
            "read-only": true, "auto-read-only": false,
        }));
        node
    }

    /// Adds a node of some bytes of another node, and names it.
    fn part(&mut self, whole: &str, offset: u64, size: u64) -> String {
        let node = self.name("part");
        self.nodes.push(json!({
            "node-name": node, "driver": "raw", "file": whole, "offset": offset, "size": size,
            "read-only": true, "auto-read-only": false,
        }));
        node
    }

    /// A name that no node has.
    fn name(&self, kind: &str) -> String {
        format!("{kind}{}", self.nodes.len() + self.later.len())
    }

    /// Adds a descriptor, and gives the number of its set.
    fn pass(&mut self, file: Passed<'d>) -> u32 {
        self.files.push(file);
        u32::try_from(self.files.len()).expect("a process has fewer descriptors")
    }
}

/// The node of an empty bay.
fn empty(bay: usize) -> String {
    format!("empty{bay}")
}

fn file_name(set: u32) -> String {
    format!("/dev/fdset/{set}")
}

/// `text` in memory. Where it is only read, it is behind a descriptor that is open for reading only:
/// QEMU takes no other for a read-only node.
fn memory_of(text: &[u8], access: Access) -> io::Result<OwnedFd> {
    let mut memory = File::from(memfd_create("descriptor", MFdFlags::MFD_CLOEXEC)?);
    memory.write_all(text)?;
    match access {
        Access::ReadWrite => Ok(memory.into()),
        Access::ReadOnly => Ok(File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into()),
    }
}
