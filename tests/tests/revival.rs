//! A VM that dies is followed by another, on a real VM: what was being read is read on, and who
//! kills each of them does not do so for ever.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use guestmnt_tests::live::{Live, server, signal};
use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::specimens::{sha256, specimen};
use guestmnt_tests::tree::assert_same;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::{EIO, ENOENT};
use nix::sys::signal::Signal;
use xtask::disks::filesystems::Kind;
use xtask::disks::manifest::Entry;
use xtask::disks::{NEWEST, mkfs};
use xtask::process::Tool;

type Entries = std::collections::BTreeMap<String, Entry>;

/// The ext4 specimen, mounted with further arguments. `None`, and a skip, where there is none.
fn ext4(arguments: &[&str]) -> Option<(Live, Entries)> {
    let (image, entries) = specimen(Kind::Ext4)?;
    let arguments =
        [arguments, &["--format", "raw", "-a", text(&image), "-m", "/dev/sda"]].concat();
    Some((Live::mount(Workplace::new(), &arguments), entries))
}

fn errno(path: &Path) -> Option<i32> {
    fs::symlink_metadata(path).unwrap_err().raw_os_error()
}

#[test]
fn open_files_and_folders_go_on_and_the_log_says_so_once() {
    let place = Workplace::new();
    let mountpoint = place.folder("mnt");
    let log = place.path().join("log");
    let disk = disks().path(NEWEST);
    let arguments = ["--fd", "1", "-a", text(&disk), "-m", "/dev/sda2", text(&mountpoint)];
    let mut running = place
        .command("guestmnt", &[&["--no-fork", "--through-guest"], &arguments[..]].concat())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    running.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let live = Live { server: server(&mountpoint), place, mountpoint };
    let path = live.mountpoint.join("mysql-installer-community-5.6.14.0.msi");
    let wanted = sha256(&path);
    let mut file = File::open(&path).unwrap();
    let mut folder = fs::read_dir(&live.mountpoint).unwrap();
    let first = folder.next().unwrap().unwrap().file_name();
    // What the kernel keeps of it would be read without the guest.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mut bytes = vec![0; 1 << 20];
    file.read_exact(&mut bytes).unwrap();

    signal(live.qemu(), Signal::SIGKILL);

    file.read_to_end(&mut bytes).unwrap();
    drop(file);
    let copy = live.place.path().join("copy");
    fs::write(&copy, &bytes).unwrap();
    assert_eq!(sha256(&copy), wanted);
    let others = folder.map(|entry| entry.unwrap().file_name());
    assert!(!others.collect::<Vec<_>>().contains(&first));
    assert_eq!(errno(&live.mountpoint.join("never seen before")), Some(ENOENT));
    assert_eq!(live.revivals(), 1);
    let status = live.place.run("guestimg", &["status", text(&live.mountpoint)]);
    assert!(status.stdout.contains("revived      1 time"), "{status:?}");
    assert!(status.stdout.contains(&format!("process {}", live.qemu())), "{status:?}");
    let said = fs::read_to_string(&log).unwrap();
    live.end(&["log", "copy"]);
    assert!(running.wait().unwrap().success());
    let revived = "guestmnt: the VM died (QEMU was killed by SIGKILL); another one goes on";
    assert_eq!(said.lines().filter(|line| line.starts_with(revived)).count(), 1, "{said}");
}

/// An ext4 that `fill` puts files into.
fn image(place: &Workplace, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let source = place.folder(&format!("{name}-source"));
    fill(&source);
    let image = place.path().join(name);
    mkfs::make(Kind::Ext4, &source, &image).unwrap_or_else(|error| panic!("{error}"));
    fs::remove_dir_all(source).unwrap();
    image
}

#[test]
fn another_guest_that_meets_the_volumes_in_another_order_mixes_up_no_files() {
    let place = Workplace::new();
    let root = image(&place, "root", |source| {
        for name in ["a", "b"] {
            fs::create_dir(source.join(name)).unwrap();
        }
    });
    // Files of the same number, each with two names.
    let [a, b] = ["a", "b"].map(|name| {
        image(&place, name, |source| {
            fs::write(source.join("one"), name).unwrap();
            fs::hard_link(source.join("one"), source.join("two")).unwrap();
        })
    });
    let mut arguments = vec!["--format", "raw", "-m", "/dev/sda", "-m", "/dev/sdb:/a"];
    arguments.extend(["-m", "/dev/sdc:/b", "-a", text(&root), "-a", text(&a), "-a", text(&b)]);
    let live = Live::mount(place, &arguments);
    let at = |name: &str| live.mountpoint.join(name);
    let number = |name: &str| fs::metadata(at(name)).unwrap().ino();
    let before = ["b/one", "a/one"].map(number);
    signal(live.qemu(), Signal::SIGKILL);
    let after = ["a/two", "b/two"].map(number);
    assert_eq!((after[1], after[0]), before.into());
    assert_eq!(fs::read_to_string(at("a/two")).unwrap(), "a");
    assert_eq!(fs::read_to_string(at("b/two")).unwrap(), "b");
    live.end(&["root", "a", "b"]);
}

#[test]
fn a_frozen_vm_is_followed_by_another() {
    let Some((live, entries)) = ext4(&["--timeout", "12"]) else { return };
    signal(live.qemu(), Signal::SIGSTOP);
    // The deadline leaves time for the verdict and for the other VM.
    assert_same(&live.mountpoint, &entries);
    assert_eq!(live.revivals(), 1);
    live.end(&[]);
}

#[test]
fn a_call_that_waits_while_qemu_dies_gets_its_answer() {
    let Some((live, _)) = ext4(&[]) else { return };
    let qemu = live.qemu();
    signal(qemu, Signal::SIGSTOP);
    let path = live.mountpoint.join("never seen before");
    let call = thread::spawn(move || errno(&path));
    thread::sleep(Duration::from_millis(300));
    assert!(!call.is_finished());
    signal(qemu, Signal::SIGKILL);
    assert_eq!(call.join().unwrap(), Some(ENOENT));
    live.end(&[]);
}

#[test]
fn a_frozen_guest_gives_eio_at_a_deadline_that_leaves_no_time_for_another() {
    let Some((live, _)) = ext4(&["--timeout", "1"]) else { return };
    let qemu = live.qemu();
    signal(qemu, Signal::SIGSTOP);
    assert_eq!(errno(&live.mountpoint.join("never seen before")), Some(EIO));
    signal(qemu, Signal::SIGCONT);
    assert!(fs::metadata(live.mountpoint.join("nor this")).is_err());
    assert_eq!((live.qemu(), live.revivals()), (qemu, 0), "it goes on when the guest does");
    live.end(&[]);
}

#[test]
fn a_frozen_vm_does_not_keep_the_mount() {
    let Some((live, _)) = ext4(&[]) else { return };
    signal(live.qemu(), Signal::SIGSTOP);
    live.end(&[]);
}

#[test]
fn a_vm_that_dies_again_and_again_is_given_up() {
    let Some((live, _)) = ext4(&[]) else { return };
    for n in 0..3 {
        signal(live.qemu(), Signal::SIGKILL);
        let expected = if n < 2 { ENOENT } else { EIO };
        assert_eq!(errno(&live.mountpoint.join(format!("unseen {n}"))), Some(expected), "{n}");
    }
    assert_eq!(errno(&live.mountpoint.join("unseen 3")), Some(EIO));
    let status = live.place.run("guestimg", &["status", text(&live.mountpoint)]);
    assert!(status.stdout.contains("has ended"), "{status:?}");
    live.end(&[]);
}

/// An ext4 whose files `trap/1` and `trap/2` make the kernel panic that looks at them: their inodes
/// are damaged, and the superblock says that errors are a reason to.
fn trap(place: &Workplace) -> PathBuf {
    let image = image(place, "image", |source| {
        fs::create_dir(source.join("trap")).unwrap();
        for name in ["good", "trap/1", "trap/2"] {
            fs::write(source.join(name), name).unwrap();
        }
    });
    Tool::new("tune2fs").args(["-e", "panic"]).arg(&image).run().unwrap();
    for name in ["/trap/1", "/trap/2"] {
        let request = format!("set_inode_field {name} extra_isize 60000");
        Tool::new("debugfs").args(["-w", "-R", &request]).arg(&image).run().unwrap();
    }
    image
}

#[test]
fn a_file_that_kills_the_guests_kernel_is_an_error_and_the_others_stay() {
    let place = Workplace::new();
    let image = trap(&place);
    let live = Live::mount(place, &["--format", "raw", "-a", text(&image), "-m", "/dev/sda"]);
    let at = |name: &str| live.mountpoint.join(name);
    // The VM after it died of the same, and a third one serves the others.
    assert_eq!(errno(&at("trap/1")), Some(EIO));
    assert_eq!(fs::read_to_string(at("good")).unwrap(), "good");
    assert_eq!(live.revivals(), 2);
    // That was enough.
    assert_eq!(errno(&at("trap/2")), Some(EIO));
    assert_eq!(errno(&at("another")), Some(EIO));
    live.end(&["image"]);
}
