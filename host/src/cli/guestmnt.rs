//! `guestmnt`: mounts the filesystems of disk images on a folder.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use guestmnt_protocol::message::Dirty;
use log::debug;

use super::background::{self, Ready, Side};
use super::images::{ImageArguments, KeyArguments, OverlayArguments};
use super::selection::SelectionArguments;
use super::{descriptor, harmless, is_root, raise_file_limit, start_logging};
use crate::image::OnMissing;
use crate::session::fuse_options::FuseOptions;
use crate::session::keys;
use crate::session::launch::{cache_folder, prepare};
use crate::session::plan::{
    DEFAULT_MEMORY_MIB, DiskSpec, Plan, PlanError, WritesTo, check_count, check_overlays,
};
use crate::session::selection::Selection;
use crate::session::timings::Timings;
use crate::session::watcher::Watcher;
use crate::session::{Session, SessionError};
use crate::sys;
use crate::vm::accelerator::AcceleratorChoice;
use crate::vm::confinement::Policy;

const AFTER_HELP: &str = "\
Examples:
  guestmnt -a disk.vmdk -m /dev/sda2 --ro /mnt
  guestmnt -a disk.vmdk --overlay changes.qcow2 -m /dev/sda2 /mnt
  guestmnt -a disk.vmdk -m /dev/sda2 --rw /mnt
  guestmnt -a system.vmdk -m /dev/sda1 -a data.vmdk -m /dev/sdb2:/mounts/data --ro /mnt
  guestmnt -a system.vmdk -a data.vmdk -i /mnt
  guestunmnt /mnt

Exit status: 0 the mount answers (with --no-fork: it was unmounted), 1 it failed, or what was
written could not all be kept (with --no-fork; else guestunmnt says so).
Environment: GUESTMNT_APPLIANCE (folder of the appliance), GUESTMNT_QEMU (program), TMPDIR (overlays).";

/// Shows the files of untrusted disk images in a folder, without root. A throw-away VM reads
/// the filesystems; the images are not changed. With --overlay, files can be written, which a
/// file beside the image takes; with --rw, the image itself does.
#[derive(Parser)]
#[command(name = "guestmnt", version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    images: ImageArguments,

    #[command(flatten)]
    overlays: OverlayArguments,

    /// Write also to an NTFS that was not unmounted, or that Windows is hibernated on: what it
    /// has in memory will destroy what is written
    #[arg(long, requires = "writing")]
    force_dirty: bool,

    #[command(flatten)]
    selection: SelectionArguments,

    /// Show disks, partitions and volumes as files, instead of mounting filesystems
    #[arg(long, conflicts_with_all = ["mount", "inspector", "all", "writing"])]
    blocks: bool,

    /// Read-only, which is the default: nothing is kept
    #[arg(short = 'r', long, conflicts_with = "writing")]
    ro: bool,

    /// Write to the images themselves, which nobody else can use meanwhile; of a chain, to its leaf
    #[arg(short = 'w', long, group = "writing")]
    rw: bool,

    /// FUSE options: allow_other, allow_root, default_permissions, uid=, gid=, umask=, fmask=, dmask=, noexec, symlinks=raw
    #[arg(short = 'o', long = "option", value_name = "OPTION[,OPTION…]")]
    option: Vec<FuseOptions>,

    /// What runs the VM
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    accel: AcceleratorChoice,

    /// Boot the VM instead of restoring it from a template
    #[arg(long)]
    no_template: bool,

    /// Have the guest read all files, those as well that lie open in the image
    #[arg(long)]
    through_guest: bool,

    /// Let contents of files come by the requests' channel, slower than through shared memory.
    #[arg(long)]
    no_bulk_memory: bool,

    /// Do not run QEMU with less confinement than there could be; say what this host lacks
    #[arg(long)]
    require_confinement: bool,

    /// Make the template now, and mount nothing
    #[arg(long, conflicts_with_all = ["add", "mount", "inspector", "all", "no_template"])]
    prepare: bool,

    #[command(flatten)]
    keys: KeyArguments,

    /// Memory of the VM in MiB; 256, or 1536 with keys
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(128..=65536))]
    memsize: Option<u32>,

    /// Seconds that one request to the guest may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout: u64,

    /// Stay in the foreground
    #[arg(long)]
    no_fork: bool,

    /// File for the process id of the serving process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// Descriptor to which a byte is written when the mount answers
    #[arg(long, value_name = "N", value_parser = descriptor)]
    fd: Option<RawFd>,

    /// Say what is done
    #[arg(short = 'v', long)]
    verbose: bool,

    /// Print where the time of the launch went
    #[arg(long)]
    timings: bool,

    /// Show each request (implies --no-fork)
    #[arg(short = 'x', long)]
    trace: bool,

    /// Count requests, of the kernel and to the guest, and print them at the end (implies --no-fork)
    #[arg(long)]
    stats: bool,

    /// The folder to mount on
    #[arg(value_name = "FOLDER", required_unless_present = "prepare")]
    mountpoint: Option<PathBuf>,
}

/// The command line.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program with the process's arguments.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (arguments, disks) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nothing can be done where even this cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    start_logging("guestmnt", arguments.verbose, arguments.trace);
    raise_file_limit();
    match run(arguments, disks) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("guestmnt: {}", harmless(error));
            ExitCode::FAILURE
        }
    }
}

/// Parses, and tells which options stood before or behind which `-a`.
fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Arguments, Result<Vec<DiskSpec>, PlanError>), clap::Error> {
    let matches = Arguments::command().try_get_matches_from(arguments)?;
    let parsed = Arguments::from_arg_matches(&matches)?;
    let mut disks = parsed.images.disks(&matches);
    let assigned = parsed.overlays.assign(&matches, &mut disks);
    Ok((parsed, assigned.map(|()| disks)))
}

fn run(
    arguments: Arguments,
    disks: Result<Vec<DiskSpec>, PlanError>,
) -> Result<ExitCode, Box<dyn fmt::Display>> {
    let confinement =
        if arguments.require_confinement { Policy::Required } else { Policy::BestEffort };
    if arguments.prepare {
        let memory_mib = arguments.memsize.unwrap_or(DEFAULT_MEMORY_MIB);
        return prepare(arguments.accel, memory_mib, confinement)
            .map(|()| ExitCode::SUCCESS)
            .map_err(boxed);
    }
    let timings = Timings::start();
    let disks = arguments.images.resolved(disks.map_err(boxed)?).map_err(boxed)?;
    check_overlays(&disks).map_err(boxed)?;
    check_count(disks.len()).map_err(boxed)?;
    let selection = if arguments.blocks {
        Selection::Blocks
    } else {
        let named = arguments.selection.of(disks.len()).map_err(boxed)?;
        named.ok_or_else(|| boxed(PlanError::NoRoot))?
    };
    let dirty = if arguments.force_dirty { Dirty::Force } else { Dirty::ReadOnly };
    let writes = if arguments.rw {
        WritesTo::Images(dirty)
    } else if disks.iter().any(|disk| disk.overlay.is_some()) {
        WritesTo::Overlays(dirty)
    } else {
        WritesTo::Nothing
    };
    let keys = arguments.keys.fetch().map_err(boxed)?;
    let usual_memory = if keys.is_empty() { DEFAULT_MEMORY_MIB } else { keys::MEMORY_MIB };
    let mut plan = Plan {
        disks,
        keys,
        allow_paths: arguments.images.allow_path,
        on_missing: OnMissing::default(),
        selection,
        mountpoint: arguments.mountpoint.unwrap_or_default(),
        fuse_options: FuseOptions::merged(&arguments.option),
        accelerator: arguments.accel,
        use_template: !arguments.no_template,
        confinement,
        declined: None,
        through_guest: arguments.through_guest,
        bulk: !arguments.no_bulk_memory,
        memory_mib: arguments.memsize.unwrap_or(usual_memory),
        timeout: Duration::from_secs(arguments.timeout),
        stats: arguments.stats,
        writes,
    };
    let ready = arguments.fd.map(sys::take_inherited).transpose();
    let ready = ready
        .map_err(|error| boxed(format!("--fd {}: {error}", arguments.fd.unwrap_or_default())))?;
    let foreground = arguments.no_fork || arguments.trace || arguments.stats;
    let release = if foreground {
        None
    } else {
        let side = background::split()
            .map_err(|error| boxed(SessionError::Io("go to the background", error)))?;
        match side {
            Side::Foreground(status) => return Ok(status),
            Side::Background(release) => Some(release),
        }
    };
    let watcher = Watcher::start()
        .map_err(|error| boxed(SessionError::Io("start the watching process", error)))?;
    if is_root() {
        tell_root_once();
    }
    let session = Session::start(&mut plan, &timings, watcher).map_err(boxed)?;
    if arguments.timings {
        eprintln!("{timings}");
    }
    let announce = || -> std::io::Result<()> {
        if let Some(file) = &arguments.pid_file {
            fs::write(file, format!("{}\n", std::process::id()))?;
        }
        if let Some(fd) = &ready {
            fs::File::from(fd.try_clone()?).write_all(&[1])?;
        }
        Ok(())
    };
    let status = if session.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let ending = if session.is_complete() { Ready::Whole } else { Ready::InPart };
    let announced = announce().and_then(|()| release.map_or(Ok(()), |it| it.release(ending)));
    let waited = match announced {
        Ok(()) => session.wait(),
        Err(error) => {
            // That the mount is not wanted any more counts more than how it ended.
            let _ = session.end();
            Err(SessionError::Io("say that the mount is ready", error))
        }
    };
    if let Some(file) = &arguments.pid_file {
        // It may be gone already.
        let _ = fs::remove_file(file);
    }
    waited.map_err(boxed).map(|()| status)
}

/// An error of any of the steps: all that is done with it is to print it.
fn boxed(error: impl fmt::Display + 'static) -> Box<dyn fmt::Display> {
    Box::new(error)
}

/// Root is not needed; the first time that root calls, it is told so.
fn tell_root_once() {
    let marker = cache_folder().map(|folder| folder.join("root-was-told"));
    if marker.as_ref().is_some_and(|marker| marker.exists()) {
        return;
    }
    eprintln!("guestmnt: note: root is not needed; any user can do this (said once)");
    if let Some(Err(error)) = marker.map(|marker| fs::write(marker, "")) {
        debug!("cannot remember that root was told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
