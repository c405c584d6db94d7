//! The microVM: starts QEMU, talks to its monitor, gives it disks, sees it end.
//!
//! **Invariant:** nothing here names FUSE, and nothing here reads what the lanes carry.

pub mod accelerator;
pub mod appliance;
mod arguments;
mod boot;
pub mod bulk;
pub mod commit;
pub mod confinement;
mod disks;
pub mod kept_overlay;
mod overlay;
pub mod processor;
pub mod progress;
pub mod qmp;
mod save;
mod tail;
pub mod template;

use std::env;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use guestmnt_protocol::path::Printable;
use log::{debug, info};

use self::accelerator::Accelerator;
use self::appliance::Appliance;
use self::arguments::Channels;
pub use self::boot::Boot;
use self::confinement::{ConfineError, Confinement, Policy, Program, Report};
pub use self::disks::Overlays;
use self::disks::{DiskFiles, NodeNames};
use self::processor::Processor;
use self::progress::Console;
use self::qmp::{Qmp, QmpError, Version};
use self::tail::Tail;
use crate::guest::bulk::SharedMemory;
use crate::image::Disk;
use crate::sys;
use crate::sys::confined::{Confined, Ending};

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
    /// The processor models that this QEMU takes.
    pub processor: &'a Processor,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// Whether it has bulk memory, beside that.
    pub bulk: bool,
    /// What to do where QEMU cannot be confined in full.
    pub confinement: Policy,
    /// The number of lanes, 1 to [`guestmnt_protocol::limits::MAX_LANES`].
    pub lanes: usize,
}

/// A VM that was started, and what leads into its guest.
pub struct Started {
    /// The VM.
    pub vm: Vm,
    /// The lanes' host ends, in order.
    pub lanes: Vec<UnixStream>,
    /// The memory that is shared with the guest, if the machine has some.
    pub memory: Option<SharedMemory>,
    /// What QEMU is confined by.
    pub confinement: Report,
}

/// Why there is no VM.
#[derive(Debug)]
pub enum VmError {
    /// No QEMU on this machine.
    NoQemu,
    /// QEMU cannot be started.
    Start(PathBuf, io::Error),
    /// QEMU cannot be confined, or not be started so.
    Confine(PathBuf, ConfineError),
    /// QEMU's monitor failed.
    Qmp(QmpError),
    /// QEMU refused a disk.
    Disk {
        /// The image, where QEMU's words tell which one it is.
        image: Option<PathBuf>,
        /// QEMU's reason.
        reason: String,
    },
    /// No file for an overlay.
    Overlay {
        /// Where it was to be.
        folder: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// What is missing of an image cannot be told to QEMU.
    Missing {
        /// The image.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A file of the appliance cannot be read.
    Appliance(PathBuf, io::Error),
    /// A template could not be written.
    Save(PathBuf, io::Error),
    /// The template is another QEMU's.
    OtherQemu {
        /// The one that saved it.
        saved: Version,
        /// The one that was started.
        found: Version,
    },
    /// There is no memory to be shared with the guest.
    Bulk(io::Error),
    /// A rewritten descriptor could not be kept in memory.
    Descriptor(io::Error),
}

impl VmError {
    /// Whether the same would happen without the template, and by another accelerator: the images, the
    /// overlays or what this host offers are at fault.
    #[must_use]
    pub fn is_the_hosts(&self) -> bool {
        match self {
            Self::NoQemu
            | Self::Confine(..)
            | Self::Disk { .. }
            | Self::Overlay { .. }
            | Self::Missing { .. }
            | Self::Appliance(..)
            | Self::Bulk(_)
            | Self::Descriptor(_) => true,
            Self::Start(..) | Self::Qmp(_) | Self::Save(..) | Self::OtherQemu { .. } => false,
        }
    }
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoQemu => f.write_str(
                "no qemu-system-x86_64 found\n  hint: install it (Debian: apt install qemu-system-x86), or name it in $GUESTMNT_QEMU",
            ),
            Self::Confine(_, error @ ConfineError::Missing(_)) => error.fmt(f),
            Self::Confine(program, ConfineError::Start(error)) | Self::Start(program, error) => write!(f, "cannot start {}: {error}", program.display()),
            Self::Qmp(error) => error.fmt(f),
            Self::Disk { image, reason } => {
                match image {
                    Some(image) => {
                        let image = Printable(image.as_os_str().as_bytes());
                        write!(f, "QEMU cannot open {image}: {reason}")?;
                    }
                    None => write!(f, "QEMU cannot open one of the images: {reason}")?,
                }
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
            Self::Missing { path, error } => write!(
                f,
                "cannot open {}: it was cut short: {error}\n  hint: copy it once more from where it \
                 came from",
                path.display()
            ),
            Self::Appliance(file, error) => {
                write!(f, "cannot read {}: {error}", file.display())?;
                f.write_str("\n  hint: `cargo xtask build-appliance` builds the appliance anew")
            }
            Self::Save(folder, error) => {
                write!(f, "cannot save the template in {}: {error}", folder.display())
            }
            Self::OtherQemu { saved, found } => {
                write!(f, "QEMU {saved} saved the template, and this one is {found}")
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

/// Finds QEMU: `$GUESTMNT_QEMU`, else by its name in `$PATH` and the usual folders. Its path is
/// absolute: this process may be in another folder when it starts it again, and templates and verdicts
/// are kept by that path.
///
/// # Errors
/// [`VmError::NoQemu`], or [`VmError::Start`] where nobody knows which folder this process is in.
pub fn find_qemu() -> Result<PathBuf, VmError> {
    let named = env::var_os("GUESTMNT_QEMU").map(PathBuf::from);
    let program = named.or_else(installed_qemu).ok_or(VmError::NoQemu)?;
    path::absolute(&program).map_err(|error| VmError::Start(program, error))
}

fn installed_qemu() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/local/bin".into()])
        .map(|folder| folder.join("qemu-system-x86_64"))
        .chain(["/usr/libexec/qemu-kvm".into()])
        .find(|program| program.is_file())
}

/// A running QEMU. Dropping it kills it and waits until it is gone.
pub struct Vm {
    process: Confined,
    qmp: Qmp,
    attachments: Vec<qmp::Command<'static>>,
    names: NodeNames,
    console: Option<Tail>,
    printed: Console,
    messages: Option<Tail>,
}

impl Vm {
    /// Starts QEMU with `disks`, each below one of `overlays` unless it is written itself, and gives what leads into the guest. It boots meanwhile. It sees all disks after
    /// [`Vm::attach`].
    ///
    /// # Errors
    /// [`VmError`]; QEMU is gone again then.
    pub fn start(
        config: &VmConfig,
        boot: &Boot,
        disks: &[Disk],
        overlays: Overlays,
    ) -> Result<Started, VmError> {
        loop {
            match Self::start_once(config, boot, disks, overlays) {
                Err(VmError::Qmp(QmpError::Refused { reason, .. }))
                    if config.processor.leave_out(&reason) => {}
                other => return other,
            }
        }
    }

    fn start_once(
        config: &VmConfig,
        boot: &Boot,
        disks: &[Disk],
        overlays: Overlays,
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
        let files = boot.files(config)?;
        inherited.extend(files.all());
        let disks = DiskFiles::of(disks, overlays)?;
        inherited.extend(disks.descriptors());
        let machine = files.machine();
        let mut arguments = arguments::sandbox();
        arguments.extend(arguments::arguments(config, &channels, &machine, &disks.bays()));
        arguments.extend(disks.arguments());
        debug!("{} {}", config.qemu.display(), shown(&arguments));
        let output = OwnedFd::from(qemu_messages);
        let program = Program {
            path: config.qemu,
            arguments: &arguments,
            output: output.as_fd(),
            inherited: &inherited,
            reopened: &files.reopened(),
            kvm: config.accelerator == Accelerator::Kvm,
            largest_file: disks.largest_file().max(files.largest()),
        };
        let (process, confinement) = Confinement::new(config.confinement)
            .start(&program)
            .map_err(|error| VmError::Confine(config.qemu.to_owned(), error))?;
        confinement.warn_once();
        let printed = Console::default();
        let console = Tail::of(console.into(), "console", Some(printed.clone())).map_err(start)?;
        let messages = Tail::of(messages.into(), "qemu-messages", None).map_err(start)?;
        // Our copies of QEMU's ends: while they are open, its death would not be seen.
        drop((output, qemu_qmp, qemu_console, qemu_lanes));
        files.load()?;
        let qmp = match Qmp::connect(qmp, QMP_TIMEOUT) {
            Ok(qmp) => qmp,
            Err(error) => {
                drop(process);
                return Err(with_messages(error, messages, disks.node_names()));
            }
        };
        let attachments = match boot {
            Boot::Cold | Boot::ToSave(_) => disks.plugs().collect(),
            Boot::Restore(_) => disks.plugs().chain(disks.size_changes()).collect(),
        };
        let names = disks.node_names().clone();
        let (console, messages) = (Some(console), Some(messages));
        let vm = Self { process, qmp, attachments, names, console, printed, messages };
        let address = u64::from(config.memory_mib) << 20;
        let shared = |file| SharedMemory { file, address, length: bulk::SIZE };
        let memory = files.into_bulk().map(shared);
        Ok(Started { vm, lanes, memory, confinement })
    }

    /// Shows the disks to the running machine, all at once.
    ///
    /// # Errors
    /// [`VmError`] where QEMU refuses one.
    pub fn attach(&mut self) -> Result<(), VmError> {
        let attachments = std::mem::take(&mut self.attachments);
        self.qmp.run(&attachments).map(drop).map_err(|error| match error {
            QmpError::Refused { reason, .. } => {
                VmError::Disk { image: self.names.image_in(&reason), reason }
            }
            other => VmError::Qmp(other),
        })
    }

    /// What the guest prints.
    #[must_use]
    pub fn console(&self) -> Console {
        self.printed.clone()
    }

    /// Readable when QEMU has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }

    /// QEMU's process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Asks QEMU to end, and returns when it is gone.
    pub fn quit(mut self) {
        self.qmp.quit();
        if !sys::ended_within(self.pidfd(), QUIT_TIMEOUT) {
            info!("QEMU does not end by itself and is killed");
        }
    }

    /// What can kill QEMU while somebody else works with this.
    ///
    /// # Errors
    /// As dup(2).
    pub fn killer(&self) -> io::Result<Killer> {
        Ok(Killer(self.pidfd().try_clone_to_owned()?))
    }

    /// Ends QEMU, where it has not ended, and says how that was.
    pub fn kill(&mut self) -> Ending {
        self.process.kill()
    }

    /// Ends QEMU and says what it and the guest's console printed last.
    #[must_use]
    pub fn last_words(mut self) -> Vec<String> {
        self.process.kill();
        let mut lines = self.messages.take().map_or_else(Vec::new, |tail| tail.lines(10));
        lines.extend(self.console.take().into_iter().flat_map(|tail| tail.lines(20)));
        lines
    }
}

/// Kills one QEMU.
pub struct Killer(OwnedFd);

impl Killer {
    /// Kills it, unless it has ended.
    pub fn kill(&self) {
        if let Err(error) = sys::kill_process(self.0.as_fd()) {
            info!("QEMU cannot be killed: {error}");
        }
    }
}

/// What QEMU said before it ended, where it said anything.
fn with_messages(error: QmpError, messages: Tail, names: &NodeNames) -> VmError {
    let said = messages.lines(10);
    if said.is_empty() {
        return VmError::Qmp(error);
    }
    // `PROGRAM: -blockdev {…}: reason`
    let disk = said.iter().find_map(|line| line.split_once(": -blockdev ")?.1.rsplit_once("}: "));
    match disk {
        Some((node, reason)) => {
            VmError::Disk { image: names.image_in(node), reason: reason.to_owned() }
        }
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
