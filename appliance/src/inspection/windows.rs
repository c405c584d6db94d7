//! Windows: what its registry says of it, of its users, and of the drives that it knows.

use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::system::{Drive, Family, MountPoint, System, User};
use guestmnt_protocol::volume::{Mountable, VolumeName};

use super::hive::{Hive, Key};
use super::hive_log::State;
use super::mounted_devices::MountedDevices;
use super::named::Volumes;
use super::{MAX_ITEMS, Mounted, words};
use crate::mount_points::{VolumeMount, VolumeMounts};
use crate::reparse::Root;

/// Where the registry is, in the spelling of most.
const REGISTRY: [&str; 2] = ["Windows/System32/config", "WINNT/system32/config"];

/// What the names of a hive's logs end in.
const LOGS: [&str; 3] = ["LOG1", "LOG2", "LOG"];

/// From which build on it is Windows 11, though it calls itself 10.
const ELEVEN: u32 = 22_000;

/// Tells the mount points of an NTFS volume.
pub type PointsOf<'a> = &'a dyn Fn(&VolumeName) -> VolumeMounts;

/// The Windows on `mounted`, if there is one.
pub fn system_on(
    mounted: &Mounted,
    root: &Mountable,
    volumes: &Volumes,
    points_of: PointsOf,
) -> Option<System> {
    let registry = Registry::on(mounted)?;
    let system = registry.hive("SYSTEM")?;
    let software = registry.hive("SOFTWARE");
    let version = software.as_ref().and_then(Version::of).unwrap_or_default();
    let control = format!("ControlSet{:03}", control_set(&system));
    let computer = system.key(&format!("{control}\\Control\\ComputerName\\ComputerName"));
    let host_name = computer.and_then(|key| text(&key, "ComputerName"));
    let known = MountedDevices::of(&system);
    let known: Vec<(&Root, &VolumeName)> = known.volumes(volumes, root.volume()).collect();
    let (mounts, mut missing) = mounts(&known, root, points_of);
    for (name, hive) in [("SYSTEM", Some(&system)), ("SOFTWARE", software.as_ref())] {
        if hive.is_some_and(|hive| hive.state() == State::Incomplete) {
            missing
                .push(format!("the last changes of {name}, which was not closed, are in no log"));
        }
    }
    Some(System {
        root: root.clone(),
        family: Family::Windows,
        product: version.product,
        version: version.number,
        host_name: host_name.unwrap_or_default(),
        users: software.as_ref().map(users).unwrap_or_default(),
        mounts,
        drives: drives(&known),
        missing,
    })
}

/// What the Windows on `mounted` remembers of volumes, if there is one.
pub fn remembered_by(mounted: &Mounted) -> Option<MountedDevices> {
    Registry::on(mounted)?.hive("SYSTEM").map(|system| MountedDevices::of(&system))
}

/// The folder of the registry's files.
struct Registry<'m> {
    mounted: &'m Mounted,
    folder: String,
}

impl<'m> Registry<'m> {
    fn on(mounted: &'m Mounted) -> Option<Self> {
        let folder = REGISTRY.iter().find_map(|path| mounted.spelled(path))?;
        Some(Self { mounted, folder })
    }

    fn hive(&self, name: &str) -> Option<Hive> {
        let file = |name: &str| {
            let path = self.mounted.spelled(&format!("{}/{name}", self.folder))?;
            self.mounted.file(&path)
        };
        let logs = || LOGS.iter().filter_map(|log| file(&format!("{name}.{log}"))).collect();
        Hive::open(file(name)?, logs)
    }
}

/// The number of the control set that Windows starts with.
fn control_set(system: &Hive) -> u32 {
    let current = system.key("Select").and_then(|key| key.value("Current")?.number());
    current.filter(|number| (1..1000).contains(number)).unwrap_or(1)
}

fn text(key: &Key, name: &str) -> Option<String> {
    key.value(name)?.text().map(|text| words(&text))
}

#[derive(Default)]
struct Version {
    product: String,
    number: String,
}

impl Version {
    fn of(software: &Hive) -> Option<Self> {
        let key = software.key("Microsoft\\Windows NT\\CurrentVersion")?;
        let number = |name: &str| key.value(name)?.number();
        let build = text(&key, "CurrentBuild").or_else(|| text(&key, "CurrentBuildNumber"));
        let build = build.unwrap_or_default();
        let old = || text(&key, "CurrentVersion").unwrap_or_default();
        let major = number("CurrentMajorVersionNumber").zip(number("CurrentMinorVersionNumber"));
        let version = major.map_or_else(old, |(major, minor)| format!("{major}.{minor}"));
        let mut product = text(&key, "ProductName").unwrap_or_default();
        if build.parse().is_ok_and(|build: u32| build >= ELEVEN) {
            product = product.replacen("Windows 10", "Windows 11", 1);
        }
        let number = if build.is_empty() { version } else { format!("{version}.{build}") };
        Some(Self { product, number })
    }
}

/// Those whose profiles Windows keeps; services have short identifiers.
fn users(software: &Hive) -> Vec<User> {
    let list = software.key("Microsoft\\Windows NT\\CurrentVersion\\ProfileList");
    let profiles =
        list.iter().flat_map(Key::subkeys).filter(|key| key.name().starts_with("S-1-5-21-"));
    let user = |profile: Key| {
        let home = text(&profile, "ProfileImagePath")?;
        let name = home.rsplit('\\').next().unwrap_or(&home).to_owned();
        Some(User { name, home })
    };
    profiles.filter_map(user).take(MAX_ITEMS).collect()
}

/// The drives whose volumes are on the disks.
fn drives(known: &[(&Root, &VolumeName)]) -> Vec<Drive> {
    let drive = |&(root, volume): &(&Root, &VolumeName)| match root {
        Root::Drive(letter) => Some(Drive { letter: *letter, device: volume.clone().into() }),
        Root::Own | Root::Volume(_) => None,
    };
    let mut drives: Vec<Drive> = known.iter().filter_map(drive).collect();
    drives.sort_by_key(|drive| drive.letter);
    drives.dedup_by_key(|drive| drive.letter);
    drives
}

/// What is mounted into folders of `root`, and into folders of that; and which of it is not there.
fn mounts(
    known: &[(&Root, &VolumeName)],
    root: &Mountable,
    points_of: PointsOf,
) -> (Vec<MountPoint>, Vec<String>) {
    let (mut mounts, mut missing) = (Vec::new(), Vec::new());
    // A volume can be mounted into one of its own folders: each is shown once.
    let mut seen = vec![root.volume().clone()];
    let mut todo = vec![(root.volume().clone(), GuestPath::root())];
    while let Some((volume, place)) = todo.pop() {
        let VolumeMounts { points, is_incomplete } = points_of(&volume);
        if is_incomplete {
            missing.push(words(&format!(
                "some mount points of {volume}: its index of them cannot be read whole"
            )));
        }
        for VolumeMount { at, volume: guid } in points {
            let at = [place.as_bytes(), at.as_bytes()].join(&b'/');
            let Ok(at) = GuestPath::parse(&at) else { continue };
            if mounts.len() + missing.len() >= MAX_ITEMS {
                return (mounts, missing);
            }
            let meant = Root::Volume(guid.clone());
            match known.iter().find(|(root, _)| root.is_same(&meant)).map(|(_, volume)| *volume) {
                Some(volume) if seen.contains(volume) => {}
                Some(volume) => {
                    seen.push(volume.clone());
                    todo.push((volume.clone(), at.clone()));
                    let device = volume.clone().into();
                    mounts.push(MountPoint { device, at, options: String::new() });
                }
                None => missing.push(words(&format!("{at}: Volume{{{guid}}} is not there"))),
            }
        }
    }
    (mounts, missing)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use xtask::disks::hive::{Key, Log};

    use super::super::named::tests::volumes;
    use super::*;

    fn found_in(folder: &Path) -> Option<System> {
        let mounted = Mounted::folder(folder).unwrap();
        system_on(&mounted, &"/dev/sda2".parse().unwrap(), &volumes(), &points_of)
    }

    /// Volumes in folders of each other, in a circle, and one that is not there.
    fn points_of(volume: &VolumeName) -> VolumeMounts {
        let point = |at: &str, volume: &str| VolumeMount {
            at: GuestPath::parse(at.as_bytes()).unwrap(),
            volume: volume.to_owned(),
        };
        let points = match volume.to_string().as_str() {
            "/dev/sda2" => vec![point("/mnt/one", "AAAA"), point("/gone", "dddd")],
            "/dev/sdc1" => vec![point("/two", "bbbb"), point("/back", "cccc")],
            _ => Vec::new(),
        };
        // The index of the last one is damaged.
        VolumeMounts { points, is_incomplete: volume.to_string() == "/dev/sda1" }
    }

    fn system_hive() -> Key {
        let mut system = Key::root();
        system.at("Select").set("Current", 2);
        let name = "ControlSet002\\Control\\ComputerName\\ComputerName";
        system.at(name).set("ComputerName", "WORK");
        let place =
            |start: u64| [0x1234_5678_u32.to_le_bytes().as_slice(), &start.to_le_bytes()].concat();
        let guid = [
            0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47,
            0x7d, 0xe4,
        ];
        // As the database of dynamic disks has the same.
        let dynamic = 0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4_u128.to_be_bytes();
        system
            .at("MountedDevices")
            .set("\\DosDevices\\D:", [b"DMIO:ID:".as_slice(), &guid].concat())
            .set("\\DosDevices\\C:", place(2 << 20))
            .set("\\DosDevices\\E:", place(77 << 20))
            .set("\\DosDevices\\G:", [b"DMIO:ID:".as_slice(), &dynamic].concat())
            .set("\\DosDevices\\F:", b"\\\0?\0?\0\\\0U\0S\0B\0".to_vec())
            .set("\\DosDevices\\CD:", place(2 << 20))
            .set("\\??\\Volume{aaaa}", [b"DMIO:ID:".as_slice(), &guid].concat())
            .set("\\??\\Volume{bbbb}", place(1 << 20))
            .set("\\??\\Volume{cccc}", place(2 << 20));
        system
    }

    #[test]
    fn a_windows_says_what_it_is_and_which_drives_it_knows() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("WINDOWS/system32/config");
        fs::create_dir_all(&config).unwrap();
        assert_eq!(found_in(folder.path()), None);
        fs::write(config.join("system"), system_hive().hive()).unwrap();
        let bare = found_in(folder.path()).unwrap();
        assert_eq!((bare.host_name.as_str(), bare.product.as_str()), ("WORK", ""));
        let drives: Vec<String> =
            bare.drives.iter().map(|drive| format!("{} {}", drive.letter, drive.device)).collect();
        assert_eq!(drives, ["C: /dev/sda2", "D: /dev/sdc1", "G: /dev/sdc1"]);

        let mounts: Vec<String> =
            bare.mounts.iter().map(|mount| format!("{} {}", mount.at, mount.device)).collect();
        assert_eq!(mounts, ["/mnt/one /dev/sdc1", "/mnt/one/two /dev/sda1"]);
        let missing = [
            "/gone: Volume{dddd} is not there",
            "some mount points of /dev/sda1: its index of them cannot be read whole",
        ];
        assert_eq!(bare.missing, missing);

        let mut software = Key::root();
        software
            .at("Microsoft\\Windows NT\\CurrentVersion")
            .set("ProductName", "Windows 10 Pro")
            .set("CurrentVersion", "6.3")
            .set("CurrentBuild", "22631")
            .set("CurrentMajorVersionNumber", 10)
            .set("CurrentMinorVersionNumber", 0);
        let profiles = "Microsoft\\Windows NT\\CurrentVersion\\ProfileList";
        for (id, path) in
            [("S-1-5-18", "%systemroot%\\x"), ("S-1-5-21-1-2-3-1001", "C:\\Users\\ann")]
        {
            software.at(profiles).at(id).set("ProfileImagePath", path);
        }
        fs::write(config.join("software"), software.hive()).unwrap();
        let full = found_in(folder.path()).unwrap();
        assert_eq!(full.product, "Windows 11 Pro");
        assert_eq!(full.version, "10.0.22631");
        let home = "C:\\Users\\ann".to_owned();
        assert_eq!(full.users, [User { name: "ann".to_owned(), home }]);
    }

    #[test]
    fn a_registry_that_was_not_closed_is_completed_or_called_incomplete() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("Windows/System32/config");
        fs::create_dir_all(&config).unwrap();
        let left = Log::dirty(Key::root().hive(), 7);
        fs::write(config.join("SYSTEM"), &left).unwrap();
        let missing = "the last changes of SYSTEM, which was not closed, are in no log";
        assert_eq!(found_in(folder.path()).unwrap().missing.last().unwrap(), missing);
        let log = Log::of(&left).entry(7, &system_hive().hive()).finish();
        fs::write(config.join("system.log2"), log).unwrap();
        let found = found_in(folder.path()).unwrap();
        assert_eq!((found.host_name.as_str(), found.drives.len()), ("WORK", 3));
        assert!(!found.missing.iter().any(|line| line == missing), "{:?}", found.missing);
    }

    #[test]
    fn whatever_bit_of_a_hive_is_wrong_nothing_panics() {
        let good = system_hive().hive();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("Windows/System32/config");
        fs::create_dir_all(&config).unwrap();
        // All that is not padding lies in the first bin's beginning.
        for at in (0..0x40).chain(4096..4096 + 0x400) {
            for wrong in [0, 0x80, 0xff] {
                let mut hive = good.clone();
                hive[at] = wrong;
                fs::write(config.join("SYSTEM"), hive).unwrap();
                let _ = found_in(folder.path());
            }
        }
    }
}
