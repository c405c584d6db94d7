//! What can be done with files, on the loopback guest.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use guestmnt_protocol::path::GuestPath;
use guestmnt_tests::program::is_root;
use guestmnt_tests::worlds::World;
use guestmnt_tests::worlds::loopback::{Loopback, guest_over};
use nix::errno::Errno;
use tempfile::tempdir;
use xtask::skips::skip;

guestmnt_tests::operations_in!(Loopback);
guestmnt_tests::walks_in!(Loopback);
guestmnt_tests::reading_in!(Loopback);

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

/// Broken filesystems have such files. Here it is a folder that may be read but not entered.
#[test]
fn files_that_the_guest_cannot_look_at_are_listed_and_fail_when_they_are_used() {
    if is_root() {
        skip("root may enter every folder");
        return;
    }
    let source = tempdir().unwrap();
    let closed = source.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("one"), "").unwrap();
    fs::create_dir(closed.join("two")).unwrap();
    let set_mode = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o444);
    let shown = Loopback.show(source.path(), "");
    for _ in 0..2 {
        let entries = fs::read_dir(shown.path().join("closed")).unwrap();
        let names: BTreeSet<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["one", "two"].map(Into::into).into());
        for name in names {
            let error = fs::metadata(shown.path().join("closed").join(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::EACCES as i32));
        }
    }
    drop(shown);
    set_mode(0o755);
}

#[test]
fn two_hundred_thousand_entries_are_listed_once_each() {
    const COUNT: usize = 200_000;
    let source = tempdir().unwrap();
    for n in 0..COUNT {
        fs::File::create(source.path().join(n.to_string())).unwrap();
    }
    let shown = Loopback.show(source.path(), "");
    let mut seen = vec![false; COUNT];
    for entry in fs::read_dir(shown.path()).unwrap() {
        let number: usize = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        assert!(!std::mem::replace(&mut seen[number], true), "{number}");
    }
    assert!(seen.iter().all(|seen| *seen));
    // Some 60 bytes for each, in pages of 256 KiB.
    assert!(shown.requests() < 200, "{}", shown.requests());
}
