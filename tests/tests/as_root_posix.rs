//! POSIX behaviour of a mount that several users may use: the suite acts in their names, as only root
//! can.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use guestmnt_tests::posix::suite;
use guestmnt_tests::program::is_root;
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use xtask::disks::filesystems::Kind;
use xtask::skips::skip;

#[test]
fn a_mount_for_everybody_differs_from_a_plain_folder_as_listed() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let Some(suite) = suite() else { return };
    let plain = tempfile::tempdir().unwrap();
    // The other users go through it.
    fs::set_permissions(plain.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let options = ["-o", "allow_other,default_permissions"];
    let shown = OverImage::with_options(&image, &options);
    suite.assert_differs_as_listed("root", shown.path(), plain.path());
}
