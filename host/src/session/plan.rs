//! What the user asked for, checked as far as it can be without looking at an image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::limits::MAX_DISKS;
use guestmnt_protocol::message::{Dirty, MountRequest};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::volume::{Mountable, SUBVOLUME_PREFIX, VolumeName};

use super::fuse_options::FuseOptions;
use super::keys::Key;
use super::selection::Selection;
use crate::image::{BlockSize, Format, OnMissing};
use crate::vm::accelerator::AcceleratorChoice;
use crate::vm::bulk;
use crate::vm::confinement::Policy;

/// MiB of memory that a VM has where nothing else was asked for.
pub const DEFAULT_MEMORY_MIB: u32 = 256;

/// Everything that a mount needs to know.
pub struct Plan {
    /// The disks, sda first.
    pub disks: Vec<DiskSpec>,
    /// Folders besides the images' own whose files an image may name.
    pub allow_paths: Vec<PathBuf>,
    /// What reads of a disk yield where its files were cut short.
    pub on_missing: OnMissing,
    /// What is mounted in the guest.
    pub selection: Selection,
    /// Keys of encrypted volumes.
    pub keys: Vec<Key>,
    /// Encrypted volumes that the user leaves closed; `None` where nobody can be asked for their keys.
    pub declined: Option<Vec<VolumeName>>,
    /// The folder on the host.
    pub mountpoint: PathBuf,
    /// What `-o` says.
    pub fuse_options: FuseOptions,
    /// What `--accel` says.
    pub accelerator: AcceleratorChoice,
    /// Whether the VM may be restored from a template.
    pub use_template: bool,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// What to do where QEMU cannot be confined in full.
    pub confinement: Policy,
    /// Whether the guest reads all files, those as well that this process could read.
    pub through_guest: bool,
    /// Whether contents of files come through memory that is shared with the guest.
    pub bulk: bool,
    /// How long one request on a file may take.
    pub timeout: Duration,
    /// Whether the requests are told at the end.
    pub stats: bool,
    /// Where what is written goes.
    pub writes: WritesTo,
}

/// Where what is written to the files goes. With it, what is done with a filesystem that had better
/// not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritesTo {
    /// Nowhere: they can only be read. Overlays show what they hold.
    Nothing,
    /// To the disks' overlays: each has one.
    Overlays(Dirty),
    /// To the images themselves.
    Images(Dirty),
}

impl Plan {
    /// Whether files can be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writing().is_some()
    }

    /// What is done with a filesystem that had better not be written, where files can be.
    #[must_use]
    pub fn writing(&self) -> Option<Dirty> {
        match self.writes {
            WritesTo::Nothing => None,
            WritesTo::Overlays(dirty) | WritesTo::Images(dirty) => Some(dirty),
        }
    }

    /// Whether the images hold what the disks show, as long as they are shown.
    #[must_use]
    pub fn shows_images(&self) -> bool {
        self.writes == WritesTo::Nothing && self.disks.iter().all(|disk| disk.overlay.is_none())
    }

    /// Whether the VM has bulk memory.
    #[must_use]
    pub fn has_bulk(&self) -> bool {
        self.bulk && self.memory_mib <= bulk::MAX_MEMORY_MIB
    }
}

/// One `-a`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// The image.
    pub path: PathBuf,
    /// The `--format` before it.
    pub format: Option<Format>,
    /// The `--blocksize` before it.
    pub block_size: Option<BlockSize>,
    /// The `--overlay` behind it, which takes all changes.
    pub overlay: Option<PathBuf>,
}

/// One `-m`: `DEV[:MOUNTPOINT[:OPTIONS[:FSTYPE]]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSpec {
    /// The filesystem.
    pub device: Mountable,
    /// Where in the mounted tree.
    pub at: GuestPath,
    /// Options for the guest's filesystem, comma-separated.
    pub options: String,
    /// The filesystem's type, or `None` to probe.
    pub fstype: Option<String>,
}

impl FromStr for MountSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // The name of a subvolume has a colon of its own.
        let (prefix, rest) = match text.strip_prefix(SUBVOLUME_PREFIX) {
            Some(rest) => (SUBVOLUME_PREFIX, rest),
            None => ("", text),
        };
        let mut fields = rest.splitn(4, ':');
        let mut field = || fields.next().filter(|field| !field.is_empty());
        let device = field().ok_or("a device is missing, such as /dev/sda1")?;
        let device = format!("{prefix}{device}");
        let device = device.parse().map_err(|error| format!("{device} is {error}"))?;
        let at = field().unwrap_or("/");
        let at = match at.strip_prefix('/') {
            Some(_) => GuestPath::parse(at.as_bytes())
                .map_err(|error| format!("{at} cannot be a mountpoint in the image: {error}"))?,
            None => return Err(format!("the mountpoint {at} does not begin with /")),
        };
        let options = field().unwrap_or_default().to_owned();
        Ok(Self { device, at, options, fstype: field().map(str::to_owned) })
    }
}

impl From<&MountSpec> for MountRequest {
    fn from(spec: &MountSpec) -> Self {
        Self {
            device: spec.device.clone(),
            at: spec.at.clone(),
            fstype: spec.fstype.clone(),
            options: spec.options.clone(),
        }
    }
}

/// Why a combination of options makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub enum PlanError {
    /// No `-a`.
    NoDisk,
    /// Too many of them.
    TooManyDisks,
    /// No `-m` for `/`.
    NoRoot,
    /// Two `-m` for the same place.
    Twice(GuestPath),
    /// A device of a disk that was not given.
    NoSuchDisk(DeviceName, usize),
    /// `--overlay` before any `-a`, or twice behind one.
    OverlayOfNothing(PathBuf),
    /// An overlay for several disks.
    SharedOverlay(PathBuf),
    /// A disk without an overlay beside others that have one.
    NoOverlay(PathBuf),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDisk => f.write_str("no disk image given\n  hint: -a FILE names one"),
            Self::TooManyDisks => write!(f, "more than {MAX_DISKS} disks"),
            Self::NoRoot => f.write_str(
                "nothing is to be mounted on /\n  hint: -m /dev/sda1 names the filesystem that the folder shall show, \
                 -i finds the operating system, --all shows everything",
            ),
            Self::OverlayOfNothing(overlay) => write!(
                f,
                "the overlay {} belongs to no disk\n  hint: it stands behind the -a of its disk, one for each",
                overlay.display()
            ),
            Self::SharedOverlay(overlay) => write!(
                f,
                "the overlay {} cannot hold the changes of several disks\n  hint: name the disks one by one, each with an overlay of its own",
                overlay.display()
            ),
            Self::NoOverlay(disk) => write!(
                f,
                "{} has no overlay\n  hint: one stands behind each -a, or behind none",
                disk.display()
            ),
            Self::Twice(at) => write!(f, "two filesystems are to be mounted on {at}"),
            Self::NoSuchDisk(device, count) => write!(
                f,
                "there is no {device}: {count} disk{} given with -a, the last is {}",
                if *count == 1 { " was" } else { "s were" },
                DeviceName::whole(u8::try_from(count - 1).unwrap_or(u8::MAX)),
            ),
        }
    }
}

impl std::error::Error for PlanError {}

/// Checks that a VM can have this number of disks.
///
/// # Errors
/// [`PlanError::NoDisk`], [`PlanError::TooManyDisks`].
pub fn check_count(disks: usize) -> Result<(), PlanError> {
    match disks {
        0 => Err(PlanError::NoDisk),
        _ if disks > MAX_DISKS => Err(PlanError::TooManyDisks),
        _ => Ok(()),
    }
}

/// Checks that all disks have overlays, each one of its own, or none.
///
/// # Errors
/// [`PlanError`].
pub fn check_overlays(disks: &[DiskSpec]) -> Result<(), PlanError> {
    let overlays: Vec<&PathBuf> = disks.iter().filter_map(|disk| disk.overlay.as_ref()).collect();
    for (n, overlay) in overlays.iter().enumerate() {
        if overlays[..n].contains(overlay) {
            return Err(PlanError::SharedOverlay((*overlay).clone()));
        }
    }
    match disks.iter().find(|disk| disk.overlay.is_none()) {
        Some(disk) if !overlays.is_empty() => Err(PlanError::NoOverlay(disk.path.clone())),
        _ => Ok(()),
    }
}

/// Checks `mounts` against each other and the number of disks, and brings them into the order
/// in which they can be mounted.
///
/// # Errors
/// [`PlanError`].
pub fn in_order(mut mounts: Vec<MountSpec>, disks: usize) -> Result<Vec<MountSpec>, PlanError> {
    check_count(disks)?;
    let given = mounts.iter().filter_map(|spec| spec.device.volume().device());
    if let Some(device) = given.into_iter().find(|device| usize::from(device.disk) >= disks) {
        return Err(PlanError::NoSuchDisk(device, disks));
    }
    mounts.sort_by_key(|spec| spec.at.depth());
    if !mounts.first().is_some_and(|spec| spec.at.is_root()) {
        return Err(PlanError::NoRoot);
    }
    for (n, spec) in mounts.iter().enumerate() {
        if mounts[..n].iter().any(|earlier| earlier.at == spec.at) {
            return Err(PlanError::Twice(spec.at.clone()));
        }
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> MountSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_mount_has_up_to_four_fields() {
        assert_eq!(spec("/dev/sda2").at, GuestPath::root());
        let full = spec("/dev/sdb2:/mounts/mnt2:uid=5,ro:ntfs3");
        assert_eq!(full.at.to_string(), "/mounts/mnt2");
        assert_eq!(full.options, "uid=5,ro");
        assert_eq!(full.fstype.as_deref(), Some("ntfs3"));
        assert_eq!(spec("/dev/sda1:::ext4").fstype.as_deref(), Some("ext4"));
        let home = spec("btrfsvol:/dev/sda2/@home:/home");
        assert_eq!(home.device.to_string(), "btrfsvol:/dev/sda2/@home");
        assert_eq!(home.at.to_string(), "/home");
    }

    #[test]
    fn mounts_that_make_no_sense_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "device is missing"),
            ("sdx/1", "not a device name"),
            ("/dev/sda1:mnt", "does not begin with /"),
            ("/dev/sda1:/a/../b", ". or .."),
        ] {
            let error = text.parse::<MountSpec>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn nested_mounts_come_after_what_they_are_in() {
        let mounts = vec![spec("/dev/sda3:/a/b"), spec("/dev/sda2:/a"), spec("/dev/sda1:/")];
        let ordered = in_order(mounts, 1).unwrap();
        let devices: Vec<String> = ordered.iter().map(|spec| spec.device.to_string()).collect();
        assert_eq!(devices, ["/dev/sda1", "/dev/sda2", "/dev/sda3"]);
    }

    #[test]
    fn plans_without_a_root_or_with_clashes_are_refused() {
        let table = [
            (vec![], 1, PlanError::NoRoot),
            (vec![spec("/dev/sda1:/a")], 1, PlanError::NoRoot),
            (vec![spec("/dev/sda1")], 0, PlanError::NoDisk),
            (vec![spec("/dev/sda1")], 256, PlanError::TooManyDisks),
            (vec![spec("/dev/sda1"), spec("/dev/sda2:/")], 1, PlanError::Twice(GuestPath::root())),
            (vec![spec("/dev/sdb1")], 1, PlanError::NoSuchDisk("/dev/sdb1".parse().unwrap(), 1)),
        ];
        for (mounts, disks, error) in table {
            assert_eq!(in_order(mounts, disks), Err(error));
        }
    }
}
