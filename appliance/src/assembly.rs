//! From names to nodes: partitions are there, all else is assembled when it is named, from whatever
//! the disks hold. Nothing is looked at for a partition's sake.

use std::path::PathBuf;

use nix::errno::Errno;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::message::{Content, Failure};
use guestmnt_protocol::volume::{LDM_PREFIX, VolumeName};

use crate::devices::{self, Device, Disks};
use crate::dynamic::{self, Dynamic};
use crate::encryption::Opened;
use crate::failure::explained;
use crate::kmsg;
use crate::lvm::{Logical, Lvm, Physical};
use crate::modules::Modules;
use crate::programs::Programs;
use crate::raid::{self, Array, Member};
use crate::remarks::Remarks;
use crate::volumes::{Probed, probe_node};

/// A block device, given or assembled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its name on the wire.
    pub name: VolumeName,
    /// Its node.
    pub node: PathBuf,
    /// Bytes.
    pub size: u64,
}

impl From<Device> for Block {
    fn from(Device { name, node, size }: Device) -> Self {
        Self { name: name.into(), node, size }
    }
}

/// What assembling takes.
pub struct Assembly<'a> {
    /// The disks.
    pub disks: &'a Disks,
    /// The kernel's modules.
    pub modules: &'a Modules,
    /// The programs that do it.
    pub programs: &'a Programs,
    /// The encrypted volumes that are open.
    pub opened: Vec<Opened>,
    /// What is to be said of what was assembled.
    pub remarks: Remarks,
}

impl Assembly<'_> {
    /// The node of the volume `name`, which is assembled if need be; of an encrypted one that is
    /// open, the node of what is in it.
    ///
    /// # Errors
    /// `ENODEV` where there is no such volume; where it cannot be assembled, with the reason.
    pub fn node(&self, name: &VolumeName) -> Result<PathBuf, Failure> {
        if let Some(opened) = self.opened.iter().find(|opened| opened.of == *name) {
            return Ok(opened.node());
        }
        match name {
            VolumeName::Partition(device) => self.disks.find(*device).ok_or_else(no_such_device),
            VolumeName::Logical { group, volume } => {
                let wanted = Logical { group: group.clone(), volume: volume.clone() };
                let blocks = self.with_arrays();
                let physical = physical_of(&blocks);
                if physical.is_empty() {
                    return Err(no_such_device());
                }
                self.lvm(&physical).activate(&wanted)
            }
            VolumeName::Raid(name) => {
                let probed = probed(self.given());
                let array = arrays_of(&probed).into_iter().find(|array| array.is_called(name));
                self.assemble(&array.ok_or_else(no_such_device)?)
            }
            VolumeName::Mapper(name) if name.as_str().starts_with(LDM_PREFIX) => {
                let dynamic = self.dynamic(&self.given());
                let node = dynamic.node(name)?;
                if let Some((missing, all)) = dynamic.missing_disks(name) {
                    let name = VolumeName::Mapper(name.clone());
                    self.remarks.add(format_args!("{name} lacks {missing} of its {all} disks"));
                }
                Ok(node)
            }
            VolumeName::Mapper(name) => {
                let opened = self.opened.iter().find(|opened| opened.name == *name);
                opened.map(Opened::node).ok_or_else(no_such_device)
            }
        }
    }

    /// Whether a volume is encrypted and open.
    #[must_use]
    pub fn is_open(&self, name: &VolumeName) -> bool {
        self.opened.iter().any(|opened| opened.of == *name)
    }

    /// All block devices, those that had to be assembled among them, each with what it holds.
    /// What cannot be assembled is left out.
    #[must_use]
    pub fn all(&self) -> Vec<(Block, Probed)> {
        let mut blocks = self.with_arrays();
        let physical = physical_of(&blocks);
        let lvm = self.lvm(&physical);
        let logical = lvm.list().unwrap_or_else(|failure| {
            warn("logical volumes", &failure);
            Vec::new()
        });
        let active = logical.into_iter().filter_map(|logical| {
            let node = lvm.activate(&logical);
            let Logical { group, volume } = logical;
            assembled(VolumeName::Logical { group, volume }, node)
        });
        blocks.extend(probed(active.collect()));
        blocks
    }

    /// The nodes of all block devices.
    #[must_use]
    pub fn nodes(&self) -> Vec<PathBuf> {
        self.all().into_iter().map(|(block, _)| block.node).collect()
    }

    /// The given devices, all arrays, the volumes of dynamic disks and what is in open volumes, each
    /// with what it holds.
    fn with_arrays(&self) -> Vec<(Block, Probed)> {
        let given = self.given();
        let dynamic = self.dynamic(&given);
        let mut blocks = probed(given);
        dynamic_parts(&mut blocks, &dynamic.disks);
        let arrays = arrays_of(&blocks).into_iter().filter_map(|array| {
            let node = self.assemble(&array);
            assembled(VolumeName::Raid(array.name), node)
        });
        let arrays = probed(arrays.collect());
        blocks.extend(arrays);
        let volumes = dynamic.all().unwrap_or_else(|failure| {
            warn("dynamic disks", &failure);
            Vec::new()
        });
        let volumes = volumes
            .into_iter()
            .filter_map(|(name, node)| assembled(VolumeName::Mapper(name), Ok(node)));
        blocks.extend(probed(volumes.collect()));
        let opened = self.opened.iter().filter_map(|opened| {
            assembled(VolumeName::Mapper(opened.name.clone()), Ok(opened.node()))
        });
        blocks.extend(probed(opened.collect()));
        blocks
    }

    fn assemble(&self, array: &Array) -> Result<PathBuf, Failure> {
        let node = array.assemble(self.programs, self.modules)?;
        if let Some((missing, all)) = raid::missing_members(&node) {
            let name = VolumeName::Raid(array.name.clone());
            self.remarks.add(format_args!("{name} lacks {missing} of its {all} members"));
        }
        Ok(node)
    }

    fn given(&self) -> Vec<Block> {
        self.disks.list().into_iter().map(Block::from).collect()
    }

    /// The dynamic disks among `given`.
    fn dynamic(&self, given: &[Block]) -> Dynamic<'_> {
        let mut disks = Vec::new();
        for (number, disk) in disks_of(given) {
            let parts = given.iter().filter(|block| {
                block.name.device().is_some_and(|it| it.disk == number && it.partition != 0)
            });
            let parts: Vec<_> = parts.map(|block| (block.node.clone(), block.size)).collect();
            if dynamic::is_dynamic(&disk.node, &parts) {
                disks.push(disk.node.clone());
            }
        }
        Dynamic { programs: self.programs, modules: self.modules, disks }
    }

    /// LVM, which sees `physical`.
    #[must_use]
    pub fn lvm<'b>(&'b self, physical: &'b [Physical]) -> Lvm<'b> {
        Lvm { programs: self.programs, modules: self.modules, physical }
    }
}

/// The whole disks among `blocks`, with their numbers.
fn disks_of(blocks: &[Block]) -> impl Iterator<Item = (u8, &Block)> {
    blocks.iter().filter_map(|block| match block.name {
        VolumeName::Partition(DeviceName { disk, partition: 0 }) => Some((disk, block)),
        _ => None,
    })
}

/// Calls the partitions of dynamic disks what they are: pieces of volumes, which may begin as a
/// filesystem does, but are one by themselves only by chance.
fn dynamic_parts(blocks: &mut [(Block, Probed)], dynamic: &[PathBuf]) {
    let mut in_dynamic = false;
    // A disk stands before its partitions.
    for (block, probed) in blocks {
        match block.name.device() {
            Some(DeviceName { partition: 0, .. }) => in_dynamic = dynamic.contains(&block.node),
            Some(_) if in_dynamic => {
                *probed = Probed { content: Content::Other(LDM_PART.into()), ..Probed::default() };
            }
            _ => {}
        }
    }
}

/// What the partitions of dynamic disks are called.
const LDM_PART: &str = "LDM_member";

fn probed(blocks: Vec<Block>) -> Vec<(Block, Probed)> {
    let probe = |block: Block| {
        // What cannot be read holds nothing that is known.
        let probed = probe_node(&block.node).unwrap_or_default();
        (block, probed)
    };
    blocks.into_iter().map(probe).collect()
}

/// A block device that was just assembled; none, and a line in the log, where that failed.
fn assembled(name: VolumeName, node: Result<PathBuf, Failure>) -> Option<Block> {
    match node {
        Ok(node) => {
            let size = devices::size_of_node(&node).unwrap_or(0);
            Some(Block { name, node, size })
        }
        Err(failure) => {
            warn(&name.to_string(), &failure);
            None
        }
    }
}

fn warn(what: &str, failure: &Failure) {
    let first = failure.detail.lines().next().unwrap_or_default();
    kmsg::warn(format_args!("{what}: {first}"));
}

/// The arrays on `blocks`.
#[must_use]
pub fn arrays_of(blocks: &[(Block, Probed)]) -> Vec<Array> {
    let members: Vec<Member> = blocks
        .iter()
        .filter(|(_, probed)| probed.is_other("linux_raid_member"))
        .map(|(block, probed)| Member {
            node: block.node.clone(),
            uuid: probed.uuid.clone(),
            label: probed.label.clone(),
        })
        .collect();
    raid::arrays(&members)
}

/// The physical volumes of LVM on `blocks`.
#[must_use]
pub fn physical_of(blocks: &[(Block, Probed)]) -> Vec<Physical> {
    blocks
        .iter()
        .filter(|(_, probed)| probed.is_other("LVM2_member"))
        .map(|(block, probed)| Physical {
            name: block.name.to_string(),
            node: block.node.clone(),
            uuid: probed.uuid.clone(),
        })
        .collect()
}

fn no_such_device() -> Failure {
    explained(Errno::ENODEV, "no such device")
}
