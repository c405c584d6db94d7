//! What can be written, on the loopback guest.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, fchown};
use std::time::{Duration, SystemTime};

use guestmnt::guest::room::Room;
use guestmnt_protocol::change::{
    Access, EntryPath, Existing, FileAt, NewAttributes, Owner, Removed, Synced,
};
use guestmnt_protocol::path::{EntryName, GuestPath};
use guestmnt_tests::model::{ALL, same_as_a_plain_folder};
use guestmnt_tests::worlds::loopback::guest_over;
use guestmnt_tests::worlds::writable::{OverFolder, Writable};
use nix::errno::Errno;
use nix::unistd::geteuid;

guestmnt_tests::writing_in!(OverFolder::new());

#[test]
fn random_changes_end_as_in_a_plain_folder() {
    for seed in 1..=4 {
        same_as_a_plain_folder(&mut OverFolder::new(), &ALL, seed, 400);
    }
}

/// To make it, and all the rest when it is closed: it is not looked for in a folder that was just
/// made, and nobody gave it capabilities.
#[test]
fn a_new_file_in_a_new_folder_costs_two_requests() {
    const FILES: u64 = 20;
    let shown = OverFolder::new();
    let folder = shown.path().join("new");
    fs::create_dir(&folder).unwrap();
    let before = shown.requests();
    let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    for n in 0..FILES {
        // As tar does.
        let mut file = File::create_new(folder.join(n.to_string())).unwrap();
        file.write_all(b"some bytes").unwrap();
        file.set_times(FileTimes::new().set_modified(past)).unwrap();
        file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    }
    // One more or less for the folder itself.
    assert!(shown.requests() - before < 3 * FILES, "{}", shown.requests() - before);
    for n in 0..FILES {
        assert_eq!(fs::read(folder.join(n.to_string())).unwrap(), b"some bytes");
    }
    assert!(!folder.join("none").exists());
}

/// A filesystem may refuse an owner, so it is asked at once.
#[test]
fn a_new_file_that_gets_an_owner_costs_three_requests() {
    const FILES: u64 = 20;
    let shown = OverFolder::new();
    let before = shown.requests();
    for n in 0..FILES {
        // As tar does for root.
        let mut file = File::create_new(shown.path().join(format!("new {n}"))).unwrap();
        file.write_all(b"some bytes").unwrap();
        file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).unwrap();
        fchown(&file, Some(geteuid().as_raw()), None).unwrap();
        file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    }
    // Each is looked for in the root, of which not all is known.
    let requests = shown.requests() - before;
    assert!(requests < 5 * FILES, "{requests}");
}

#[test]
fn without_room_on_the_host_nothing_is_handed_to_the_guest_and_all_else_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "before").unwrap();
    // All that there is, is kept back.
    let room = Room::below(vec![tempfile::tempfile().unwrap()], u64::MAX, 0);
    let guest = guest_over(folder.path()).with_room(room);
    let entry =
        |name: &[u8]| EntryPath { folder: GuestPath::root(), name: EntryName::new(name).unwrap() };
    let created = guest.create(entry(b"new"), 0o600, Owner::default(), Existing::Refuse);
    assert_eq!(created.map(drop), Err(Errno::ENOSPC));
    let path = GuestPath::parse(b"file").unwrap();
    let held = guest.hold(FileAt::Path(path), Access::Write).unwrap();
    assert_eq!(guest.write(held, 0, b"after"), Err(Errno::ENOSPC));
    assert_eq!(guest.read_held(held, 0, 10, <[u8]>::to_vec), Ok(b"before".to_vec()));
    let shorter = NewAttributes { size: Some(2), ..NewAttributes::default() };
    assert_eq!(guest.set_attr(FileAt::Held(held), shorter).unwrap().size, 2);
    guest.sync(FileAt::Held(held), Synced::All).unwrap();
    assert_eq!(guest.stat_fs(GuestPath::root()).unwrap().available, 0);
    guest.remove(entry(b"file"), Removed::File).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
