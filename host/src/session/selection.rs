//! Which filesystems are mounted where: as the user named them, as an operating system on the disks
//! has them, or all of them side by side.

use std::collections::BTreeSet;

use guestmnt_protocol::foreign::Foreign;
use guestmnt_protocol::message::{Content, Volume};
use guestmnt_protocol::path::{EntryName, GuestPath, Printable};
use guestmnt_protocol::system::System;
use guestmnt_protocol::volume::{Mountable, VolumeName};
use log::warn;

use super::arrangement::{Arrangement, ArrangementError, Root};
use super::foreign;
use super::keys;
use super::plan::MountSpec;
use crate::guest::Guest;

/// What the user wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// These filesystems, the root first, then by depth (`-m`).
    Named(Vec<MountSpec>),
    /// Those of an operating system: of the only one, or of the one on this filesystem (`-i`).
    System(Option<Mountable>),
    /// All of them, each in a folder named after its device (`--all`).
    Everything,
    /// Disks, partitions and volumes as files (`--blocks`).
    Blocks,
    /// The only filesystem that there is.
    Sole,
}

/// What is known of the encrypted volumes.
#[derive(Clone, Copy, Debug)]
pub struct Encrypted<'a> {
    /// Those that are open.
    pub open: &'a [VolumeName],
    /// Those that the user left closed, when asked for their keys; `None` where nobody can be asked.
    pub declined: Option<&'a [VolumeName]>,
}

impl Encrypted<'_> {
    /// Says which of `volumes` are closed, or wants the key of the first for which it can be asked.
    ///
    /// # Errors
    /// [`ArrangementError::Locked`].
    fn settle(&self, volumes: &[Volume]) -> Result<(), ArrangementError> {
        let encrypted = volumes.iter().filter(|volume| keys::is_closed(volume, volumes));
        let names = encrypted.map(|volume| volume.device.volume());
        let locked: Vec<_> = names.filter(|name| !self.open.contains(name)).collect();
        if let Some(declined) = self.declined
            && let Some(name) = locked.iter().find(|name| !declined.contains(name))
        {
            return Err(ArrangementError::Locked((*name).clone()));
        }
        for name in locked {
            warn!("{name} is encrypted; --key {name}:file:PATH opens it");
        }
        Ok(())
    }
}

impl Selection {
    /// Decides what is mounted where, and says what of it is not there.
    ///
    /// # Errors
    /// [`ArrangementError`].
    pub fn arrange(
        &self,
        guest: &Guest,
        encrypted: Encrypted,
    ) -> Result<Arrangement, ArrangementError> {
        match self {
            Self::Named(specs) => {
                Ok(Arrangement { required: specs.clone(), ..Arrangement::default() })
            }
            Self::System(root) => {
                let systems = guest.systems().map_err(ArrangementError::Guest)?;
                let wanted = root.as_ref();
                if !systems.iter().any(|system| is_wanted(system, wanted)) {
                    // It may be in there.
                    encrypted.settle(&guest.volumes().map_err(ArrangementError::Guest)?)?;
                }
                let system = choose(systems, wanted)?;
                if !system.missing.is_empty() && encrypted.declined.is_some() {
                    // What is missing may be in there too.
                    encrypted.settle(&guest.volumes().map_err(ArrangementError::Guest)?)?;
                }
                Ok(of_system(&system))
            }
            Self::Everything => {
                let volumes = guest.volumes().map_err(ArrangementError::Guest)?;
                encrypted.settle(&volumes)?;
                of_all(&volumes)
            }
            Self::Sole => {
                let volumes = guest.volumes().map_err(ArrangementError::Guest)?;
                let spec = sole(&volumes).ok_or(ArrangementError::NotOne(volumes))?;
                Ok(Arrangement { required: vec![spec], ..Arrangement::default() })
            }
            Self::Blocks => Ok(Arrangement { root: Root::Blocks, ..Arrangement::default() }),
        }
    }
}

fn is_wanted(system: &System, root: Option<&Mountable>) -> bool {
    root.is_none_or(|root| system.root == *root)
}

fn choose(mut systems: Vec<System>, root: Option<&Mountable>) -> Result<System, ArrangementError> {
    let wanted = |system: &System| is_wanted(system, root);
    let count = systems.iter().filter(|system| wanted(system)).count();
    match (count, systems.iter().position(wanted)) {
        (1, Some(at)) => Ok(systems.swap_remove(at)),
        (0, _) | (_, None) => Err(ArrangementError::NoSystem(root.cloned(), systems)),
        _ => Err(ArrangementError::SeveralSystems(systems)),
    }
}

/// The only filesystem among `volumes`.
fn sole(volumes: &[Volume]) -> Option<MountSpec> {
    let mut filesystems = volumes.iter().filter(|volume| {
        matches!(volume.device, Mountable::Volume(_))
            && matches!(volume.content, Content::Filesystem(_))
    });
    let device = filesystems.next()?.device.clone();
    let spec = MountSpec { device, at: GuestPath::root(), options: String::new(), fstype: None };
    filesystems.next().is_none().then_some(spec)
}

fn of_system(system: &System) -> Arrangement {
    for missing in &system.missing {
        warn!("{}", Printable(missing.as_bytes()));
    }
    let spec = |device: &Mountable, at: &GuestPath, options: &str| MountSpec {
        device: device.clone(),
        at: at.clone(),
        options: options.to_owned(),
        fstype: None,
    };
    let root = spec(&system.root, &GuestPath::root(), "");
    let mounts = system.mounts.iter().map(|mount| spec(&mount.device, &mount.at, &mount.options));
    let mut others: Vec<MountSpec> = Vec::new();
    for mount in mounts {
        // A later line of fstab would hide an earlier one.
        if !mount.at.is_root() && !others.iter().any(|other| other.at == mount.at) {
            others.push(mount);
        }
    }
    others.sort_by_key(|mount| mount.at.depth());
    let shown = |device: &Mountable| {
        *device == system.root || others.iter().any(|mount| mount.device == *device)
    };
    for drive in system.drives.iter().filter(|drive| !shown(&drive.device)) {
        let (letter, device) = (drive.letter, &drive.device);
        warn!("{letter} is {device}, which is in no folder of this system; --all shows it");
    }
    Arrangement { root: Root::Filesystem, required: vec![root], others }
}

fn of_all(volumes: &[Volume]) -> Result<Arrangement, ArrangementError> {
    for (name, Foreign { what, advice }) in foreign::among(volumes) {
        warn!("{name} {what}\n  hint: {advice}");
    }
    let mut names = BTreeSet::new();
    let (mut folders, mut others) = (Vec::new(), Vec::new());
    for volume in volumes {
        let (Content::Filesystem(kind), Mountable::Volume(name)) =
            (&volume.content, &volume.device)
        else {
            continue;
        };
        if Foreign::of(kind).is_some() {
            continue;
        }
        let folder = name.file_name();
        let (Ok(entry), Ok(at)) =
            (EntryName::new(folder.as_bytes()), GuestPath::parse(folder.as_bytes()))
        else {
            continue;
        };
        if !names.insert(folder) {
            warn!("{name} is left out: there is a folder {at} already");
            continue;
        }
        // The top holds all subvolumes, which a default one would hide.
        let options = if kind == "btrfs" { "subvolid=5" } else { "" };
        folders.push(entry);
        others.push(MountSpec {
            device: volume.device.clone(),
            at,
            options: options.to_owned(),
            fstype: None,
        });
    }
    if others.is_empty() {
        return Err(ArrangementError::NoFilesystem);
    }
    Ok(Arrangement { root: Root::Folders(folders), required: Vec::new(), others })
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::system::{Family, MountPoint};

    use super::*;

    fn system(root: &str, mounts: &[(&str, &str)]) -> System {
        let mount = |&(device, at): &(&str, &str)| MountPoint {
            device: device.parse().unwrap(),
            at: GuestPath::parse(at.as_bytes()).unwrap(),
            options: String::new(),
        };
        System {
            root: root.parse().unwrap(),
            family: Family::Linux,
            product: "Linux \x1b[31m".to_owned(),
            version: String::new(),
            host_name: "pc".to_owned(),
            users: Vec::new(),
            mounts: mounts.iter().map(mount).collect(),
            drives: Vec::new(),
            missing: Vec::new(),
        }
    }

    #[test]
    fn of_several_systems_the_user_names_one() {
        let two = || vec![system("/dev/sda1", &[]), system("/dev/sdb1", &[])];
        let sdb1 = "/dev/sdb1".parse().unwrap();
        let sdc1 = "/dev/sdc1".parse().unwrap();
        assert_eq!(choose(two(), Some(&sdb1)).unwrap().root, sdb1);
        assert_eq!(choose(vec![system("/dev/sdb1", &[])], None).unwrap().root, sdb1);
        let expected = "there are several operating systems\nWhich one is meant? --root names it:
    /dev/sda1 (Linux \\u{1b}[31m, pc)\n    /dev/sdb1 (Linux \\u{1b}[31m, pc)";
        assert_eq!(choose(two(), None).unwrap_err().to_string(), expected);
        let none = choose(two(), Some(&sdc1)).unwrap_err().to_string();
        assert!(none.starts_with("there is no operating system on /dev/sdc1\nWhich"), "{none}");
        let none = choose(Vec::new(), None).unwrap_err().to_string();
        assert!(none.starts_with("there is no operating system on the disks\n  hint"), "{none}");
    }

    #[test]
    fn a_systems_filesystems_come_by_depth_and_each_place_once() {
        let mounts = [
            ("/dev/sda3", "/home/ann/data"),
            ("/dev/sda2", "/home"),
            ("/dev/sdb1", "/home"),
            ("/dev/sda1", "/"),
        ];
        let arrangement = of_system(&system("/dev/sda1", &mounts));
        let shown = |specs: &[MountSpec]| -> Vec<String> {
            specs.iter().map(|spec| format!("{} {}", spec.device, spec.at)).collect()
        };
        assert_eq!(shown(&arrangement.required), ["/dev/sda1 /"]);
        assert_eq!(shown(&arrangement.others), ["/dev/sda2 /home", "/dev/sda3 /home/ann/data"]);
    }

    #[test]
    fn all_filesystems_have_folders_of_their_own() {
        let volume = |name: &str, content: Content| Volume {
            device: name.parse().unwrap(),
            size: 1,
            content,
            label: String::new(),
            uuid: String::new(),
        };
        let filesystem = |kind: &str| Content::Filesystem(kind.to_owned());
        let volumes = [
            volume("/dev/sda", Content::Partitions("gpt".to_owned())),
            volume("/dev/sda1", filesystem("ext4")),
            volume("/dev/vg/root", filesystem("btrfs")),
            volume("btrfsvol:/dev/vg/root/@", filesystem("btrfs")),
            volume("/dev/sda2", Content::Other("swap".to_owned())),
        ];
        assert_eq!(sole(&volumes), None);
        assert_eq!(sole(&volumes[..2]).unwrap().device, volumes[1].device);
        assert_eq!(sole(&volumes[..1]), None);
        let arrangement = of_all(&volumes).unwrap();
        let shown = |spec: &MountSpec| format!("{} {} {}", spec.device, spec.at, spec.options);
        let shown: Vec<String> = arrangement.others.iter().map(shown).collect();
        assert_eq!(shown, ["/dev/sda1 /sda1 ", "/dev/vg/root /vg-root subvolid=5"]);
        assert!(matches!(&arrangement.root, Root::Folders(names) if names.len() == 2));
        assert!(matches!(of_all(&volumes[..1]), Err(ArrangementError::NoFilesystem)));
    }
}
