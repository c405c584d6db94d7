//! What devices hold that is no filesystem that can be mounted here, by libblkid's names: what it is, and
//! what the user can do about it.

/// What a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The end of the sentence "/dev/sda1 …".
    pub what: &'static str,
    /// What can be done, as advice.
    pub advice: &'static str,
}

const OF_A_CONTROLLER: &str =
    "give an image of the volume that the controller makes of its disks, not of the single disks";

/// libblkid's name, what that is, and what to do. Source: libblkid/src/superblocks of util-linux.
const TABLE: &[(&str, &str, &str)] = &[
    (
        "VMFS_volume_member",
        "holds a VMFS datastore of VMware ESXi",
        "give the .vmdk of a virtual machine on it; vmfs6-tools copies that out of the datastore",
    ),
    (
        "VMFS",
        "holds a VMFS datastore of VMware ESXi",
        "give the .vmdk of a virtual machine on it; vmfs6-tools copies that out of the datastore",
    ),
    ("ddf_raid_member", "is a member of a hardware RAID (DDF)", OF_A_CONTROLLER),
    ("isw_raid_member", "is a member of an Intel firmware RAID", OF_A_CONTROLLER),
    ("lsi_mega_raid_member", "is a member of an LSI MegaRAID", OF_A_CONTROLLER),
    ("via_raid_member", "is a member of a VIA firmware RAID", OF_A_CONTROLLER),
    ("silicon_medley_raid_member", "is a member of a Silicon Image RAID", OF_A_CONTROLLER),
    ("nvidia_raid_member", "is a member of an NVIDIA firmware RAID", OF_A_CONTROLLER),
    ("promise_fasttrack_raid_member", "is a member of a Promise FastTrak RAID", OF_A_CONTROLLER),
    ("hpt45x_raid_member", "is a member of a HighPoint RAID", OF_A_CONTROLLER),
    ("hpt37x_raid_member", "is a member of a HighPoint RAID", OF_A_CONTROLLER),
    ("adaptec_raid_member", "is a member of an Adaptec RAID", OF_A_CONTROLLER),
    ("jmicron_raid_member", "is a member of a JMicron RAID", OF_A_CONTROLLER),
    (
        "zfs_member",
        "is part of a ZFS pool",
        "the appliance's kernel has no ZFS; import the pool read-only where OpenZFS is installed",
    ),
    (
        "xfs_external_log",
        "holds the log of an XFS on another device",
        "mount that one, and name this one: -m /dev/sda1:/:logdev=/dev/sdb1",
    ),
    (
        "bcache",
        "is a backing or cache device of bcache",
        "write the cache back and detach it on the machine that it is from",
    ),
    (
        "drbd",
        "is a DRBD device with its metadata inside",
        "give an image of /dev/drbdN of the machine that it is from",
    ),
    (
        "stratis",
        "is part of a Stratis pool",
        "give an image of the filesystem's device below /dev/stratis",
    ),
    (
        "ceph_bluestore",
        "is an OSD of Ceph",
        "export the RBD image with `rbd export`, and give that",
    ),
    (
        "cs_fvault2",
        "is an encrypted volume of Apple's FileVault 2",
        "decrypt it on a Mac, or with libfvde",
    ),
    (
        "LVM1_member",
        "is part of a volume group of LVM1",
        "vgconvert of an old lvm2 makes LVM2 of it, on a copy",
    ),
];

impl Foreign {
    /// What libblkid calls `kind`; `None` where nothing more than its name is known.
    #[must_use]
    pub fn of(kind: &str) -> Option<Self> {
        let found = TABLE.iter().find(|(name, ..)| *name == kind);
        found.map(|&(_, what, advice)| Self { what, advice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_known_by_its_name_once() {
        for (at, (name, ..)) in TABLE.iter().enumerate() {
            assert!(Foreign::of(name).is_some());
            assert!(TABLE[..at].iter().all(|(other, ..)| other != name), "{name}");
        }
        assert_eq!(Foreign::of("ext4"), None);
    }
}
