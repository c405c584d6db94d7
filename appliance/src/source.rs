//! A device that may hold a filesystem, and by which driver that is mounted: the one that is named,
//! the one that a look at the device suggests, or another where that one refuses.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::foreign::Foreign;
use guestmnt_protocol::message::{Content, Failure, MountRequest, MountedAs, NameMatching};
use guestmnt_protocol::volume::Mountable;

use crate::assembly::Assembly;
use crate::attempt::{Attempt, Journal, Writing};
use crate::btrfs;
use crate::devices::Disks;
use crate::failure::explained;
use crate::filesystems::{Filesystem, join_options, own_options};
use crate::ntfs_3g;
use crate::signatures;
use crate::ufs;
use crate::volumes;
use crate::xfs;

/// A device that may hold a filesystem.
pub struct Source {
    /// Its node.
    pub node: PathBuf,
    /// `None` for what is assembled.
    pub device: Option<DeviceName>,
}

impl Source {
    /// The device of `mountable`, assembled if need be.
    ///
    /// # Errors
    /// As [`Assembly::node`].
    pub fn find(mountable: &Mountable, assembly: &Assembly) -> Result<Self, Failure> {
        let volume = mountable.volume();
        let node = assembly.node(volume)?;
        let device = volume.device().filter(|_| !assembly.is_open(volume));
        Ok(Self { node, device })
    }

    /// Mounts its filesystem on the directory `target`, by type and options of `request`.
    ///
    /// # Errors
    /// As [`crate::mounts::Mounts::mount`], but for the mountpoint.
    pub fn mount(
        &self,
        request: &MountRequest,
        writing: Writing,
        target: &Path,
        assembly: &Assembly,
    ) -> Result<MountedAs, Failure> {
        let Self { node, device } = self;
        let options = own_options(&request.options);
        let subvolume = match &request.device {
            Mountable::Volume(_) => String::new(),
            Mountable::Subvolume { path, .. } => btrfs::subvolume_option(path)?,
        };
        let by_kernel = |kind: &str| -> Result<MountedAs, Failure> {
            let filesystem = Filesystem::named(kind);
            let own = match filesystem.kernel_name {
                "btrfs" => btrfs::devices(node, || assembly.nodes())?,
                _ => btrfs::Devices::default(),
            };
            let variant = match filesystem.kernel_name {
                "ufs" if !ufs::names_variant(&options) => ufs::option(node)?,
                _ => String::new(),
            };
            let options = match filesystem.kernel_name {
                "xfs" => xfs::with_nodes(&options, assembly)?,
                _ => options.clone(),
            };
            let options = join_options(&[&own.options, &variant, &subvolume, &options]);
            let tried = Attempt { node, target, filesystem, options: &options };
            tried.load_modules(assembly.modules);
            let (how, journal) = tried.run_for(writing)?;
            if let Some((missing, all)) = own.missing {
                let name = request.device.volume();
                assembly.remarks.add(format_args!("{name} lacks {missing} of its {all} devices"));
            }
            if journal == Journal::Left {
                let name = &request.device;
                let remark = "journal cannot be replayed; it is shown as it was left";
                assembly.remarks.add(format_args!("{name}: its {remark}"));
            }
            Ok(how)
        };
        let by_ntfs_3g = || -> Result<MountedAs, Failure> {
            ntfs_3g::mount(node, target, &options, assembly)?;
            let refused = "ntfs-3g only reads here".to_owned();
            let read_only = (writing != Writing::Never).then_some(refused);
            Ok(MountedAs { read_only, names: NameMatching::Exact })
        };
        let mount_as = |kind: &str| {
            let failure = match by_kernel(kind) {
                Err(failure) if kind == "ntfs" => failure,
                outcome => return outcome,
            };
            let how = by_ntfs_3g().map_err(|_| failure.clone())?;
            let name = &request.device;
            // The kernel's own words, if it had any, without the name that the device has here.
            let reason = failure.detail.lines().nth(1).unwrap_or(&failure.detail);
            let reason = reason.split_once("): ").map_or(reason, |(_, reason)| reason);
            let reason = reason.trim().trim_end_matches('.');
            assembly.remarks.add(format_args!(
                "{name}: ntfs3 refuses it ({reason}); ntfs-3g shows it, which is slower"
            ));
            Ok(how)
        };
        match (&request.fstype, signatures::usual_filesystem(node)) {
            (Some(kind), _) if kind == ntfs_3g::NAME => by_ntfs_3g(),
            (Some(kind), _) => mount_as(kind),
            (None, _) if !subvolume.is_empty() => mount_as("btrfs"),
            (None, guess) => match guess.map(mount_as) {
                Some(Ok(how)) => Ok(how),
                failed => match (filesystem_on(*device, node, assembly.disks)?, failed) {
                    (kind, Some(Err(failure))) if guess == Some(&kind) => Err(failure),
                    (kind, _) => mount_as(&kind),
                },
            },
        }
    }
}

/// libblkid's name for the filesystem on the node `node`, which is `device`'s where it is given.
fn filesystem_on(
    device: Option<DeviceName>,
    node: &Path,
    disks: &Disks,
) -> Result<String, Failure> {
    let content = volumes::content_of(device, node, disks)
        .map_err(|errno| explained(errno, format!("cannot be read: {}", errno.desc())))?;
    match content {
        Content::Filesystem(kind) if Foreign::of(&kind).is_none() => Ok(kind),
        other => Err(explained(Errno::EMEDIUMTYPE, what_else(&other))),
    }
}

/// What a device holds that has no filesystem, as the end of the sentence "/dev/sda1 …".
fn what_else(content: &Content) -> String {
    match content {
        Content::Filesystem(kind) if Foreign::of(kind).is_some() => foreign(kind),
        Content::Filesystem(kind) => format!("holds a filesystem ({kind})"),
        Content::Partitions(kind) => format!("holds a partition table ({kind})"),
        Content::Extended => "is an extended partition, which only holds others".to_owned(),
        Content::Unknown => "is empty or of an unknown kind".to_owned(),
        Content::Other(kind) => match kind.as_str() {
            "ambivalent" => "holds signatures of several filesystems; name the type".to_owned(),
            "swap" | "swsuspend" => format!("holds swap space ({kind})"),
            "crypto_LUKS" | "BitLocker" => format!("holds an encrypted volume ({kind})"),
            "LVM2_member" | "LVM1_member" => format!("is part of a volume group ({kind})"),
            _ if Foreign::of(kind).is_some() => foreign(kind),
            _ if kind.ends_with("_raid_member") => format!("is part of a RAID ({kind})"),
            _ => format!("holds no filesystem ({kind})"),
        },
    }
}

fn foreign(kind: &str) -> String {
    Foreign::of(kind).map_or_else(
        || format!("holds no filesystem ({kind})"),
        |Foreign { what, advice }| format!("{what} ({kind})\nhint: {advice}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_filesystem_is_called_by_its_name() {
        let other = |kind: &str| Content::Other(kind.to_owned());
        let table = [
            (other("crypto_LUKS"), "holds an encrypted volume (crypto_LUKS)"),
            (other("BitLocker"), "holds an encrypted volume (BitLocker)"),
            (other("swap"), "holds swap space (swap)"),
            (other("LVM2_member"), "is part of a volume group (LVM2_member)"),
            (other("linux_raid_member"), "is part of a RAID (linux_raid_member)"),
            (other("nobodys_member"), "holds no filesystem (nobodys_member)"),
            (Content::Partitions("gpt".to_owned()), "holds a partition table (gpt)"),
            (Content::Unknown, "is empty or of an unknown kind"),
        ];
        for (content, expected) in table {
            assert_eq!(what_else(&content), expected);
        }
    }
}
