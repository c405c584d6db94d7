//! Virtual machines by their folders, through a real VM.

use std::fs;

use guestmnt_tests::differencing::{Changes, vdi, vdi_ids};
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
fn a_machine_of_virtualbox_is_shown_in_its_current_state() {
    let Some(showing) = Showing::new() else { return };
    let vm = showing.place.folder("vm");
    fs::create_dir(vm.join("Snapshots")).unwrap();
    // The base has another filesystem's bytes where the snapshot has its own.
    let disk = showing.bytes();
    let has = |sector: usize| sector >> 11 & 1 == 0;
    let mut stale = disk.clone();
    stale.chunks_mut(512).enumerate().filter(|&(i, _)| has(i)).for_each(|(_, s)| s.fill(0x55));
    fs::write(vm.join("raw"), stale).unwrap();
    showing.make("qemu-img", &["convert", "-f", "raw", "-O", "vdi", "vm/raw", "vm/vm.vdi"]);
    fs::remove_file(vm.join("raw")).unwrap();
    let ids = vdi_ids(&fs::read(vm.join("vm.vdi")).unwrap());
    let snapshot = vdi(Changes { disk: &disk, has: &has }, [0x22; 32], ids);
    fs::write(vm.join("Snapshots/{2}.vdi"), snapshot).unwrap();

    showing.assert_shown(&["-a", "vm"]);
    let vbox = "<VirtualBox><Machine snapshotFolder=\"Snapshots\"><MediaRegistry><HardDisks>\
        <HardDisk uuid=\"{22222222-2222-2222-2222-222222222222}\" location=\"Snapshots/{2}.vdi\"/>\
        </HardDisks></MediaRegistry><StorageControllers><StorageController type=\"AHCI\">\
        <AttachedDevice type=\"HardDisk\" port=\"0\" device=\"0\">\
        <Image uuid=\"{22222222-2222-2222-2222-222222222222}\"/></AttachedDevice>\
        </StorageController></StorageControllers></Machine></VirtualBox>";
    fs::write(vm.join("vm.vbox"), vbox).unwrap();
    for path in ["vm", "vm/vm.vbox"] {
        showing.assert_shown(&["-a", path]);
    }
}

#[test]
fn a_snapshot_in_a_folder_below_is_shown() {
    let Some(showing) = Showing::new() else { return };
    let vm = showing.place.folder("vm");
    fs::create_dir(vm.join("snapshots")).unwrap();
    let disk = showing.bytes();
    let line = format!("RW {} VMFSSPARSE \"NAME-delta.vmdk\"", disk.len() / 512);
    let write = |name: &str, data: &[u8], text: String| {
        let stem = name.rsplit('/').next().unwrap();
        fs::write(vm.join(format!("{name}-delta.vmdk")), cowd(data)).unwrap();
        fs::write(vm.join(format!("{name}.vmdk")), text.replace("NAME", stem)).unwrap();
    };
    let stale = [vec![7; 8192], disk[8192..].to_vec()].concat();
    write("base", &stale, descriptor("vmfsSparse", &line));
    write("snapshots/s1", &disk[..], snapshot("vmfsSparse", "../base.vmdk", &line));
    showing.assert_shown(&["-a", "vm"]);
    fs::write(vm.join("vm.vmx"), "scsi0:0.fileName = \"base-000001.vmdk\"").unwrap();
    let words = ["its disk base-000001.vmdk does not exist", "vm/base.vmdk", "hint: "];
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
