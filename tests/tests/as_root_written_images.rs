//! `--rw` by root: QEMU is nobody all the same, and a file that nobody may write stays as it is.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use guestmnt_tests::program::is_root;
use guestmnt_tests::showing::Showing;
use guestmnt_tests::written::{assert_written, write_to};
use xtask::skips::skip;

#[test]
fn root_writes_to_an_image_that_stays_its_owners() {
    if !is_root() {
        return skip("not root");
    }
    let Some(showing) = Showing::new() else { return };
    let disk = showing.place.path().join("disk.vmdk");
    showing.convert("vmdk", "", "disk.vmdk");
    chown(&disk, Some(12345), None).unwrap();
    // Without a template, which root's first mount would make, and without trying KVM for that.
    let options = ["--no-template", "--accel", "tcg", "-a", "disk.vmdk"];
    write_to(&showing.place, &options);
    assert_written(&showing.place, &options);
    assert_eq!(fs::metadata(&disk).unwrap().uid(), 12345);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o400)).unwrap();
    showing.assert_refused(&["--rw", "-a", "disk.vmdk"], &["read-only file"]);
}
