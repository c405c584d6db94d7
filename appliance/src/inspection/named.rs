//! The volumes by all that systems call them: UUIDs and labels, of what they hold and of their
//! partitions, names of devices, and the places on disks that Windows remembers.

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::volume::VolumeName;

use crate::assembly::{Assembly, Block};
use crate::blkid::Entry;
use crate::dynamic;
use crate::volumes::Probed;

/// All volumes.
pub struct Volumes(Vec<Volume>);

/// One volume. What it does not have is empty.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name on the wire.
    pub device: VolumeName,
    /// What to mount: the same, or what is in it, of an encrypted one that is open.
    pub name: VolumeName,
    /// The number of the disk that it is on, if it is on one.
    pub disk: Option<u8>,
    /// Of what it holds.
    pub uuid: String,
    /// Likewise.
    pub label: String,
    /// Of its partition, or of the volume of dynamic disks that it is.
    pub partition_uuid: String,
    /// Likewise.
    pub partition_label: String,
    /// Where it begins on its disk, in bytes.
    pub start: Option<u64>,
}

impl Volumes {
    /// `blocks`, with what the tables of their disks say of those that are partitions.
    #[must_use]
    pub fn of(blocks: &[(Block, Probed)], assembly: &Assembly) -> Self {
        let inside = |name: &VolumeName| {
            let opened = assembly.opened.iter().find(|opened| opened.of == *name)?;
            Some(VolumeName::Mapper(opened.name.clone()))
        };
        let around = |name: &VolumeName| {
            let VolumeName::Mapper(inner) = name else { return None };
            let opened = assembly.opened.iter().find(|opened| opened.name == *inner)?;
            opened.of.device()
        };
        let volume = |(block, probed): &(Block, Probed)| {
            let device = block.name.device().filter(|device| device.partition != 0);
            let entry = device.and_then(|device| entry_of(device, blocks)).cloned();
            let entry = entry.unwrap_or_default();
            let disk = block.name.device().or_else(|| around(&block.name));
            Volume {
                device: block.name.clone(),
                name: inside(&block.name).unwrap_or_else(|| block.name.clone()),
                disk: disk.map(|device| device.disk),
                uuid: probed.uuid.clone(),
                label: probed.label.clone(),
                partition_uuid: dynamic::guid_of(block).unwrap_or(entry.uuid),
                partition_label: entry.name,
                start: device.and_then(|device| assembly.disks.start(device)),
            }
        };
        Self(blocks.iter().map(volume).collect())
    }

    /// The volume that the first field of a line of fstab or the second of crypttab means, for a
    /// system on `root`: copies of a disk have the same UUIDs, and a system means its own.
    #[must_use]
    pub fn find(&self, spec: &str, root: &VolumeName) -> Option<&VolumeName> {
        let same = |one: &str, other: &str| !one.is_empty() && one.eq_ignore_ascii_case(other);
        let by = |test: &dyn Fn(&Volume) -> bool| self.first(root, test);
        let tagged = spec.split_once('=').or_else(|| {
            let (tag, value) = spec.strip_prefix("/dev/disk/by-")?.split_once('/')?;
            Some((tag, value))
        });
        match tagged {
            Some((tag, value)) => {
                let value = value.trim_matches('"');
                match tag.to_ascii_uppercase().as_str() {
                    "UUID" => by(&|volume| same(&volume.uuid, value)),
                    "LABEL" => by(&|volume| !value.is_empty() && volume.label == value),
                    "PARTUUID" => by(&|volume| same(&volume.partition_uuid, value)),
                    "PARTLABEL" => {
                        by(&|volume| !value.is_empty() && volume.partition_label == value)
                    }
                    _ => None,
                }
            }
            None => {
                let name = device(spec)?;
                by(&|volume| volume.device == name)
            }
        }
    }

    /// The partition of an MBR that begins at byte `start` of the disk with this signature.
    #[must_use]
    pub fn at(&self, signature: u32, start: u64, root: &VolumeName) -> Option<&VolumeName> {
        // As libblkid makes an identifier of it.
        let prefix = format!("{signature:08x}-");
        self.first(root, &|volume| {
            volume.start == Some(start) && volume.partition_uuid.starts_with(&prefix)
        })
    }

    fn first(&self, root: &VolumeName, test: &dyn Fn(&Volume) -> bool) -> Option<&VolumeName> {
        let mut found = self.0.iter().filter(|volume| test(volume));
        let first = found.next()?;
        let of_root = self.0.iter().find(|volume| volume.device == *root);
        let own = of_root.and_then(|volume| volume.disk).and_then(|own| {
            let rest = std::iter::once(first).chain(found);
            rest.into_iter().find(|volume| volume.disk == Some(own))
        });
        Some(&own.unwrap_or(first).name)
    }
}

/// What its disk's table says of a partition.
fn entry_of(device: DeviceName, blocks: &[(Block, Probed)]) -> Option<&Entry> {
    let disk = VolumeName::from(DeviceName::whole(device.disk));
    let (_, table) = blocks.iter().find(|(block, _)| block.name == disk)?;
    table.partitions.iter().find(|entry| entry.number == device.partition)
}

/// The device that a system calls `path`, as far as names can tell: the first disk is the first one
/// given, whatever bus it was on.
fn device(path: &str) -> Option<VolumeName> {
    path.parse().ok().or_else(|| {
        let name = path.strip_prefix("/dev/")?;
        let (disk, rest) = match name.strip_prefix("nvme") {
            Some(rest) => rest.split_once("n1")?,
            None => {
                let rest = name.strip_prefix("mmcblk")?;
                rest.split_at(rest.find('p').unwrap_or(rest.len()))
            }
        };
        let partition = match rest {
            "" => 0,
            rest => rest.strip_prefix('p')?.parse().ok()?,
        };
        DeviceName::try_from((disk.parse().ok()?, partition)).ok().map(VolumeName::from)
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Volumes of two disks that are copies, and others.
    pub fn volumes() -> Volumes {
        let volume = |name: &str, uuid: &str, partition_uuid: &str, start| Volume {
            device: name.parse().unwrap(),
            name: name.parse().unwrap(),
            disk: name.parse::<DeviceName>().ok().map(|device| device.disk),
            uuid: uuid.to_owned(),
            label: format!("label of {name}"),
            partition_uuid: partition_uuid.to_owned(),
            partition_label: String::new(),
            start: Some(start),
        };
        let encrypted = Volume {
            name: "/dev/mapper/cryptsdd1".parse().unwrap(),
            ..volume("/dev/sdd1", "ffff", "12345678-09", 9 << 20)
        };
        Volumes(vec![
            encrypted,
            volume("/dev/sda1", "aaaa-1", "12345678-01", 1 << 20),
            volume("/dev/sda2", "aaaa-2", "12345678-02", 2 << 20),
            volume("/dev/sdb1", "aaaa-1", "12345678-01", 1 << 20),
            volume("/dev/sdb2", "aaaa-2", "12345678-02", 2 << 20),
            volume("/dev/vg/home", "cccc", "", 0),
            volume("/dev/sdc1", "dddd", "0fc63daf-8483-4772-8e79-3d69d8477de4", 1 << 20),
        ])
    }

    #[test]
    fn volumes_are_found_by_what_fstab_calls_them() {
        let volumes = volumes();
        let root: VolumeName = "/dev/sda1".parse().unwrap();
        let table = [
            ("UUID=AAAA-2", Some("/dev/sda2")),
            ("UUID=\"cccc\"", Some("/dev/vg/home")),
            ("/dev/disk/by-uuid/dddd", Some("/dev/sdc1")),
            ("LABEL=label of /dev/sdc1", Some("/dev/sdc1")),
            ("PARTUUID=0FC63DAF-8483-4772-8E79-3D69D8477DE4", Some("/dev/sdc1")),
            ("/dev/mapper/vg-home", Some("/dev/vg/home")),
            ("/dev/nvme1n1p2", Some("/dev/sdb2")),
            ("/dev/mmcblk0p1", Some("/dev/sda1")),
            ("/dev/hda2", Some("/dev/sda2")),
            ("UUID=ffff", Some("/dev/mapper/cryptsdd1")),
            ("/dev/sdd1", Some("/dev/mapper/cryptsdd1")),
            ("UUID=", None),
            ("UUID=nothing", None),
            ("PARTLABEL=", None),
            ("/dev/sde1", None),
            ("/dev/disk/by-path/x", None),
            ("tmpfs", None),
        ];
        for (spec, expected) in table {
            let found = volumes.find(spec, &root).map(VolumeName::to_string);
            assert_eq!(found.as_deref(), expected, "{spec}");
        }
    }

    #[test]
    fn of_copies_a_system_means_the_one_on_its_own_disk() {
        let volumes = volumes();
        let find = |root: &str| {
            let root = root.parse().unwrap();
            let by_uuid = volumes.find("UUID=aaaa-2", &root).unwrap().to_string();
            let by_place = volumes.at(0x1234_5678, 2 << 20, &root).unwrap().to_string();
            (by_uuid, by_place)
        };
        for (root, own) in [("/dev/sda1", "/dev/sda2"), ("/dev/sdb1", "/dev/sdb2")] {
            assert_eq!(find(root), (own.to_owned(), own.to_owned()));
        }
        assert_eq!(find("/dev/vg/home").0, "/dev/sda2");
        assert_eq!(volumes.at(0x1234_5678, 3 << 20, &"/dev/sda1".parse().unwrap()), None);
    }
}
