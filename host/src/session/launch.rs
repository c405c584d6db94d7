//! From image files to a guest whose filesystems are mounted.

use std::env;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{self, Path, PathBuf};

use guestmnt_protocol::message::{Content, NameMatching, TableProblem, Volume};
use guestmnt_protocol::path::Printable;
use guestmnt_protocol::volume::{Mountable, VolumeName};
use log::{info, warn};

use super::arrangement::{Arrangement, ArrangementError, Mounted};
use super::boot::{self, Awake, Origin, PORTS};
use super::disks::Disks;
use super::keys::{self, KeyError};
use super::plan::{MountSpec, Plan};
use super::selection::Encrypted;
use super::templates::{MakeError, Templates};
use super::timings::Timings;
use crate::disk::DiskReader;
use crate::guest::{Guest, GuestError};
use crate::image::ImageError;
use crate::vm::accelerator::{Accelerator, AcceleratorChoice, Verdict};
use crate::vm::appliance::{Appliance, ApplianceError};
use crate::vm::confinement::{Policy, Report};
use crate::vm::kept_overlay::OverlayError;
use crate::vm::processor::Processor;
use crate::vm::template::{Template, TemplateKey};
use crate::vm::{Boot, Vm, VmConfig, VmError, bulk, find_qemu};

/// Filesystems over which a VM may die before `--all` is given up.
const MOST_DEATHS: usize = 8;

/// The number of `ENODEV` on the wire.
const ENODEV: u16 = 19;

/// A guest with everything mounted.
pub struct Launched {
    /// The client.
    pub guest: Guest,
    /// The VM that it runs in.
    pub vm: Vm,
    /// What is the matter with partition tables of the disks, which has been said.
    pub tables: Vec<TableProblem>,
    /// The disks that this process can read as well, by number.
    pub disks: Vec<Option<DiskReader>>,
    /// How the filesystems that can be written compare names.
    pub names: NameMatching,
    /// Whether nothing is missing of what the user asked for: `--all` shows what it can.
    pub complete: bool,
    /// What it was launched from.
    pub origin: Origin,
    /// What QEMU is confined by.
    pub confinement: Report,
}

/// Why there is none.
#[derive(Debug)]
pub enum LaunchError {
    /// An image cannot be used.
    Image(ImageError),
    /// A file cannot take a disk's changes.
    Overlay(OverlayError),
    /// It cannot be told what room there is.
    Room(io::Error),
    /// An image cannot be marked as changed.
    Begin(PathBuf, io::Error),
    /// There is no appliance.
    Appliance(ApplianceError),
    /// QEMU failed.
    Vm(VmError),
    /// The guest did not start, or broke down; with the last lines that it printed.
    Guest(GuestError, Vec<String>),
    /// The random numbers for the guest cannot be had.
    Entropy(io::Error),
    /// A template was wanted and could not be made.
    NoTemplate,
    /// A key is wrong, or an encrypted volume cannot be opened.
    Key(KeyError),
    /// There is nothing to be mounted, or too much to choose from.
    Arrangement(ArrangementError),
    /// A device is not there.
    NoSuchDevice(Mountable, Vec<Volume>),
    /// The guest could not mount a filesystem.
    Mount {
        /// Which, and where.
        spec: Box<MountSpec>,
        /// Why not.
        reason: String,
        /// The volume, where it is encrypted and was not opened.
        locked: Option<VolumeName>,
        /// What is there instead.
        volumes: Vec<Volume>,
    },
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
            Self::Overlay(error) => error.fmt(f),
            Self::Room(error) => write!(f, "cannot look at what takes the changes: {error}"),
            Self::Begin(image, error) => {
                write!(f, "cannot write to {}: {error}", Printable(image.as_os_str().as_bytes()))
            }
            Self::Appliance(error) => error.fmt(f),
            Self::Vm(error) => error.fmt(f),
            Self::Guest(error, last_words) => {
                write!(f, "the appliance failed: {error}")?;
                if !last_words.is_empty() {
                    f.write_str("\n  what it printed last:")?;
                }
                last_words.iter().try_for_each(|line| write!(f, "\n    {line}"))
            }
            Self::Entropy(error) => write!(f, "cannot read /dev/urandom: {error}"),
            Self::NoTemplate => f.write_str("no template could be made\n  hint: -v says why"),
            Self::Key(error) => error.fmt(f),
            Self::Arrangement(error) => error.fmt(f),
            Self::NoSuchDevice(device, volumes) => {
                write!(f, "there is no {device} in the image{}", Suggestions(volumes))
            }
            Self::Mount { spec, reason, locked, volumes } => {
                let MountSpec { device, at, .. } = &**spec;
                write!(f, "cannot mount {device} on {at}: {reason}")?;
                if let Some(volume) = locked {
                    write!(f, "\n  hint: --key {volume}:file:PATH opens it")?;
                }
                Suggestions(volumes).fmt(f)
            }
        }
    }
}

impl std::error::Error for LaunchError {}

impl From<VmError> for LaunchError {
    fn from(error: VmError) -> Self {
        Self::Vm(error)
    }
}

/// The filesystems that could have been meant.
pub(super) struct Suggestions<'a>(pub &'a [Volume]);

impl fmt::Display for Suggestions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filesystems: Vec<(&Mountable, &str)> = self
            .0
            .iter()
            .filter_map(|volume| match &volume.content {
                Content::Filesystem(kind) => Some((&volume.device, kind.as_str())),
                _ => None,
            })
            .collect();
        if filesystems.is_empty() {
            return f.write_str(match self.0.iter().any(keys::is_encrypted) {
                true => "\nThere is no filesystem but what encrypted volumes may hold.",
                false => "\nThere is no filesystem on any of the disks.",
            });
        }
        f.write_str("\nDid you mean to mount one of these filesystems?")?;
        filesystems.iter().try_for_each(|(device, kind)| {
            write!(f, "\n    {device} ({})", Printable(kind.as_bytes()))
        })
    }
}

/// Opens the images, starts a VM, gives it the disks and mounts what `plan` says.
///
/// # Errors
/// [`LaunchError`]; nothing runs then.
pub fn launch(plan: &Plan, timings: &Timings) -> Result<Launched, LaunchError> {
    let disks = Disks::open(plan)?;
    timings.done("chain opened");
    let appliance = Appliance::find().map_err(LaunchError::Appliance)?;
    let qemu = find_qemu()?;
    let cache = cache_folder();
    let verdict = Verdict::of(&qemu, cache.as_deref());
    let processor = Processor::new(&qemu, cache.as_deref());
    let mut candidates = verdict.candidates(plan.accelerator).into_iter().peekable();
    while let Some(accelerator) = candidates.next() {
        let config = VmConfig {
            qemu: &qemu,
            appliance: &appliance,
            accelerator,
            processor: &processor,
            memory_mib: plan.memory_mib,
            bulk: plan.has_bulk(),
            confinement: plan.confinement,
            lanes: PORTS,
        };
        let started = start(&config, plan, &disks, cache.as_deref(), timings);
        match started {
            // That says nothing of the accelerator.
            Err(LaunchError::Vm(error)) if error.is_the_hosts() => return Err(error.into()),
            _ => {}
        }
        if accelerator == Accelerator::Kvm && plan.accelerator == AcceleratorChoice::Auto {
            verdict.remember(started.is_ok());
        }
        match started {
            Ok((Awake { guest, vm, tables, confinement }, template)) => {
                warn_of(&tables);
                let readers = disks.readers(plan);
                let guest = guest.with_room(disks.room(plan).map_err(LaunchError::Room)?);
                let Disks { opened: disks, kept } = disks;
                let mounted = Arrangement::default();
                let origin = Origin {
                    qemu,
                    appliance,
                    accelerator,
                    processor,
                    template,
                    disks,
                    kept,
                    mounted,
                };
                let (names, complete) = (NameMatching::Exact, true);
                let launched = Launched {
                    guest,
                    vm,
                    tables,
                    disks: readers,
                    names,
                    complete,
                    origin,
                    confinement,
                };
                return mount_all(launched, plan, timings);
            }
            Err(error) if candidates.peek().is_none() => return Err(error),
            Err(error) => {
                info!("{accelerator}: {error}");
                warn!("{accelerator} does not work on this machine; trying the next accelerator");
            }
        }
    }
    unreachable!("there is at least one accelerator to try")
}

/// Says what is the matter with partition tables.
fn warn_of(tables: &[TableProblem]) {
    for TableProblem { disk, problem, .. } in tables {
        let mut lines = problem.lines();
        warn!("{disk}: {}", Printable(lines.next().unwrap_or_default().as_bytes()));
        for line in lines {
            warn!("  {}", Printable(line.trim_start().as_bytes()));
        }
    }
}

/// Makes the template that the next launch will need, if there is none.
///
/// # Errors
/// [`LaunchError`] where none of the accelerators gives one.
pub fn prepare(
    choice: AcceleratorChoice,
    memory_mib: u32,
    confinement: Policy,
) -> Result<(), LaunchError> {
    let appliance = Appliance::find().map_err(LaunchError::Appliance)?;
    let qemu = find_qemu()?;
    let cache = cache_folder().ok_or(LaunchError::NoTemplate)?;
    let verdict = Verdict::of(&qemu, Some(&cache));
    let processor = Processor::new(&qemu, Some(&cache));
    for accelerator in verdict.candidates(choice) {
        let config = VmConfig {
            qemu: &qemu,
            appliance: &appliance,
            accelerator,
            processor: &processor,
            memory_mib,
            bulk: memory_mib <= bulk::MAX_MEMORY_MIB,
            confinement,
            lanes: PORTS,
        };
        let made = template(&config, Some(&cache));
        match made {
            Err(NoTemplate::Machine(LaunchError::Vm(error))) if error.is_the_hosts() => {
                return Err(error.into());
            }
            _ => {}
        }
        // A full disk says nothing of it.
        let says = !matches!(made, Err(NoTemplate::Place(_)));
        if says && accelerator == Accelerator::Kvm && choice == AcceleratorChoice::Auto {
            verdict.remember(made.is_ok());
        }
        match made {
            Ok(_) => return Ok(()),
            Err(reason) => info!("no template with {accelerator}: {reason}"),
        }
    }
    Err(LaunchError::NoTemplate)
}

/// Restores a VM from a template, or boots one where that is not possible.
fn start(
    config: &VmConfig,
    plan: &Plan,
    disks: &Disks,
    cache: Option<&Path>,
    timings: &Timings,
) -> Result<(Awake, Option<Template>), LaunchError> {
    if plan.use_template {
        match template(config, cache) {
            Ok(template) => {
                let made = template.found.publication.is_some();
                timings.done(if made { "template made" } else { "template found" });
                let restored = Boot::Restore(&template.found);
                match boot::boot(config, &restored, plan, &disks.opened, &disks.kept, timings) {
                    Ok(awake) => return Ok((awake, Some(template.found))),
                    // No boot would change that.
                    Err(LaunchError::Vm(error)) if error.is_the_hosts() => return Err(error.into()),
                    Err(error) => {
                        info!("the template cannot be restored: {error}");
                        warn!("the template does not work; starting without");
                        template.discard();
                    }
                }
            }
            // A KVM that could not run the guest once would only cost its deadline again.
            Err(NoTemplate::Machine(error)) if config.accelerator == Accelerator::Kvm => {
                return Err(error);
            }
            Err(reason) => info!("no template: {reason}"),
        }
    }
    boot::boot(config, &Boot::Cold, plan, &disks.opened, &disks.kept, timings)
        .map(|awake| (awake, None))
}

/// A template, and where it is from.
struct Usable {
    found: Template,
    templates: Templates,
    key: TemplateKey,
}

impl Usable {
    fn discard(self) {
        self.templates.discard(&self.key, self.found);
    }
}

/// Why there is no template.
enum NoTemplate {
    /// There is no place for it. A machine that is not saved may work.
    Place(String),
    /// The machine that was to be saved failed.
    Machine(LaunchError),
}

impl fmt::Display for NoTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(reason) => f.write_str(reason),
            Self::Machine(error) => error.fmt(f),
        }
    }
}

/// The template for `config`, made if need be.
fn template(config: &VmConfig, cache: Option<&Path>) -> Result<Usable, NoTemplate> {
    let place = |reason: &dyn fmt::Display| NoTemplate::Place(reason.to_string());
    let cache = cache.ok_or_else(|| place(&"there is no cache folder"))?;
    let key = TemplateKey::of(config).map_err(|error| place(&error))?;
    let templates = Templates::in_cache(cache).map_err(|error| place(&error))?;
    match templates.find_or_make(&key, config) {
        Ok(found) => Ok(Usable { found, templates, key }),
        Err(MakeError::Vm(error)) => Err(NoTemplate::Machine(error.into())),
        Err(MakeError::Guest(error, said)) => {
            Err(NoTemplate::Machine(LaunchError::Guest(error, said)))
        }
        Err(error @ MakeError::Folder(..)) => Err(place(&error)),
    }
}

fn mount_all(
    mut launched: Launched,
    plan: &Plan,
    timings: &Timings,
) -> Result<Launched, LaunchError> {
    let mut open = Vec::new();
    if !plan.keys.is_empty() {
        open = keys::open_volumes(&launched.guest, &plan.keys).map_err(LaunchError::Key)?;
        timings.done("volumes opened");
    }
    // A filesystem is written to when it is mounted: its journal is replayed.
    for disk in &launched.origin.disks {
        let failed = |error| LaunchError::Begin(disk.path.clone(), error);
        disk.begin_writing().map_err(failed)?;
    }
    let encrypted = Encrypted { open: &open, declined: plan.declined.as_deref() };
    let arranged = plan.selection.arrange(&launched.guest, encrypted);
    let mounted = arranged.and_then(|arranged| mount_survived(&mut launched, arranged, plan));
    match mounted {
        Ok(Mounted { arrangement, names, left_out }) => {
            timings.done("mounted");
            launched.complete &= left_out.is_empty() || !arrangement.shows_everything();
            launched.origin.mounted = arrangement;
            launched.names = names;
            Ok(launched)
        }
        Err(ArrangementError::Mount(spec, error)) => Err(explain(error, &spec, &open, launched)),
        Err(ArrangementError::Guest(error)) => {
            Err(LaunchError::Guest(error, launched.vm.last_words()))
        }
        Err(error) => Err(LaunchError::Arrangement(error)),
    }
}

/// Mounts what was arranged. Where all filesystems are to be shown, one over which the kernel panics
/// does not hide the others: another VM goes on without it.
fn mount_survived(
    launched: &mut Launched,
    mut arranged: Arrangement,
    plan: &Plan,
) -> Result<Mounted, ArrangementError> {
    // What a VM that died had written to a filesystem is in no state to be mounted by another.
    let may_go_on = arranged.shows_everything() && !plan.is_writable();
    let mut deaths = 0;
    loop {
        match arranged.clone().mount(&launched.guest, plan.writing()) {
            Err(ArrangementError::Broke(spec, error)) if may_go_on && deaths < MOST_DEATHS => {
                deaths += 1;
                launched.complete = false;
                warn!("cannot mount {} on {}: {error}; going on without it", spec.device, spec.at);
                arranged = arranged.without(&spec);
                restart(launched, plan).map_err(|error| match error {
                    LaunchError::Guest(error, _) => ArrangementError::Guest(error),
                    other => ArrangementError::Restart(other.to_string()),
                })?;
            }
            outcome => return outcome,
        }
    }
}

/// Puts another VM, in which nothing is mounted, in the place of one that died.
fn restart(launched: &mut Launched, plan: &Plan) -> Result<(), LaunchError> {
    launched.vm.kill();
    let origin = &launched.origin;
    let config = origin.config(plan);
    let timings = Timings::start();
    let awake = boot::boot(&config, &origin.boot(), plan, &origin.disks, &origin.kept, &timings)?;
    keys::open_volumes(&awake.guest, &plan.keys).map_err(LaunchError::Key)?;
    let Awake { guest, vm, confinement, tables: _ } = awake;
    (launched.guest, launched.confinement) = (guest, confinement);
    for line in std::mem::replace(&mut launched.vm, vm).last_words() {
        info!("the VM printed last: {line}");
    }
    Ok(())
}

/// Says why `spec` could not be mounted, and what could be. `open` are the encrypted volumes that
/// were opened.
fn explain(
    error: GuestError,
    spec: &MountSpec,
    open: &[VolumeName],
    launched: Launched,
) -> LaunchError {
    let Launched { guest, vm, .. } = launched;
    let GuestError::Failed(failure) = &error else {
        return LaunchError::Guest(error, vm.last_words());
    };
    let volumes = match guest.volumes() {
        Ok(volumes) => volumes,
        Err(error) => return LaunchError::Guest(error, vm.last_words()),
    };
    let wanted = Mountable::from(spec.device.volume().clone());
    let missing = failure.errno == ENODEV && !volumes.iter().any(|volume| volume.device == wanted);
    if missing {
        return LaunchError::NoSuchDevice(spec.device.clone(), volumes);
    }
    let named = volumes.iter().find(|volume| volume.device == wanted);
    let locked = named.filter(|volume| keys::is_encrypted(volume));
    let locked = locked.map(|volume| volume.device.volume().clone());
    LaunchError::Mount {
        spec: Box::new(spec.clone()),
        reason: error.to_string(),
        locked: locked.filter(|volume| !open.contains(volume)),
        volumes,
    }
}

/// The user's cache folder of ours, made if need be; `None` where there can be none.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))?;
    // By its absolute path: when the mount ends, this process may be in another folder.
    let folder = path::absolute(base.join("guestmnt")).ok()?;
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).ok()?;
    Some(folder)
}
