//! Gives the files of images to QEMU: as descriptors, with every format named and every
//! backing file stated, so that QEMU never opens a path and never probes.
//!
//! The files stand on the command line, which costs nothing; QEMU reads its monitor byte by
//! byte, so that what comes by it should be short.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use super::VmError;
use super::overlay;
use super::qmp::Command;
use crate::image::{Disk, Format, Link, Source};

/// The files of some disks, on their way to QEMU. Each disk gets a qcow2 overlay, which takes
/// the guest's writes.
#[derive(Default)]
pub struct DiskFiles<'d> {
    files: Vec<Passed<'d>>,
    nodes: Vec<Value>,
    /// The node that each disk shows.
    tops: Vec<String>,
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

impl<'d> DiskFiles<'d> {
    /// Those of `disks`, with overlays in unnamed files of `overlay_folder`.
    ///
    /// # Errors
    /// [`VmError`] where an overlay cannot be made.
    pub fn of(disks: &'d [Disk], overlay_folder: &Path) -> Result<Self, VmError> {
        let mut all = Self::default();
        for disk in disks {
            let mut below = Value::Null;
            for link in disk.chain.iter().rev() {
                below = Value::String(all.link(link, &below)?);
            }
            let overlay = overlay::create(overlay_folder, disk.size)
                .map_err(|error| VmError::Overlay { folder: overlay_folder.to_owned(), error })?;
            let file = all.file(Passed::Owned(overlay.into()), Access::ReadWrite);
            let top = format!("overlay{}", all.tops.len());
            all.nodes.push(json!({
                "node-name": top, "driver": "qcow2", "file": file, "backing": below,
            }));
            all.tops.push(top);
        }
        Ok(all)
    }

    /// The descriptors that QEMU has to inherit.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd)
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

    /// The commands that attach the disks to the running machine, as LUNs 0, 1, ….
    #[must_use]
    pub fn attachments(&self) -> Vec<Command<'static>> {
        let devices = self.tops.iter().enumerate().map(|(lun, top)| {
            // QEMU's default pauses the whole VM on a full disk, which would hang the mount.
            let device = json!({
                "driver": "scsi-hd", "id": format!("disk{lun}"), "bus": "scsi0.0", "lun": lun,
                "drive": top, "werror": "report", "rerror": "report",
            });
            Command::new("device_add", device)
        });
        devices.collect()
    }

    /// Adds one link over the node `below`, and names its node.
    fn link(&mut self, link: &'d Link, below: &Value) -> Result<String, VmError> {
        let file_node = match &link.source {
            Source::File(file) => self.file(Passed::Borrowed(file), Access::ReadOnly),
            Source::Described { descriptor, extents } => {
                let sets: Vec<u32> =
                    extents.iter().map(|file| self.pass(Passed::Borrowed(file))).collect();
                let text = descriptor.rewritten(|extent| file_name(sets[extent]));
                let memory = read_only_memory(&text).map_err(VmError::Descriptor)?;
                self.file(Passed::Owned(memory), Access::ReadOnly)
            }
        };
        let node = format!("link{}", self.nodes.len());
        let mut options = json!({
            "node-name": node, "driver": link.format.qemu_driver(), "file": file_node,
            "read-only": true, "auto-read-only": false,
        });
        // Without it QEMU would follow the path in the file. Other formats know no parents.
        if matches!(link.format, Format::Vmdk | Format::Qcow2) {
            options["backing"] = below.clone();
        }
        self.nodes.push(options);
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

    /// Adds a descriptor, and gives the number of its set.
    fn pass(&mut self, file: Passed<'d>) -> u32 {
        self.files.push(file);
        u32::try_from(self.files.len()).expect("a process has fewer descriptors")
    }
}

fn file_name(set: u32) -> String {
    format!("/dev/fdset/{set}")
}

/// `text` in memory, behind a descriptor that is open for reading only: QEMU takes no other
/// for a read-only node.
fn read_only_memory(text: &[u8]) -> io::Result<OwnedFd> {
    let mut memory = File::from(memfd_create("descriptor", MFdFlags::MFD_CLOEXEC)?);
    memory.write_all(text)?;
    Ok(File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into())
}
