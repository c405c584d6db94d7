//! POSIX behaviour of what an ordinary user mounts.

use guestmnt_tests::posix::suite;
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use xtask::disks::filesystems::Kind;
use xtask::skips::skip;

fn differs_as_listed(mount: &str, options: &[&str]) {
    let Some((image, _)) = specimen(Kind::Ext4) else { return };
    let Some(suite) = suite() else { return };
    let plain = tempfile::tempdir().unwrap();
    let shown = OverImage::with_options(&image, options);
    suite.assert_differs_as_listed(mount, shown.path(), plain.path());
}

#[test]
fn a_users_mount_differs_from_a_plain_folder_as_listed() {
    let setting = "/proc/sys/fs/protected_hardlinks";
    if std::fs::read_to_string(setting).is_ok_and(|value| value.trim() != "1") {
        skip("the list of differences is that of hosts that protect hard links");
        return;
    }
    differs_as_listed("user", &[]);
}

#[test]
fn a_mount_with_the_users_ids_differs_from_a_plain_folder_as_listed() {
    let owner = format!("uid={},gid={}", nix::unistd::getuid(), nix::unistd::getgid());
    differs_as_listed("user own ids", &["-o", &owner]);
}
