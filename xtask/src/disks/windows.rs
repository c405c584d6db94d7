//! Two disks of a machine with Windows: its system, and a disk with two volumes, of which one is drive
//! D: and the other is mounted into a folder of C:. Into a folder of that one D: is mounted once more.

use std::fs;
use std::path::Path;

use super::content::Tree;
use super::hive::Key;
use super::ntfs::{Edit, Format, Volume};
use super::pair::Pair;
use super::partitions::{self, Partition, SECTOR};
use super::reparse::Link;
use super::specimens::Specimens;
use crate::Error;

/// The images.
pub const PAIR: Pair =
    Pair { disks: ["windows-c.img", "windows-d.img"], what: "disks of a Windows" };

/// Signatures of the disks, and sectors of a volume and before the first.
const IDS: [u32; 2] = [0x1122_3344, 0x5566_7788];
const SECTORS: u64 = 32 << 11;
const FIRST: u64 = 2048;

/// The volumes: by the number of the disk, the first sector, and the GUID that Windows gave it.
struct Known {
    disk: usize,
    start: u64,
    guid: &'static str,
}

const C: Known = Known { disk: 0, start: FIRST, guid: "4c1b02c1-d990-11dc-99ae-806e6f6e6963" };
const D: Known = Known { disk: 1, start: FIRST, guid: "4c1b02c2-d990-11dc-99ae-806e6f6e6963" };
const DATA: Known =
    Known { disk: 1, start: FIRST + SECTORS, guid: "4c1b02c3-d990-11dc-99ae-806e6f6e6963" };

/// Makes the disks in the folder of `specimens` if they are missing, or notes why it cannot.
///
/// # Errors
/// As [`Pair::ensure`].
pub fn ensure(specimens: &Specimens) -> Result<(), Error> {
    PAIR.ensure(specimens, make)
}

/// A volume on the first of the disks.
pub struct Placed {
    /// Its first sector.
    pub start: u64,
    /// Sectors.
    pub sectors: u64,
    /// The disk's signature, by which `MountedDevices` knows it.
    pub disk_id: u32,
}

impl Placed {
    /// Which bytes of the disk it has.
    ///
    /// # Panics
    /// On machines that cannot address a small disk.
    #[must_use]
    pub fn bytes(&self) -> std::ops::Range<usize> {
        let byte = |sector: u64| usize::try_from(sector * SECTOR).expect("a small disk");
        byte(self.start)..byte(self.start + self.sectors)
    }
}

/// The volume that is drive C:.
#[must_use]
pub fn system_volume() -> Placed {
    Placed { start: C.start, sectors: SECTORS, disk_id: IDS[C.disk] }
}

fn make(staging: &Path) -> Result<(), Error> {
    let volume = |known: &Known, name: &str, files: &[(&str, &[u8])], folders: &[&str]| {
        let folder = staging.join(name);
        let tree = Tree::new(&folder)?;
        for folder in folders {
            tree.folder(folder)?;
        }
        for (path, bytes) in files {
            let file = folder.join(path);
            fs::write(&file, bytes).map_err(Error::file("write", &file))?;
        }
        let format = Format { sectors: SECTORS, start: known.start, label: name };
        let volume = Volume::format(staging.join(format!("{name}.raw")), &format)?;
        volume.edit(&[Edit::Tree(&folder)])?;
        Ok::<Volume, Error>(volume)
    };
    let link = |link: Link, at: &str, target: &str| Edit::Link {
        at: at.to_owned(),
        link,
        target: format!("\\??\\{target}"),
    };
    let point =
        |at: &str, known: &Known| link(Link::Junction, at, &format!("Volume{{{}}}\\", known.guid));
    let config = "Windows/System32/config";
    let (system_hive, software_hive) = (format!("{config}/SYSTEM"), format!("{config}/SOFTWARE"));
    let (system, software) = (system().hive(), software().hive());
    let files = [
        (system_hive.as_str(), system.as_slice()),
        (software_hive.as_str(), &software),
        ("Users/ann/letter.txt", b"Dear reader\r\n"),
        ("links/file", b""),
        ("links/relative", b""),
    ];
    let folders = [
        "Windows",
        "Windows/System32",
        config,
        "Users",
        "Users/ann",
        "mounts",
        "mounts/mnt4",
        "mounts/gone",
        "links",
        "links/junction",
        "links/to-d",
        "links/to-volume",
        "links/to-e",
        "links/symbolic",
        "links/rooted",
    ];
    let c = volume(&C, "system", &files, &folders)?;
    let gone = Known { guid: "4c1b02ff-d990-11dc-99ae-806e6f6e6963", ..C };
    c.edit(&[
        point("mounts/mnt4", &DATA),
        point("mounts/gone", &gone),
        link(Link::Junction, "links/junction", "C:\\Users\\ann"),
        link(Link::Junction, "links/to-d", "D:\\"),
        link(Link::Junction, "links/to-volume", &format!("Volume{{{}}}\\Deeper", DATA.guid)),
        link(Link::Junction, "links/to-e", "E:\\nothing"),
        link(Link::Absolute, "links/symbolic", "c:\\USERS\\ann"),
        link(Link::Absolute, "links/file", "C:\\Users\\ann\\letter.txt"),
        Edit::Link {
            at: "links/rooted".to_owned(),
            link: Link::Relative,
            target: "\\Users".to_owned(),
        },
        Edit::Link {
            at: "links/relative".to_owned(),
            link: Link::Relative,
            target: "..\\Users\\ann\\letter.txt".to_owned(),
        },
    ])?;
    let d = volume(&D, "d", &[("d.txt", b"drive D\n")], &["back"])?;
    d.edit(&[link(Link::Junction, "back", "C:\\Users")])?;
    let data = volume(&DATA, "data", &[("data.txt", b"data\n")], &["deeper"])?;
    data.edit(&[point("deeper", &D)])?;

    let rows: [&[(&Known, &Path)]; 2] =
        [&[(&C, c.image())], &[(&D, d.image()), (&DATA, data.image())]];
    for ((name, id), rows) in PAIR.disks.iter().zip(IDS).zip(rows) {
        let rows: Vec<Partition> =
            rows.iter().map(|(known, image)| Partition { start: known.start, image }).collect();
        let disk = staging.join(name);
        partitions::ntfs_disk(&disk, FIRST + 2 * SECTORS, id, &rows)?;
    }
    Ok(())
}

fn system() -> Key {
    let mut system = Key::root();
    system.at("Select").set("Current", 1).set("Default", 1);
    let name = "ControlSet001\\Control\\ComputerName\\ComputerName";
    system.at(name).set("ComputerName", "WORK-PC");
    let place = |known: &Known| {
        let start = known.start * SECTOR;
        [IDS[known.disk].to_le_bytes().as_slice(), &start.to_le_bytes()].concat()
    };
    let mounted = system.at("MountedDevices");
    mounted.set("\\DosDevices\\C:", place(&C)).set("\\DosDevices\\D:", place(&D));
    for known in [&C, &D, &DATA] {
        mounted.set(&format!("\\??\\Volume{{{}}}", known.guid), place(known));
    }
    system
}

fn software() -> Key {
    let mut software = Key::root();
    let version = software.at("Microsoft\\Windows NT\\CurrentVersion");
    version
        .set("ProductName", "Windows 7 Professional")
        .set("CurrentVersion", "6.1")
        .set("CurrentBuild", "7601");
    let ann = version.at("ProfileList\\S-1-5-21-1111-2222-3333-1000");
    ann.set("ProfileImagePath", "C:\\Users\\ann");
    software
}
