//! What disks, partitions and what is assembled from them hold, as libblkid tells.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::message::{Content, Volume};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::volume::{Mountable, VolumeName};

use nix::errno::Errno;

use crate::assembly::{Assembly, Block};
use crate::blkid::{Entry, Found, Probe};
use crate::btrfs;
use crate::devices::Disks;
use crate::failure::errno_of;
use crate::kmsg;
use crate::sys;

/// What was found on one device.
#[derive(Debug, PartialEq, Eq)]
pub struct Probed {
    /// What it holds.
    pub content: Content,
    /// Label of the filesystem or of what else it holds; empty where there is none.
    pub label: String,
    /// UUID, likewise.
    pub uuid: String,
    /// The partitions of its table, if it has one.
    pub partitions: Vec<Entry>,
}

/// Probes an open device.
///
/// # Errors
/// `EIO` or `EINVAL` where it cannot be read.
fn probe(device: &File) -> nix::Result<Probed> {
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
    let partitions = match &content {
        Content::Partitions(_) => probe.partitions(),
        _ => Vec::new(),
    };
    Ok(Probed { content, label, uuid, partitions })
}

/// What a volume with the node `node` holds, which is `device` of `disks` where it is one of theirs.
///
/// # Errors
/// As [`probe_node`].
pub fn content_of(device: Option<DeviceName>, node: &Path, disks: &Disks) -> nix::Result<Content> {
    let content = probe_node(node)?.content;
    // An extended partition begins with a table as a disk does. What it is stands in its disk's.
    let has_table = matches!(content, Content::Partitions(_));
    if let Some(device) = device.filter(|device| has_table && device.partition != 0) {
        let disk = disks.find(DeviceName::whole(device.disk)).ok_or(Errno::ENODEV)?;
        if probe_node(&disk)?.is_extended(device.partition) {
            return Ok(Content::Extended);
        }
    }
    Ok(content)
}

/// All block devices as they are listed, given that a disk stands before its partitions.
pub fn list(blocks: Vec<(Block, Probed)>) -> Vec<Volume> {
    let mut disk = Probed::default();
    let mut volumes = Vec::new();
    let around_labels = around_labels(&blocks);
    for (Block { name, size, .. }, mut probed) in blocks {
        match &name {
            VolumeName::Partition(device @ DeviceName { partition: 0, .. }) => {
                disk.partitions = std::mem::take(&mut probed.partitions);
                if around_labels.contains(device) {
                    let content = Content::Partitions("bsd".to_owned());
                    probed = Probed { content, ..Probed::default() };
                }
            }
            VolumeName::Partition(device)
                if disk.is_extended(device.partition) || around_labels.contains(device) =>
            {
                probed = Probed { content: Content::Extended, ..Probed::default() };
            }
            _ => {}
        }
        let Probed { content, label, uuid, .. } = probed;
        volumes.push(Volume { device: name.into(), size, content, label, uuid });
    }
    volumes
}

/// The disks and partitions whose UFS is that of a partition within, by a disklabel of BSD: it begins where
/// they do.
fn around_labels(blocks: &[(Block, Probed)]) -> Vec<DeviceName> {
    let begin = |block: &Block| {
        File::open(&block.node).ok().and_then(|node| sys::first_sector(node.as_fd()).ok())
    };
    let of_ufs = blocks.iter().filter(
        |(_, probed)| matches!(&probed.content, Content::Filesystem(kind) if kind == "ufs"),
    );
    let is_around = |(outer, device): &(&Block, DeviceName)| {
        let within = blocks.iter().map(|(block, _)| block).filter(|block| {
            block.name.device().is_some_and(|other| {
                other.disk == device.disk && other.partition > device.partition
            })
        });
        let begin_of_outer = begin(outer);
        begin_of_outer.is_some() && within.into_iter().any(|block| begin(block) == begin_of_outer)
    };
    of_ufs
        .filter_map(|(block, _)| Some((block, block.name.device()?)))
        .filter(is_around)
        .map(|(_, device)| device)
        .collect()
}

/// The subvolumes of the Btrfs filesystems on `blocks`, each by the first of its devices.
pub fn subvolumes(
    blocks: &[(Block, Probed)],
    assembly: &Assembly,
) -> Vec<(VolumeName, Vec<GuestPath>)> {
    let mut seen: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for (Block { name, node, .. }, probed) in blocks {
        let is_btrfs = matches!(&probed.content, Content::Filesystem(kind) if kind == "btrfs");
        let several = btrfs::Superblock::of(node).is_some_and(|block| block.devices > 1);
        if !is_btrfs || several && seen.contains(&probed.uuid.as_str()) {
            continue;
        }
        seen.push(&probed.uuid);
        let nodes = || blocks.iter().map(|(block, _)| block.node.clone()).collect();
        let listed = btrfs::devices(node, nodes).and_then(|devices| {
            btrfs::subvolumes(node, &devices.options, assembly.programs, assembly.modules)
        });
        match listed {
            Ok(paths) => found.push((name.clone(), paths)),
            // The device itself is listed all the same.
            Err(failure) => {
                let first = failure.detail.lines().next().unwrap_or_default();
                kmsg::warn(format_args!("subvolumes of {name}: {first}"));
            }
        }
    }
    found
}

/// `volumes`, with each one's subvolumes behind it.
pub fn with_subvolumes(
    volumes: Vec<Volume>,
    subvolumes: &[(VolumeName, Vec<GuestPath>)],
) -> Vec<Volume> {
    let mut all = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let own = subvolumes.iter().filter(|(name, _)| name == volume.device.volume());
        let own = own.flat_map(|(_, paths)| paths).map(|path| Volume {
            device: Mountable::Subvolume {
                volume: volume.device.volume().clone(),
                path: path.clone(),
            },
            ..volume.clone()
        });
        let own: Vec<Volume> = own.collect();
        all.push(volume);
        all.extend(own);
    }
    all
}

/// Probes the device with the node `node`.
///
/// # Errors
/// As open(2) and [`Probe::search`].
pub fn probe_node(node: &Path) -> nix::Result<Probed> {
    probe(&File::open(node).map_err(|error| errno_of(&error))?)
}

/// Nothing that is known.
impl Default for Probed {
    fn default() -> Self {
        Self {
            content: Content::Unknown,
            label: String::new(),
            uuid: String::new(),
            partitions: Vec::new(),
        }
    }
}

impl Probed {
    /// The partitions of its MBR, if it has one.
    #[must_use]
    pub fn mbr(&self) -> &[Entry] {
        match &self.content {
            Content::Partitions(table) if table == "dos" => &self.partitions,
            _ => &[],
        }
    }

    fn is_extended(&self, number: u16) -> bool {
        self.partitions.iter().any(|entry| entry.number == number && entry.extended)
    }

    /// Whether it holds what is no filesystem and what libblkid calls `kind`.
    #[must_use]
    pub fn is_other(&self, kind: &str) -> bool {
        matches!(&self.content, Content::Other(other) if other == kind)
    }
}

/// Sorts libblkid's values. A disk can have both a filesystem and a partition table, as hybrid
/// images of CDs have: then the filesystem is on the whole disk, and the partitions are listed as
/// well.
fn content(usage: String, kind: String, table: String) -> Content {
    match (usage.as_str(), kind.as_str(), table.as_str()) {
        ("filesystem", ..) => Content::Filesystem(kind),
        (_, "", "") => Content::Unknown,
        (_, "", _) => Content::Partitions(table),
        // `raid`, `crypto`, `other`: a member of something, or swap.
        _ => Content::Other(kind),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    /// A file of 16 MiB with some bytes at some offsets.
    fn device(pieces: &[(u64, &[u8])]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        for (offset, bytes) in pieces {
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.write_all(bytes).unwrap();
        }
        file
    }

    fn content_of(pieces: &[(u64, &[u8])]) -> Content {
        probe(&device(pieces)).unwrap().content
    }

    /// An MBR's entry: type, first sector, sectors.
    fn partition(kind: u8, first: u32, sectors: u32) -> Vec<u8> {
        let mut entry = vec![0, 0, 0, 0, kind, 0, 0, 0];
        entry.extend_from_slice(&first.to_le_bytes());
        entry.extend_from_slice(&sectors.to_le_bytes());
        entry
    }

    #[test]
    fn an_empty_device_holds_nothing_known() {
        assert_eq!(content_of(&[]), Content::Unknown);
        let without_size = tempfile::tempfile().unwrap();
        assert_eq!(probe(&without_size).unwrap().content, Content::Unknown);
    }

    #[test]
    fn extended_partitions_of_an_mbr_are_told_from_others() {
        let table = [partition(0x83, 2048, 2048), partition(0x0f, 8192, 8192)].concat();
        // In the extended partition: one logical partition, the fifth by its number.
        let logical = partition(0x83, 63, 1000);
        let disk = device(&[
            (440, &0x1234_abcd_u32.to_le_bytes()),
            (446, &table),
            (510, b"\x55\xaa"),
            (8192 * 512 + 446, &logical),
            (8192 * 512 + 510, b"\x55\xaa"),
        ]);
        let probed = probe(&disk).unwrap();
        assert_eq!(probed.content, Content::Partitions("dos".to_owned()));
        let entry = |number, extended, kind| {
            let uuid = format!("1234abcd-{number:02x}");
            Entry { number, extended, kind, uuid, name: String::new() }
        };
        let expected = [entry(1, false, 0x83), entry(2, true, 0x0f), entry(5, false, 0x83)];
        assert_eq!(probed.partitions, expected);
    }

    #[test]
    fn a_filesystem_comes_with_label_and_uuid() {
        let mut superblock = vec![0; 1024];
        superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]); // s_magic
        superblock[0x4c] = 1; // s_rev_level
        superblock[0x60] = 2; // s_feature_incompat: filetype
        superblock[0x68..0x78].copy_from_slice(&[0x11; 16]); // s_uuid
        superblock[0x78..0x7d].copy_from_slice(b"gr\xfcn!"); // s_volume_name, Latin-1
        let probed = probe(&device(&[(1024, &superblock)])).unwrap();
        assert_eq!(probed.content, Content::Filesystem("ext2".to_owned()));
        assert_eq!(probed.uuid, "11111111-1111-1111-1111-111111111111");
        assert_eq!(probed.label, "gr\u{fffd}n!");
    }

    #[test]
    fn what_is_no_filesystem_is_called_other() {
        let luks = {
            let mut header = vec![0; 592];
            header[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
            header
        };
        assert_eq!(content_of(&[(0, &luks)]), Content::Other("crypto_LUKS".to_owned()));

        let mut swap = vec![0; 1024];
        swap[0] = 1; // version
        swap[4] = 1; // last_page
        let swap = content_of(&[(1024, &swap), (4086, b"SWAPSPACE2")]);
        assert_eq!(swap, Content::Other("swap".to_owned()));
    }

    #[test]
    fn a_device_with_two_filesystems_is_ambivalent() {
        let mut ext = vec![0; 1024];
        ext[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        ext[0x4c] = 1;
        ext[0x60] = 2;
        let both = content_of(&[(0, b"-rom1fs-"), (1024, &ext)]);
        assert_eq!(both, Content::Other("ambivalent".to_owned()));
    }
}
