//! What the daemon answers from: each request with the one call that carries it out.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use guestmnt_protocol::VERSION;
use guestmnt_protocol::attr::Time;
use guestmnt_protocol::batch::Plain;
use guestmnt_protocol::limits::{MAX_PAYLOAD, MAX_SAMPLE};
use guestmnt_protocol::message::{
    Answer, Failure, Layout, MountRequest, MountedAs, Outcome, Request,
};
use guestmnt_protocol::path::{EntryName, GuestPath};

use crate::attempt::Writing;
use crate::blocks;
use crate::bulk::Slot;
use crate::clock::Moment;
use crate::failure;
use crate::machine::{Machine, Mounted};
use crate::mounts::SYSROOT;
use crate::payload::Payload;
use crate::placeholders;
use crate::sys;
use crate::tree::Tree;
use crate::windows_links::LinkTarget;

/// Where the appliance has the kernel's modules.
const MODULES: &str = "/modules";

/// One guest, shared by all lanes.
pub struct Guest {
    /// The machine around it, or `None` for a guest over a folder.
    machine: Option<Machine>,
    /// What is mounted. Requests on files hold it shared, mounting and unmounting exclusively, so
    /// that nothing is in flight while the tree changes.
    tree: RwLock<Option<Tree>>,
}

impl Guest {
    /// A guest without a virtual machine: it answers for the files below `root`, and refuses
    /// what takes devices with `ENOSYS`. The host's side can be tested against it.
    ///
    /// # Errors
    /// As open(2) for the directory `root`.
    pub fn over(root: &Path) -> nix::Result<Self> {
        Ok(Self { machine: None, tree: RwLock::new(Some(Tree::at(root)?)) })
    }

    /// The guest in a virtual machine, before anything is mounted.
    #[must_use]
    pub fn vm() -> Self {
        Self { machine: Some(Machine::new(MODULES.into())), tree: RwLock::new(None) }
    }

    /// A slot of bulk memory, if there is one with this number.
    pub(crate) fn slot(&self, number: u8) -> Option<Slot<'_>> {
        self.machine.as_ref()?.bulk.as_ref()?.slot(number)
    }

    fn slot_addresses(&self) -> Vec<u64> {
        let bulk = self.machine.as_ref().and_then(|machine| machine.bulk.as_ref());
        bulk.map_or_else(Vec::new, |bulk| bulk.addresses().to_vec())
    }

    /// The machine around it.
    pub(crate) fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// Carries out `request`, with the bytes `given` that came with it. Where the answer is
    /// [`Answer::Payload`], the bytes are in `payload`.
    pub(crate) fn answer(&self, request: &Request, given: &[u8], payload: &mut Payload) -> Outcome {
        match request {
            Request::Hello => Ok(Answer::Hello { version: VERSION, slots: self.slot_addresses() }),
            Request::Wake { unix_time_ns, entropy } => self.wake(*unix_time_ns, entropy),
            Request::Prepare => {
                self.devices()?.prepare();
                Ok(Answer::Done)
            }
            Request::AwaitDisks { count } => {
                let problems = self.devices()?.await_disks(*count)?;
                Ok(if problems.is_empty() { Answer::Done } else { Answer::Tables(problems) })
            }
            Request::Volumes => Ok(Answer::Volumes(self.devices()?.volumes())),
            Request::Mount(request) => {
                self.mount(request, Writing::Never).map(|(_, remarks)| match remarks.is_empty() {
                    true => Answer::Done,
                    false => Answer::Remarked(None, remarks),
                })
            }
            Request::MountWritable { mount, dirty } => {
                let mounted = self.mount(mount, Writing::Unless(*dirty));
                mounted.map(|(how, remarks)| match remarks.is_empty() {
                    true => Answer::Mounted(how),
                    false => Answer::Remarked(Some(how), remarks),
                })
            }
            Request::Change(change) => self.change(change, given),
            Request::Held(file, request) => self.held(*file, request, payload),
            Request::Unmount => self.unmount(),
            Request::Listing => Ok(Answer::Listing(self.devices()?.listing())),
            Request::Blocks => self.show_blocks(),
            Request::Inspect => Ok(Answer::Systems(self.devices()?.systems())),
            Request::Folders(names) => self.folders(names),
            Request::Unlock { volume, key } => {
                self.devices()?.unlock(volume, key).map(|()| Answer::Done)
            }

            Request::Stat(path) => self.on_files(|tree| tree.stat(path).map(Answer::Attr)),
            Request::ReadLink(path) => self.read_link(path, LinkTarget::InTree, payload),
            Request::StoredTarget(path) => self.read_link(path, LinkTarget::Stored, payload),
            Request::ReadDir { path, from, size } => {
                let size = usize::try_from(*size).unwrap_or(MAX_PAYLOAD);
                self.on_files(|tree| {
                    tree.read_dir(path, *from, size, payload).map(|()| Answer::Payload)
                })
            }
            Request::Read { path, offset, size } => self.read(path, *offset, *size, payload),
            Request::Seek { path, offset, what } => {
                self.on_files(|tree| tree.seek(path, *offset, *what).map(Answer::Offset))
            }
            Request::ListXattr(path) => {
                self.on_files(|tree| tree.list_xattr(path, payload).map(|()| Answer::Payload))
            }
            Request::GetXattr { path, name } => {
                self.on_files(|tree| tree.get_xattr(path, name, payload).map(|()| Answer::Payload))
            }
            Request::StatFs(path) => self.on_files(|tree| tree.stat_fs(path).map(Answer::StatFs)),
            Request::ReadFiles { folder, plain, files } => self.on_files(|tree| {
                let place = |folder: BorrowedFd| match plain {
                    Plain::Bytes => None,
                    Plain::Places => self.machine.as_ref()?.place(folder).ok(),
                };
                tree.read_files(folder, files, place, payload).map(|()| Answer::Payload)
            }),
            Request::ReadXattrs { folder, files } => self.on_files(|tree| {
                tree.read_xattrs(folder, files, payload).map(|()| Answer::Payload)
            }),
            Request::Layout { path, from } => {
                self.on_files(|tree| self.layout(tree, path, *from).map(Answer::Layout))
            }
            Request::SampledLayout { path, offset } => self.on_files(|tree| {
                let layout = self.layout(tree, path, 0)?;
                let mut sample = vec![0; MAX_SAMPLE];
                let count = tree.read(path, *offset, &mut sample)?;
                sample.truncate(count);
                Ok(Answer::SampledLayout { layout, sample })
            }),
        }
    }

    /// A guest over a folder has the clock of the machine that it runs on, and leaves it alone.
    fn wake(&self, unix_time_ns: u64, entropy: &[u8; 32]) -> Outcome {
        if let Some(machine) = &self.machine {
            machine.wake(unix_time_ns, entropy)?;
        }
        let mut random = [0; 16];
        sys::get_random(&mut random).map_err(failure::plain)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Ok(Answer::Awake { unix_time_ns, random })
    }

    fn mount(
        &self,
        request: &MountRequest,
        writing: Writing,
    ) -> Result<(MountedAs, Vec<String>), Failure> {
        let machine = self.devices()?;
        let mut mounted = self.change_tree();
        let Mounted { how, graft, times, remarks } =
            machine.mount(request, writing, mounted.as_ref())?;
        let tree = match &mut *mounted {
            Some(tree) => {
                tree.forget_open();
                tree.grafts.extend(graft);
                tree
            }
            none => none.insert(Tree::at(SYSROOT.as_ref()).map_err(failure::plain)?),
        };
        tree.made_up.extend(times);
        tree.ahead.begin(machine.nodes(), machine.any_writable());
        Ok((how, remarks))
    }

    /// Finds out where the filesystem on `/` is on its disk, which the first reader would wait for: now
    /// the host shows what is mounted, and asks for nothing.
    pub(crate) fn get_ready(&self) {
        let Some(machine) = &self.machine else { return };
        // Where it cannot be told now, who reads is told why.
        let _ = self.on_files(|tree| machine.place(tree.root()).map(|_| Answer::Done));
    }

    fn show_blocks(&self) -> Outcome {
        let machine = self.devices()?;
        let mut mounted = self.change_tree();
        if mounted.is_some() {
            return Err(failure::explained(Errno::EBUSY, "something is mounted already"));
        }
        let blocks = machine.show_blocks()?;
        let tree = Tree::of_blocks(blocks::FOLDER.as_ref(), blocks).map_err(failure::plain)?;
        *mounted = Some(tree);
        Ok(Answer::Done)
    }

    fn folders(&self, names: &[EntryName]) -> Outcome {
        let machine = self.devices()?;
        let mut mounted = self.change_tree();
        let times = machine.mount_folders(names)?;
        let mut tree = Tree::at(SYSROOT.as_ref()).map_err(failure::plain)?;
        tree.made_up.push(times);
        *mounted = Some(tree);
        Ok(Answer::Done)
    }

    fn unmount(&self) -> Outcome {
        let Some(machine) = &self.machine else { return Ok(Answer::Done) };
        let mut mounted = self.change_tree();
        // Closes everything below it.
        *mounted = None;
        machine.unmount_all().map(|()| Answer::Done)
    }

    fn read_link(&self, path: &GuestPath, wanted: LinkTarget, payload: &mut Payload) -> Outcome {
        self.on_files(|tree| {
            let of_windows = |link: BorrowedFd, shown: &nix::Result<OsString>| {
                self.machine.as_ref()?.windows_link(link, shown, wanted)
            };
            tree.read_link(path, of_windows, payload).map(|()| Answer::Payload)
        })
    }

    fn read(&self, path: &GuestPath, offset: u64, size: u32, payload: &mut Payload) -> Outcome {
        let size = usize::try_from(size)
            .ok()
            .filter(|&size| size <= MAX_PAYLOAD)
            .ok_or_else(|| failure::plain(Errno::EINVAL))?;
        self.on_files(|tree| {
            let count = tree.read(path, offset, payload.bulk_space(size))?;
            payload.truncate(count);
            Ok(Answer::Payload)
        })
    }

    fn layout(&self, tree: &Tree, path: &GuestPath, from: u64) -> nix::Result<Layout> {
        // A guest over a folder has no disks that the host could read.
        let machine = self.machine.as_ref().ok_or(Errno::EOPNOTSUPP)?;
        match tree.block(path)? {
            Some(block) => block.layout(&machine.disks),
            None => {
                let file = tree.regular_file(path)?;
                if file.are_packed() {
                    return Err(Errno::EOPNOTSUPP);
                }
                machine.layout(file.file(), from)
            }
        }
    }

    /// Runs a request on files. Before a root is mounted there are none: `ENODEV`.
    pub(crate) fn on_files(&self, carry_out: impl FnOnce(&Tree) -> nix::Result<Answer>) -> Outcome {
        let mounted = self.tree.read().unwrap_or_else(PoisonError::into_inner);
        let tree = mounted.as_ref().ok_or_else(|| failure::plain(Errno::ENODEV))?;
        placeholders::take_reason();
        carry_out(tree).map_err(|errno| match placeholders::take_reason() {
            Some(reason) => failure::explained(errno, reason),
            None => failure::plain(errno),
        })
    }

    /// The same for what is changed at this moment, by the clock that can show it. Nothing else is in
    /// flight then, which would be noted to happen at that moment too.
    pub(crate) fn on_files_at(
        &self,
        time: Time,
        carry_out: impl FnOnce(&Tree, Option<Moment<'_>>) -> nix::Result<Answer>,
    ) -> Outcome {
        let Some(machine) = &self.machine else {
            return self.on_files(|tree| carry_out(tree, None));
        };
        let mounted = self.change_tree();
        let tree = mounted.as_ref().ok_or_else(|| failure::plain(Errno::ENODEV))?;
        carry_out(tree, Some(Moment { clock: &machine.clock, time })).map_err(failure::plain)
    }

    /// Waits until nothing is in flight, and lets nothing begin.
    fn change_tree(&self) -> RwLockWriteGuard<'_, Option<Tree>> {
        // There is a tree or there is none: a lane that panicked has left nothing in between.
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn devices(&self) -> Result<&Machine, Failure> {
        self.machine.as_ref().ok_or_else(no_machine)
    }
}

fn no_machine() -> Failure {
    failure::explained(Errno::ENOSYS, "this guest has no devices")
}
