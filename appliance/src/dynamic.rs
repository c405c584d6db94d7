//! Windows' dynamic disks: which disks are, and the volumes that ldmtool makes of them, with its names,
//! `/dev/mapper/ldm_vol_GROUP_VOLUME`.
//!
//! The kernel knows such a disk's pieces of volumes as its partitions, whatever they are pieces of.
//! Follows block/partitions/ldm.h of Linux 6.12 and libldm.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{minor, stat};

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::volume::{LDM_PREFIX, PlainName, VolumeName};

use crate::assembly::Block;
use crate::failure::explained;
use crate::kmsg;
use crate::modules::Modules;
use crate::programs::Programs;

/// What begins a dynamic disk's header, and where it is: in this sector of a disk with an MBR, in the
/// last one of a partition of a GPT.
const HEADER: &[u8] = b"PRIVHEAD";
const HEADER_SECTOR: u64 = 6;

/// Where the nodes are.
const MAPPER: &str = "/dev/mapper";

/// The dynamic disks.
pub struct Dynamic<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// The kernel's modules.
    pub modules: &'a Modules,
    /// Nodes of the disks.
    pub disks: Vec<PathBuf>,
}

/// Whether the disk with the node `disk`, which has the partitions `partitions`, is dynamic.
#[must_use]
pub fn is_dynamic(disk: &Path, partitions: &[(PathBuf, u64)]) -> bool {
    let starts_at = |node: &Path, at: u64| {
        let mut bytes = [0; HEADER.len()];
        let read = File::open(node).and_then(|file| file.read_exact_at(&mut bytes, at));
        read.is_ok() && bytes == HEADER
    };
    [512, 4096].into_iter().any(|sector| {
        let in_last = |(node, size): &(PathBuf, u64)| {
            size.checked_sub(sector).is_some_and(|at| starts_at(node, at))
        };
        starts_at(disk, HEADER_SECTOR * sector) || partitions.iter().any(in_last)
    })
}

impl Dynamic<'_> {
    /// The node of the volume `name`.
    ///
    /// # Errors
    /// `ENODEV` where there is none, `EIO` with what ldmtool said.
    pub fn node(&self, name: &PlainName) -> Result<PathBuf, Failure> {
        let node = Path::new(MAPPER).join(name.as_str());
        if node.exists() {
            return Ok(node);
        }
        if self.disks.is_empty() {
            return Err(explained(Errno::ENODEV, "no such device"));
        }
        let said = self.assemble()?;
        if node.exists() {
            return Ok(node);
        }
        let volume = name.as_str().rsplit('_').next().unwrap_or_default();
        let its = format!(" volume {volume} in ");
        Err(match said.lines().find(|line| line.contains(&its)) {
            Some(reason) => explained(Errno::EIO, format!("ldmtool cannot assemble it\n{reason}")),
            None => explained(Errno::ENODEV, "no such device"),
        })
    }

    /// How many disks a mirror or a RAID-5 lacks, of how many.
    #[must_use]
    pub fn missing_disks(&self, name: &PlainName) -> Option<(usize, usize)> {
        let printed = self.programs.run(self.modules, "dmsetup", &["status", name.as_str()], &[]);
        missing_in(&printed.ok()?.ok()?)
    }

    /// All volumes that can be assembled, with their nodes.
    ///
    /// # Errors
    /// As [`Programs::run`], with what ldmtool said.
    pub fn all(&self) -> Result<Vec<(PlainName, PathBuf)>, Failure> {
        if self.disks.is_empty() {
            return Ok(Vec::new());
        }
        for line in self.assemble()?.lines() {
            kmsg::warn(format_args!("dynamic disks: {line}"));
        }
        Ok(assembled())
    }

    /// Assembles what can be, and returns what was said of the rest.
    fn assemble(&self) -> Result<String, Failure> {
        let nodes: Vec<_> = self.disks.iter().map(|node| node.to_string_lossy()).collect();
        let devices = nodes.iter().flat_map(|node| ["--device", node.as_ref()]);
        let arguments: Vec<&str> = devices.chain(["create", "all"]).collect();
        let before = assembled();
        let printed = self.programs.run_and_listen(self.modules, "ldmtool", &arguments, &[])?;
        let printed = printed
            .map_err(|failed| failed.explained(Errno::EIO, "ldmtool cannot read the disks"))?;
        for new in assembled().into_iter().filter(|volume| !before.contains(volume)) {
            self.leave_alone(&new.0)?;
        }
        Ok(printed.said)
    }

    /// Keeps a mirror or a RAID-5 from being brought in step: the kernel would copy all of it into the
    /// overlay. What is neither takes no such message.
    fn leave_alone(&self, name: &PlainName) -> Result<(), Failure> {
        let message = ["message", name.as_str(), "0", "frozen"];
        self.programs.run(self.modules, "dmsetup", &message, &[]).map(drop)
    }
}

/// How many devices are missing, of how many, by what `dmsetup status` prints of a target: a letter for
/// each of them, after begin, length, `raid`, level and their number.
fn missing_in(status: &str) -> Option<(usize, usize)> {
    let words: Vec<&str> = status.split_whitespace().collect();
    let [_, _, "raid", _, _, health, ..] = words[..] else { return None };
    let missing = health.bytes().filter(|letter| b"D-".contains(letter)).count();
    (missing > 0).then_some((missing, health.len()))
}

/// The volumes that have nodes; those whose names device-mapper had to write otherwise are not among
/// them.
fn assembled() -> Vec<(PlainName, PathBuf)> {
    let entries = fs::read_dir(MAPPER).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name: PlainName = entry.file_name().to_str()?.parse().ok()?;
        name.as_str().starts_with(LDM_PREFIX).then(|| (name, entry.path()))
    });
    let mut named: Vec<_> = named.collect();
    named.sort();
    named
}

/// The GUID of a volume of dynamic disks, in lower case, as its bytes stand in their database.
#[must_use]
pub fn guid_of(block: &Block) -> Option<String> {
    let VolumeName::Mapper(name) = &block.name else { return None };
    name.as_str().starts_with(LDM_PREFIX).then_some(())?;
    // libldm puts it at the end of device-mapper's own identifier.
    let minor = minor(stat(&block.node).ok()?.st_rdev);
    let identifier = fs::read_to_string(format!("/sys/block/dm-{minor}/dm/uuid")).ok()?;
    guid_in(identifier.trim_end())
}

/// The GUID in `LDM-VOLUME-GUID`.
fn guid_in(identifier: &str) -> Option<String> {
    const LENGTH: usize = 36;
    let rest = identifier.strip_prefix("LDM-")?;
    let guid = rest.get(rest.len().checked_sub(LENGTH)?..)?;
    Some(guid.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: usize, header_at: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0; size];
        bytes[header_at..header_at + HEADER.len()].copy_from_slice(HEADER);
        fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn dynamic_disks_are_known_by_their_header() {
        let partition = file(1 << 16, (1 << 16) - 512);
        let large = file(1 << 16, (1 << 16) - 4096);
        let of = |file: &tempfile::NamedTempFile, size| vec![(file.path().to_owned(), size)];
        let disk = |at| file(1 << 16, at);
        assert!(is_dynamic(disk(6 * 512).path(), &[]));
        assert!(is_dynamic(disk(6 * 4096).path(), &[]));
        assert!(is_dynamic(disk(0).path(), &of(&partition, 1 << 16)));
        assert!(is_dynamic(disk(0).path(), &of(&large, 1 << 16)));
        assert!(!is_dynamic(disk(0).path(), &of(&partition, 1 << 15)));
        assert!(!is_dynamic(disk(0).path(), &of(&partition, 5)));
        assert!(!is_dynamic(Path::new("/nowhere"), &[]));
    }

    #[test]
    fn missing_disks_are_told_by_their_letters() {
        let table = [
            ("0 65536 raid raid1 2 -A 65536/65536 frozen 0 0 -\n", Some((1, 2))),
            ("0 65536 raid raid5_ls 3 aaa 0/65536 frozen 0 0 -", None),
            ("0 65536 linear", None),
            ("", None),
        ];
        for (status, expected) in table {
            assert_eq!(missing_in(status), expected, "{status}");
        }
    }

    #[test]
    fn a_guid_ends_device_mappers_identifier() {
        let guid = "06495a85-fbfd-11e1-8cf9-5254006165db";
        assert_eq!(guid_in(&format!("LDM-Volume-1-{guid}")).as_deref(), Some(guid));
        assert_eq!(guid_in("LDM-short"), None);
        assert_eq!(guid_in("LVM-xyz"), None);
    }
}
