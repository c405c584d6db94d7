//! The times of files that were changed, before and after a remount: the host's kernel notes them for
//! files that it caches, and the guest's for those that it writes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use xtask::disks::filesystems::Kind;

/// Times of contents and of all else, by name.
type Times = BTreeMap<String, [(i64, i64); 2]>;

fn times(folder: &Path) -> Times {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let times = entries.map(|entry| {
        let stat = fs::symlink_metadata(entry.path()).unwrap();
        let times = [(stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec())];
        (entry.file_name().into_string().unwrap(), times)
    });
    times.collect()
}

/// Changes files in all ways that a time is noted for.
fn change_all(folder: &Path) {
    let at = |name: &str| folder.join(name);
    let names = ["moved", "linked", "noted", "permitted", "shortened", "lengthened", "dated"];
    for name in names {
        fs::write(at(name), name).unwrap();
    }
    let mut open = File::create(at("open")).unwrap();
    open.write_all(b"some").unwrap();
    fs::hard_link(at("linked"), at("unlinked")).unwrap();
    // Changes of names are noted later than those of contents.
    thread::sleep(Duration::from_millis(50));
    open.write_all(b" and more").unwrap();
    fs::rename(at("moved"), at("moved here")).unwrap();
    fs::remove_file(at("unlinked")).unwrap();
    xattr::set(at("noted"), "user.note", b"a note").unwrap();
    fs::set_permissions(at("permitted"), Permissions::from_mode(0o600)).unwrap();
    let writing = |name| OpenOptions::new().append(true).open(at(name)).unwrap();
    writing("shortened").set_len(1).unwrap();
    writing("lengthened").set_len(100_000).unwrap();
    let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    writing("dated").set_modified(past).unwrap();
    fs::write(at("large"), vec![7; 4 << 20]).unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink("nowhere", at("link")).unwrap();
    mkfifo(&at("fifo"), Mode::S_IRUSR).unwrap();
    for number in 0..50 {
        fs::write(at(&number.to_string()), "small").unwrap();
    }
}

fn times_stay(kind: Kind) {
    let Some((image, _)) = specimen(kind) else { return };
    let mut shown = OverImage::new(&image);
    let folder = shown.path().join("changed");
    fs::create_dir(&folder).unwrap();
    change_all(&folder);
    let before = times(&folder);
    shown.remount();
    let after = times(&folder);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let others: Vec<_> = before
        .iter()
        .map(|(name, times)| (name, times, &after[name]))
        .filter(|(_, before, after)| before != after)
        .collect();
    assert!(others.is_empty(), "before, after: {others:?}");
}

#[test]
fn times_of_ext4_are_the_same_after_a_remount() {
    times_stay(Kind::Ext4);
}

#[test]
fn times_of_xfs_are_the_same_after_a_remount() {
    times_stay(Kind::Xfs);
}
