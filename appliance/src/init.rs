//! PID 1: makes the guest a place where the daemon can work, starts a worker for each lane, and
//! then listens to what the kernel announces. It never returns, since the kernel panics when its
//! init ends.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::devices::{announce_again, set_queues};
use crate::guest::Guest;
use crate::held::MAX_HELD;
use crate::kmsg;
use crate::ports::Lanes;
use crate::readdir_errors;
use crate::sys;
use crate::uevent::{Announced, Uevents};

/// Type and place of the kernel's own filesystems.
const KERNEL_FILESYSTEMS: [(&str, &str); 3] =
    [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")];

/// Settings of the kernel, below `/proc/sys`.
const SETTINGS: [(&str, &str); 5] = [
    // A driver that stumbles over an image would take its worker with it and leave its locks
    // held. The host can do better with a guest that is gone than with one that is silent: a panic
    // reboots at once, and QEMU, started with -no-reboot, ends.
    ("kernel/panic_on_oops", "1"),
    ("kernel/panic", "-1"),
    // The kernel would run a program to load modules; there is none, and not trying is faster.
    ("kernel/modprobe", "\n"),
    // What the kernel does every second or half, in each VM that waits for a request and in the
    // middle of each mount: looking for memory to be joined, and adding up its statistics.
    ("vm/compaction_proactiveness", "0"),
    ("vm/stat_interval", "3600"),
];

/// Files that may be open: those held for the host, and some for reading them directly.
const MAX_FILES: u64 = 3 * MAX_HELD as u64;

/// Modules of the bays, of the SCSI controller and of its disks. They load before any disk is
/// plugged in.
const DISK_MODULES: [&str; 3] = ["virtio_blk", "virtio_scsi", "sd_mod"];

/// Runs the guest.
pub fn run() -> ! {
    sys::keep_heap();
    mount_kernel_filesystems();
    // New files have the permissions that the host says.
    umask(Mode::empty());
    if let Err(error) = kmsg::use_kernel_log() {
        kmsg::warn(format_args!("cannot open the kernel's log: {error}"));
    }
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, MAX_FILES, MAX_FILES) {
        kmsg::warn(format_args!("cannot open more files than usual: {}", errno.desc()));
    }
    for (name, value) in SETTINGS {
        if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value) {
            kmsg::warn(format_args!("cannot set {name}: {error}"));
        }
    }
    if let Err(error) = readdir_errors::trace() {
        kmsg::warn(format_args!("errors that a listing hides go unnoticed: {error}"));
    }
    // From here on no device can appear unnoticed.
    let uevents = Uevents::open();
    let guest = Arc::new(Guest::vm());
    load_disk_modules(&guest);
    set_queues();
    match uevents {
        Ok(uevents) => listen(uevents, &guest),
        Err(errno) => {
            kmsg::warn(format_args!("cannot listen to the kernel: {}", errno.desc()));
            sleep_for_ever()
        }
    }
}

fn mount_kernel_filesystems() {
    for (kind, place) in KERNEL_FILESYSTEMS {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        if let Err(errno) = mount(Some(kind), place, Some(kind), flags, None::<&str>) {
            kmsg::warn(format_args!("cannot mount {place}: {}", errno.desc()));
        }
    }
}

fn load_disk_modules(guest: &Guest) {
    let Some(machine) = guest.machine() else { return };
    for name in DISK_MODULES {
        // ENOENT: built into the kernel.
        if let Err(errno) = machine.modules.load(name)
            && errno != nix::errno::Errno::ENOENT
        {
            kmsg::warn(format_args!("cannot load module {name}: {}", errno.desc()));
        }
    }
}

/// Passes on what the kernel announces: ports become lanes, disks become ready.
fn listen(mut uevents: Uevents, guest: &Arc<Guest>) -> ! {
    let mut lanes = Lanes::of(Arc::clone(guest));
    // What was there before the socket, drivers built into the kernel having brought it.
    lanes.serve_new();
    announce_again();
    loop {
        match uevents.next() {
            Ok(Announced::Event(event)) => {
                if event.subsystem == "virtio-ports" {
                    lanes.serve_new();
                } else if let Some(machine) = guest.machine() {
                    machine.disks.note(&event);
                }
            }
            Ok(Announced::Lost) => {
                kmsg::warn(format_args!("the kernel announced more than could be heard"));
                lanes.serve_new();
                announce_again();
            }
            Err(errno) => {
                kmsg::warn(format_args!("cannot listen to the kernel: {}", errno.desc()));
                sleep_for_ever()
            }
        }
    }
}

/// Leaves the lanes to themselves: no further device will be noticed.
fn sleep_for_ever() -> ! {
    loop {
        thread::park();
    }
}
