//! QEMU's command line.
//!
//! **Invariant:** no name of an image is ever on it; disks arrive as descriptors.

use std::ffi::OsString;
use std::os::fd::RawFd;

use guestmnt_protocol::bay;

use super::boot::inherited_path;
use super::{VmConfig, bulk};
use crate::sys;

/// The guest's kernel parameters. The console is quiet because the serial port is slow under
/// TCG; what is printed there matters. Audit, security modules, mitigations, accounting, clearing of
/// what is allocated and the like only cost time in a VM that is thrown away: a third of a walk. There
/// is no network. The initcalls are ACPI, which a PC's PCI devices with interrupts of their own do
/// without, self-tests of cryptography that nobody uses here, the types of the kernel for BPF and for
/// tracing, and certificates: 0.75 s of a cold boot under TCG. What has an equals sign and is none of the
/// kernel's goes to the daemon's environment: its threads are not to have restartable sequences, which
/// nobody uses and each switch between threads looks after.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable \
    no_timer_check clearcpuid=rep_good mitigations=off audit=0 lsm= psi=0 nowatchdog \
    numa_balancing=disable hashdist=0 cgroup_disable=memory,io,cpu,cpuacct init_on_alloc=0 \
    hardened_usercopy=off randomize_kstack_offset=off kfence.sample_interval=0 random.trust_cpu=on \
    pci=noacpi,lastbus=0 deferred_probe_timeout=0 ipv6.disable=1 cryptomgr.notests \
    initcall_blacklist=acpi_init,crypto_kdf108_init,jent_mod_init,btf_vmlinux_init,trace_eval_init,\
    load_system_certificate_list GLIBC_TUNABLES=glibc.pthread.rseq=0";

/// What QEMU's own filter of system calls denies.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The descriptors that QEMU inherits.
pub struct Channels<'a> {
    /// The monitor's socket.
    pub qmp: RawFd,
    /// The serial console's socket.
    pub console: RawFd,
    /// The lanes' sockets, in order.
    pub lanes: &'a [RawFd],
}

/// What the machine is made of, by the numbers of inherited descriptors.
pub struct Machine {
    /// What it boots; `None` where it is restored.
    pub boot: Option<BootFiles>,
    /// Its memory.
    pub memory: Memory,
    /// The memory of its second node, if it has one.
    pub bulk: Option<RawFd>,
}

/// What is booted.
pub struct BootFiles {
    /// The kernel.
    pub kernel: RawFd,
    /// The initramfs.
    pub initramfs: RawFd,
}

/// What the guest's memory is made of.
pub enum Memory {
    /// Nothing that outlives QEMU.
    Anonymous,
    /// A file of its size, shared, from which a template is made.
    Kept(RawFd),
    /// A template's memory, mapped privately.
    Template {
        /// Its file.
        ram: RawFd,
        /// Whether QEMU can map it without being able to write it.
        read_only: bool,
    },
}

/// QEMU's own filter of system calls. Where the kernel has none, QEMU does not know the option.
#[must_use]
pub fn sandbox() -> Vec<OsString> {
    if sys::has_seccomp() { vec!["-sandbox".into(), SANDBOX.into()] } else { Vec::new() }
}

/// What a QEMU takes that only works on images, with the monitor's socket.
#[must_use]
pub fn without_machine(qmp: RawFd) -> Vec<OsString> {
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none"]);
    add(&["-chardev", &format!("socket,id=qmp,fd={qmp}"), "-mon", "chardev=qmp,mode=control"]);
    list
}

/// The machine as a list of arguments, with a block node for each bay.
#[must_use]
pub fn arguments(
    config: &VmConfig,
    channels: &Channels,
    machine: &Machine,
    bays: &[String],
) -> Vec<OsString> {
    let cpu = config.processor.model(config.accelerator);
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    let kind = "pc,usb=off,hpet=off,vmport=off,smbus=off,graphics=off";
    match machine.bulk {
        None => add(&["-machine", &format!("{kind},memory-backend=ram")]),
        Some(_) => {
            add(&["-machine", kind]);
            add(&[
                "-numa",
                "node,nodeid=0,memdev=ram,cpus=0",
                "-numa",
                "node,nodeid=1,memdev=bulk",
            ]);
        }
    }
    add(&["-accel", config.accelerator.name(), "-cpu", &cpu]);
    let bulk_mib = machine.bulk.map_or(0, |_| bulk::SIZE_MIB);
    add(&["-smp", "1", "-m", &format!("{}M", config.memory_mib + bulk_mib)]);
    add(&["-chardev", &format!("socket,id=qmp,fd={}", channels.qmp)]);
    add(&["-mon", "chardev=qmp,mode=control"]);
    add(&["-chardev", &format!("socket,id=console,fd={}", channels.console)]);
    add(&["-serial", "chardev:console"]);
    add(&["-device", "virtio-scsi-pci,id=scsi0"]);
    // Port 0 is a console's. With an interrupt for each queue, and one for changes of the ports, the
    // guest need not look through all queues at each.
    let ports = channels.lanes.len() + 1;
    let vectors = 2 * (ports + 1) + 1;
    add(&["-device", &format!("virtio-serial-pci,max_ports={ports},vectors={vectors}")]);
    for (n, fd) in channels.lanes.iter().enumerate() {
        add(&["-chardev", &format!("socket,id=lane{n},fd={fd}")]);
        let port = format!("virtserialport,chardev=lane{n},name=guestmnt.lane.{n}");
        add(&["-device", &port]);
    }
    // A thread of their own: in the main one each request would take the lock that the guest's
    // processor needs, and wake up for every socket there is.
    add(&["-object", "iothread,id=disks,poll-max-ns=32000"]);
    for (n, node) in (0..bay::BAYS).zip(bays) {
        // QEMU's default pauses the whole VM on a full disk, which would hang the mount.
        let device = format!(
            "virtio-blk-pci,id=bay{n},addr={:#x},iothread=disks,drive={node},werror=report,rerror=report",
            bay::FIRST_SLOT + n
        );
        add(&["-device", &device]);
    }
    // What is restored has its kernel in memory; reading it from its file again costs 20 ms.
    if let Some(BootFiles { kernel, initramfs }) = machine.boot {
        add(&["-append", KERNEL_PARAMETERS]);
        add(&["-kernel", &inherited_path(kernel), "-initrd", &inherited_path(initramfs)]);
    }
    let size = format!("{}M", config.memory_mib);
    let file = |options: &str, number| {
        let path = inherited_path(number);
        format!("memory-backend-file,id=ram,size={size},{options},mem-path={path}")
    };
    let ram = match machine.memory {
        Memory::Anonymous => format!("memory-backend-ram,id=ram,size={size}"),
        Memory::Kept(ram) => file("share=on", ram),
        Memory::Template { ram, read_only: true } => file("share=off,readonly=on,rom=off", ram),
        Memory::Template { ram, read_only: false } => file("share=off", ram),
    };
    add(&["-object", &ram]);
    if matches!(machine.memory, Memory::Template { .. }) {
        add(&["-incoming", "defer"]);
    }
    if let Some(number) = machine.bulk {
        let (path, size) = (inherited_path(number), bulk::SIZE);
        add(&[
            "-object",
            &format!("memory-backend-file,id=bulk,size={size},share=on,mem-path={path}"),
        ]);
    }
    list
}
