//! QEMU's command line.
//!
//! **Invariant:** no name of an image, and no path but the appliance's, is ever on it; disks
//! arrive later, as descriptors.

use std::ffi::OsString;
use std::os::fd::RawFd;

use super::accelerator::Accelerator;
use super::appliance::Appliance;

/// The guest's kernel parameters. The console is quiet because the serial port is slow under
/// TCG; what is printed there matters. Audit, mitigations and the like only cost time in a VM that
/// is thrown away.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable \
    no_timer_check mitigations=off audit=0 selinux=0 apparmor=0 random.trust_cpu=on \
    pci=lastbus=0 cryptomgr.notests";

/// The descriptors that QEMU inherits.
pub struct Channels<'a> {
    /// The monitor's socket.
    pub qmp: RawFd,
    /// The serial console's socket.
    pub console: RawFd,
    /// The lanes' sockets, in order.
    pub lanes: &'a [RawFd],
}

/// The machine as a list of arguments.
#[must_use]
pub fn arguments(
    appliance: &Appliance,
    accelerator: Accelerator,
    memory_mib: u32,
    channels: &Channels,
) -> Vec<OsString> {
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    add(&["-machine", "pc,usb=off,hpet=off,vmport=off,smbus=off,graphics=off", "-cpu", cpu]);
    add(&["-accel", accelerator.name()]);
    add(&["-smp", "1", "-m", &format!("{memory_mib}M")]);
    add(&["-append", KERNEL_PARAMETERS]);
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
    list.extend(["-kernel".into(), appliance.kernel.clone().into()]);
    list.extend(["-initrd".into(), appliance.initramfs.clone().into()]);
    list
}
