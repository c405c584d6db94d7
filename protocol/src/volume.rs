//! Names of what can be mounted, as people write them after `-m` and as the listings print them:
//! partitions, what is assembled from them, and subvolumes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::DeviceName;
use crate::limits::MAX_PLAIN_NAME;
use crate::path::{GuestPath, Printable};

/// A name that can stand in a path and on a command line: 1 to [`MAX_PLAIN_NAME`] ASCII letters,
/// digits and `+_.-`, no hyphen first, neither `.` nor `..`. These are LVM's rules, lvm(8).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlainName(String);

/// A text that names nothing that could be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeNameError;

impl fmt::Display for VolumeNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not a device name such as /dev/sda1, /dev/vg/lv, /dev/md0 or btrfsvol:/dev/sda2/@home",
        )
    }
}

impl std::error::Error for VolumeNameError {}

impl PlainName {
    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PlainName {
    type Error = VolumeNameError;
    fn try_from(text: String) -> Result<Self, VolumeNameError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
        let good = (1..=MAX_PLAIN_NAME).contains(&text.len())
            && text.bytes().all(plain)
            && !text.starts_with('-')
            && text != "."
            && text != "..";
        if good { Ok(Self(text)) } else { Err(VolumeNameError) }
    }
}

impl FromStr for PlainName {
    type Err = VolumeNameError;
    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        Self::try_from(text.to_owned())
    }
}

impl From<u32> for PlainName {
    fn from(number: u32) -> Self {
        Self(number.to_string())
    }
}

impl From<PlainName> for String {
    fn from(name: PlainName) -> Self {
        name.0
    }
}

impl fmt::Display for PlainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A block device: one that is given, or one that the guest assembles.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VolumeName {
    /// A disk or partition: `/dev/sda1`.
    Partition(DeviceName),
    /// A logical volume of LVM: `/dev/GROUP/VOLUME`, also read as `/dev/mapper/GROUP-VOLUME`.
    Logical {
        /// Its volume group.
        group: PlainName,
        /// Its name in there.
        volume: PlainName,
    },
    /// An array of Linux' software RAID: `/dev/md0`, `/dev/md/NAME`.
    Raid(PlainName),
    /// What is within an encrypted volume, once that is open, or a volume of Windows' dynamic disks:
    /// `/dev/mapper/NAME`.
    Mapper(PlainName),
}

/// What the names of volumes of Windows' dynamic disks begin with, as libguestfs has them.
pub const LDM_PREFIX: &str = "ldm_vol_";

impl From<DeviceName> for VolumeName {
    fn from(device: DeviceName) -> Self {
        Self::Partition(device)
    }
}

impl VolumeName {
    /// The name of what is in this encrypted volume once it is open, `cryptsda2` for `/dev/sda2`, as
    /// libguestfs calls it; two copies of one volume get two names.
    #[must_use]
    pub fn opened(&self) -> PlainName {
        let device = self.to_string();
        let device = device.strip_prefix("/dev/").unwrap_or(&device).replace('/', ".");
        format!("crypt{device}").parse().unwrap_or_else(|_| PlainName::from(0))
    }

    /// The disk that the name says it is on; none where that is for the guest to find out.
    #[must_use]
    pub fn device(&self) -> Option<DeviceName> {
        match self {
            Self::Partition(device) => Some(*device),
            Self::Logical { .. } | Self::Raid(_) | Self::Mapper(_) => None,
        }
    }

    /// The name of the file that shows it among all others: `sda1`, `vg-root`, `md0`, `md_data`.
    /// Hyphens within a part are doubled, as in `/dev/mapper`, so that no logical volumes share one.
    #[must_use]
    pub fn file_name(&self) -> String {
        let part = |name: &PlainName| name.as_str().replace('-', "--");
        match self {
            Self::Partition(device) => device.to_string().trim_start_matches("/dev/").to_owned(),
            Self::Logical { group, volume } => format!("{}-{}", part(group), part(volume)),
            Self::Raid(name) if is_number(name) => format!("md{name}"),
            Self::Raid(name) => format!("md_{}", part(name)),
            Self::Mapper(name) => part(name),
        }
    }
}

fn is_number(name: &PlainName) -> bool {
    name.as_str().bytes().all(|b| b.is_ascii_digit())
}

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        if let Ok(device) = text.parse() {
            return Ok(Self::Partition(device));
        }
        let name = text.strip_prefix("/dev/").ok_or(VolumeNameError)?;
        match name.split_once('/') {
            None => raid_number(name).map(Self::Raid).ok_or(VolumeNameError),
            Some(("md", name)) => Ok(Self::Raid(name.parse()?)),
            // The hyphens in a group's name, which begins with a machine's, are its own.
            Some(("mapper", name)) if name.starts_with(LDM_PREFIX) => {
                Ok(Self::Mapper(name.parse()?))
            }
            Some(("mapper", name)) => match logical(name) {
                Some((group, volume)) => {
                    Ok(Self::Logical { group: group.parse()?, volume: volume.parse()? })
                }
                None => Ok(Self::Mapper(name.parse()?)),
            },
            Some((group, volume)) => {
                Ok(Self::Logical { group: group.parse()?, volume: volume.parse()? })
            }
        }
    }
}

/// The number in `md0`, without leading zeros, as a name.
fn raid_number(name: &str) -> Option<PlainName> {
    let number = name.strip_prefix("md")?;
    let canonical = number.parse::<u32>().is_ok_and(|parsed| parsed.to_string() == number);
    if canonical { number.parse().ok() } else { None }
}

/// Group and volume of device-mapper's name for a logical volume: one hyphen between them, those
/// within them doubled. `None` for other names.
fn logical(name: &str) -> Option<(String, String)> {
    let single = name.replace("--", "\0");
    let (group, volume) = single.split_once('-')?;
    let plain = |part: &str| part.replace('\0', "-");
    (!volume.contains('-')).then(|| (plain(group), plain(volume)))
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition(device) => device.fmt(f),
            Self::Logical { group, volume } => write!(f, "/dev/{group}/{volume}"),
            Self::Raid(name) if is_number(name) => write!(f, "/dev/md{name}"),
            Self::Raid(name) => write!(f, "/dev/md/{name}"),
            Self::Mapper(name) => write!(f, "/dev/mapper/{name}"),
        }
    }
}

/// What a filesystem can be mounted from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mountable {
    /// All of a block device.
    Volume(VolumeName),
    /// A subvolume of the Btrfs filesystem on a block device: `btrfsvol:/dev/sda2/@home`.
    Subvolume {
        /// The device, or one of several.
        volume: VolumeName,
        /// The subvolume's path from the filesystem's top.
        path: GuestPath,
    },
}

/// What the names of subvolumes begin with.
pub const SUBVOLUME_PREFIX: &str = "btrfsvol:";

impl Mountable {
    /// The block device.
    #[must_use]
    pub fn volume(&self) -> &VolumeName {
        match self {
            Self::Volume(volume) | Self::Subvolume { volume, .. } => volume,
        }
    }
}

impl From<VolumeName> for Mountable {
    fn from(volume: VolumeName) -> Self {
        Self::Volume(volume)
    }
}

impl From<DeviceName> for Mountable {
    fn from(device: DeviceName) -> Self {
        Self::Volume(device.into())
    }
}

impl FromStr for Mountable {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, VolumeNameError> {
        let Some(text) = text.strip_prefix(SUBVOLUME_PREFIX) else {
            return text.parse().map(Self::Volume);
        };
        // A device's name has one part behind /dev/ or two; what is no device by its first part
        // alone has two.
        let slashes = text.char_indices().filter(|&(_, c)| c == '/').map(|(at, _)| at).skip(2);
        for at in slashes.take(2) {
            if let Ok(volume) = text[..at].parse() {
                let path = GuestPath::parse(&text.as_bytes()[at..]).map_err(|_| VolumeNameError)?;
                return Ok(Self::Subvolume { volume, path });
            }
        }
        Err(VolumeNameError)
    }
}

impl fmt::Display for Mountable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(volume) => volume.fmt(f),
            Self::Subvolume { volume, path } => {
                write!(f, "{SUBVOLUME_PREFIX}{volume}/{}", Printable(path.as_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_called_after_its_device() {
        for (of, name) in
            [("/dev/sda2", "cryptsda2"), ("/dev/vg/root", "cryptvg.root"), ("/dev/md0", "cryptmd0")]
        {
            assert_eq!(of.parse::<VolumeName>().unwrap().opened().as_str(), name);
        }
    }

    fn plain(text: &str) -> PlainName {
        text.parse().unwrap()
    }

    fn logical(group: &str, volume: &str) -> VolumeName {
        VolumeName::Logical { group: plain(group), volume: plain(volume) }
    }

    #[test]
    fn files_of_volumes_have_plain_names_of_their_own() {
        let table = [
            ("/dev/sdb12", "sdb12"),
            ("/dev/vg/root", "vg-root"),
            ("/dev/my-vg/a-b", "my--vg-a--b"),
            ("/dev/md0", "md0"),
            ("/dev/md/a-b", "md_a--b"),
            ("/dev/mapper/cryptsda2", "cryptsda2"),
            ("/dev/mapper/ldm_vol_A-Dg0_Volume1", "ldm_vol_A--Dg0_Volume1"),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<VolumeName>().unwrap().file_name(), expected);
        }
    }

    #[test]
    fn volumes_are_read_as_people_write_them_and_printed_as_listings_do() {
        let sda2 = DeviceName { disk: 0, partition: 2 };
        let table = [
            ("/dev/vda2", VolumeName::Partition(sda2), "/dev/sda2"),
            ("/dev/vg/root", logical("vg", "root"), "/dev/vg/root"),
            ("/dev/mapper/vg-root", logical("vg", "root"), "/dev/vg/root"),
            ("/dev/mapper/my--vg-a--b", logical("my-vg", "a-b"), "/dev/my-vg/a-b"),
            ("/dev/md0", VolumeName::Raid(plain("0")), "/dev/md0"),
            ("/dev/md/0", VolumeName::Raid(plain("0")), "/dev/md0"),
            ("/dev/md/data", VolumeName::Raid(plain("data")), "/dev/md/data"),
            (
                "/dev/mapper/cryptsda2",
                VolumeName::Mapper(plain("cryptsda2")),
                "/dev/mapper/cryptsda2",
            ),
            (
                "/dev/mapper/ldm_vol_WORK-Dg0_Volume1",
                VolumeName::Mapper(plain("ldm_vol_WORK-Dg0_Volume1")),
                "/dev/mapper/ldm_vol_WORK-Dg0_Volume1",
            ),
            ("/dev/mapper/luks-1-2", VolumeName::Mapper(plain("luks-1-2")), "/dev/mapper/luks-1-2"),
        ];
        for (text, volume, printed) in table {
            assert_eq!(text.parse(), Ok(volume.clone()), "{text}");
            assert_eq!(volume.to_string(), printed);
        }
    }

    #[test]
    fn subvolumes_are_told_from_their_devices() {
        let sda2 = VolumeName::Partition(DeviceName { disk: 0, partition: 2 });
        let table = [
            ("btrfsvol:/dev/sda2/@home", sda2.clone(), "/@home"),
            ("btrfsvol:/dev/sda2/@/var/lib", sda2, "/@/var/lib"),
            ("btrfsvol:/dev/vg/root/@", logical("vg", "root"), "/@"),
            ("btrfsvol:/dev/md0/a b", VolumeName::Raid(plain("0")), "/a b"),
        ];
        for (text, volume, path) in table {
            let path = GuestPath::parse(path.as_bytes()).unwrap();
            let parsed = Mountable::Subvolume { volume, path };
            assert_eq!(text.parse(), Ok(parsed.clone()), "{text}");
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "vg/lv",
            "/dev/vg",
            "/dev/vg/",
            "/dev/vg/lv/x",
            "/dev/-vg/lv",
            "/dev/../lv",
            "/dev/vg/.",
            "/dev/vg/l v",
            "/dev/md",
            "/dev/md01",
            "/dev/mdx",
            "/dev/mapper/",
            "/dev/mapper/a/b",
            "btrfsvol:",
            "btrfsvol:/dev/sda2",
            "btrfsvol:/dev/vg/lv",
            "btrfsvol:/dev/sda2/../x",
        ] {
            assert_eq!(text.parse::<Mountable>(), Err(VolumeNameError), "{text}");
        }
        assert!(PlainName::try_from("x".repeat(MAX_PLAIN_NAME)).is_ok());
        assert!(PlainName::try_from("x".repeat(MAX_PLAIN_NAME + 1)).is_err());
    }
}
