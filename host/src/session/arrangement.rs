//! Which filesystems are mounted where: as the user named them, as an operating system on the disks
//! has them, or all of them side by side.
//!
//! What the guest says of its systems is the image's word: a mount that does not work out is told
//! and left out, unless the user asked for it or it is the root.

use std::collections::BTreeSet;
use std::fmt;

use guestmnt_protocol::limits::MAX_REMARKS;
use guestmnt_protocol::message::{Content, Dirty, MountRequest, NameMatching, Volume};
use guestmnt_protocol::path::{EntryName, GuestPath, Printable};
use guestmnt_protocol::system::System;
use guestmnt_protocol::volume::{Mountable, VolumeName};
use log::{info, warn};

use super::keys;
use super::launch::Suggestions;
use super::plan::MountSpec;
use crate::guest::{Guest, GuestError};

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

/// What is mounted where, once that is decided: enough to mount it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrangement {
    root: Root,
    /// What cannot be done without.
    required: Vec<MountSpec>,
    /// What else is mounted if it can be.
    others: Vec<MountSpec>,
}

/// What the root is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Root {
    /// A filesystem.
    #[default]
    Filesystem,
    /// One of the guest's own with these folders.
    Folders(Vec<EntryName>),
    /// Devices as files.
    Blocks,
}

/// Why nothing is mounted.
#[derive(Debug)]
pub enum ArrangementError {
    /// There is no operating system, or none on the filesystem that was named.
    NoSystem(Option<Mountable>, Vec<System>),
    /// There are several.
    SeveralSystems(Vec<System>),
    /// There is no filesystem that can be mounted.
    NoFilesystem,
    /// None was named, and there is not one alone.
    NotOne(Vec<Volume>),
    /// This one cannot be mounted.
    Mount(Box<MountSpec>, GuestError),
    /// The guest broke down.
    Guest(GuestError),
}

impl fmt::Display for ArrangementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSystem(Some(root), systems) if !systems.is_empty() => {
                write!(f, "there is no operating system on {root}{}", Choice(systems))
            }
            Self::NoSystem(..) => f.write_str(
                "there is no operating system on the disks\n  hint: --all shows all filesystems, \
                 -m one that is named",
            ),
            Self::SeveralSystems(systems) => {
                write!(f, "there are several operating systems{}", Choice(systems))
            }
            Self::NoFilesystem => f.write_str(
                "there is no filesystem on the disks that can be mounted\n  hint: guestimg \
                 filesystems --all lists what is there",
            ),
            Self::NotOne(volumes) => {
                write!(f, "no filesystem is named with -m{}", Suggestions(volumes))
            }
            Self::Mount(spec, error) => {
                write!(f, "cannot mount {} on {}: {error}", spec.device, spec.at)
            }
            Self::Guest(error) => write!(f, "the appliance failed: {error}"),
        }
    }
}

impl std::error::Error for ArrangementError {}

/// The systems that there are to choose from.
struct Choice<'a>(&'a [System]);

impl fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\nWhich one is meant? --root names it:")?;
        self.0.iter().try_for_each(|system| {
            let product = match system.product.as_str() {
                "" => "unnamed",
                product => product,
            };
            write!(f, "\n    {} ({}", system.root, Printable(product.as_bytes()))?;
            if !system.host_name.is_empty() {
                write!(f, ", {}", Printable(system.host_name.as_bytes()))?;
            }
            f.write_str(")")
        })
    }
}

impl Selection {
    /// Decides what is mounted where, and says what of it is not there. `keyed` are the encrypted
    /// volumes that are open.
    ///
    /// # Errors
    /// [`ArrangementError`].
    pub fn arrange(
        &self,
        guest: &Guest,
        keyed: &[VolumeName],
    ) -> Result<Arrangement, ArrangementError> {
        match self {
            Self::Named(specs) => {
                Ok(Arrangement { required: specs.clone(), ..Arrangement::default() })
            }
            Self::System(root) => {
                let systems = guest.systems().map_err(ArrangementError::Guest)?;
                if systems.is_empty() {
                    // It may be in there.
                    tell_locked(&guest.volumes().map_err(ArrangementError::Guest)?, keyed);
                }
                let system = choose(systems, root.as_ref())?;
                Ok(of_system(&system))
            }
            Self::Everything => {
                let volumes = guest.volumes().map_err(ArrangementError::Guest)?;
                tell_locked(&volumes, keyed);
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

/// Says which encrypted volumes no key has opened.
fn tell_locked(volumes: &[Volume], keyed: &[VolumeName]) {
    let locked = volumes.iter().filter(|volume| keys::is_encrypted(volume));
    for volume in locked.filter(|volume| !keyed.contains(volume.device.volume())) {
        let device = &volume.device;
        warn!("{device} is encrypted; --key {device}:file:PATH opens it");
    }
}

fn choose(mut systems: Vec<System>, root: Option<&Mountable>) -> Result<System, ArrangementError> {
    let wanted = |system: &System| root.is_none_or(|root| system.root == *root);
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
    let mut names = BTreeSet::new();
    let (mut folders, mut others) = (Vec::new(), Vec::new());
    for volume in volumes {
        let (Content::Filesystem(kind), Mountable::Volume(name)) =
            (&volume.content, &volume.device)
        else {
            continue;
        };
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

impl Arrangement {
    /// Mounts everything in the guest, where nothing is mounted yet; for writing where `writing` says
    /// what to do with a dirty filesystem. What was mounted is an arrangement that can do without
    /// none of it. Tells too how the filesystems that can be written compare names, loosely if one
    /// of them does.
    ///
    /// # Errors
    /// [`ArrangementError::Mount`] for the first that cannot be done without,
    /// [`ArrangementError::NoFilesystem`] where nothing at all could be mounted.
    pub fn mount(
        self,
        guest: &Guest,
        writing: Option<Dirty>,
    ) -> Result<(Self, NameMatching), ArrangementError> {
        let mut names = NameMatching::Exact;
        let mut mount = |spec: &MountSpec| {
            if mount(guest, spec, writing)? == NameMatching::Loose {
                names = NameMatching::Loose;
            }
            Ok(())
        };
        let root = match &self.root {
            Root::Filesystem => Ok(()),
            Root::Folders(names) => guest.mount_folders(names.clone()),
            Root::Blocks => guest.show_blocks(),
        };
        root.map_err(ArrangementError::Guest)?;
        for spec in &self.required {
            mount(spec).map_err(|error| match error {
                GuestError::Failed(_) => ArrangementError::Mount(Box::new(spec.clone()), error),
                broken => ArrangementError::Guest(broken),
            })?;
        }
        let (mut mounted, offered) = (self.required, !self.others.is_empty());
        for spec in self.others {
            match mount(&spec) {
                Ok(()) => mounted.push(spec),
                Err(error @ GuestError::Failed(_)) => {
                    warn!("cannot mount {} on {}: {error}", spec.device, spec.at);
                }
                Err(broken) => return Err(ArrangementError::Guest(broken)),
            }
        }
        if mounted.is_empty() && offered {
            return Err(ArrangementError::NoFilesystem);
        }
        Ok((Self { root: self.root, required: mounted, others: Vec::new() }, names))
    }
}

/// Tells what the guest says of a filesystem that is mounted.
fn pass_on(remarks: Vec<String>) {
    for remark in remarks.iter().take(MAX_REMARKS) {
        warn!("{}", Printable(remark.as_bytes()));
    }
}

fn mount(
    guest: &Guest,
    spec: &MountSpec,
    writing: Option<Dirty>,
) -> Result<NameMatching, GuestError> {
    info!("mounting {} on {}", spec.device, spec.at);
    let request = MountRequest::from(spec);
    let Some(dirty) = writing else {
        pass_on(guest.mount(request)?);
        return Ok(NameMatching::Exact);
    };
    let (how, remarks) = guest.mount_writable(request, dirty)?;
    pass_on(remarks);
    if let Some(reason) = how.read_only {
        let mut lines = reason.lines().map(|line| Printable(line.as_bytes()).to_string());
        warn!("{} is mounted read-only: {}", spec.device, lines.next().unwrap_or_default());
        lines.for_each(|line| warn!("    {line}"));
    }
    Ok(how.names)
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
