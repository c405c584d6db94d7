//! Finds the operating systems on the disks: mounts one filesystem after the other, reads the few
//! files by which a system is known and knows its other filesystems, and unmounts it again.
//!
//! This happens in the guest, so that the host parses nothing that the image holds and gets small
//! answers of checked types.

mod fstab;
mod hive;
mod hive_log;
mod linux;
mod mounted_devices;
mod named;
mod windows;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, stat};

use guestmnt_protocol::message::{Content, Failure, MountRequest};
use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::system::System;
use guestmnt_protocol::volume::{Mountable, VolumeName};

use self::mounted_devices::MountedDevices;
use self::named::Volumes;
use crate::assembly::Assembly;
use crate::attempt::Writing;
use crate::failure::{errno_of, plain};
use crate::kmsg;
use crate::mount_points::volume_mounts;
use crate::mounts::unmount;
use crate::resolve;
use crate::source::Source;
use crate::spelling::spelled;
use crate::volumes;
use crate::windows_links;

/// Where a filesystem is mounted while it is looked at.
const PLACE: &str = "/run/inspection";

/// Bytes of a text file that are read.
const MAX_TEXT: u64 = 256 << 10;

/// Bytes of a text that goes to the host.
const MAX_WORDS: usize = 200;

/// Users, mount points and the like of one system that go to the host.
const MAX_ITEMS: usize = 256;

/// Subvolumes of one filesystem that are looked at.
const MAX_SUBVOLUMES: usize = 32;

/// The operating systems on the disks. What cannot be mounted holds none.
#[must_use]
pub fn systems(assembly: &Assembly) -> Vec<System> {
    let blocks = assembly.all();
    let subvolumes = volumes::subvolumes(&blocks, assembly);
    let volumes = Volumes::of(&blocks, assembly);
    let mut systems = Vec::new();
    for (block, probed) in &blocks {
        let Content::Filesystem(kind) = &probed.content else { continue };
        let own = subvolumes.iter().find(|(name, _)| *name == block.name);
        if kind == "btrfs" && own.is_none() {
            // Another device of a filesystem that is looked at by its first one.
            continue;
        }
        let whole = Mountable::from(block.name.clone());
        if let Some(system) = system_on(&whole, kind, &volumes, assembly) {
            systems.push(system);
            continue;
        }
        let near = own.iter().flat_map(|(_, paths)| paths).filter(|path| is_near(path));
        systems.extend(near.take(MAX_SUBVOLUMES).filter_map(|path| {
            let volume = block.name.clone();
            let root = Mountable::Subvolume { volume, path: path.clone() };
            system_on(&root, kind, &volumes, assembly)
        }));
    }
    systems
}

/// What the Windows on the volumes that are mounted know of volumes.
#[must_use]
pub fn knowledge(
    mounted: &[windows_links::Mounted],
    assembly: &Assembly,
) -> Vec<windows_links::Knowledge> {
    let remembering: Vec<_> = mounted
        .iter()
        .filter_map(|volume| {
            let mounted = Mounted::folder(&volume.path).ok()?;
            Some((volume, windows::remembered_by(&mounted)?))
        })
        .collect();
    if remembering.is_empty() {
        return Vec::new();
    }
    let blocks = assembly.all();
    let volumes = Volumes::of(&blocks, assembly);
    let number = |name: &VolumeName| {
        let (block, _) = blocks.iter().find(|(block, _)| block.name == *name)?;
        Some(stat(&block.node).ok()?.st_rdev)
    };
    let knowledge = |(volume, remembered): &(&windows_links::Mounted, MountedDevices)| {
        let known = remembered.volumes(&volumes, &volume.name);
        let known = known.filter_map(|(root, name)| Some((root.clone(), number(name)?)));
        windows_links::Knowledge { of: volume.number, volumes: known.collect() }
    };
    remembering.iter().map(knowledge).collect()
}

/// Whether a subvolume may be one that somebody starts a system from; what lies deeper or is hidden
/// is a snapshot or a container's.
fn is_near(subvolume: &GuestPath) -> bool {
    let bytes = subvolume.as_bytes();
    subvolume.depth() <= 2 && !bytes.starts_with(b".") && !bytes.windows(2).any(|two| two == b"/.")
}

/// The system on one filesystem.
fn system_on(
    root: &Mountable,
    kind: &str,
    volumes: &Volumes,
    assembly: &Assembly,
) -> Option<System> {
    let mounted = match Mounted::at_place(root, kind, assembly) {
        Ok(mounted) => mounted,
        Err(failure) => {
            let first = failure.detail.lines().next().unwrap_or_default();
            kmsg::warn(format_args!("{root} is not inspected: {first}"));
            return None;
        }
    };
    match kind {
        "ntfs" => windows::system_on(&mounted, root, volumes, &|volume| {
            let node = assembly.node(volume);
            node.map(|node| volume_mounts(&node)).unwrap_or_default()
        }),
        _ => linux::system_on(&mounted, root, volumes),
    }
}

/// A filesystem that is mounted for as long as this lives, or a folder that stands for one.
struct Mounted {
    root: OwnedFd,
    is_mounted: bool,
}

impl Mounted {
    fn at_place(device: &Mountable, kind: &str, assembly: &Assembly) -> Result<Self, Failure> {
        fs::create_dir_all(PLACE).map_err(|error| plain(errno_of(&error)))?;
        let request = MountRequest {
            device: device.clone(),
            at: GuestPath::root(),
            fstype: Some(kind.to_owned()),
            options: String::new(),
        };
        Source::find(device, assembly)?.mount(
            &request,
            Writing::Never,
            PLACE.as_ref(),
            assembly,
        )?;
        match Self::folder(PLACE.as_ref()) {
            Ok(mut mounted) => {
                mounted.is_mounted = true;
                Ok(mounted)
            }
            Err(errno) => {
                let _ = unmount(PLACE.as_ref());
                Err(plain(errno))
            }
        }
    }

    /// What is below the folder `root`.
    fn folder(root: &Path) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { root: open(root, flags, Mode::empty())?, is_mounted: false })
    }

    /// The regular file at `path`, links followed as the image's system follows them.
    fn file(&self, path: &str) -> Option<File> {
        resolve::open_regular_following(self.root.as_fd(), path).ok().map(File::from)
    }

    /// `path` as it is spelled here, for filesystems that see no difference between upper and lower
    /// case.
    fn spelled(&self, path: &str) -> Option<String> {
        spelled(self.root.as_fd(), path)
    }

    /// The text of a file; what is no UTF-8 is replaced.
    fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        self.file(path)?.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_mounted
            && let Err(errno) = unmount(PLACE.as_ref())
        {
            kmsg::warn(format_args!("{PLACE} stays mounted: {}", errno.desc()));
        }
    }
}

/// A text as it goes to the host: its first line, cut to [`MAX_WORDS`].
fn words(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    line[..line.floor_char_boundary(MAX_WORDS)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_and_containers_are_no_systems_to_choose_from() {
        let near = |text: &str| is_near(&GuestPath::parse(text.as_bytes()).unwrap());
        assert!(["@", "root", "roots/one", "@/var"].into_iter().all(near));
        let far = ["@/.snapshots/1/snapshot", ".snapshots/1", "timeshift-btrfs/snapshots/x/@"];
        assert!(!far.into_iter().any(near));
    }

    #[test]
    fn words_are_one_short_line() {
        assert_eq!(words(" one\ntwo"), "one");
        assert_eq!(words(&"\u{fc}".repeat(300)).len(), MAX_WORDS);
        assert_eq!(words(""), "");
    }
}
