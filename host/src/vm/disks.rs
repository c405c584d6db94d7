//! Gives the files of an image to QEMU: as descriptors, with every format named and every
//! backing file stated, so that QEMU never opens a path and never probes.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use super::VmError;
use super::qmp::{Command, Qmp, QmpError};
use crate::image::{Disk, Format, Link, Source};

/// Attaches `disks` as LUNs 0, 1, … of the SCSI controller, each below a qcow2 overlay in an
/// unnamed file of `overlay_folder`, which takes the guest's writes.
///
/// # Errors
/// [`VmError`] where QEMU refuses one, or an overlay cannot be made.
pub fn attach(qmp: &mut Qmp, disks: &[Disk], overlay_folder: &Path) -> Result<(), VmError> {
    let mut plan = Plan::default();
    let mut overlays = Vec::new();
    for disk in disks {
        overlays.push(plan.disk(disk, overlay_folder)?);
    }
    plan.run(qmp)?;
    for (lun, (overlay, disk)) in overlays.iter().zip(disks).enumerate() {
        create_overlay(qmp, lun, overlay.file_node.as_str(), disk.size)?;
    }
    let last: Vec<Command> =
        overlays.iter().enumerate().flat_map(|(lun, overlay)| overlay.last_commands(lun)).collect();
    qmp.run(&last)?;
    Ok(())
}

/// The batch that opens files, and the descriptors that it passes on.
#[derive(Default)]
struct Plan<'d> {
    files: Vec<Passed<'d>>,
    nodes: Vec<Value>,
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

/// A disk's overlay, whose file is open and still empty.
struct Overlay {
    file_node: String,
    base_node: String,
}

impl<'d> Plan<'d> {
    /// Plans one disk's chain, base first, and its overlay's file.
    fn disk(&mut self, disk: &'d Disk, overlay_folder: &Path) -> Result<Overlay, VmError> {
        let mut below = Value::Null;
        for link in disk.chain.iter().rev() {
            below = Value::String(self.link(link, &below)?);
        }
        let Value::String(base_node) = below else {
            unreachable!("a chain has at least its leaf");
        };
        let overlay = unnamed_file(overlay_folder)?;
        let file_node = self.file(Passed::Owned(overlay.into()), Access::ReadWrite);
        Ok(Overlay { file_node, base_node })
    }

    /// Plans one link over the node `below`, and names its node.
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

    /// Plans the protocol node of a file, and names it.
    fn file(&mut self, file: Passed<'d>, access: Access) -> String {
        let set = self.pass(file);
        let node = format!("file{set}");
        self.nodes.push(json!({
            "node-name": node, "driver": "file", "filename": file_name(set),
            "read-only": access == Access::ReadOnly, "auto-read-only": false,
        }));
        node
    }

    /// Passes a descriptor, and gives the number of its set.
    fn pass(&mut self, file: Passed<'d>) -> u32 {
        self.files.push(file);
        u32::try_from(self.files.len()).expect("a disk has at most thousands of files")
    }

    fn run(self, qmp: &mut Qmp) -> Result<(), QmpError> {
        let files = (1..).zip(&self.files).map(|(set, file)| Command::add_file(set, file.as_fd()));
        let nodes = self.nodes.into_iter().map(|node| Command::new("blockdev-add", node));
        let commands: Vec<Command> = files.chain(nodes).collect();
        qmp.run(&commands).map(drop)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

fn file_name(set: u32) -> String {
    format!("/dev/fdset/{set}")
}

/// Has QEMU write an empty qcow2 header, which spares a process.
fn create_overlay(qmp: &mut Qmp, lun: usize, file_node: &str, size: u64) -> Result<(), QmpError> {
    let job = format!("overlay{lun}");
    // QEMU's qcow2 sizes are multiples of a sector.
    let size = size.next_multiple_of(512);
    let options = json!({ "driver": "qcow2", "file": file_node, "size": size });
    qmp.run(&[Command::new("blockdev-create", json!({ "job-id": job, "options": options }))])?;
    qmp.wait_for("JOB_STATUS_CHANGE", |data| {
        data["id"] == job.as_str() && data["status"] == "concluded"
    })?;
    let queried = qmp.run(&[
        Command::new("query-jobs", json!({})),
        Command::new("job-dismiss", json!({ "id": job })),
    ])?;
    let failed = queried[0].as_array().into_iter().flatten().find_map(|entry| {
        (entry["id"] == job.as_str()).then(|| entry["error"].as_str().map(str::to_owned))?
    });
    match failed {
        Some(reason) => Err(QmpError::Refused { command: "blockdev-create", reason }),
        None => Ok(()),
    }
}

impl Overlay {
    fn last_commands(&self, lun: usize) -> [Command<'static>; 2] {
        let node = format!("overlay{lun}");
        let overlay = json!({
            "node-name": node, "driver": "qcow2", "file": self.file_node, "backing": self.base_node,
        });
        // QEMU's default pauses the whole VM on a full disk, which would hang the mount.
        let device = json!({
            "driver": "scsi-hd", "id": format!("disk{lun}"), "bus": "scsi0.0", "channel": 0, "scsi-id": 0,
            "lun": lun, "drive": node, "werror": "report", "rerror": "report",
        });
        [Command::new("blockdev-add", overlay), Command::new("device_add", device)]
    }
}

/// A file without a name, which is gone when QEMU is.
fn unnamed_file(folder: &Path) -> Result<File, VmError> {
    tempfile::tempfile_in(folder)
        .map_err(|error| VmError::Overlay { folder: folder.to_owned(), error })
}

/// `text` in memory, behind a descriptor that is open for reading only: QEMU takes no other
/// for a read-only node.
fn read_only_memory(text: &[u8]) -> io::Result<OwnedFd> {
    let mut memory = File::from(memfd_create("descriptor", MFdFlags::MFD_CLOEXEC)?);
    memory.write_all(text)?;
    Ok(File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into())
}
