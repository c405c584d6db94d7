//! What volumes are made of: for those who list them, not for those who mount.

use std::path::Path;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::message::{Listing, PhysicalVolume};
use guestmnt_protocol::volume::VolumeName;

use crate::assembly::{Assembly, Block, arrays_of, physical_of};
use crate::kmsg;
use crate::lvm::Logical;
use crate::volumes::Probed;

/// Everything of a listing but its volumes. What LVM cannot tell is left out.
#[must_use]
pub fn composition(blocks: &[(Block, Probed)], assembly: &Assembly) -> Listing {
    let named = |node: &Path| {
        let found = blocks.iter().find(|(block, _)| block.node == node);
        found.map(|(block, _)| block.name.clone())
    };
    let arrays = arrays_of(blocks).into_iter().map(|array| {
        let members = array.members.iter().filter_map(|node| named(node)).collect();
        (VolumeName::Raid(array.name), members)
    });
    let physical = physical_of(blocks);
    let report = assembly.lvm(&physical).report().unwrap_or_else(|failure| {
        let first = failure.detail.lines().next().unwrap_or_default();
        kmsg::warn(format_args!("logical volumes: {first}"));
        Default::default()
    });
    let physical = report.physical.into_iter().filter_map(|(node, size, uuid, group)| {
        Some(PhysicalVolume { device: named(&node)?, size, uuid, group })
    });
    let logical = report
        .logical
        .into_iter()
        .map(|(Logical { group, volume }, uuid)| (VolumeName::Logical { group, volume }, uuid));
    Listing {
        volumes: Vec::new(),
        partition_types: partition_types(blocks),
        arrays: arrays.collect(),
        physical: physical.collect(),
        groups: report.groups,
        logical: logical.collect(),
    }
}

fn partition_types(blocks: &[(Block, Probed)]) -> Vec<(DeviceName, u8)> {
    let disks = blocks.iter().filter_map(|(block, probed)| match &block.name {
        VolumeName::Partition(DeviceName { disk, partition: 0 }) => Some((*disk, probed.mbr())),
        _ => None,
    });
    disks
        .flat_map(|(disk, partitions)| {
            let device = move |number| DeviceName { disk, partition: number };
            partitions
                .iter()
                .filter(|entry| entry.kind != 0)
                .map(move |entry| (device(entry.number), entry.kind))
        })
        .collect()
}
