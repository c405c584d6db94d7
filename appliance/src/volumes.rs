//! What disks and partitions hold, as libblkid tells.

use std::fs::File;
use std::os::fd::AsFd;

use guestmnt_protocol::message::{Content, Volume};

use crate::blkid::{Found, Probe};
use crate::devices::{Device, Disks};
use crate::failure::errno_of;

/// What was found on one device.
#[derive(Debug, PartialEq, Eq)]
pub struct Probed {
    /// What it holds.
    pub content: Content,
    /// Label of the filesystem or of what else it holds; empty where there is none.
    pub label: String,
    /// UUID, likewise.
    pub uuid: String,
    /// Numbers of the partitions on it that only hold others.
    extended: Vec<u16>,
}

/// Probes an open device.
///
/// # Errors
/// `EIO` where it cannot be read; `EINVAL` where it has no size.
pub fn probe(device: &File) -> nix::Result<Probed> {
    let mut probe = Probe::new(device.as_fd())?;
    let found = probe.search()?;
    let value = |name| probe.value(name).unwrap_or_default();
    let content = match found {
        // Two formats claim it, and mounting it by either could be wrong.
        Found::Ambivalent => Content::Other("ambivalent".to_owned()),
        Found::Nothing => Content::Unknown,
        Found::Something => content(value(c"USAGE"), value(c"TYPE"), value(c"PTTYPE")),
    };
    let (label, uuid) = (value(c"LABEL"), value(c"UUID"));
    let extended = match &content {
        Content::Partitions(table) if table == "dos" => probe.extended_partitions(),
        _ => Vec::new(),
    };
    Ok(Probed { content, label, uuid, extended })
}

/// Probes all disks and partitions. Those that cannot be read hold nothing that is known.
pub fn list(disks: &Disks) -> Vec<Volume> {
    let mut extended = Vec::new();
    let mut volumes = Vec::new();
    for Device { name, node, size } in disks.list() {
        let probed =
            File::open(&node).map_err(|error| errno_of(&error)).and_then(|device| probe(&device));
        let mut probed = probed.unwrap_or_else(|_| Probed::nothing());
        if name.partition == 0 {
            extended = std::mem::take(&mut probed.extended);
        } else if extended.contains(&name.partition) {
            probed = Probed { content: Content::Extended, ..Probed::nothing() };
        }
        let Probed { content, label, uuid, .. } = probed;
        volumes.push(Volume { device: name, size, content, label, uuid });
    }
    volumes
}

impl Probed {
    fn nothing() -> Self {
        Self {
            content: Content::Unknown,
            label: String::new(),
            uuid: String::new(),
            extended: Vec::new(),
        }
    }
}

/// Sorts libblkid's values. A disk can have both a filesystem and a partition table, as hybrid
/// images of CDs have: then the filesystem is on the whole disk, and the partitions are listed as well.
fn content(usage: String, kind: String, table: String) -> Content {
    match (usage.as_str(), kind.as_str(), table.as_str()) {
        ("filesystem", ..) => Content::Filesystem(kind),
        (_, "", "") => Content::Unknown,
        (_, "", _) => Content::Partitions(table),
        // `raid`, `crypto`, `other`: a member of something, or swap.
        _ => Content::Other(kind),
    }
}
