//! What can be done with the files of a mount, through real FUSE, in any world. Each body fills a
//! folder, has the world show it, and compares what is shown with what must be seen.
#![expect(missing_docs, reason = "the names of the bodies say what they show")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::Duration;

use guestmnt::fs::stats::Asked;
use nix::errno::Errno;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::Whence;
use tempfile::TempDir;

use crate::calls;
use crate::worlds::{Attributes, Space, World};

/// Makes a test of each body, in the world that the expression gives.
#[macro_export]
macro_rules! operations_in {
    ($world:expr) => {
        $crate::operations_in! { $world;
            a_file_reads_the_same_at_every_offset,
            attributes_are_those_of_the_source,
            owners_and_masks_can_be_chosen,
            names_are_bytes,
            large_folders_are_read_whole_by_many_at_once,
            a_folder_lists_itself_and_its_parent,
            every_position_in_a_folder_can_be_gone_back_to,
            hard_links_share_their_number,
            symbolic_links_show_their_target,
            symbolic_links_lead_into_the_mount_and_never_out_of_it,
            sparse_files_keep_size_and_holes,
            extended_attributes_are_shown,
            space_is_that_of_the_guests_filesystem,
            nothing_can_be_written,
            missing_files_are_missing_and_asked_for_once,
            what_was_read_is_not_asked_for_again,
            paths_longer_than_one_call_takes_are_reached_step_by_step,
        }
    };
    ($world:expr; $($body:ident,)*) => {
        $(
            #[test]
            fn $body() {
                $crate::operations::$body(&$world);
            }
        )*
    };
}

/// Filesystems over FUSE let the kernel keep what it knows for a second, unless told otherwise.
const LONGER_THAN_A_TIMEOUT: Duration = Duration::from_secs(3);

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

pub fn a_file_reads_the_same_at_every_offset(world: &dyn World) {
    let source = folder();
    let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(source.path().join("f"), &bytes).unwrap();
    let shown = world.show(source.path(), "");
    let file = File::open(shown.path().join("f")).unwrap();
    assert_eq!(fs::read(shown.path().join("f")).unwrap(), bytes);
    for (offset, size) in [(0, 1), (4095, 2), (131_071, 131_074), (1_199_999, 10), (1_200_000, 10)]
    {
        let mut buffer = vec![0; size];
        let count = file.read_at(&mut buffer, offset as u64).unwrap();
        assert_eq!(buffer[..count], bytes[offset..(offset + size).min(bytes.len())]);
    }
}

pub fn attributes_are_those_of_the_source(world: &dyn World) {
    let source = folder();
    let path = source.path().join("f");
    fs::write(&path, "text").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    let time = TimeSpec::new(-1_234_567, 123_456_789);
    utimensat(nix::fcntl::AT_FDCWD, &path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
    let shown = world.show(source.path(), "");
    let attributes = Attributes::from(&fs::metadata(shown.path().join("f")).unwrap());
    assert_eq!(attributes, shown.attributes("f"));
    assert_eq!((attributes.mode, attributes.size), (0o104_751, 4));
    assert_eq!(attributes.modified.0, -1_234_567);
}

pub fn owners_and_masks_can_be_chosen(world: &dyn World) {
    let source = folder();
    fs::write(source.path().join("f"), "").unwrap();
    let shown = world.show(source.path(), "uid=1234,gid=99,fmask=0133,dmask=0022");
    let file = fs::metadata(shown.path().join("f")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (1234, 99, 0o644));
    assert_eq!(fs::metadata(shown.path()).unwrap().mode() & 0o7777, 0o755);
}

pub fn names_are_bytes(world: &dyn World) {
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
    let shown = world.show(source.path(), "");
    for name in &names {
        assert_eq!(fs::read(shown.path().join(OsStr::from_bytes(name))).unwrap(), *name);
    }
    let found = listing(shown.path());
    assert_eq!(found, shown.numbers(""));
    assert!(found.keys().eq(listing(source.path()).keys()));
}

fn listing(folder: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().ino())).collect()
}

pub fn large_folders_are_read_whole_by_many_at_once(world: &dyn World) {
    let source = folder();
    for n in 0..5000 {
        File::create(source.path().join(format!("a rather long name {n}"))).unwrap();
    }
    let shown = world.show(source.path(), "");
    let wanted = shown.numbers("");
    assert_eq!(wanted.len(), 5000);
    let mountpoint = shown.path();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(listing(mountpoint), wanted));
        }
    });
}

pub fn a_folder_lists_itself_and_its_parent(world: &dyn World) {
    let source = folder();
    fs::create_dir_all(source.path().join("a/b")).unwrap();
    let shown = world.show(source.path(), "");
    let open = |path: &Path| {
        let flags = nix::fcntl::OFlag::O_RDONLY;
        nix::dir::Dir::open(path, flags, nix::sys::stat::Mode::empty()).unwrap()
    };
    let mut directory = open(&shown.path().join("a"));
    let names: Vec<Vec<u8>> =
        directory.iter().map(|entry| entry.unwrap().file_name().to_bytes().to_vec()).collect();
    assert_eq!(names, [b".".to_vec(), b"..".to_vec(), b"b".to_vec()]);
}

pub fn every_position_in_a_folder_can_be_gone_back_to(world: &dyn World) {
    let source = folder();
    for n in 0..30 {
        File::create(source.path().join(n.to_string())).unwrap();
    }
    let shown = world.show(source.path(), "");
    let folder = File::open(shown.path()).unwrap();
    let all = calls::entries(&folder, 1 << 15).unwrap();
    assert_eq!(all.len(), 32);
    for (index, (name, behind)) in all.iter().enumerate() {
        let place = nix::unistd::lseek(folder.as_fd(), *behind, Whence::SeekSet);
        assert_eq!(place, Ok(*behind), "behind {name:?}");
        assert_eq!(calls::entries(&folder, 1 << 15).unwrap(), all[index + 1..], "behind {name:?}");
    }
}

pub fn hard_links_share_their_number(world: &dyn World) {
    let source = folder();
    fs::write(source.path().join("one"), "text").unwrap();
    fs::hard_link(source.path().join("one"), source.path().join("two")).unwrap();
    let shown = world.show(source.path(), "");
    let number = |name: &str| fs::metadata(shown.path().join(name)).unwrap().ino();
    assert_eq!(number("one"), number("two"));
    assert_eq!(fs::metadata(shown.path().join("one")).unwrap().nlink(), 2);
}

pub fn symbolic_links_show_their_target(world: &dyn World) {
    let source = folder();
    let long = "x/".repeat(2000) + "y";
    let links = [("short", "f"), ("dangling", "no/where"), ("long", long.as_str())];
    for (name, target) in links {
        symlink(target, source.path().join(name)).unwrap();
    }
    let shown = world.show(source.path(), "");
    for (name, target) in links {
        assert_eq!(fs::read_link(shown.path().join(name)).unwrap(), Path::new(target));
    }
}

pub fn symbolic_links_lead_into_the_mount_and_never_out_of_it(world: &dyn World) {
    let source = folder();
    let root = source.path();
    fs::create_dir_all(root.join("etc/deep")).unwrap();
    fs::write(root.join("etc/passwd"), "of the image").unwrap();
    let links = [
        ("absolute", "/etc/passwd"),
        ("etc/absolute", "/etc/passwd"),
        ("climbing", "../../../../../../../../etc/passwd"),
        ("etc/deep/climbing", "../../../../../../../../etc/passwd"),
        ("etc/deep/root", "/"),
        ("etc/deep/by-root", "root/../../../../etc/passwd"),
        ("etc/deep/as-it-is", "../passwd"),
    ];
    for (name, target) in links {
        symlink(target, root.join(name)).unwrap();
    }
    // A name at another depth must not be led by what is shown for the first.
    fs::hard_link(root.join("etc/absolute"), root.join("linked")).unwrap();
    let files = ["absolute", "etc/absolute", "linked", "climbing", "etc/deep/climbing"];
    let others = ["etc/deep/by-root", "etc/deep/as-it-is", "etc/deep/root/etc/passwd"];

    let shown = world.show(root, "");
    for file in files.into_iter().chain(others) {
        assert_eq!(fs::read_to_string(shown.path().join(file)).unwrap(), "of the image", "{file}");
    }
    drop(shown);
    let raw = world.show(root, "symlinks=raw");
    for (name, target) in links {
        assert_eq!(fs::read_link(raw.path().join(name)).unwrap(), Path::new(target), "{name}");
    }
}

pub fn sparse_files_keep_size_and_holes(world: &dyn World) {
    let source = folder();
    let file = File::create(source.path().join("sparse")).unwrap();
    file.set_len(1 << 43).unwrap();
    // Around what 32 bits hold, of bytes and of blocks of 4 KiB and 512 bytes, and at the end.
    let places = [
        1 << 20,
        (1 << 32) - 2,
        (1 << 32) + (1 << 20),
        (1 << 41) - 2,
        (1 << 42) + 4096,
        (1 << 43) - 4,
    ];
    for (place, number) in places.into_iter().zip(1..) {
        file.write_all_at(&[number; 4], place).unwrap();
    }
    drop(file);
    let shown = world.show(source.path(), "");
    let file = File::open(shown.path().join("sparse")).unwrap();
    let original = File::open(source.path().join("sparse")).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 43, shown.attributes("sparse").blocks));
    for (whence, from) in [
        (Whence::SeekData, 0),
        (Whence::SeekHole, 0),
        (Whence::SeekHole, 1 << 20),
        (Whence::SeekData, 1 << 30),
        (Whence::SeekHole, 1 << 32),
        (Whence::SeekData, 1 << 40),
        (Whence::SeekData, (1 << 42) + 8192),
        (Whence::SeekHole, (1 << 43) - 1),
    ] {
        let seek = |file: &File| nix::unistd::lseek(file.as_fd(), from, whence);
        assert_eq!(seek(&file), seek(&original), "{whence:?} from {from}");
    }
    for (place, number) in places.into_iter().zip(1..) {
        let mut around = [1; 12];
        let count = file.read_at(&mut around, place - 4).unwrap();
        let expected = [[0; 4], [number; 4], [0; 4]].concat();
        // There is nothing behind the last one.
        assert_eq!(around[..count], expected[..count], "{place:x}");
        assert!(count == 12 || place == (1 << 43) - 4 && count == 8, "{place:x}: {count} bytes");
    }
}

pub fn extended_attributes_are_shown(world: &dyn World) {
    let source = folder();
    let path = source.path().join("f");
    fs::write(&path, "").unwrap();
    let value = vec![7; 3000];
    set_xattr(&path, "user.large", &value);
    set_xattr(&path, "user.empty", b"");
    let shown = world.show(source.path(), "");
    let file = shown.path().join("f");
    assert_eq!(get_xattr(&file, "user.large").unwrap(), value);
    assert_eq!(get_xattr(&file, "user.empty").unwrap(), b"");
    assert_eq!(get_xattr(&file, "user.none").unwrap_err(), Errno::ENODATA);
    let mut names = list_xattr(&file);
    names.sort();
    assert_eq!(names, ["user.empty", "user.large"]);
}

pub fn space_is_that_of_the_guests_filesystem(world: &dyn World) {
    let source = folder();
    let shown = world.show(source.path(), "");
    assert_eq!(Space::at(shown.path()), shown.space());
}

pub fn nothing_can_be_written(world: &dyn World) {
    let source = folder();
    fs::write(source.path().join("f"), "text").unwrap();
    let shown = world.show(source.path(), "");
    let path = shown.path().join("f");
    let refusals = [
        File::options().write(true).open(&path).map(drop),
        File::create(shown.path().join("new")).map(drop),
        fs::remove_file(&path),
        fs::rename(&path, shown.path().join("g")),
        fs::create_dir(shown.path().join("d")),
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)),
        symlink("f", shown.path().join("l")),
    ];
    for refusal in refusals {
        assert_eq!(errno(&refusal.unwrap_err()), Errno::EROFS);
    }
    assert_eq!(fs::read(source.path().join("f")).unwrap(), b"text");
}

pub fn missing_files_are_missing_and_asked_for_once(world: &dyn World) {
    let source = folder();
    let shown = world.show(source.path(), "");
    let missing = shown.path().join("missing");
    let look = || errno(&fs::metadata(&missing).unwrap_err());
    assert_eq!(look(), Errno::ENOENT);
    let before = (shown.requests(), shown.asked_in_all());
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    for _ in 0..2 {
        assert_eq!(look(), Errno::ENOENT);
        assert_eq!((shown.requests(), shown.asked_in_all()), before);
        thread::sleep(LONGER_THAN_A_TIMEOUT);
    }
    assert_eq!(look(), Errno::ENOENT);
    assert_eq!((shown.requests(), shown.asked_in_all()), before);
}

pub fn what_was_read_is_not_asked_for_again(world: &dyn World) {
    let source = folder();
    fs::create_dir(source.path().join("d")).unwrap();
    for n in 0..100 {
        fs::write(source.path().join(format!("d/{n}")), vec![7; 10_000]).unwrap();
    }
    fs::write(source.path().join("large"), vec![7; 5_000_011]).unwrap();
    let shown = world.show(source.path(), "");
    let read_all = || {
        for name in listing(&shown.path().join("d")).keys() {
            assert_eq!(fs::read(shown.path().join("d").join(name)).unwrap().len(), 10_000);
        }
        assert_eq!(fs::read(shown.path().join("large")).unwrap().len(), 5_000_011);
    };
    let asked = || {
        let reads = shown.asked(Asked::Read);
        (shown.requests(), reads, shown.asked(Asked::Lookup), shown.asked(Asked::GetAttr))
    };
    // What is read ahead, beyond the file's end as well, may still be under way.
    let settled = || loop {
        let so_far = asked();
        thread::sleep(Duration::from_secs(1));
        if asked() == so_far {
            break so_far;
        }
    };
    read_all();
    let first = settled();
    assert!(first.0 > 0 && first.1 > 100, "{first:?}");
    // Where memory is short, the kernel drops what it has read; in one of some rounds it does not.
    let rounds = (0..5).map(|_| {
        let before = settled();
        thread::sleep(LONGER_THAN_A_TIMEOUT);
        read_all();
        (before, asked())
    });
    let rounds: Vec<_> = rounds.take_while(|(before, after)| before != after).collect();
    assert!(rounds.len() < 5, "asked for again each time: {rounds:?}");
}

pub fn paths_longer_than_one_call_takes_are_reached_step_by_step(world: &dyn World) {
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
    let shown = world.show(source.path(), "");
    let deepest = walk(shown.path(), false);
    let mode = nix::sys::stat::Mode::empty();
    let file = nix::fcntl::openat(&deepest, "f", nix::fcntl::OFlag::O_RDONLY, mode).unwrap();
    let mut text = String::new();
    File::from(file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "deep");
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

#[cfg(test)]
mod tests {
    #[test]
    fn no_body_is_forgotten_in_the_list() {
        let source = include_str!("operations.rs");
        let (list, bodies) = source.split_once("fn folder()").unwrap();
        let names = bodies.lines().filter_map(|line| line.strip_prefix("pub fn "));
        for name in names.map(|rest| rest.split_once('(').unwrap().0) {
            assert!(list.contains(&format!(" {name},")), "{name}");
        }
    }
}
