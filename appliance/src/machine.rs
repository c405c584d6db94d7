//! What only a guest in a virtual machine has: a clock and a random pool of its own, disks,
//! modules, mounts.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::message::{
    Failure, Layout, Listing, MountRequest, MountedAs, TableProblem, Volume,
};
use guestmnt_protocol::path::EntryName;
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::system::System;
use guestmnt_protocol::volume::VolumeName;

use crate::assembly::{Assembly, Block};
use crate::attempt::Writing;
use crate::blocks::{self, BlockFile};
use crate::bulk::Bulk;
use crate::clock::Clock;
use crate::devices::Disks;
use crate::driver_times::MadeUp;
use crate::encryption::{Opened, open_without_key};
use crate::failure::{errno_of, explained};
use crate::grafts::Graft;
use crate::inspection;
use crate::kmsg;
use crate::layouts;
use crate::listing;
use crate::modules::Modules;
use crate::mounts::Mounts;
use crate::programs::Programs;
use crate::remarks::Remarks;
use crate::sys;
use crate::taking_apart::take_apart;
use crate::tree::Tree;
use crate::volumes::{self, Probed};
use crate::windows_links::{self, Knowledge, LinkTarget};

/// How long a disk may take to appear. Emulated machines on a busy host are slow; the usual is
/// a tenth of a second.
const DISKS_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the kernel is left alone before a template is saved. Under TCG it needs half of that.
const SETTLING: Duration = Duration::from_millis(200);

/// What came of mounting a filesystem.
pub struct Mounted {
    /// How it is mounted.
    pub how: MountedAs,
    /// What is to be put into the tree.
    pub graft: Option<Graft>,
    /// The times of its root that its driver made up.
    pub times: Option<MadeUp>,
    /// What is to be said of it.
    pub remarks: Vec<String>,
}

/// The virtual machine around the daemon.
pub struct Machine {
    /// The disks that are there.
    pub disks: Disks,
    /// The kernel's modules.
    pub modules: Modules,
    /// The memory that the host maps as well, if it gave the machine such memory.
    pub bulk: Option<Bulk>,
    /// Its clock.
    pub clock: Clock,
    /// The programs that assemble volumes.
    programs: Programs,
    /// The encrypted volumes that were opened.
    opened: Mutex<Vec<Opened>>,
    mounts: Mutex<Mounts>,
    /// What the mounted Windows know of volumes, once a link led to one.
    knowledge: Mutex<Option<Vec<Knowledge>>>,
    /// `/dev/random`, once it was needed.
    random: OnceLock<File>,
}

impl Machine {
    /// A machine that has its modules in the folder `modules`.
    #[must_use]
    pub fn new(modules: PathBuf) -> Self {
        let bulk = Bulk::take();
        if let Err(errno) = &bulk {
            // A machine without a second node has none by intention.
            if *errno != Errno::ENOENT {
                kmsg::warn(format_args!("no bulk memory: {}", errno.desc()));
            }
        }
        Self {
            bulk: bulk.ok(),
            disks: Disks::default(),
            modules: Modules::new(modules),
            clock: Clock::default(),
            programs: Programs::default(),
            opened: Mutex::default(),
            mounts: Mutex::default(),
            knowledge: Mutex::default(),
            random: OnceLock::new(),
        }
    }

    /// Does what every mount would have to do otherwise, so that a template has it done.
    pub fn prepare(&self) {
        self.modules.load_all();
        if let Err(failure) = self.programs.make_ready(&self.modules) {
            kmsg::warn(format_args!("{}", failure.detail));
        }
        // The clock is read without the kernel, from a page that has to be mapped first.
        let _ = SystemTime::now();
        let _ = self.random();
        self.disks.prepare();
        if let Err(errno) = mlockall(MlockAllFlags::MCL_CURRENT) {
            kmsg::warn(format_args!("cannot lock the daemon's memory: {}", errno.desc()));
        }
        // The kernel takes its time to free what loading modules took.
        thread::sleep(SETTLING);
    }

    /// Sets the clock, and gives the random pool what the host's pool gave: a guest that was
    /// restored has the pool of all others that were.
    ///
    /// # Errors
    /// As clock_settime(2) and random(4), with what failed.
    pub fn wake(&self, unix_time_ns: u64, entropy: &[u8; 32]) -> Result<(), Failure> {
        let time = TimeSpec::from_duration(Duration::from_nanos(unix_time_ns));
        self.clock.set(time).map_err(|errno| failed("set the guest's clock", errno))?;
        self.random()
            .and_then(|random| sys::add_entropy(random.as_fd(), entropy))
            .map_err(|errno| failed("seed the guest's random pool", errno))
    }

    fn random(&self) -> nix::Result<&File> {
        if let Some(random) = self.random.get() {
            return Ok(random);
        }
        let random = File::options().write(true).open("/dev/random");
        let random = random.map_err(|error| errno_of(&error))?;
        Ok(self.random.get_or_init(|| random))
    }

    /// Waits for the disks with LUN 0 to `count - 1`, with their partitions. Returns what is the matter
    /// with their partition tables.
    ///
    /// # Errors
    /// `ETIMEDOUT`, with the names of those that did not come.
    pub fn await_disks(&self, count: u8) -> Result<Vec<TableProblem>, Failure> {
        self.disks.wait_for(count, DISKS_TIMEOUT).map_err(|missing| {
            let names: Vec<_> = missing.iter().map(DeviceName::to_string).collect();
            let seconds = DISKS_TIMEOUT.as_secs();
            let detail = format!("not there after {seconds} seconds: {}", names.join(", "));
            explained(Errno::ETIMEDOUT, detail)
        })?;
        Ok(self.disks.table_problems())
    }

    /// Assembles what can be assembled from the disks, and probes all.
    #[must_use]
    pub fn volumes(&self) -> Vec<Volume> {
        self.list(|_, _| ()).0
    }

    /// As [`Machine::volumes`], with what they are made of.
    #[must_use]
    pub fn listing(&self) -> Listing {
        let (volumes, mut listing) = self.list(listing::composition);
        listing.volumes = volumes;
        listing
    }

    /// All volumes, and what `more` says of them.
    fn list<T>(&self, more: impl Fn(&[(Block, Probed)], &Assembly) -> T) -> (Vec<Volume>, T) {
        self.open_without_keys();
        let assembly = self.assembly();
        let blocks = assembly.all();
        let more = more(&blocks, &assembly);
        let subvolumes = volumes::subvolumes(&blocks, &assembly);
        (volumes::with_subvolumes(volumes::list(blocks), &subvolumes), more)
    }

    /// The operating systems on the disks.
    #[must_use]
    pub fn systems(&self) -> Vec<System> {
        // One at a time: they use the same place.
        let _mounts = self.mounts();
        self.open_without_keys();
        inspection::systems(&self.assembly())
    }

    /// Mounts a filesystem with nothing but empty folders on `/`.
    ///
    /// # Errors
    /// As [`Mounts::mount_folders`].
    pub fn mount_folders(&self, names: &[EntryName]) -> Result<MadeUp, Failure> {
        self.mounts().mount_folders(names)
    }

    /// Opens an encrypted volume; one that is open stays so.
    ///
    /// # Errors
    /// As [`Opened::open`] and [`Assembly::node`].
    pub fn unlock(&self, volume: &VolumeName, key: &Secret) -> Result<(), Failure> {
        let assembly = self.assembly();
        if assembly.is_open(volume) {
            return Ok(());
        }
        let node = assembly.node(volume)?;
        let content = volumes::content_of(volume.device(), &node, &self.disks)
            .map_err(|errno| failed("read the volume", errno))?;
        let programs = &self.programs;
        let opened = Opened::open(volume, &node, &content, key, programs, &self.modules)?;
        self.opened().push(opened);
        Ok(())
    }

    /// Mounts a filesystem; `tree` is what is mounted on `/`.
    ///
    /// # Errors
    /// As [`Mounts::mount`].
    pub fn mount(
        &self,
        request: &MountRequest,
        writing: Writing,
        tree: Option<&Tree>,
    ) -> Result<Mounted, Failure> {
        *self.knowledge() = None;
        match self.mount_assembled(request, writing, tree) {
            // It may be, or be in, a volume that opens without a key.
            Err(failure) if is_perhaps_closed(&failure) && self.open_without_keys() => {
                self.mount_assembled(request, writing, tree)
            }
            outcome => outcome,
        }
    }

    /// Opens the encrypted volumes whose keys stand in the clear. Whether there were any.
    fn open_without_keys(&self) -> bool {
        let mut any = false;
        for device in self.disks.list() {
            let name = VolumeName::from(device.name);
            if self.assembly().is_open(&name) {
                continue;
            }
            match open_without_key(&name, &device.node, &self.programs, &self.modules) {
                Ok(None) => {}
                Ok(Some(opened)) => {
                    self.opened().push(opened);
                    any = true;
                }
                Err(failure) => {
                    let first = failure.detail.lines().next().unwrap_or_default();
                    kmsg::warn(format_args!("{name}: {first}"));
                }
            }
        }
        any
    }

    fn mount_assembled(
        &self,
        request: &MountRequest,
        writing: Writing,
        tree: Option<&Tree>,
    ) -> Result<Mounted, Failure> {
        let assembly = self.assembly();
        let (how, graft, times) = self.mounts().mount(request, writing, tree, &assembly)?;
        Ok(Mounted { how, graft, times, remarks: assembly.remarks.into_lines() })
    }

    /// Assembles what can be assembled from the disks, and makes a node for each device in
    /// [`blocks::FOLDER`].
    ///
    /// # Errors
    /// As [`blocks::show`].
    pub fn show_blocks(&self) -> Result<Vec<BlockFile>, Failure> {
        self.open_without_keys();
        let all = self.assembly().all();
        let blocks: Vec<Block> = all.into_iter().map(|(block, _)| block).collect();
        blocks::show(&blocks, &self.disks)
    }

    /// Where on its disk the bytes of an open file are, from byte `from` on.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where only the guest can read them, else as [`layouts::layout`].
    pub fn layout(&self, file: BorrowedFd, from: u64) -> nix::Result<Layout> {
        layouts::layout(file, from, self.place(file)?)
    }

    /// The place on its disk of the filesystem that an open file is on.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the image does not hold the files as the guest sees them.
    pub fn place(&self, file: BorrowedFd) -> nix::Result<layouts::Place> {
        let place =
            self.mounts().place(fstat(file)?.st_dev, &self.disks).ok_or(Errno::EOPNOTSUPP)?;
        if !layouts::is_trusted(file)? || self.disks.written(place.disk) {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(place)
    }

    /// The nodes of the devices that are mounted.
    pub fn nodes(&self) -> Vec<PathBuf> {
        self.mounts().nodes()
    }

    /// Whether one of them is mounted for writing.
    pub fn any_writable(&self) -> bool {
        self.mounts().any_writable()
    }

    /// The target of the link of Windows `link`, which its driver shows as `shown`; `None` where that
    /// says it all.
    pub fn windows_link(
        &self,
        link: BorrowedFd,
        shown: &nix::Result<OsString>,
        wanted: LinkTarget,
    ) -> Option<Vec<u8>> {
        if !windows_links::may_be_on_filesystem_of(link) {
            return None;
        }
        let mounted = self.mounts().volumes();
        let (found, own) = windows_links::find(link, shown, &mounted)?;
        let target = found.absolute()?;
        if wanted == LinkTarget::Stored {
            return Some(found.stored().as_bytes().to_vec());
        }
        let mut knowledge = self.knowledge();
        let known = match &*knowledge {
            Some(known) => known,
            None => knowledge.insert(inspection::knowledge(&mounted, &self.assembly())),
        };
        Some(target.in_tree(own, &mounted, known))
    }

    /// Unmounts everything, for good where something was written to: then it is taken apart as well.
    ///
    /// # Errors
    /// As [`Mounts::unmount_all`].
    pub fn unmount_all(&self) -> Result<(), Failure> {
        *self.knowledge() = None;
        let mut mounts = self.mounts();
        let was_writable = mounts.any_writable();
        mounts.unmount_all()?;
        if was_writable && let Err(failure) = take_apart(&self.programs, &self.modules) {
            // The disks have all that was written.
            kmsg::warn(format_args!("{}", failure.detail));
        }
        Ok(())
    }

    fn assembly(&self) -> Assembly<'_> {
        Assembly {
            disks: &self.disks,
            modules: &self.modules,
            programs: &self.programs,
            opened: self.opened().clone(),
            remarks: Remarks::default(),
        }
    }

    fn opened(&self) -> MutexGuard<'_, Vec<Opened>> {
        // A volume is in the list or not.
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knowledge(&self) -> MutexGuard<'_, Option<Vec<Knowledge>>> {
        // It is there or not.
        self.knowledge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounts(&self) -> MutexGuard<'_, Mounts> {
        // After a panic the list has at worst one mount less than there are.
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether something was not there, or no filesystem, which an encrypted volume that opens may change.
fn is_perhaps_closed(failure: &Failure) -> bool {
    [Errno::ENODEV, Errno::EMEDIUMTYPE]
        .iter()
        .any(|errno| i32::from(failure.errno) == *errno as i32)
}

fn failed(what: &str, errno: Errno) -> Failure {
    explained(errno, format!("cannot {what}: {}", errno.desc()))
}
