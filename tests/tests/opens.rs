//! Which files guestmnt, guestimg and QEMU open, seen by their system calls: those of the image, and
//! none that a hostile image names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use guestmnt_tests::images::{descriptor, qcow2_over};
use guestmnt_tests::opens::{Open, traced};
use guestmnt_tests::program::{Workplace, disks, given, text};
use guestmnt_tests::trap::Trap;
use xtask::disks::{BASE, NEWEST, SNAPSHOTS};

/// What every program opens, and what QEMU's own root, which is built in `/tmp`, is made of.
const SYSTEM: [&str; 14] = [
    "/usr/",
    "/lib",
    "/etc/ld.so.cache",
    "/proc/",
    "/sys/",
    "/dev/null",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/urandom",
    "/tmp/usr/",
    "/tmp/etc/ld.so.cache",
    "/tmp/dev/null",
    "/memfd:",
    "/usr",
];

/// Those of `opens` that are neither the system's nor ours.
fn others<'a>(opens: &'a [Open], ours: &[PathBuf]) -> Vec<&'a Open> {
    let known = |path: &Path| {
        SYSTEM.iter().any(|known| text(path).starts_with(known))
            || ours.iter().any(|known| path.starts_with(known))
    };
    opens.iter().filter(|open| !known(&open.path)).collect()
}

#[test]
fn of_a_chain_its_files_are_opened_and_no_others() {
    let place = Workplace::new();
    let folder = place.folder("disks").canonicalize().unwrap();
    let placed = disks().place(&folder).unwrap();
    let disk = placed.path(NEWEST);
    let arguments = ["filesystems", "-a", text(&disk)];
    let Some((status, opens)) = traced(&place, "guestimg", &arguments, &[]) else { return };
    assert_eq!(status, Some(0));
    let ours = ["GUESTMNT_APPLIANCE", "GUESTMNT_TEST_CACHE"]
        .map(|variable| given(variable).canonicalize().unwrap());

    // Beside these there is the overlay, which has no name.
    let (images, unnamed): (Vec<&Open>, Vec<&Open>) =
        others(&opens, &ours).into_iter().partition(|open| open.path.starts_with(&folder));
    let above = folder.parent().unwrap();
    assert!(unnamed.iter().all(|open| open.path.parent() == Some(above)), "{unnamed:#?}");
    assert!(images.iter().all(|open| !open.writes()), "{images:#?}");
    let found: BTreeSet<PathBuf> = images.iter().map(|open| open.path.clone()).collect();
    let links = [&[BASE][..], &SNAPSHOTS].concat();
    let expected = links.into_iter().flat_map(|link| {
        let path = placed.path(link);
        let extent = |number: &str| {
            let stem = path.file_stem().expect("a name").to_string_lossy();
            path.with_file_name(format!("{stem}-{number}.vmdk"))
        };
        [extent("s001"), extent("s002"), path.clone()]
    });
    assert_eq!(found, expected.collect());
    let names = |name| opens.iter().any(|open| open.path.ends_with(name));
    assert!(names("usr/bin/qemu-system-x86_64"), "QEMU was not seen");
}

#[test]
fn of_an_image_that_names_other_files_only_itself_is_opened() {
    let trap = Trap::new();
    let vm = trap.vm.canonicalize().unwrap();
    let qemu = [("GUESTMNT_QEMU", "/nonexistent/qemu")];
    for (name, _) in trap.names() {
        let line = format!("RW 8 FLAT \"{name}\" 0");
        trap.write("disk.vmdk", descriptor("monolithicFlat", &line));
        trap.write("disk.qcow2", qcow2_over(name.as_bytes(), "raw"));
        trap.write("machine.vmx", format!("scsi0:0.fileName = \"{name}\""));
        for image in ["disk.vmdk", "disk.qcow2", "machine.vmx"] {
            let path = format!("vm/{image}");
            let arguments = ["-a", &path, "-m", "/dev/sda", "mnt"];
            let Some((status, opens)) = traced(&trap.place, "guestmnt", &arguments, &qemu) else {
                return;
            };
            assert_eq!(status, Some(1), "{image} with {name}");
            // Where a name leads is looked at without opening what is there.
            let read = others(&opens, &[]).into_iter().filter(|open| !open.is_path_only());
            let appliance = given("GUESTMNT_APPLIANCE").canonicalize().unwrap();
            let read: BTreeSet<&Path> = read
                .map(|open| open.path.as_path())
                .filter(|path| !path.starts_with(&appliance))
                .collect();
            let itself = vm.join(image);
            let allowed = BTreeSet::from([itself.as_path(), trap.vm.as_path()]);
            assert!(read.is_subset(&allowed), "{image} with {name}: {read:?}");
            assert!(read.contains(itself.as_path()), "{image} was not seen");
        }
    }
    trap.assert_secret_is_kept();
}
