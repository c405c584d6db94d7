//! QEMU's command line.
//!
//! **Invariant:** no name of an image is ever on it; disks arrive as descriptors.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::RawFd;
use std::path::Path;

use guestmnt_protocol::bay;

use super::accelerator::Accelerator;
use super::{VmConfig, bulk};

/// The guest's kernel parameters. The console is quiet because the serial port is slow under
/// TCG; what is printed there matters. Audit, security modules, mitigations, accounting, clearing of
/// what is allocated and the like only cost time in a VM that is thrown away: a third of a walk. The initcalls are self-tests of cryptography that nobody uses here, the
/// types of the kernel for BPF, and certificates: 0.45 s of a cold boot under TCG.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable \
    no_timer_check clearcpuid=rep_good mitigations=off audit=0 lsm= psi=0 nowatchdog \
    numa_balancing=disable hashdist=0 cgroup_disable=memory,io,cpu,cpuacct init_on_alloc=0 \
    hardened_usercopy=off randomize_kstack_offset=off kfence.sample_interval=0 random.trust_cpu=on \
    pci=lastbus=0 cryptomgr.notests initcall_blacklist=crypto_kdf108_init,jent_mod_init,\
    btf_vmlinux_init,load_system_certificate_list";

/// TCG's processor, without the promises that make the guest's kernel copy and clear memory with
/// `rep movsb` and `rep stosb`: TCG carries those out byte by byte, which took a third of a walk
/// over cold directories. `rep_good`, above, is the same promise for `rep stosq`; it is the kernel's
/// own conclusion from the processor's name. Leaving out `xsave`, `la57` or `smap` as well measured
/// no faster.
const TCG_PROCESSOR: &str = "max,-erms,-fsrm,-fsrs,-fzrm,-fsrc";

/// The descriptors that QEMU inherits.
pub struct Channels<'a> {
    /// The monitor's socket.
    pub qmp: RawFd,
    /// The serial console's socket.
    pub console: RawFd,
    /// The lanes' sockets, in order.
    pub lanes: &'a [RawFd],
}

/// What the guest's memory is made of.
pub enum Memory<'a> {
    /// Nothing that outlives QEMU.
    Anonymous,
    /// A new file, shared, from which a template is made.
    Kept(&'a Path),
    /// A template's memory, mapped privately.
    Template {
        /// Its file, open for reading.
        ram: RawFd,
        /// Major and minor version of the QEMU that made it, and will restore it.
        qemu_version: (u32, u32),
    },
}

/// The machine as a list of arguments, with bulk memory in a file that is to be inherited, and with
/// a block node for each bay.
#[must_use]
pub fn arguments(
    config: &VmConfig,
    channels: &Channels,
    memory: &Memory,
    bulk: Option<&File>,
    bays: &[String],
) -> Vec<OsString> {
    let cpu = match config.accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => TCG_PROCESSOR,
    };
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    let machine = "pc,usb=off,hpet=off,vmport=off,smbus=off,graphics=off";
    match bulk {
        None => add(&["-machine", &format!("{machine},memory-backend=ram")]),
        Some(_) => {
            add(&["-machine", machine]);
            add(&[
                "-numa",
                "node,nodeid=0,memdev=ram,cpus=0",
                "-numa",
                "node,nodeid=1,memdev=bulk",
            ]);
        }
    }
    add(&["-accel", config.accelerator.name(), "-cpu", cpu]);
    let bulk_mib = bulk.map_or(0, |_| bulk::SIZE_MIB);
    add(&["-smp", "1", "-m", &format!("{}M", config.memory_mib + bulk_mib)]);
    add(&["-chardev", &format!("socket,id=qmp,fd={}", channels.qmp)]);
    add(&["-mon", "chardev=qmp,mode=control"]);
    add(&["-chardev", &format!("socket,id=console,fd={}", channels.console)]);
    add(&["-serial", "chardev:console"]);
    add(&["-device", "virtio-scsi-pci,id=scsi0"]);
    add(&["-device", "virtio-serial-pci,max_ports=31"]);
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
    if !matches!(memory, Memory::Template { .. }) {
        list.extend(["-append".into(), KERNEL_PARAMETERS.into()]);
        list.extend(["-kernel".into(), config.appliance.kernel.clone().into()]);
        list.extend(["-initrd".into(), config.appliance.initramfs.clone().into()]);
    }
    list.extend(self::memory(&format!("{}M", config.memory_mib), memory));
    if let Some(file) = bulk {
        // A path to what QEMU inherits, so there is no comma in it.
        let path = bulk::inherited_path(file);
        let size = bulk::SIZE;
        let object = format!("memory-backend-file,id=bulk,size={size},share=on,mem-path={path}");
        list.extend(["-object".into(), object.into()]);
    }
    list
}

fn memory(size: &str, memory: &Memory) -> Vec<OsString> {
    let file = |path: &Path, options: &str| {
        let mut object =
            OsString::from(format!("memory-backend-file,id=ram,size={size},{options},mem-path="));
        // QEMU's option lists double a comma that belongs to a value.
        object.push(path.to_string_lossy().replace(',', ",,"));
        object
    };
    let object = "-object".into();
    match memory {
        Memory::Anonymous => vec![object, format!("memory-backend-ram,id=ram,size={size}").into()],
        Memory::Kept(path) => vec![object, file(path, "share=on")],
        Memory::Template { ram, qemu_version } => {
            let path = format!("/proc/self/fd/{ram}");
            // Older ones open the file for writing although they map it privately.
            let options =
                if *qemu_version >= (8, 2) { "share=off,readonly=on,rom=off" } else { "share=off" };
            vec![object, file(path.as_ref(), options), "-incoming".into(), "defer".into()]
        }
    }
}
