//! The microVM: starts QEMU, talks to its monitor, gives it disks, sees it end.
//!
//! **Invariant:** nothing here names FUSE, and nothing here reads what the lanes carry.

pub mod accelerator;
pub mod appliance;
mod arguments;
pub mod bulk;
mod disks;
mod overlay;
pub mod qmp;
mod save;
mod tail;
pub mod template;

use std::env;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use log::{debug, info};

use self::accelerator::Accelerator;
use self::appliance::Appliance;
use self::arguments::{Channels, Memory};
use self::disks::DiskFiles;
use self::qmp::{Qmp, QmpError};
use self::tail::Tail;
use self::template::Template;
use crate::guest::bulk::SharedMemory;
use crate::image::Disk;
use crate::sys;

/// How long QEMU may take for one step at its monitor. Under TCG on a busy machine it starts
/// within a second.
const QMP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long QEMU may take to end when it was asked to; then it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a VM is made of.
#[derive(Clone, Copy)]
pub struct VmConfig<'a> {
    /// The QEMU program.
    pub qemu: &'a Path,
    /// Kernel and initramfs.
    pub appliance: &'a Appliance,
    /// What runs the guest.
    pub accelerator: Accelerator,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// Whether it has bulk memory, beside that.
    pub bulk: bool,
    /// The number of lanes, 1 to [`guestmnt_protocol::limits::MAX_LANES`].
    pub lanes: usize,
}

/// How a VM begins.
pub enum Boot<'a> {
    /// The kernel starts.
    Cold,
    /// The kernel starts; what the folder gets is a template once [`Vm::save`] was called.
    ToSave(&'a Path),
    /// It goes on where a template was saved, once [`Vm::restore`] was called.
    Restore(&'a Template),
}

impl Boot<'_> {
    /// The file with the memory of the guest's second node.
    fn bulk_memory(&self) -> io::Result<File> {
        match self {
            Self::Cold => bulk::new_memory(),
            Self::ToSave(folder) => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(folder.join(template::BULK))?;
                file.set_len(bulk::SIZE)?;
                Ok(file)
            }
            Self::Restore(Template { bulk: Some(saved), .. }) => bulk::memory_with(saved),
            Self::Restore(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// A VM that was started, and what leads into its guest.
pub struct Started {
    /// The VM.
    pub vm: Vm,
    /// The lanes' host ends, in order.
    pub lanes: Vec<UnixStream>,
    /// The memory that is shared with the guest, if the machine has some.
    pub memory: Option<SharedMemory>,
}

/// Why there is no VM.
#[derive(Debug)]
pub enum VmError {
    /// No QEMU on this machine.
    NoQemu,
    /// QEMU cannot be started.
    Start(PathBuf, io::Error),
    /// QEMU's monitor failed.
    Qmp(QmpError),
    /// QEMU refused a disk, for this reason.
    Disk(String),
    /// No file for an overlay.
    Overlay {
        /// Where it was to be.
        folder: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A template could not be written.
    Save(PathBuf, io::Error),
    /// There is no memory to be shared with the guest.
    Bulk(io::Error),
    /// A rewritten descriptor could not be kept in memory.
    Descriptor(io::Error),
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoQemu => f.write_str(
                "no qemu-system-x86_64 found\n  hint: install it (Debian: apt install qemu-system-x86), or name it in $GUESTMNT_QEMU",
            ),
            Self::Start(program, error) => write!(f, "cannot start {}: {error}", program.display()),
            Self::Qmp(error) => error.fmt(f),
            Self::Disk(reason) => {
                write!(f, "QEMU cannot open the image: {reason}")?;
                if reason.contains(" lock") {
                    f.write_str("\n  hint: another program is writing to the image; end it first")?;
                }
                Ok(())
            }
            Self::Overlay { folder, error } => write!(
                f,
                "cannot make the overlay in {}: {error}\n  hint: $TMPDIR names another folder",
                folder.display()
            ),
            Self::Save(folder, error) => {
                write!(f, "cannot save the template in {}: {error}", folder.display())
            }
            Self::Bulk(error) => write!(
                f,
                "cannot have memory in common with the guest: {error}\n  hint: --no-bulk-memory does without"
            ),
            Self::Descriptor(error) => write!(f, "cannot pass a descriptor to QEMU: {error}"),
        }
    }
}

impl std::error::Error for VmError {}

impl From<QmpError> for VmError {
    fn from(error: QmpError) -> Self {
        Self::Qmp(error)
    }
}

/// Finds QEMU: `$GUESTMNT_QEMU`, else by its name in `$PATH` and the usual folders.
///
/// # Errors
/// [`VmError::NoQemu`].
pub fn find_qemu() -> Result<PathBuf, VmError> {
    if let Some(named) = env::var_os("GUESTMNT_QEMU") {
        return Ok(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/local/bin".into()])
        .map(|folder| folder.join("qemu-system-x86_64"))
        .chain(["/usr/libexec/qemu-kvm".into()])
        .find(|program| program.is_file())
        .ok_or(VmError::NoQemu)
}

/// A running QEMU. Dropping it kills it and waits until it is gone.
pub struct Vm {
    child: Child,
    pidfd: OwnedFd,
    qmp: Qmp,
    attachments: Vec<qmp::Command<'static>>,
    console: Option<Tail>,
    messages: Option<Tail>,
}

impl Vm {
    /// Starts QEMU with `disks`, each below an overlay in an unnamed file of `overlay_folder`, and
    /// gives what leads into the guest. It boots meanwhile. It sees all disks after
    /// [`Vm::attach`].
    ///
    /// # Errors
    /// [`VmError`]; QEMU is gone again then.
    pub fn start(
        config: &VmConfig,
        boot: &Boot,
        disks: &[Disk],
        overlay_folder: &Path,
    ) -> Result<Started, VmError> {
        let start = |error| VmError::Start(config.qemu.to_owned(), error);
        let (qmp, qemu_qmp) = UnixStream::pair().map_err(start)?;
        let (console, qemu_console) = UnixStream::pair().map_err(start)?;
        let (messages, qemu_messages) = UnixStream::pair().map_err(start)?;
        let (lanes, qemu_lanes): (Vec<_>, Vec<_>) = (0..config.lanes)
            .map(|_| UnixStream::pair())
            .collect::<io::Result<Vec<_>>>()
            .map_err(start)?
            .into_iter()
            .unzip();
        let lane_numbers: Vec<RawFd> = qemu_lanes.iter().map(AsRawFd::as_raw_fd).collect();
        let channels = Channels {
            qmp: qemu_qmp.as_raw_fd(),
            console: qemu_console.as_raw_fd(),
            lanes: &lane_numbers,
        };
        let mut inherited: Vec<BorrowedFd> = [qemu_qmp.as_fd(), qemu_console.as_fd()]
            .into_iter()
            .chain(qemu_lanes.iter().map(AsFd::as_fd))
            .collect();
        let ram_path;
        let memory = match boot {
            Boot::Cold => Memory::Anonymous,
            Boot::ToSave(folder) => {
                ram_path = folder.join(template::RAM);
                Memory::Kept(&ram_path)
            }
            Boot::Restore(template) => {
                inherited.push(template.ram.as_fd());
                Memory::Template {
                    ram: template.ram.as_raw_fd(),
                    qemu_version: template.qemu_version,
                }
            }
        };
        let bulk = config.bulk.then(|| boot.bulk_memory()).transpose().map_err(VmError::Bulk)?;
        inherited.extend(bulk.as_ref().map(AsFd::as_fd));
        let disks = DiskFiles::of(disks, overlay_folder)?;
        inherited.extend(disks.descriptors());
        let mut arguments = {
            let bays = disks.bays();
            arguments::arguments(config, &channels, &memory, bulk.as_ref(), &bays)
        };
        arguments.extend(disks.arguments());
        debug!("{} {}", config.qemu.display(), shown(&arguments));
        let output = OwnedFd::from(qemu_messages);
        let mut command = Command::new(config.qemu);
        command.args(&arguments).env_clear().stdin(Stdio::null());
        command.stdout(output.try_clone().map_err(start)?).stderr(output);
        sys::bind_to_us(&mut command, &inherited);
        let mut starting = Starting { child: Some(command.spawn().map_err(start)?) };
        let pidfd = sys::pidfd_open(starting.child().id()).map_err(start)?;
        let console = Tail::of(console.into(), "console").map_err(start)?;
        let messages = Tail::of(messages.into(), "qemu-messages").map_err(start)?;
        // Our copies of QEMU's ends: while they are open, its death would not be seen.
        drop((command, qemu_qmp, qemu_console, qemu_lanes));
        let qmp = match Qmp::connect(qmp, QMP_TIMEOUT) {
            Ok(qmp) => qmp,
            Err(error) => {
                drop(starting);
                return Err(with_messages(error, messages));
            }
        };
        let child = starting.child.take().expect("it was put there above");
        let attachments = match boot {
            Boot::Cold | Boot::ToSave(_) => disks.plugs().collect(),
            Boot::Restore(_) => disks.plugs().chain(disks.size_changes()).collect(),
        };
        let vm = Self {
            child,
            pidfd,
            qmp,
            attachments,
            console: Some(console),
            messages: Some(messages),
        };
        let address = u64::from(config.memory_mib) << 20;
        let memory = bulk.map(|file| SharedMemory { file, address, length: bulk::SIZE });
        Ok(Started { vm, lanes, memory })
    }

    /// Shows the disks to the running machine, all at once.
    ///
    /// # Errors
    /// [`VmError`] where QEMU refuses one.
    pub fn attach(&mut self) -> Result<(), VmError> {
        let attachments = std::mem::take(&mut self.attachments);
        self.qmp.run(&attachments).map(drop).map_err(|error| match error {
            QmpError::Refused { reason, .. } => VmError::Disk(reason),
            other => VmError::Qmp(other),
        })
    }

    /// Readable when QEMU has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Asks QEMU to end, and returns when it is gone.
    pub fn quit(mut self) {
        self.qmp.quit();
        if !sys::ended_within(self.pidfd(), QUIT_TIMEOUT) {
            info!("QEMU does not end by itself and is killed");
        }
    }

    /// Ends QEMU and says what it and the guest's console printed last.
    #[must_use]
    pub fn last_words(mut self) -> Vec<String> {
        self.kill();
        let mut lines = self.messages.take().map_or_else(Vec::new, |tail| tail.lines(10));
        lines.extend(self.console.take().into_iter().flat_map(|tail| tail.lines(20)));
        lines
    }

    fn kill(&mut self) {
        // Fails where it has ended already; the wait below is what counts.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A QEMU that is not a [`Vm`] yet, and is killed if it never becomes one.
struct Starting {
    child: Option<Child>,
}

impl Starting {
    fn child(&self) -> &Child {
        self.child.as_ref().expect("taken only at the end")
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What QEMU said before it ended, where it said anything.
fn with_messages(error: QmpError, messages: Tail) -> VmError {
    let said = messages.lines(10);
    if said.is_empty() {
        return VmError::Qmp(error);
    }
    // `PROGRAM: -blockdev {…}: reason`
    let disk = said.iter().find_map(|line| line.split_once(": -blockdev ")?.1.rsplit_once("}: "));
    match disk {
        Some((_, reason)) => VmError::Disk(reason.to_owned()),
        None => {
            let reason = said.join("\n    ");
            VmError::Qmp(QmpError::Refused { command: "to start", reason })
        }
    }
}

fn shown(arguments: &[std::ffi::OsString]) -> String {
    let words: Vec<String> =
        arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}
