//! Whatever dies at whatever moment, on a real VM: readers get the right bytes or an error, the mount
//! can be unmounted, nothing is left, and the image is what it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use guestmnt_tests::hungry;
use guestmnt_tests::live::Live;
use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{sha256, specimen};
use guestmnt_tests::tree::assert_same;
use xtask::digest;
use xtask::disks::filesystems::Kind;
use xtask::disks::manifest::Entry;
use xtask::process::Tool;
use xtask::skips::skip;

type Entries = BTreeMap<String, Entry>;

/// A workplace with a copy of the ext4 specimen. `None`, and a skip, where there is none.
fn ext4() -> Option<(Workplace, PathBuf, Entries)> {
    let (specimen, entries) = specimen(Kind::Ext4)?;
    let place = Workplace::new();
    let image = place.path().join("image");
    fs::copy(specimen, &image).unwrap();
    Some((place, image, entries))
}

/// Arguments that mount `image`.
fn arguments(image: &Path) -> [&str; 6] {
    ["--format", "raw", "-a", text(image), "-m", "/dev/sda"]
}

/// Checks that nothing is left of what was mounted, and that `image` is unlocked and unchanged.
fn assert_gone(place: &Workplace, image: &Path, before: &str) {
    place.assert_clean(&["image", "mnt"]);
    let inode = format!(":{} ", fs::metadata(image).unwrap().ino());
    let locks = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().filter(|line| line.contains(&inode)).collect::<String>()
    };
    // A QEMU whose parent was killed is nobody's, and takes a moment to go.
    for _ in 0..500 {
        if locks().is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(locks(), "", "the image is still locked");
    assert_eq!(sha256(image), before, "the image was changed");
}

/// Reads the files that there are below `folder`, as far as they can be read; each that can has to
/// be right.
fn read_what_can_be_read(folder: &Path, entries: &Entries) {
    for (name, entry) in entries {
        let Some(wanted) = &entry.file else { continue };
        if let Ok(found) = digest::of_file(&folder.join(name)) {
            assert_eq!(found, wanted.sha256, "{name}");
        }
    }
}

/// Made again and again at moments that chance picks: by `cargo xtask faults` as often as wanted.
mod many_times {
    use guestmnt_tests::chance::{Chance, rounds};
    use guestmnt_tests::live::signal;
    use guestmnt_tests::tree::assert_same_in_pieces;
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn readers_get_the_right_bytes_while_qemu_is_killed_under_them() {
        let mut chance = Chance::new();
        let Some((mut place, image, entries)) = ext4() else { return };
        let before = sha256(&image);
        for round in 0..rounds(3) {
            // By turns through bulk memory, the lanes, and past the VM.
            let ways: [&[&str]; 3] =
                [&["--through-guest"], &["--through-guest", "--no-bulk-memory"], &[]];
            let way = ways[usize::try_from(round % 3).unwrap()];
            let live = Live::mount(place, &[way, &arguments(&image)].concat());
            thread::scope(|scope| {
                for reader in 0..3 {
                    let (live, entries) = (&live, &entries);
                    scope.spawn(move || match reader {
                        0 => assert_same_in_pieces(&live.mountpoint, entries),
                        _ => assert_same(&live.mountpoint, entries),
                    });
                }
                chance.wait(300);
                signal(live.qemu(), Signal::SIGKILL);
            });
            assert_same(&live.mountpoint, &entries);
            live.place.unmount(&live.mountpoint);
            place = live.place;
            assert_gone(&place, &image, &before);
        }
    }

    #[test]
    fn nothing_is_left_when_guestmnt_is_killed_while_it_launches_or_serves() {
        let mut chance = Chance::new();
        let Some((place, image, entries)) = ext4() else { return };
        let before = sha256(&image);
        let mnt = place.folder("mnt");
        for _ in 0..rounds(3) {
            let arguments = [&["--no-fork"], &arguments(&image)[..], &[text(&mnt)]].concat();
            let mut server =
                place.command("guestmnt", &arguments).stderr(Stdio::null()).spawn().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| (0..3).for_each(|_| read_what_can_be_read(&mnt, &entries)));
                chance.wait(900);
                signal(server.id(), Signal::SIGKILL);
            });
            server.wait().unwrap();
            assert_gone(&place, &image, &before);
        }
    }

    #[test]
    fn a_guestunmnt_that_was_killed_can_be_called_again() {
        let mut chance = Chance::new();
        let Some((mut place, image, _)) = ext4() else { return };
        let before = sha256(&image);
        for _ in 0..rounds(3) {
            let live = Live::mount(place, &arguments(&image));
            place = live.place;
            let mut unmounting =
                place.command("guestunmnt", &[text(&live.mountpoint)]).spawn().unwrap();
            chance.wait(40);
            signal(unmounting.id(), Signal::SIGKILL);
            unmounting.wait().unwrap();
            // 3: it was unmounted already.
            let status = place.run("guestunmnt", &[text(&live.mountpoint)]).status;
            assert!(matches!(status, Some(0 | 3)), "{status:?}");
            assert_gone(&place, &image, &before);
        }
    }

    #[test]
    fn mounts_and_unmounts_leave_nothing() {
        let Some((mut place, image, entries)) = ext4() else { return };
        let before = sha256(&image);
        for _ in 0..rounds(2) {
            let live = Live::mount(place, &arguments(&image));
            read_what_can_be_read(&live.mountpoint, &entries);
            live.place.unmount(&live.mountpoint);
            place = live.place;
        }
        assert_gone(&place, &image, &before);
    }
}

#[test]
fn an_image_that_is_removed_while_it_is_mounted_is_read_on() {
    let Some((place, image, entries)) = ext4() else { return };
    let live = Live::mount(place, &arguments(&image));
    fs::remove_file(&image).unwrap();
    assert_same(&live.mountpoint, &entries);
    live.end(&[]);
}

#[test]
fn an_image_that_is_cut_short_while_it_is_mounted_is_unmounted_all_the_same() {
    for way in [&[][..], &["--through-guest"]] {
        let Some((place, image, entries)) = ext4() else { return };
        let live = Live::mount(place, &[way, &arguments(&image)].concat());
        File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
        // What is gone are errors or zeros, as with a disk of that length; nothing waits for it.
        for name in entries.keys() {
            let _ = fs::read(live.mountpoint.join(name));
        }
        live.end(&["image"]);
    }
}

#[test]
fn a_guest_with_hardly_any_memory_left_gives_the_right_bytes_or_errors() {
    let Some((place, image, entries)) = ext4() else { return };
    // Kernel and daemon leave so little beside it that with 37 MiB the driver waits for memory until
    // the mount's deadline has passed.
    hungry::write(&place.path().join("hungry"), 31);
    let folder = "many";
    let entries: Entries =
        entries.into_iter().filter(|(name, _)| !name.starts_with(folder)).collect();
    let small = ["--no-template", "--memsize", "128", "--timeout", "20", "--through-guest"];
    let second = ["-a", "hungry", "-m", "/dev/sdb:/many::minix"];
    let live = Live::mount(place, &[&small[..], &arguments(&image), &second].concat());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| read_what_can_be_read(&live.mountpoint, &entries));
        }
    });
    live.end(&["image", "hungry"]);
}

#[test]
fn a_key_that_takes_more_memory_than_the_guest_has_is_an_error() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let image = place.path().join("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let key = place.path().join("key");
    fs::write(&key, "secret").unwrap();
    let format = "luksFormat -q --disable-locks --type luks2 --pbkdf argon2id --pbkdf-memory 262144 \
                  --pbkdf-force-iterations 4 --key-file";
    let cryptsetup = Tool::new("cryptsetup").args(format.split_whitespace()).args([&key, &image]);
    if let Err(error) = cryptsetup.run() {
        skip(&format!("no LUKS volume can be made: {error}"));
        return;
    }
    let key = format!("all:file:{}", key.display());
    let limited = ["--no-template", "--memsize", "128", "--key", &key];
    let arguments = [&limited, &arguments(&image)[..], &[text(&mnt)]].concat();
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("the VM has too little memory"), "{finished:?}");
    place.assert_clean(&["mnt", "image", "key"]);
}
