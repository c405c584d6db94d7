//! LVM: which logical volumes there are on given physical volumes, and how they become block
//! devices. All by lvm2's own program, told which devices it may look at.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use guestmnt_protocol::message::{Failure, VolumeGroup};
use guestmnt_protocol::volume::PlainName;

use crate::failure::explained;
use crate::modules::Modules;
use crate::programs::Programs;

/// Settings that fit a guest without udev, daemons, or anything to remember. Thin pools are not
/// checked before they are used: the program for that would have to be there, and a damaged pool
/// is refused by the kernel.
const CONFIG: &str = "devices { scan=\"/dev\" obtain_device_list_from_udev=0 \
    external_device_info_source=\"none\" use_devicesfile=0 multipath_component_detection=0 \
    write_cache_state=0 hints=\"none\" } \
    activation { udev_sync=0 udev_rules=0 monitoring=0 } \
    backup { backup=0 archive=0 } \
    global { use_lvmpolld=0 use_lvmlockd=0 event_activation=0 thin_check_executable=\"\" \
    cache_check_executable=\"\" thin_repair_executable=\"\" cache_repair_executable=\"\" } \
    log { silent=0 syslog=0 }";

/// A physical volume as libblkid shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Physical {
    /// Its name for people.
    pub name: String,
    /// Its node.
    pub node: PathBuf,
    /// Its UUID.
    pub uuid: String,
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logical {
    /// Its group.
    pub group: PlainName,
    /// Its name in there.
    pub volume: PlainName,
}

/// The program with what it may look at.
pub struct Lvm<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// The kernel's modules.
    pub modules: &'a Modules,
    /// All physical volumes.
    pub physical: &'a [Physical],
}

impl Lvm<'_> {
    /// Activates a logical volume and returns its node.
    ///
    /// # Errors
    /// `ENODEV` where there is none of this name, `EEXIST` where copies of its group are in each
    /// other's way, `EIO` with what lvm said.
    pub fn activate(&self, wanted: &Logical) -> Result<PathBuf, Failure> {
        let Logical { group, volume } = wanted;
        let node = node_of(wanted);
        if node.exists() {
            return Ok(node);
        }
        let name = format!("{group}/{volume}");
        // Volumes may say that they are to be skipped, as snapshots of thin ones do.
        let change = ["lvchange", "--activate", "y", "--ignoreactivationskip", &name];
        match self.run(&change)? {
            Ok(_) if node.exists() => Ok(node),
            Ok(_) => Err(explained(Errno::ENODEV, "lvm activated it, but there is no node")),
            Err(failed) => {
                if failed.said.contains("duplicate")
                    && let Some((one, other)) = copies(self.physical)
                {
                    return Err(clash(one, other));
                }
                if failed.said.contains("same name") {
                    let detail = format!(
                        "several volume groups are called {group}; mount one disk at a time\n{}",
                        failed.said.trim_end()
                    );
                    return Err(explained(Errno::EEXIST, detail));
                }
                let missing =
                    ["not found", "Failed to find"].map(|what| failed.said.contains(what));
                let partial = failed.said.contains("missing PV");
                match (missing.contains(&true), partial) {
                    (true, false) => Err(explained(Errno::ENODEV, "no such device")),
                    _ => Err(failed.advised(
                        Errno::EIO,
                        "lvm cannot activate it",
                        "where a physical volume is missing, give its disk with another -a",
                    )),
                }
            }
        }
    }

    /// All logical volumes that could hold something. None where there is no physical volume.
    ///
    /// # Errors
    /// `EIO` with what lvm said.
    pub fn list(&self) -> Result<Vec<Logical>, Failure> {
        if self.physical.is_empty() {
            return Ok(Vec::new());
        }
        let columns = ["lvs", "--noheadings", "--options", "vg_name,lv_name,lv_attr"];
        match self.run(&columns)? {
            Ok(printed) => Ok(printed.lines().filter_map(logical_in).collect()),
            Err(failed) => Err(failed.explained(Errno::EIO, "lvm cannot list the volumes")),
        }
    }

    /// What LVM says of all physical volumes, groups and logical volumes. Nothing where there is no
    /// physical volume.
    ///
    /// # Errors
    /// `EIO` with what lvm said.
    pub fn report(&self) -> Result<Report, Failure> {
        if self.physical.is_empty() {
            return Ok(Report::default());
        }
        let of = |command: &str, columns: &str| {
            let numbers = ["--units", "b", "--nosuffix"];
            let table = ["--noheadings", "--separator", "|", "--options", columns];
            // Not the volumes that only others are made of, such as pools.
            let public: &[&str] =
                if command == "lvs" { &["--select", "lv_role=public"] } else { &[] };
            match self.run(&[&[command], &numbers[..], &table[..], public].concat())? {
                Ok(printed) => Ok(printed),
                Err(failed) => Err(failed.explained(Errno::EIO, "lvm cannot list the volumes")),
            }
        };
        let physical = of("pvs", "pv_name,pv_size,pv_uuid,vg_name,vg_size,vg_uuid")?;
        let logical = of("lvs", "vg_name,lv_name,lv_uuid")?;
        Ok(Report::parse(&physical, &logical))
    }

    fn run(&self, words: &[&str]) -> Result<Result<String, crate::programs::Failed>, Failure> {
        let nodes: Vec<_> = self.physical.iter().map(|one| one.node.to_string_lossy()).collect();
        let devices = nodes.join(",");
        let (command, rest) = words.split_first().expect("every call names a command");
        let mut arguments = vec![*command, "--config", CONFIG];
        if !devices.is_empty() {
            arguments.extend(["--devices", &devices]);
        }
        arguments.extend(rest);
        self.programs.run(self.modules, "lvm", &arguments, &[])
    }
}

/// What LVM says of its volumes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Physical volumes: node, bytes, UUID, group.
    pub physical: Vec<(PathBuf, u64, String, Option<PlainName>)>,
    /// Groups.
    pub groups: Vec<VolumeGroup>,
    /// Logical volumes with their UUIDs.
    pub logical: Vec<(Logical, String)>,
}

impl Report {
    /// Reads lines of fields between bars. What cannot be read is left out.
    fn parse(physical: &str, logical: &str) -> Self {
        let mut report = Self::default();
        for line in physical.lines() {
            let fields: Vec<&str> = line.trim().split('|').collect();
            let [node, size, uuid, group, group_size, group_uuid] = fields[..] else { continue };
            let group: Option<PlainName> = group.parse().ok();
            let size = size.parse().unwrap_or(0);
            report.physical.push((node.into(), size, uuid.to_owned(), group.clone()));
            if let Some(name) = group
                && !report.groups.iter().any(|known| known.uuid == group_uuid)
            {
                let (size, uuid) = (group_size.parse().unwrap_or(0), group_uuid.to_owned());
                report.groups.push(VolumeGroup { name, size, uuid });
            }
        }
        for line in logical.lines() {
            let fields: Vec<&str> = line.trim().split('|').collect();
            if let [group, volume, uuid] = fields[..]
                && let (Ok(group), Ok(volume)) = (group.parse(), volume.parse())
            {
                report.logical.push((Logical { group, volume }, uuid.to_owned()));
            }
        }
        report
    }
}

/// A line of group, volume and attributes. Pools of thin volumes, whose
/// attributes begin with `t`, hold nothing by themselves. Source: lvs(8).
fn logical_in(line: &str) -> Option<Logical> {
    let mut words = line.split_whitespace();
    let (group, volume, attributes) = (words.next()?, words.next()?, words.next()?);
    if attributes.starts_with('t') {
        return None;
    }
    Some(Logical { group: group.parse().ok()?, volume: volume.parse().ok()? })
}

/// Device-mapper's node, in whose name hyphens are doubled.
fn node_of(Logical { group, volume }: &Logical) -> PathBuf {
    let doubled = |name: &PlainName| name.as_str().replace('-', "--");
    Path::new("/dev/mapper").join(format!("{}-{}", doubled(group), doubled(volume)))
}

/// Two physical volumes with one UUID, if there are such.
fn copies(physical: &[Physical]) -> Option<(&Physical, &Physical)> {
    physical.iter().enumerate().find_map(|(n, one)| {
        let other = physical[n + 1..].iter().find(|other| other.uuid == one.uuid)?;
        Some((one, other))
    })
}

fn clash(one: &Physical, other: &Physical) -> Failure {
    let detail = format!(
        "{} and {} are copies of one physical volume; mount one disk at a time",
        one.name, other.name
    );
    explained(Errno::EEXIST, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logical(group: &str, volume: &str) -> Logical {
        Logical { group: group.parse().unwrap(), volume: volume.parse().unwrap() }
    }

    #[test]
    fn hyphens_in_nodes_are_doubled() {
        let node = node_of(&logical("my-vg", "root"));
        assert_eq!(node, Path::new("/dev/mapper/my--vg-root"));
    }

    #[test]
    fn pools_are_not_listed() {
        assert_eq!(logical_in("  vg root -wi-------"), Some(logical("vg", "root")));
        assert_eq!(logical_in("  vg thin Vwi---tz--"), Some(logical("vg", "thin")));
        assert_eq!(logical_in("  vg pool twi---tz--"), None);
        assert_eq!(logical_in("  WARNING: something"), None);
        assert_eq!(logical_in(""), None);
    }

    #[test]
    fn a_report_is_read_from_its_fields() {
        let physical =
            "  /dev/vda1|100|p1|vg|300|g\n  /dev/vdb|200|p2|vg|300|g\n  /dev/vdc|9|p3||0|\n";
        let report = Report::parse(physical, "  vg|root|l1\n  WARNING: no line\n");
        let group = "vg".parse::<PlainName>().unwrap();
        assert_eq!(report.physical[1], ("/dev/vdb".into(), 200, "p2".into(), Some(group.clone())));
        assert_eq!(report.physical[2].3, None);
        assert_eq!(report.groups, [VolumeGroup { name: group, size: 300, uuid: "g".into() }]);
        assert_eq!(report.logical, [(logical("vg", "root"), "l1".into())]);
    }

    #[test]
    fn copies_are_told_by_their_uuid() {
        let physical = |name: &str, uuid: &str| Physical {
            name: name.to_owned(),
            node: PathBuf::new(),
            uuid: uuid.to_owned(),
        };
        let all = ["a", "b", "a"].map(|uuid| physical(&format!("{uuid}-disk"), uuid));
        assert_eq!(copies(&all), Some((&all[0], &all[2])));
        assert_eq!(copies(&all[..2]), None);
    }
}
