//! What is mounted below one root, in order, and unmounting it all.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, stat, umask};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};
use nix::unistd::{fsync, mkdir, syncfs};

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::message::{Failure, MountRequest, MountedAs};
use guestmnt_protocol::path::{EntryName, GuestPath, Printable};
use guestmnt_protocol::volume::VolumeName;

use crate::assembly::Assembly;
use crate::attempt::{FLAGS, Writing};
use crate::devices::Disks;
use crate::driver_times::{self, MadeUp};
use crate::failure::{errno_of, explained, plain};
use crate::grafts::Graft;
use crate::kmsg;
use crate::layouts;
use crate::place::Place;
use crate::source::Source;
use crate::tree::Tree;
use crate::windows_links;

/// Where the filesystem of `/` is mounted.
pub const SYSROOT: &str = "/sysroot";

/// What files of a filesystem without permissions lack of them: the usual umask.
const NOT_PERMITTED: Mode = Mode::S_IWGRP.union(Mode::S_IWOTH);

/// What is mounted, in the order in which it was.
#[derive(Default)]
pub struct Mounts(Vec<Mounted>);

struct Mounted {
    /// Where it is in the tree.
    at: GuestPath,
    /// The directory that it is mounted on.
    path: PathBuf,
    /// `None` for what the guest has by itself.
    name: Option<VolumeName>,
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
    ) -> Result<(MountedAs, Option<Graft>, Option<MadeUp>), Failure> {
        let source = Source::find(&request.device, assembly)?;
        let place = Place::find(&request.at, tree)?;
        let began = driver_times::now();
        // Filesystems without permissions take theirs from the umask. The daemon's is empty.
        let own = umask(NOT_PERMITTED);
        let how = source.mount(request, writing, &place.target(), assembly);
        umask(own);
        let how = match how {
            Ok(how) => how,
            Err(failure) => {
                self.remove_folder(place.path());
                return Err(failure);
            }
        };
        let times = (writing == Writing::Never).then(|| MadeUp::at(place.path(), began)).flatten();
        let Source { node, device } = source;
        let path = place.path().to_owned();
        let writable = writing != Writing::Never && how.read_only.is_none();
        self.0.push(Mounted {
            at: request.at.clone(),
            path,
            name: Some(request.device.volume().clone()),
            device,
            node,
            writable,
            place: OnceCell::new(),
        });
        Ok((how, place.into_graft().map_err(plain)?, times))
    }

    /// Removes the folder `path` of the guest's own filesystem, if it is one: nothing could be mounted
    /// on it, and an empty folder would pass for an empty filesystem.
    fn remove_folder(&self, path: &Path) {
        let is_own = self.0.first().is_some_and(|first| first.name.is_none());
        if !is_own || path.parent() != Some(SYSROOT.as_ref()) {
            return;
        }
        let remount = |flags| {
            let none = None::<&str>;
            mount(none, SYSROOT, none, flags | MsFlags::MS_REMOUNT, none)
        };
        let removed = remount(FLAGS - MsFlags::MS_RDONLY)
            .and_then(|()| std::fs::remove_dir(path).map_err(|error| errno_of(&error)))
            .and_then(|()| remount(FLAGS));
        if let Err(errno) = removed {
            let path = Printable(path.as_os_str().as_encoded_bytes());
            kmsg::warn(format_args!("cannot remove {path}: {}", errno.desc()));
        }
    }

    /// Mounts a filesystem of the guest's own on [`SYSROOT`], with nothing in it but empty folders. Its
    /// times are nobody's.
    ///
    /// # Errors
    /// `EBUSY` where something is mounted there; else as mount(2) and mkdir(2).
    pub fn mount_folders(&mut self, names: &[EntryName]) -> Result<MadeUp, Failure> {
        if !self.0.is_empty() {
            return Err(explained(Errno::EBUSY, "something is mounted there already"));
        }
        let none = None::<&str>;
        mount(Some("tmpfs"), SYSROOT, Some("tmpfs"), FLAGS - MsFlags::MS_RDONLY, Some("mode=755"))
            .map_err(plain)?;
        let mounted = Mounted {
            at: GuestPath::root(),
            path: SYSROOT.into(),
            name: None,
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
        mount(none, SYSROOT, none, FLAGS | MsFlags::MS_REMOUNT, none).map_err(plain)?;
        MadeUp::always(Path::new(SYSROOT)).ok_or_else(|| plain(Errno::EIO))
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

    /// All volumes that are mounted, for finding out where links lead.
    pub fn volumes(&self) -> Vec<windows_links::Mounted> {
        let volume = |mounted: &Mounted| {
            Some(windows_links::Mounted {
                at: mounted.at.clone(),
                path: mounted.path.clone(),
                name: mounted.name.clone()?,
                node: mounted.node.clone(),
                number: stat(&mounted.node).ok()?.st_rdev,
                st_dev: stat(&mounted.path).ok()?.st_dev,
                writable: mounted.writable,
            })
        };
        self.0.iter().filter_map(volume).collect()
    }

    /// The nodes of their devices.
    pub fn nodes(&self) -> Vec<PathBuf> {
        self.0.iter().map(|mounted| mounted.node.clone()).collect()
    }

    /// Whether one of them is mounted for writing.
    pub fn any_writable(&self) -> bool {
        self.0.iter().any(|mounted| mounted.writable)
    }

    /// Writes everything back and unmounts all, the last one first. Nothing below [`SYSROOT`] may
    /// be open. What stays mounted is still known afterwards.
    ///
    /// A filesystem that cannot write everything stays as after a loss of power, and with it those
    /// that it is mounted in: its journal has what was synced. Unmounting could call the filesystem
    /// clean all the same, and then nobody replays that.
    ///
    /// # Errors
    /// That of the first filesystem that could not be written or unmounted, with its name.
    pub fn unmount_all(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let mut left: Vec<Mounted> = Vec::new();
        while let Some(mounted) = self.0.pop() {
            // Here it is told what could not be written; unmounting would keep it to itself.
            let synced = mounted.sync().map_err(|errno| mounted.failed("write", errno));
            let has_left = left.iter().any(|other| other.path.starts_with(&mounted.path));
            let stays = synced.is_err() || has_left;
            outcome = outcome.and(synced);
            if stays {
                left.push(mounted);
            } else if let Err(errno) = unmount(&mounted.path) {
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
        syncfs(&root)?;
        if fstatfs(&root)?.filesystem_type() != EXT4_SUPER_MAGIC {
            return Ok(());
        }
        drop(root);
        // What its journal holds is still to be brought to its places. When unmounting fails at that,
        // ext4 says that there is no journal to be replayed (Linux 6.12); here it does not.
        let none = None::<&str>;
        match mount(none, &self.path, none, FLAGS | MsFlags::MS_REMOUNT, none) {
            // Somebody has a file open still; unmounting detaches it.
            Err(Errno::EBUSY) => Ok(()),
            done => done,
        }
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
