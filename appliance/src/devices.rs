//! Disks and their partitions, as sysfs shows them. A disk is known by its bay, or else by its LUN
//! on the virtio SCSI controller; the letter that the kernel chose says in which order probing
//! ended, and nothing else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use virtio_drivers::device::blk::SECTOR_SIZE;
use virtio_drivers::transport::DeviceType;

use nix::errno::Errno;

use guestmnt_protocol::bay;
use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::limits::MAX_REMARKS;
use guestmnt_protocol::message::{Content, TableProblem};

use crate::failure::errno_of;
use crate::kmsg;
use crate::partition_tables::{self, Partition, Table};
use crate::sys;
use crate::uevent::Uevent;
use crate::volumes;
use crate::write_counts::WriteCounts;

/// A disk or partition that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name on the wire.
    pub name: DeviceName,
    /// Its node below `/dev`.
    pub node: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// The disks that are ready: announced, with their partitions.
#[derive(Default)]
pub struct Disks {
    /// The kernel's name, such as `vda` or `sdb`, by the disk's number.
    ready: Mutex<BTreeMap<u8, String>>,
    changed: Condvar,
    /// Of partition tables.
    problems: Mutex<Vec<TableProblem>>,
    writes: WriteCounts,
}

impl Disks {
    /// Takes note of a disk that came or went.
    ///
    /// That a LUN was announced means that its partitions are there: `device_add_disk()` in
    /// block/genhd.c holds all events of a disk back until `disk_scan_partitions()` is through, and
    /// sends the disk's own first. Its node and its entry in sysfs appear before that scan; so
    /// neither says anything. Opening the node waits for a scan, but perhaps not for the last:
    /// the kernel asks for one more after the disk can be opened. A bay is announced when it is
    /// filled, and nobody has looked for partitions then.
    pub fn note(&self, event: &Uevent) {
        if event.subsystem != "block" || event.device_type != "disk" {
            return;
        }
        let Some(Located { site, kernel_name }) = Located::at(event.path) else { return };
        match (event.action, site) {
            ("remove", Site::Bay(number) | Site::Lun(number)) => {
                self.lock().remove(&number);
                self.problems().retain(|problem| problem.disk != DeviceName::whole(number));
                self.writes.forget(kernel_name);
            }
            ("add", Site::Lun(number)) if is_on_virtio_scsi(event.path) => {
                if is_empty(kernel_name) {
                    ask_for_size(kernel_name);
                    self.fill(number, kernel_name);
                } else if !self.lock().contains_key(&number) {
                    if let Ok(disk) = File::open(Path::new("/dev").join(kernel_name)) {
                        self.complete(number, kernel_name, &disk);
                    }
                    self.insert(number, kernel_name);
                }
            }
            ("add", Site::Bay(number)) if is_filled(kernel_name) => self.fill(number, kernel_name),
            ("change", Site::Bay(number)) if event.resized => self.fill(number, kernel_name),
            _ => {}
        }
    }

    /// Does for the bays what would take a mount longer.
    pub fn prepare(&self) {
        self.writes.prepare();
    }

    /// Waits until the disks with the numbers 0 to `count - 1` are ready.
    ///
    /// # Errors
    /// Those that are missing when `timeout` has passed.
    pub fn wait_for(&self, count: u8, timeout: Duration) -> Result<(), Vec<DeviceName>> {
        let missing = |ready: &BTreeMap<u8, String>| -> Vec<u8> {
            (0..count).filter(|number| !ready.contains_key(number)).collect()
        };
        let (ready, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |ready| !missing(ready).is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        match missing(&ready).as_slice() {
            [] => Ok(()),
            numbers => Err(numbers.iter().map(|&number| DeviceName::whole(number)).collect()),
        }
    }

    /// The node of the device called `name`, if there is such a device.
    pub fn find(&self, name: DeviceName) -> Option<PathBuf> {
        let kernel_name = self.lock().get(&name.disk)?.clone();
        let node = Path::new("/dev").join(match name.partition {
            0 => kernel_name,
            partition => format!("{kernel_name}{partition}"),
        });
        node.exists().then_some(node)
    }

    /// Where on its disk the device called `name` begins, in bytes.
    pub fn start(&self, name: DeviceName) -> Option<u64> {
        if name.partition == 0 {
            return Some(0);
        }
        // sysfs has it as well, but the way there takes ten times as long.
        let device = File::open(self.find(name)?).ok()?;
        let sectors = sys::first_sector(device.as_fd()).ok()?;
        sectors.checked_mul(u64::try_from(SECTOR_SIZE).expect("512 fits"))
    }

    /// Whether anything was written to the disk with this number, or may have been.
    pub fn written(&self, number: u8) -> bool {
        let Some(kernel_name) = self.lock().get(&number).cloned() else { return true };
        self.writes.of(&kernel_name) != Some(0)
    }

    /// All disks by number, each followed by its partitions by theirs.
    pub fn list(&self) -> Vec<Device> {
        let ready = self.lock().clone();
        ready.iter().flat_map(|(&number, kernel_name)| devices_of(number, kernel_name)).collect()
    }

    /// Notes that a bay holds a disk, after having its partitions looked for.
    fn fill(&self, number: u8, kernel_name: &str) {
        if self.lock().contains_key(&number) {
            return;
        }
        let node = Path::new("/dev").join(kernel_name);
        let scanned = File::open(&node).map_err(|error| errno_of(&error)).and_then(|disk| {
            sys::read_partition_table(disk.as_fd())?;
            self.complete(number, kernel_name, &disk);
            Ok(())
        });
        if let Err(errno) = scanned {
            // The disk as a whole may do for what is asked; if not, that says so.
            kmsg::warn(format_args!("{}: no partitions: {}", node.display(), errno.desc()));
        }
        self.insert(number, kernel_name);
    }

    /// Adds the partitions that the kernel did not find.
    fn complete(&self, number: u8, kernel_name: &str, disk: &File) {
        let directory = Path::new("/sys/block").join(kernel_name);
        let Some(size) = device(number, 0, &directory).map(|device| device.size) else { return };
        let is_partitioned = || devices_of(number, kernel_name).len() > 1;
        let is_blank = || {
            let probed = volumes::probe_node(&Path::new("/dev").join(kernel_name));
            probed.is_ok_and(|probed| {
                matches!(probed.content, Content::Unknown | Content::Partitions(_))
            })
        };
        let table = partition_tables::find(disk, size, is_partitioned, is_blank);
        let Some(Table { partitions, replaces, mut problem }) = table else { return };
        if replaces {
            for found in devices_of(number, kernel_name).iter().skip(1) {
                // One that stays is told below.
                let _ = sys::remove_partition(disk.as_fd(), found.name.partition);
            }
        }

        for Partition { number, start, length } in partitions {
            match sys::add_partition(disk.as_fd(), number, start, length) {
                Ok(()) => {}
                Err(errno) => {
                    let said = problem.get_or_insert_with(|| "its partition table".to_owned());
                    *said += &format!("; partition {number} cannot be shown: {}", errno.desc());
                    if errno == Errno::EINVAL {
                        *said += "\n  hint: --blocksize is the size of its sectors";
                    }
                }
            }
        }
        if let Some(problem) = problem {
            let disk = DeviceName::whole(number);
            let usable = devices_of(number, kernel_name).len() > 1;
            self.problems().push(TableProblem { disk, problem, usable });
        }
    }

    /// What is the matter with partition tables, by disk.
    pub fn table_problems(&self) -> Vec<TableProblem> {
        let mut problems = self.problems().clone();
        problems.sort_by_key(|problem| problem.disk);
        problems.truncate(MAX_REMARKS);
        problems
    }

    fn problems(&self) -> MutexGuard<'_, Vec<TableProblem>> {
        // Each is pushed whole.
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, number: u8, kernel_name: &str) {
        self.lock().insert(number, kernel_name.to_owned());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, String>> {
        // An insertion or removal is all or nothing.
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets the queues of the bays up: requests go to the host in the order in which they are made,
/// since the host has a scheduler of its own, and files are read ahead in pieces as large as the
/// host asks for.
pub fn set_queues() {
    const SETTINGS: [(&str, &str); 3] =
        [("scheduler", "none"), ("wbt_lat_usec", "0"), ("read_ahead_kb", "1024")];
    for bay in names_in(Path::new("/sys/block")).iter().filter(|name| name.starts_with("vd")) {
        for (name, value) in SETTINGS {
            let setting = Path::new("/sys/block").join(bay).join("queue").join(name);
            if let Err(error) = fs::write(&setting, value) {
                kmsg::warn(format_args!("{}: {error}", setting.display()));
            }
        }
    }
}

/// Has the kernel announce again all disks that it has announced: for those that came before
/// anybody listened, and for events that were lost. A disk whose partitions are still being
/// scanned keeps silent (`kobject_uevent_env()` sees that its events are held back), and
/// announces itself afterwards.
pub fn announce_again() {
    for disk in names_in(Path::new("/sys/block")) {
        let trigger = Path::new("/sys/block").join(disk).join("uevent");
        if let Err(error) = fs::write(&trigger, "add") {
            // It has just gone, or AwaitDisks will say that it is missing.
            kmsg::warn(format_args!("{}: {error}", trigger.display()));
        }
    }
}

/// Where a disk is, which says its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    Bay(u8),
    Lun(u8),
}

/// A disk as the path of its device tells.
#[derive(Debug, PartialEq, Eq)]
struct Located<'a> {
    site: Site,
    kernel_name: &'a str,
}

impl<'a> Located<'a> {
    /// The disk with this path below `/sys`: `…/virtio2/host0/target0:0:0/0:0:0:7/block/sdh` is
    /// LUN 7, `…/0000:00:11.0/virtio5/block/vdb` the bay in PCI slot 17. `None` for other devices,
    /// and for numbers that no name on the wire has.
    fn at(path: &'a str) -> Option<Self> {
        let mut parts = path.rsplit('/');
        let kernel_name = parts.next()?;
        if parts.next()? != "block" {
            return None;
        }
        let device = parts.next()?;
        let site = if device.starts_with("virtio") {
            Site::Bay(bay_in_slot(parts.next()?)?)
        } else {
            Site::Lun(lun(device)?)
        };
        Some(Self { site, kernel_name })
    }
}

/// The bay at a PCI address such as `0000:00:10.0`.
fn bay_in_slot(address: &str) -> Option<u8> {
    let slot = address.strip_prefix("0000:00:")?.strip_suffix(".0")?;
    let number = u8::from_str_radix(slot, 16).ok()?.checked_sub(bay::FIRST_SLOT)?;
    (number < bay::BAYS).then_some(number)
}

/// The LUN in a SCSI address: host, channel, target, LUN.
fn lun(address: &str) -> Option<u8> {
    let mut numbers = address.split(':').map(str::parse);
    let [Some(Ok(_host)), Some(Ok(0u16)), Some(Ok(0u16)), Some(Ok(lun)), None] =
        std::array::from_fn(|_| numbers.next())
    else {
        return None;
    };
    u8::try_from(lun).ok().filter(|&lun| DeviceName::try_from((lun, 0)).is_ok())
}

/// Whether a disk seems to have no sectors. Each disk that is plugged in has the controller tell all
/// others that there is something new, and each is told that as the answer to its next request. A
/// disk among many can hear it so often that the kernel gives up asking for its size.
fn is_empty(kernel_name: &str) -> bool {
    read_number::<u64>(&Path::new("/sys/block").join(kernel_name).join("size")) == Some(0)
}

/// Has the kernel ask a disk for its size until it has one.
fn ask_for_size(kernel_name: &str) {
    const ATTEMPTS: usize = 100;
    let rescan = Path::new("/sys/block").join(kernel_name).join("device/rescan");
    for _ in 0..ATTEMPTS {
        if let Err(error) = fs::write(&rescan, "1") {
            kmsg::warn(format_args!("{}: {error}", rescan.display()));
            return;
        }
        if !is_empty(kernel_name) {
            return;
        }
    }
    kmsg::warn(format_args!("{kernel_name} does not tell its size"));
}

/// Whether there is a disk in a bay.
fn is_filled(kernel_name: &str) -> bool {
    let size = Path::new("/sys/block").join(kernel_name).join("size");
    read_number::<u64>(&size).is_some_and(|sectors| sectors != bay::EMPTY_SECTORS)
}

/// Whether the device at this path is behind a virtio SCSI controller.
fn is_on_virtio_scsi(path: &str) -> bool {
    let mut parts = path.split('/');
    let Some(device) = parts.find(|part| part.starts_with("virtio")) else { return false };
    let id = Path::new("/sys/bus/virtio/devices").join(device).join("device");
    let Ok(id) = fs::read_to_string(id) else { return false };
    matches!(device_type(&id), Some(DeviceType::ScsiHost))
}

/// The virtio device type that sysfs shows as `0x0008`.
fn device_type(id: &str) -> Option<DeviceType> {
    let number = u32::from_str_radix(id.trim_end().strip_prefix("0x")?, 16).ok()?;
    DeviceType::try_from(number).ok()
}

/// A disk and its partitions by number.
fn devices_of(number: u8, kernel_name: &str) -> Vec<Device> {
    let disk = Path::new("/sys/block").join(kernel_name);
    let mut devices: Vec<_> = device(number, 0, &disk).into_iter().collect();
    let mut partitions: Vec<_> = names_in(&disk)
        .into_iter()
        .filter(|name| name.starts_with(kernel_name))
        .filter_map(|name| {
            let partition = disk.join(name);
            device(number, read_number(&partition.join("partition"))?, &partition)
        })
        .collect();
    partitions.sort_by_key(|device| device.name);
    devices.append(&mut partitions);
    devices
}

/// The device with this directory in sysfs.
fn device(number: u8, partition: u16, directory: &Path) -> Option<Device> {
    let sectors: u64 = read_number(&directory.join("size"))?;
    let sector_size = u64::try_from(SECTOR_SIZE).expect("512 fits");
    Some(Device {
        name: DeviceName::try_from((number, partition)).ok()?,
        node: Path::new("/dev").join(directory.file_name()?),
        // In sysfs sectors have 512 bytes whatever the disk's have.
        size: sectors.checked_mul(sector_size)?,
    })
}

/// Bytes of the block device that has this node.
///
/// # Errors
/// As open(2) and lseek(2).
pub fn size_of_node(node: &Path) -> std::io::Result<u64> {
    File::open(node)?.seek(SeekFrom::End(0))
}

fn read_number<N: std::str::FromStr>(file: &Path) -> Option<N> {
    fs::read_to_string(file).ok()?.trim_end().parse().ok()
}

/// Names in a directory of sysfs; none where it cannot be read.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_its_bay_or_its_lun() {
        let below = "/devices/pci0000:00";
        let table = [
            ("0000:00:10.0/virtio5/block/vda", Some((Site::Bay(0), "vda"))),
            ("0000:00:11.0/virtio1/block/vdb", Some((Site::Bay(1), "vdb"))),
            ("0000:00:0f.0/virtio1/block/vdc", None),
            ("0000:00:1f.0/virtio1/block/vdc", None),
            ("0000:01:10.0/virtio1/block/vdc", None),
            ("0000:00:10.1/virtio1/block/vdc", None),
            ("virtio2/host0/target0:0:0/0:0:0:0/block/sda", Some((Site::Lun(0), "sda"))),
            ("virtio2/host0/target0:0:0/0:0:0:7/block/sdb", Some((Site::Lun(7), "sdb"))),
            ("virtio2/host3/target3:0:0/3:0:0:254/block/sdiu", Some((Site::Lun(254), "sdiu"))),
            ("0:0:0:255/block/sdiv", None),
            ("0:0:0:256/block/sdiv", None),
            ("0:0:1:0/block/sda", None),
            ("0:1:0:0/block/sda", None),
            ("0:0:0/block/sda", None),
            ("0:0:0:0:0/block/sda", None),
            ("0:0:0:0/block/sda/sda1", None),
            ("0:0:0:0", None),
        ];
        for (path, expected) in table {
            let expected = expected.map(|(site, kernel_name)| Located { site, kernel_name });
            assert_eq!(Located::at(&format!("{below}/{path}")), expected, "{path}");
        }
        assert_eq!(Located::at("/devices/virtual/block/loop0"), None);
        assert_eq!(Located::at(""), None);
    }

    #[test]
    fn virtio_ids_are_read_as_sysfs_shows_them() {
        assert_eq!(device_type("0x0008\n"), Some(DeviceType::ScsiHost));
        assert_eq!(device_type("0x0003\n"), Some(DeviceType::Console));
        assert_eq!(device_type("0x00ff\n"), None);
        assert_eq!(device_type("8"), None);
    }

    #[test]
    fn waiting_names_the_disks_that_did_not_come() {
        let disks = Disks::default();
        disks.insert(0, "sda");
        disks.insert(2, "sdb");
        assert_eq!(disks.wait_for(1, Duration::ZERO), Ok(()));
        let missing = [1, 3].map(DeviceName::whole).to_vec();
        assert_eq!(disks.wait_for(4, Duration::ZERO), Err(missing));
    }

    #[test]
    fn waiting_ends_when_the_last_disk_comes() {
        let disks = Disks::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| disks.wait_for(2, Duration::from_secs(20)));
            disks.insert(1, "sda");
            disks.insert(0, "sdb");
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
    }
}
