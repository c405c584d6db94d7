//! Virtual machines by their folders, through a real VM.

use std::fs;

use guestmnt_tests::images::{cowd, descriptor, snapshot};
use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::showing::Showing;
use xtask::disks::NEWEST;

#[test]
fn the_folder_of_a_machine_gives_its_disks_in_order() {
    let Some(showing) = Showing::new() else { return };
    let vm = showing.place.folder("vm");
    showing.convert("vmdk", "subformat=twoGbMaxExtentSparse", "vm/root.vmdk");
    showing.make("qemu-img", &["create", "-f", "vmdk", "vm/empty.vmdk", "4M"]);
    let vmx = "scsi0:1.fileName = \"empty.vmdk\"\nscsi0:0.fileName = \"C:\\old\\root.vmdk\"\n\
               ide1:0.fileName = \"auto detect\"\nide1:0.deviceType = \"atapi-cdrom\"";
    fs::write(vm.join("vm.vmx"), vmx).unwrap();
    showing.assert_shown(&["-a", "vm"]);
    showing.assert_shown(&["-a", "vm/vm.vmx"]);
    // Two disks came before it.
    showing.assert_mounted(&["-a", "vm", "-a", "vm/root.vmdk", "-m", "/dev/sdc"]);
}

#[test]
fn the_newest_snapshot_of_a_folder_is_its_disk() {
    let Some(showing) = Showing::new() else { return };
    let vm = showing.place.folder("vm");
    let disk = showing.bytes();
    let line = format!("RW {} VMFSSPARSE \"NAME-delta.vmdk\"", disk.len() / 512);
    let write = |name: &str, data: &[u8], text: String| {
        fs::write(vm.join(format!("{name}-delta.vmdk")), cowd(data)).unwrap();
        fs::write(vm.join(format!("{name}.vmdk")), text.replace("NAME", name)).unwrap();
    };
    write(
        "base",
        &[vec![7; 8192], disk[8192..].to_vec()].concat(),
        descriptor("vmfsSparse", &line),
    );
    write("s1", &disk[..], snapshot("vmfsSparse", "base.vmdk", &line));
    showing.assert_shown(&["-a", "vm"]);
    write("s2", &disk[..], snapshot("vmfsSparse", "base.vmdk", &line));
    let words = ["cannot open vm: it holds several disks", "    vm/s1.vmdk", "hint: name one"];
    showing.assert_refused(&["-a", "vm"], &words);
}

#[test]
fn the_demos_folder_is_its_newest_snapshot() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let snapshot = disks().path(NEWEST);
    let folder = snapshot.parent().unwrap();
    place.mount(&["-a", text(folder), "-m", "/dev/sda2", text(&mnt)]);
    assert!(mnt.join("snapshot-3.txt").exists());
    place.unmount(&mnt);
}
