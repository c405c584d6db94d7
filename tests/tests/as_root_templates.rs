//! Templates where there is no room for them, or where somebody else could have put them, which only
//! root can bring about: it boots.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use guestmnt_tests::program::{Workplace, disks, is_root, text};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use xtask::disks::SYSTEM;
use xtask::skips::skip;

/// Somebody else.
const NOBODY: u32 = 65534;

/// What is said when a template is made.
const MADE: &str = "preparing the VM for quick starts";

/// A small filesystem for a cache; gone when this is dropped.
struct Small(PathBuf);

impl Small {
    fn at(folder: PathBuf, mib: u32) -> Self {
        let options = format!("size={mib}m,mode=700");
        let kind = Some("tmpfs");
        mount(kind, &folder, kind, MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(folder)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What was mapped is gone a moment after QEMU.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Runs `guestmnt` with the cache in `cache`, and gives whether it succeeded and what it said.
fn run(command: &mut Command, cache: &Path) -> (bool, String) {
    let output = command.env("XDG_CACHE_HOME", cache).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

/// Mounts with TCG, looks, and unmounts; it has to boot. Gives what was said.
fn booted(place: &Workplace, cache: &Path) -> String {
    let mnt = place.path().join("mnt");
    let _ = fs::create_dir(&mnt);
    let disk = disks().path(SYSTEM);
    let arguments = ["-v", "--accel", "tcg", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)];
    let (succeeded, said) = run(&mut place.command("guestmnt", &arguments), cache);
    assert!(succeeded && !said.contains("-incoming"), "{said}");
    assert!(mnt.join("Windows").is_dir());
    place.unmount(&mnt);
    said
}

/// What is in the folder of templates, but for the lock.
fn templates(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache.join("guestmnt/templates")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().unwrap() != "lock").collect()
}

#[test]
fn without_room_for_a_template_it_boots_and_does_not_try_to_make_one() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let place = Workplace::new();
    let small = Small::at(place.folder("cache"), 16);
    for _ in 0..2 {
        let said = booted(&place, &small.0);
        assert!(!said.contains(MADE) && said.contains("MiB are free there"), "{said}");
        let left = templates(&small.0);
        assert!(left.is_empty(), "{left:?}");
    }
    drop(small);
    place.assert_clean(&["mnt", "cache"]);
}

#[test]
fn a_disk_that_gets_full_while_a_template_is_made_makes_it_boot() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let place = Workplace::new();
    // A template takes some 150.
    let small = Small::at(place.folder("cache"), 132);
    let said = booted(&place, &small.0);
    assert!(said.contains(MADE), "{said}");
    let words = format!("cannot keep a template in {}", small.0.display());
    assert!(said.contains(&words) && said.contains("No space left"), "{said}");
    let left = templates(&small.0);
    assert!(left.is_empty(), "{left:?}");
    drop(small);
    place.assert_clean(&["mnt", "cache"]);
}

#[test]
fn a_full_disk_says_nothing_of_kvm() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        skip("/dev/kvm cannot be opened here");
        return;
    }
    let place = Workplace::new();
    let small = Small::at(place.folder("cache"), 16);
    let (succeeded, said) = run(&mut place.command("guestmnt", &["-v", "--prepare"]), &small.0);
    assert!(!succeeded && said.contains("MiB are free there"), "{said}");
    let verdict = small.0.join("guestmnt/accelerator.json");
    assert!(!verdict.exists(), "{}", fs::read_to_string(verdict).unwrap());
    drop(small);
    place.assert_clean(&["cache"]);
}

#[test]
fn a_folder_for_templates_that_is_not_the_users_is_not_used() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let place = Workplace::new();
    let cache = place.folder("cache");
    let folder = cache.join("guestmnt/templates");
    fs::create_dir_all(&folder).unwrap();
    chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    let said = booted(&place, &cache);
    assert!(!said.contains(MADE) && said.contains("not a folder of this user"), "{said}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);

    // One that others can put another in the place of.
    fs::remove_dir(&folder).unwrap();
    fs::set_permissions(cache.join("guestmnt"), fs::Permissions::from_mode(0o777)).unwrap();
    let said = booted(&place, &cache);
    assert!(!said.contains(MADE) && said.contains("others can write to it"), "{said}");
    assert!(!folder.exists());
    place.assert_clean(&["mnt", "cache"]);
}
