//! Mounting filesystems below one root, and unmounting them all.
//!
//! The block device itself is writable, since it is an overlay: so a journal is replayed although
//! the mount is read-only, and the image stays as it is. A filesystem is mounted for writing where
//! that was asked for and does no harm; else read-only, and the reason is told.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, stat, umask};
use nix::unistd::{fsync, mkdir, syncfs};

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::limits::MAX_DETAIL;
use guestmnt_protocol::message::{Content, Dirty, Failure, MountRequest, MountedAs, NameMatching};
use guestmnt_protocol::path::{EntryName, Printable};
use guestmnt_protocol::volume::Mountable;

use crate::assembly::Assembly;
use crate::btrfs;
use crate::devices::Disks;
use crate::failure::{errno_of, explained, plain};
use crate::filesystems::{Filesystem, ForWriting, character_sets, join_options, own_options};
use crate::grafts::Graft;
use crate::hibernation;
use crate::kmsg;
use crate::layouts;
use crate::modules::Modules;
use crate::ntfs_3g;
use crate::place::Place;
use crate::signatures;
use crate::tree::Tree;
use crate::volumes;

/// Where the filesystem of `/` is mounted.
pub const SYSROOT: &str = "/sysroot";

/// Nothing of an image runs, opens a device or gains rights, even if something tried.
const FLAGS: MsFlags =
    MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Reading is no change: the host keeps what it read and would not know of it.
const FLAGS_FOR_WRITING: MsFlags = FLAGS.difference(MsFlags::MS_RDONLY).union(MsFlags::MS_NOATIME);

/// What files of a filesystem without permissions lack of them: the usual umask.
const NOT_PERMITTED: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);

/// Whether a filesystem may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It may not.
    Never,
    /// It may, but for what this says of one that is dirty.
    Unless(Dirty),
}

/// What is mounted, in the order in which it was.
#[derive(Default)]
pub struct Mounts(Vec<Mounted>);

struct Mounted {
    path: PathBuf,
    /// `None` for what is assembled.
    device: Option<DeviceName>,
    node: PathBuf,
    /// Whether it was mounted for writing.
    writable: bool,
    /// Where the device is, by its number in `st_dev`, once that was asked for.
    place: OnceCell<Option<(u64, layouts::Place)>>,
}

impl Mounts {
    /// Mounts a filesystem: on [`SYSROOT`] for `/`, else on a directory of `tree`, which is what is
    /// mounted there, or for a link of its to be put in the place of.
    ///
    /// # Errors
    /// `ENODEV` for a device that does not exist or a type that the kernel does not know,
    /// `EMEDIUMTYPE` for a device without a filesystem, `ENOENT` or `ENOTDIR` for the mountpoint,
    /// `EBUSY` where something is mounted there; else as [`Assembly::node`] and mount(2). The detail
    /// says more.
    pub fn mount(
        &mut self,
        request: &MountRequest,
        writing: Writing,
        tree: Option<&Tree>,
        assembly: &Assembly,
    ) -> Result<(MountedAs, Option<Graft>), Failure> {
        let source = Source::find(&request.device, assembly)?;
        let place = Place::find(&request.at, tree)?;
        // Filesystems without permissions take theirs from the umask. The daemon's is empty.
        let own = umask(NOT_PERMITTED);
        let how = source.mount(request, writing, &place.target(), assembly);
        umask(own);
        let how = how?;
        let Source { node, device } = source;
        let path = place.path().to_owned();
        let writable = writing != Writing::Never && how.read_only.is_none();
        self.0.push(Mounted { path, device, node, writable, place: OnceCell::new() });
        Ok((how, place.into_graft().map_err(plain)?))
    }

    /// Mounts a filesystem of the guest's own on [`SYSROOT`], with nothing in it but empty folders.
    ///
    /// # Errors
    /// `EBUSY` where something is mounted there; else as mount(2) and mkdir(2).
    pub fn mount_folders(&mut self, names: &[EntryName]) -> Result<(), Failure> {
        if !self.0.is_empty() {
            return Err(explained(Errno::EBUSY, "something is mounted there already"));
        }
        let none = None::<&str>;
        mount(Some("tmpfs"), SYSROOT, Some("tmpfs"), FLAGS - MsFlags::MS_RDONLY, Some("mode=755"))
            .map_err(plain)?;
        let mounted = Mounted {
            path: SYSROOT.into(),
            device: None,
            node: PathBuf::new(),
            writable: false,
            place: OnceCell::from(None),
        };
        self.0.push(mounted);
        for name in names {
            let folder = Path::new(SYSROOT).join(OsStr::from_bytes(name.as_bytes()));
            mkdir(&folder, Mode::from_bits_truncate(0o755)).map_err(plain)?;
        }
        mount(none, SYSROOT, none, FLAGS | MsFlags::MS_REMOUNT, none).map_err(plain)
    }

    /// Where the filesystem is whose files have the device number `st_dev`. `None` where that is not
    /// the number of a device that was mounted: Btrfs has numbers of its own.
    pub fn place(&self, st_dev: u64, disks: &Disks) -> Option<layouts::Place> {
        self.0.iter().find_map(|mounted| {
            let (number, place) = (*mounted.place.get_or_init(|| {
                let device = mounted.device?;
                let start = disks.start(device)?;
                let number = stat(&mounted.node).ok()?.st_rdev;
                Some((number, layouts::Place { disk: device.disk, start }))
            }))?;
            (number == st_dev).then_some(place)
        })
    }

    /// Writes everything back and unmounts all, the last one first. Nothing below [`SYSROOT`] may
    /// be open. What stays mounted is still known afterwards.
    ///
    /// # Errors
    /// That of the first filesystem that could not be unmounted, with its name.
    pub fn unmount_all(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let mut left = Vec::new();
        while let Some(mounted) = self.0.pop() {
            // Here it is told what could not be written; unmounting would keep it to itself.
            if let Err(errno) = mounted.sync() {
                outcome = outcome.and(Err(mounted.failed("write", errno)));
            }
            if let Err(errno) = unmount(&mounted.path) {
                outcome = outcome.and(Err(mounted.failed("unmount", errno)));
                left.push(mounted);
            } else if let Err(errno) = mounted.sync_device() {
                outcome = outcome.and(Err(mounted.failed("write", errno)));
            }
        }
        left.reverse();
        self.0 = left;
        outcome
    }
}

impl Mounted {
    fn sync(&self) -> nix::Result<()> {
        if !self.writable {
            return Ok(());
        }
        // By its own path nobody can lead elsewhere: it is resolved.
        let root = File::open(&self.path).map_err(|error| errno_of(&error))?;
        syncfs(&root)
    }

    /// What unmounting wrote last stays in the disk's cache with some filesystems.
    fn sync_device(&self) -> nix::Result<()> {
        if !self.writable {
            return Ok(());
        }
        fsync(&File::open(&self.node).map_err(|error| errno_of(&error))?)
    }

    fn failed(&self, what: &str, errno: Errno) -> Failure {
        let below = self.path.strip_prefix(SYSROOT).unwrap_or(&self.path);
        let shown = Printable(below.as_os_str().as_encoded_bytes()).to_string();
        explained(errno, format!("cannot {what} /{shown} in the guest: {}", errno.desc()))
    }
}

/// A device that may hold a filesystem.
pub struct Source {
    node: PathBuf,
    /// `None` for what is assembled.
    device: Option<DeviceName>,
}

impl Source {
    /// The device of `mountable`, assembled if need be.
    ///
    /// # Errors
    /// As [`Assembly::node`].
    pub fn find(mountable: &Mountable, assembly: &Assembly) -> Result<Self, Failure> {
        let volume = mountable.volume();
        let node = assembly.node(volume)?;
        let device = volume.device().filter(|_| !assembly.is_open(volume));
        Ok(Self { node, device })
    }

    /// Mounts its filesystem on the directory `target`, by type and options of `request`.
    ///
    /// # Errors
    /// As [`Mounts::mount`], but for the mountpoint.
    pub fn mount(
        &self,
        request: &MountRequest,
        writing: Writing,
        target: &Path,
        assembly: &Assembly,
    ) -> Result<MountedAs, Failure> {
        let Self { node, device } = self;
        let options = own_options(&request.options);
        let subvolume = match &request.device {
            Mountable::Volume(_) => String::new(),
            Mountable::Subvolume { path, .. } => btrfs::subvolume_option(path)?,
        };
        let by_kernel = |kind: &str| -> Result<MountedAs, Failure> {
            let filesystem = Filesystem::named(kind);
            let own = match filesystem.kernel_name {
                "btrfs" => btrfs::devices(node, || assembly.nodes())?,
                _ => btrfs::Devices::default(),
            };
            let options = join_options(&[&own.options, &subvolume, &options]);
            let tried = Attempt { node, target, filesystem, options: &options };
            load_modules(&tried, assembly.modules);
            let (how, journal) = tried.run_for(writing)?;
            if let Some((missing, all)) = own.missing {
                let name = request.device.volume();
                assembly.remarks.add(format_args!("{name} lacks {missing} of its {all} devices"));
            }
            if journal == Journal::Left {
                let name = &request.device;
                let remark = "journal cannot be replayed; it is shown as it was left";
                assembly.remarks.add(format_args!("{name}: its {remark}"));
            }
            Ok(how)
        };
        let by_ntfs_3g = || -> Result<MountedAs, Failure> {
            ntfs_3g::mount(node, target, &options, assembly)?;
            let refused = "ntfs-3g only reads here".to_owned();
            let read_only = (writing != Writing::Never).then_some(refused);
            Ok(MountedAs { read_only, names: NameMatching::Exact })
        };
        let mount_as = |kind: &str| {
            let failure = match by_kernel(kind) {
                Err(failure) if kind == "ntfs" => failure,
                outcome => return outcome,
            };
            let how = by_ntfs_3g().map_err(|_| failure.clone())?;
            let name = &request.device;
            // The kernel's own words, if it had any, without the name that the device has here.
            let reason = failure.detail.lines().nth(1).unwrap_or(&failure.detail);
            let reason = reason.split_once("): ").map_or(reason, |(_, reason)| reason);
            let reason = reason.trim().trim_end_matches('.');
            assembly.remarks.add(format_args!(
                "{name}: ntfs3 refuses it ({reason}); ntfs-3g shows it, which is slower"
            ));
            Ok(how)
        };
        match (&request.fstype, signatures::usual_filesystem(node)) {
            (Some(kind), _) if kind == ntfs_3g::NAME => by_ntfs_3g(),
            (Some(kind), _) => mount_as(kind),
            (None, _) if !subvolume.is_empty() => mount_as("btrfs"),
            (None, guess) => match guess.map(mount_as) {
                Some(Ok(how)) => Ok(how),
                failed => match (filesystem_on(*device, node, assembly.disks)?, failed) {
                    (kind, Some(Err(failure))) if guess == Some(&kind) => Err(failure),
                    (kind, _) => mount_as(&kind),
                },
            },
        }
    }
}

/// Unmounts one filesystem; where it is busy, at least nobody finds it any more.
pub fn unmount(path: &Path) -> nix::Result<()> {
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EBUSY) => {
            kmsg::warn(format_args!(
                "{} is busy, detached only",
                Printable(path.as_os_str().as_encoded_bytes())
            ));
            umount2(path, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
        }
        done => done,
    }
}

/// libblkid's name for the filesystem on the node `node`, which is `device`'s where it is given.
fn filesystem_on(
    device: Option<DeviceName>,
    node: &Path,
    disks: &Disks,
) -> Result<String, Failure> {
    let content = volumes::content_of(device, node, disks)
        .map_err(|errno| explained(errno, format!("cannot be read: {}", errno.desc())))?;
    match content {
        Content::Filesystem(kind) => Ok(kind),
        other => Err(explained(Errno::EMEDIUMTYPE, what_else(&other))),
    }
}

/// What a device holds that has no filesystem, as the end of the sentence "/dev/sda1 …".
fn what_else(content: &Content) -> String {
    match content {
        Content::Filesystem(kind) => format!("holds a filesystem ({kind})"),
        Content::Partitions(kind) => format!("holds a partition table ({kind})"),
        Content::Extended => "is an extended partition, which only holds others".to_owned(),
        Content::Unknown => "is empty or of an unknown kind".to_owned(),
        Content::Other(kind) => match kind.as_str() {
            "ambivalent" => "holds signatures of several filesystems; name the type".to_owned(),
            "swap" | "swsuspend" => format!("holds swap space ({kind})"),
            "crypto_LUKS" | "BitLocker" => format!("holds an encrypted volume ({kind})"),
            "LVM2_member" | "LVM1_member" => format!("is part of a volume group ({kind})"),
            _ if kind.ends_with("_raid_member") => format!("is part of a RAID ({kind})"),
            _ => format!("holds no filesystem ({kind})"),
        },
    }
}

/// Loads what the kernel would otherwise look for in vain. A module that is missing here can be
/// built into the kernel; if it is not, mounting fails and says so.
fn load_modules(tried: &Attempt, modules: &Modules) {
    let kind = tried.filesystem.kernel_name;
    let own = modules.load(&format!("fs-{kind}")).or_else(|_| modules.load(kind));
    let sets = character_sets(tried.options);
    let others = tried.filesystem.modules.iter().copied().chain(sets.iter().map(String::as_str));
    let outcomes = others.map(|name| (name, modules.load(name)));
    for (name, outcome) in std::iter::once((kind, own)).chain(outcomes) {
        if let Err(errno) = outcome
            && errno != Errno::ENOENT
        {
            let name = Printable(name.as_bytes());
            kmsg::warn(format_args!("cannot load module {name}: {}", errno.desc()));
        }
    }
}

/// What became of a filesystem's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Journal {
    /// There is none, or it was replayed into the overlay if need be.
    Replayed,
    /// It could not be replayed.
    Left,
}

/// One filesystem, about to be mounted.
struct Attempt<'a> {
    node: &'a Path,
    target: &'a Path,
    filesystem: Filesystem<'a>,
    /// For the filesystem itself: the user's, and those that say what of it is meant.
    options: &'a str,
}

impl Attempt<'_> {
    /// Mounts, for writing where that may be.
    fn run_for(&self, writing: Writing) -> Result<(MountedAs, Journal), Failure> {
        let refused = match (writing, self.filesystem.writing) {
            (Writing::Never, _) => None,
            (Writing::Unless(_), None) => {
                let kind = Printable(self.filesystem.kernel_name.as_bytes());
                Some(format!("{kind} is never written to"))
            }
            (Writing::Unless(dirty), Some(how)) => match self.write(dirty, how) {
                Ok(()) => {
                    let how = MountedAs { read_only: None, names: how.names };
                    return Ok((how, Journal::Replayed));
                }
                Err(reason) => Some(reason),
            },
        };
        let journal = self.run()?;
        Ok((MountedAs { read_only: refused, names: NameMatching::Exact }, journal))
    }

    /// Mounts for writing, or says why not.
    fn write(&self, dirty: Dirty, how: ForWriting) -> Result<(), String> {
        let force = how.force.filter(|_| dirty == Dirty::Force).unwrap_or_default();
        if how.force.is_some() && dirty == Dirty::ReadOnly {
            let read_only = |place: &Path| {
                let kind = self.filesystem.kernel_name;
                let options = join_options(&[self.filesystem.options, self.options]);
                mount(Some(self.node), place, Some(kind), FLAGS, Some(options.as_str()))
            };
            hibernation::check(read_only)?;
        }
        let log = kmsg::Tail::from_now();
        let options = [self.filesystem.options, how.options, force, self.options];
        self.call(FLAGS_FOR_WRITING, &options).map_err(|errno| {
            let log = log.read(MAX_DETAIL);
            if how.force.is_some() && log.contains("dirty") {
                return "it is dirty, since who used it last did not unmount it".to_owned();
            }
            self.why(errno, &log)
        })
    }

    /// Mounts read-only; where that fails and the filesystem has a journal, once more without replaying it:
    /// a damaged journal must not hide the files.
    fn run(&self) -> Result<Journal, Failure> {
        let log = kmsg::Tail::from_now();
        let Err(errno) = self.call(FLAGS, &[self.filesystem.options, self.options]) else {
            return Ok(Journal::Replayed);
        };
        let log = log.read(MAX_DETAIL);
        if let Some(without) = self.filesystem.without_journal
            && self.call(FLAGS, &[self.filesystem.options, without, self.options]).is_ok()
        {
            return Ok(Journal::Left);
        }
        Err(explained(errno, self.why(errno, &log)))
    }

    fn call(&self, flags: MsFlags, options: &[&str]) -> nix::Result<()> {
        let options = join_options(options);
        let kind = self.filesystem.kernel_name;
        mount(Some(self.node), self.target, Some(kind), flags, Some(options.as_str()))
    }

    /// What a person should know: the error, and what the kernel logged meanwhile.
    fn why(&self, errno: Errno, log: &str) -> String {
        let kind = Printable(self.filesystem.kernel_name.as_bytes());
        let error = match errno {
            Errno::ENOENT => "there is no such subvolume".to_owned(),
            Errno::ENODEV => format!("the appliance's kernel has no filesystem {kind}"),
            Errno::EINVAL => format!("not a good {kind} filesystem, or an option that it refuses"),
            other => format!("{kind}: {}", other.desc()),
        };
        if log.is_empty() { error } else { format!("{error}\n{log}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_filesystem_is_called_by_its_name() {
        let other = |kind: &str| Content::Other(kind.to_owned());
        let table = [
            (other("crypto_LUKS"), "holds an encrypted volume (crypto_LUKS)"),
            (other("BitLocker"), "holds an encrypted volume (BitLocker)"),
            (other("swap"), "holds swap space (swap)"),
            (other("LVM2_member"), "is part of a volume group (LVM2_member)"),
            (other("linux_raid_member"), "is part of a RAID (linux_raid_member)"),
            (other("zfs_member"), "holds no filesystem (zfs_member)"),
            (Content::Partitions("gpt".to_owned()), "holds a partition table (gpt)"),
            (Content::Unknown, "is empty or of an unknown kind"),
        ];
        for (content, expected) in table {
            assert_eq!(what_else(&content), expected);
        }
    }
}
