//! From image files to a guest whose filesystems are mounted.

use std::env;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use guestmnt_protocol::device::DeviceName;
use guestmnt_protocol::message::{Content, Volume};
use guestmnt_protocol::path::{GuestPath, Printable};
use log::{info, warn};
use nix::errno::Errno;

use super::plan::{MountSpec, Plan};
use crate::guest::{Guest, GuestError};
use crate::image::{Disk, ImageError, OpenOptions};
use crate::vm::accelerator::{Accelerator, AcceleratorChoice, Verdict};
use crate::vm::appliance::{Appliance, ApplianceError};
use crate::vm::{Vm, VmConfig, VmError, find_qemu};

/// Requests that can be in flight.
const LANES: usize = 8;

/// A guest with everything mounted.
pub struct Launched {
    /// The client.
    pub guest: Guest,
    /// The VM that it runs in.
    pub vm: Vm,
}

/// Why there is none.
#[derive(Debug)]
pub enum LaunchError {
    /// An image cannot be used.
    Image(ImageError),
    /// There is no appliance.
    Appliance(ApplianceError),
    /// QEMU failed.
    Vm(VmError),
    /// The guest did not start, or broke down; with the last lines that it printed.
    Guest(GuestError, Vec<String>),
    /// The random numbers for the guest cannot be had.
    Entropy(io::Error),
    /// A device is not there.
    NoSuchDevice(DeviceName, Vec<Volume>),
    /// The guest could not mount a filesystem.
    Mount {
        /// The device.
        device: DeviceName,
        /// Where.
        at: GuestPath,
        /// Why not.
        reason: String,
        /// What is there instead.
        volumes: Vec<Volume>,
    },
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(error) => error.fmt(f),
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
            Self::NoSuchDevice(device, volumes) => {
                write!(f, "there is no {device} in the image{}", Suggestions(volumes))
            }
            Self::Mount { device, at, reason, volumes } => {
                write!(f, "cannot mount {device} on {at}: {reason}{}", Suggestions(volumes))
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
struct Suggestions<'a>(&'a [Volume]);

impl fmt::Display for Suggestions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filesystems: Vec<(DeviceName, &str)> = self
            .0
            .iter()
            .filter_map(|volume| match &volume.content {
                Content::Filesystem(kind) => Some((volume.device, kind.as_str())),
                _ => None,
            })
            .collect();
        if filesystems.is_empty() {
            return f.write_str("\nThere is no filesystem on any of the disks.");
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
pub fn launch(plan: &Plan) -> Result<Launched, LaunchError> {
    let disks = open_disks(plan)?;
    let appliance = Appliance::find().map_err(LaunchError::Appliance)?;
    let qemu = find_qemu()?;
    let verdict = Verdict::of(&qemu, cache_folder().as_deref());
    let mut candidates = verdict.candidates(plan.accelerator).into_iter().peekable();
    while let Some(accelerator) = candidates.next() {
        let config = VmConfig {
            qemu: &qemu,
            appliance: &appliance,
            accelerator,
            memory_mib: plan.memory_mib,
            lanes: LANES,
        };
        let booted = boot(&config, plan, &disks);
        if accelerator == Accelerator::Kvm && plan.accelerator == AcceleratorChoice::Auto {
            verdict.remember(booted.is_ok());
        }
        match booted {
            Ok(launched) => return mount_all(launched, plan),
            Err(error) if candidates.peek().is_none() => return Err(error),
            Err(error) => {
                info!("{accelerator}: {error}");
                warn!("{accelerator} does not work on this machine; trying the next accelerator");
            }
        }
    }
    unreachable!("there is at least one accelerator to try")
}

fn open_disks(plan: &Plan) -> Result<Vec<Disk>, LaunchError> {
    let started = Instant::now();
    let mut disks = Vec::with_capacity(plan.disks.len());
    for spec in &plan.disks {
        let options = OpenOptions { format: spec.format, allow_paths: plan.allow_paths.clone() };
        let disk = Disk::open(&spec.path, &options).map_err(LaunchError::Image)?;
        for warning in &disk.warnings {
            warn!("{warning}");
        }
        disks.push(disk);
    }
    info!("image files opened after {} us", started.elapsed().as_micros());
    Ok(disks)
}

/// A VM whose daemon has said hello and sees the disks.
fn boot(config: &VmConfig, plan: &Plan, disks: &[Disk]) -> Result<Launched, LaunchError> {
    let started = Instant::now();
    let (mut vm, sockets) = Vm::start(config)?;
    let attached = vm.attach(disks, &env::temp_dir());
    if let Err(error) = attached {
        return Err(error.into());
    }
    info!("disks attached after {} ms", started.elapsed().as_millis());
    let deadline = config.accelerator.hello_deadline();
    let count = u8::try_from(disks.len()).expect("the plan checked the number of disks");
    let entropy = entropy().map_err(LaunchError::Entropy)?;
    let greeted = Guest::connect(sockets, deadline, plan.timeout).and_then(|guest| {
        info!("daemon up after {} ms", started.elapsed().as_millis());
        guest.wake(entropy)?;
        guest.await_disks(count)?;
        info!("disks visible after {} ms", started.elapsed().as_millis());
        Ok(guest)
    });
    match greeted {
        Ok(guest) => Ok(Launched { guest, vm }),
        Err(error) => Err(LaunchError::Guest(error, vm.last_words())),
    }
}

fn mount_all(launched: Launched, plan: &Plan) -> Result<Launched, LaunchError> {
    let started = Instant::now();
    for spec in &plan.mounts {
        if let Err(error) = launched.guest.mount(spec.into()) {
            return Err(explain(error, spec, launched));
        }
    }
    info!("mounted after {} ms", started.elapsed().as_millis());
    Ok(launched)
}

/// Says why `spec` could not be mounted, and what could be.
fn explain(error: GuestError, spec: &MountSpec, launched: Launched) -> LaunchError {
    let Launched { guest, vm } = launched;
    let GuestError::Failed(failure) = &error else {
        return LaunchError::Guest(error, vm.last_words());
    };
    let volumes = match guest.volumes() {
        Ok(volumes) => volumes,
        Err(error) => return LaunchError::Guest(error, vm.last_words()),
    };
    if !volumes.iter().any(|volume| volume.device == spec.device) {
        return LaunchError::NoSuchDevice(spec.device, volumes);
    }
    let reason = match Errno::from_raw(failure.errno.into()) {
        Errno::ENOENT => "no such directory in the image".to_owned(),
        Errno::ENOTDIR => "not a directory in the image".to_owned(),
        _ => error.to_string(),
    };
    LaunchError::Mount { device: spec.device, at: spec.at.clone(), reason, volumes }
}

fn entropy() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

/// The user's cache folder of ours, made if need be; `None` where there can be none.
#[must_use]
pub fn cache_folder() -> Option<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))?;
    let folder = base.join("guestmnt");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder).ok()?;
    Some(folder)
}
