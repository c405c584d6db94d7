//! What can be done with files, on the loopback guest.

use std::fs;
use std::os::unix::fs::symlink;

use guestmnt_protocol::path::GuestPath;
use guestmnt_tests::worlds::loopback::{Loopback, guest_over};
use nix::errno::Errno;
use tempfile::tempdir;

guestmnt_tests::operations_in!(Loopback);

/// The host's kernel resolves links and never asks such a thing; a guest is asked directly.
#[test]
fn a_link_in_the_image_does_not_lead_the_guest_out() {
    let (source, outside) = (tempdir().unwrap(), tempdir().unwrap());
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), source.path().join("way-out")).unwrap();
    let guest = guest_over(source.path());
    let path = GuestPath::parse(b"/way-out/secret").unwrap();
    let errno = guest.stat(path.clone()).unwrap_err();
    assert!(matches!(errno, Errno::ELOOP | Errno::ENOTDIR), "{errno}");
    assert!(guest.read(path, 0, 100, |_| ()).is_err());
}
