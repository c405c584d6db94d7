//! What can be done with the files of a mount, on the loopback guest through real FUSE. Each
//! body compares the mount with the folder that it shows.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;

use guestmnt_tests::loopback::Mounted;
use nix::errno::Errno;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::Whence;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[test]
fn a_file_reads_the_same_at_every_offset() {
    let source = folder();
    let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(source.path().join("f"), &bytes).unwrap();
    let mounted = Mounted::new(source.path(), "");
    let file = File::open(mounted.path().join("f")).unwrap();
    assert_eq!(fs::read(mounted.path().join("f")).unwrap(), bytes);
    for (offset, size) in [(0, 1), (4095, 2), (131_071, 131_074), (1_199_999, 10), (1_200_000, 10)]
    {
        let mut buffer = vec![0; size];
        let count = file.read_at(&mut buffer, offset as u64).unwrap();
        assert_eq!(buffer[..count], bytes[offset..(offset + size).min(bytes.len())]);
    }
}

#[test]
fn attributes_are_those_of_the_source() {
    let source = folder();
    let path = source.path().join("f");
    fs::write(&path, "text").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    let time = TimeSpec::new(-1_234_567, 123_456_789);
    utimensat(nix::fcntl::AT_FDCWD, &path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
    let wanted = fs::metadata(&path).unwrap();
    let mounted = Mounted::new(source.path(), "");
    let shown = fs::metadata(mounted.path().join("f")).unwrap();
    let relevant = |m: &fs::Metadata| {
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        (m.mode(), m.uid(), m.gid(), m.size(), m.nlink(), m.ino(), m.blocks(), times)
    };
    assert_eq!(relevant(&shown), relevant(&wanted));
}

#[test]
fn owners_and_masks_can_be_chosen() {
    let source = folder();
    fs::write(source.path().join("f"), "").unwrap();
    let mounted = Mounted::new(source.path(), "uid=1234,gid=99,fmask=0133,dmask=0022");
    let file = fs::metadata(mounted.path().join("f")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1234, 99, 0o644));
    assert_eq!(fs::metadata(mounted.path()).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn names_are_bytes() {
    let source = folder();
    let names: Vec<&[u8]> = vec![
        b"\xff\xfe",
        b"new\nline",
        "\u{e4}\u{4e2d}".as_bytes(),
        b"a b",
        b"*",
        b"-rf",
        &[b'x'; 255],
    ];
    for name in &names {
        fs::write(source.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mounted = Mounted::new(source.path(), "");
    for name in &names {
        assert_eq!(fs::read(mounted.path().join(OsStr::from_bytes(name))).unwrap(), *name);
    }
    assert_eq!(listing(mounted.path()), listing(source.path()));
}

fn listing(folder: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().ino())).collect()
}

#[test]
fn large_folders_are_read_whole_by_many_at_once() {
    let source = folder();
    for n in 0..5000 {
        File::create(source.path().join(format!("a rather long name {n}"))).unwrap();
    }
    let mounted = Mounted::new(source.path(), "");
    let wanted = listing(source.path());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(listing(mounted.path()), wanted));
        }
    });
}

#[test]
fn a_folder_lists_itself_and_its_parent() {
    let source = folder();
    fs::create_dir_all(source.path().join("a/b")).unwrap();
    let mounted = Mounted::new(source.path(), "");
    let open = |path: &Path| {
        let flags = nix::fcntl::OFlag::O_RDONLY;
        nix::dir::Dir::open(path, flags, nix::sys::stat::Mode::empty()).unwrap()
    };
    let mut directory = open(&mounted.path().join("a"));
    let names: Vec<Vec<u8>> =
        directory.iter().map(|entry| entry.unwrap().file_name().to_bytes().to_vec()).collect();
    assert_eq!(names, [b".".to_vec(), b"..".to_vec(), b"b".to_vec()]);
}

#[test]
fn hard_links_share_their_number() {
    let source = folder();
    fs::write(source.path().join("one"), "text").unwrap();
    fs::hard_link(source.path().join("one"), source.path().join("two")).unwrap();
    let mounted = Mounted::new(source.path(), "");
    let number = |name: &str| fs::metadata(mounted.path().join(name)).unwrap().ino();
    assert_eq!(number("one"), number("two"));
    assert_eq!(fs::metadata(mounted.path().join("one")).unwrap().nlink(), 2);
}

#[test]
fn symbolic_links_show_their_target() {
    let source = folder();
    let long = "x/".repeat(2000) + "y";
    for (name, target) in [("short", "f"), ("dangling", "no/where"), ("long", long.as_str())] {
        symlink(target, source.path().join(name)).unwrap();
        let mounted = Mounted::new(source.path(), "");
        assert_eq!(fs::read_link(mounted.path().join(name)).unwrap(), Path::new(target));
    }
}

#[test]
fn sparse_files_keep_size_and_holes() {
    let source = folder();
    let mut file = File::create(source.path().join("sparse")).unwrap();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    file.write_all(b"data").unwrap();
    file.set_len(1 << 43).unwrap();
    drop(file);
    let mounted = Mounted::new(source.path(), "");
    let shown = File::open(mounted.path().join("sparse")).unwrap();
    let original = File::open(source.path().join("sparse")).unwrap();
    let metadata = shown.metadata().unwrap();
    assert_eq!(
        (metadata.len(), metadata.blocks()),
        (1 << 43, original.metadata().unwrap().blocks())
    );
    for (whence, from) in [
        (Whence::SeekData, 0),
        (Whence::SeekHole, 0),
        (Whence::SeekHole, 1 << 20),
        (Whence::SeekData, 1 << 30),
    ] {
        let seek = |file: &File| nix::unistd::lseek(file.as_fd(), from, whence);
        assert_eq!(seek(&shown), seek(&original), "{whence:?} from {from}");
    }
    let mut tail = [1; 5];
    assert_eq!(shown.read_at(&mut tail, (1 << 43) - 2).unwrap(), 2);
    assert_eq!(tail[..2], [0, 0]);
}

#[test]
fn extended_attributes_are_shown() {
    let source = folder();
    let path = source.path().join("f");
    fs::write(&path, "").unwrap();
    let value = vec![7; 3000];
    set_xattr(&path, "user.large", &value);
    set_xattr(&path, "user.empty", b"");
    let mounted = Mounted::new(source.path(), "");
    let shown = mounted.path().join("f");
    assert_eq!(get_xattr(&shown, "user.large").unwrap(), value);
    assert_eq!(get_xattr(&shown, "user.empty").unwrap(), b"");
    assert_eq!(get_xattr(&shown, "user.none").unwrap_err(), Errno::ENODATA);
    let mut names = list_xattr(&shown);
    names.sort();
    assert_eq!(names, ["user.empty", "user.large"]);
}

#[test]
fn space_is_that_of_the_guests_filesystem() {
    let source = folder();
    let mounted = Mounted::new(source.path(), "");
    let stat = |path: &Path| nix::sys::statvfs::statvfs(path).unwrap();
    let (shown, wanted) = (stat(mounted.path()), stat(source.path()));
    assert_eq!(shown.blocks(), wanted.blocks());
    assert_eq!(shown.block_size(), wanted.block_size());
    assert_eq!(shown.name_max(), wanted.name_max());
}

#[test]
fn nothing_can_be_written() {
    let source = folder();
    fs::write(source.path().join("f"), "text").unwrap();
    let mounted = Mounted::new(source.path(), "");
    let path = mounted.path().join("f");
    let refusals = [
        File::options().write(true).open(&path).map(drop),
        File::create(mounted.path().join("new")).map(drop),
        fs::remove_file(&path),
        fs::rename(&path, mounted.path().join("g")),
        fs::create_dir(mounted.path().join("d")),
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)),
        symlink("f", mounted.path().join("l")),
    ];
    for refusal in refusals {
        assert_eq!(errno(&refusal.unwrap_err()), Errno::EROFS);
    }
    assert_eq!(fs::read(source.path().join("f")).unwrap(), b"text");
}

#[test]
fn missing_files_are_missing_and_asked_for_once() {
    let source = folder();
    let mounted = Mounted::new(source.path(), "");
    let missing = mounted.path().join("missing");
    let look = || errno(&fs::metadata(&missing).unwrap_err());
    assert_eq!(look(), Errno::ENOENT);
    let before = mounted.requests();
    assert_eq!(look(), Errno::ENOENT);
    assert_eq!(mounted.requests(), before);
}

#[test]
fn what_was_read_is_not_asked_for_again() {
    let source = folder();
    fs::create_dir(source.path().join("d")).unwrap();
    for n in 0..100 {
        fs::write(source.path().join(format!("d/{n}")), vec![7; 10_000]).unwrap();
    }
    let mounted = Mounted::new(source.path(), "");
    let read_all = || {
        for name in listing(&mounted.path().join("d")).keys() {
            assert_eq!(fs::read(mounted.path().join("d").join(name)).unwrap().len(), 10_000);
        }
    };
    read_all();
    let before = mounted.requests();
    read_all();
    assert_eq!(mounted.requests(), before);
}

#[test]
fn paths_longer_than_one_call_takes_are_reached_step_by_step() {
    let source = folder();
    let name = "d".repeat(250);
    let walk = |start: &Path, make: bool| {
        let mut at = File::open(start).unwrap();
        for _ in 0..20 {
            if make {
                nix::sys::stat::mkdirat(&at, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
            }
            let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY;
            let mode = nix::sys::stat::Mode::empty();
            at = nix::fcntl::openat(&at, name.as_str(), flags, mode).unwrap().into();
        }
        at
    };
    let deepest = walk(source.path(), true);
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
    let file = nix::fcntl::openat(&deepest, "f", flags, nix::sys::stat::Mode::S_IRUSR).unwrap();
    File::from(file).write_all(b"deep").unwrap();
    let mounted = Mounted::new(source.path(), "");
    let deepest = walk(mounted.path(), false);
    let mode = nix::sys::stat::Mode::empty();
    let file = nix::fcntl::openat(&deepest, "f", nix::fcntl::OFlag::O_RDONLY, mode).unwrap();
    let mut text = String::new();
    File::from(file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "deep");
}

#[test]
fn a_link_in_the_image_does_not_lead_the_guest_out() {
    let (source, outside) = (folder(), folder());
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), source.path().join("way-out")).unwrap();
    let guest = guestmnt_tests::loopback::guest_over(source.path());
    let path = guestmnt_protocol::path::GuestPath::parse(b"/way-out/secret").unwrap();
    let errno = guest.stat(path.clone()).unwrap_err();
    assert!(matches!(errno, Errno::ELOOP | Errno::ENOTDIR), "{errno}");
    assert!(guest.read(path, 0, 100, |_| ()).is_err());
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    xattr::set(path, name, value).unwrap();
}

fn get_xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    match xattr::get(path, name) {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(Errno::ENODATA),
        Err(error) => Err(errno(&error)),
    }
}

fn list_xattr(path: &Path) -> Vec<String> {
    xattr::list(path).unwrap().map(|name| name.into_string().unwrap()).collect()
}
