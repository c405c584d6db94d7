//! Btrfs beyond one device and one tree: which devices belong together, and which subvolumes there
//! are.
//!
//! The kernel takes a filesystem's devices as options of the mount, so that nothing has to be
//! scanned. Follows fs/btrfs/accessors.h and uapi/linux/btrfs_tree.h of Linux 6.12.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::path::GuestPath;

use crate::failure::explained;
use crate::modules::Modules;
use crate::programs::Programs;

/// Where the superblock begins, in bytes.
const SUPERBLOCK: u64 = 0x1_0000;

/// The flag of a seed in its superblock; `BTRFS_SUPER_FLAG_SEEDING`.
const SEEDING: u64 = 1 << 32;

/// Where a filesystem is mounted for its subvolumes to be listed.
const PLACE: &str = "/run/btrfs";

/// What a device's superblock says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The filesystem.
    pub filesystem: [u8; 16],
    /// How many devices that has.
    pub devices: u64,
    /// The device's number among them.
    pub number: u64,
    /// Whether it is a seed: other filesystems grew out of it, with identifiers of their own, and need it.
    pub is_seed: bool,
}

impl Superblock {
    /// Of the device with this node; `None` where it is none of Btrfs or cannot be read.
    #[must_use]
    pub fn of(node: &Path) -> Option<Self> {
        let mut bytes = [0; 0x200];
        File::open(node).ok()?.read_exact_at(&mut bytes, SUPERBLOCK).ok()?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; 0x200]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(*bytes[at..].first_chunk()?));
        (bytes[0x40..0x48] == *b"_BHRfS_M").then_some(())?;
        Some(Self {
            filesystem: *bytes[0x20..].first_chunk()?,
            devices: number(0x88)?,
            number: number(0xc9)?,
            is_seed: number(0x38)? & SEEDING != 0,
        })
    }
}

/// The devices of a filesystem.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// The mount options that name them.
    pub options: String,
    /// How many are not there, of how many.
    pub missing: Option<(u64, u64)>,
}

/// The other devices of the filesystem of which `own` is one, given all nodes there are. None for a
/// filesystem on one device, for which `nodes` is not called.
///
/// # Errors
/// `EEXIST` where two nodes claim to be the same device of it.
pub fn devices(own: &Path, nodes: impl FnOnce() -> Vec<PathBuf>) -> Result<Devices, Failure> {
    let Some(superblock) = Superblock::of(own).filter(|superblock| superblock.devices > 1) else {
        return Ok(Devices::default());
    };
    let others = nodes().into_iter().filter(|node| node != own);
    let others = others.filter_map(|node| Some((Superblock::of(&node)?, node)));
    among(superblock, others.collect())
}

fn among(own: Superblock, nodes: Vec<(Superblock, PathBuf)>) -> Result<Devices, Failure> {
    let mut seen = vec![(own.filesystem, own.number)];
    let mut options = Vec::new();
    for (superblock, node) in nodes {
        // Which seed it grew out of stands in its trees; the driver takes no harm from others.
        if superblock.filesystem != own.filesystem && !superblock.is_seed {
            continue;
        }
        let device = (superblock.filesystem, superblock.number);
        if seen.contains(&device) {
            return Err(explained(
                Errno::EEXIST,
                "there are copies of its devices; mount one copy at a time",
            ));
        }
        seen.push(device);
        options.push(format!("device={}", node.display()));
    }
    let missing = own.devices.checked_sub(seen.len() as u64).filter(|missing| *missing > 0);
    if missing.is_some() {
        options.push("degraded".to_owned());
    }
    let missing = missing.map(|missing| (missing, own.devices));
    Ok(Devices { options: options.join(","), missing })
}

/// The option by which a subvolume is mounted.
///
/// # Errors
/// `EINVAL` for a path that cannot stand among options.
pub fn subvolume_option(path: &GuestPath) -> Result<String, Failure> {
    match std::str::from_utf8(path.as_bytes()) {
        Ok(text) if !text.contains([',', '\\']) => Ok(format!("subvol=/{text}")),
        _ => Err(explained(Errno::EINVAL, "a subvolume with a comma in its path cannot be named")),
    }
}

/// The subvolumes of the filesystem on `node`, without its top.
///
/// # Errors
/// As mount(2), and with what btrfs said.
pub fn subvolumes(
    node: &Path,
    device_options: &str,
    programs: &Programs,
    modules: &Modules,
) -> Result<Vec<GuestPath>, Failure> {
    let plain = |errno: Errno| explained(errno, errno.desc());
    std::fs::create_dir_all(PLACE).map_err(|error| plain(crate::failure::errno_of(&error)))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = match device_options {
        "" => "subvolid=5".to_owned(),
        others => format!("subvolid=5,{others}"),
    };
    // A module that is missing is one that is built in, or mounting fails.
    let _ = modules.load("btrfs");
    mount(Some(node), PLACE, Some("btrfs"), flags, Some(options.as_str())).map_err(plain)?;
    let listed = programs.run(modules, "btrfs", &["subvolume", "list", PLACE], &[]);
    umount2(PLACE, MntFlags::empty()).map_err(plain)?;
    match listed? {
        Ok(printed) => Ok(printed.lines().filter_map(path_in).collect()),
        Err(failed) => Err(failed.explained(Errno::EIO, "btrfs cannot list the subvolumes")),
    }
}

/// The path in a line such as `ID 256 gen 7 top level 5 path @home`.
fn path_in(line: &str) -> Option<GuestPath> {
    let (_, path) = line.split_once(" path ")?;
    GuestPath::new(path.as_bytes().to_vec()).ok().filter(|path| !path.is_root())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(filesystem: u8, number: u64) -> Superblock {
        Superblock { filesystem: [filesystem; 16], devices: 3, number, is_seed: false }
    }

    #[test]
    fn a_superblock_says_which_device_it_is() {
        let mut bytes = [0; 0x200];
        bytes[0x20..0x30].copy_from_slice(&[7; 16]);
        bytes[0x40..0x48].copy_from_slice(b"_BHRfS_M");
        bytes[0x88] = 3;
        bytes[0xc9] = 2;
        assert_eq!(Superblock::parse(&bytes), Some(superblock(7, 2)));
        bytes[0x40] = 0;
        assert_eq!(Superblock::parse(&bytes), None);
    }

    #[test]
    fn the_other_devices_are_named_and_missing_ones_make_it_degraded() {
        let nodes = |numbers: &[(u8, u64)]| {
            let node = |&(filesystem, number): &(u8, u64)| {
                (superblock(filesystem, number), PathBuf::from(format!("/dev/vd{number}")))
            };
            numbers.iter().map(node).collect::<Vec<_>>()
        };
        let own = superblock(1, 1);
        let found =
            |numbers| among(own, nodes(numbers)).map_err(|failure| i32::from(failure.errno));
        let devices = |options: &str, missing| Ok(Devices { options: options.to_owned(), missing });
        let both = "device=/dev/vd2,device=/dev/vd3";
        assert_eq!(found(&[(1, 2), (2, 5), (1, 3)]), devices(both, None));
        assert_eq!(found(&[(1, 2)]), devices("device=/dev/vd2,degraded", Some((1, 3))));
        let seed = (Superblock { is_seed: true, ..superblock(9, 1) }, PathBuf::from("/dev/vdz"));
        let sprout = Superblock { devices: 2, ..own };
        let with_seed = Ok(Devices { options: "device=/dev/vdz".to_owned(), missing: None });
        let with_its_seed = among(sprout, vec![seed]).map_err(|failure| i32::from(failure.errno));
        assert_eq!(with_its_seed, with_seed);
        assert_eq!(found(&[(1, 2), (1, 2)]), Err(libc::EEXIST));
        assert_eq!(found(&[(1, 1)]), Err(libc::EEXIST));
    }

    #[test]
    fn subvolumes_are_read_from_their_list() {
        let path = |text: &str| GuestPath::parse(text.as_bytes()).unwrap();
        assert_eq!(path_in("ID 256 gen 7 top level 5 path @home"), Some(path("@home")));
        assert_eq!(path_in("ID 9 gen 7 top level 5 path a path b/c"), Some(path("a path b/c")));
        for line in ["", "ID 256", "ID 1 gen 1 top level 5 path ../x", "ID 1 path "] {
            assert_eq!(path_in(line), None, "{line}");
        }
    }

    #[test]
    fn a_subvolume_that_would_be_two_options_is_refused() {
        let path = |text: &str| GuestPath::parse(text.as_bytes()).unwrap();
        assert_eq!(subvolume_option(&path("/@/a b")).unwrap(), "subvol=/@/a b");
        assert!(subvolume_option(&path("/a,rw")).is_err());
    }
}
