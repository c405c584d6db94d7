//! What can be done with the files of a mount that can be written, in any world.
#![expect(missing_docs, reason = "the names of the bodies say what they show")]

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{
    FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, FallocateFlags, FcntlArg, Flock, FlockArg, OFlag, RenameFlags, copy_file_range,
    fallocate, fcntl, open, renameat2,
};
use nix::sys::stat::Mode;
use nix::unistd::Whence::{SeekData, SeekHole};
use nix::unistd::{getegid, geteuid, lseek, mkfifo};
use xattr::FileExt as _;

use crate::worlds::writable::Writable;

/// Makes a test of each body, in the world that the expression gives.
#[macro_export]
macro_rules! writing_in {
    ($world:expr) => {
        $crate::writing_in! { $world;
            what_was_written_is_there_after_a_remount,
            a_file_without_a_name_can_be_used_until_it_is_closed,
            a_file_without_a_name_keeps_its_attributes,
            a_file_can_be_changed_before_the_guest_has_closed_it,
            a_new_file_is_what_was_made_of_it_before_it_is_closed,
            a_file_that_one_of_two_has_closed_can_be_written_by_the_other,
            a_file_is_one_by_all_of_its_names,
            what_cannot_be_done_fails_as_the_filesystem_says,
            folders_move_with_all_that_is_in_them,
            what_a_folder_lists_is_what_is_in_it,
            appended_bytes_come_behind_all_others,
            holes_are_made_and_found,
            space_is_allocated,
            names_are_exchanged_or_left_alone_as_asked,
            a_name_that_is_given_up_leaves_a_whiteout_if_asked,
            a_file_is_not_made_without_a_name,
            files_are_given_to_others,
            bytes_are_copied_from_file_to_file,
            locks_hold_between_processes,
            locks_of_ranges_keep_out_those_that_overlap,
        }
    };
    ($world:expr; $($body:ident,)*) => {
        $(
            #[test]
            fn $body() {
                $crate::writing::$body(&mut $world);
            }
        )*
    };
}

fn errno<T>(result: std::io::Result<T>) -> Errno {
    let error = result.err().expect("this must fail");
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn what_was_written_is_there_after_a_remount(shown: &mut dyn Writable) {
    let root = shown.path().join("root");
    let bytes: Vec<u8> = (0..700_000u32).flat_map(u32::to_le_bytes).collect();
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), &bytes).unwrap();
    let file = OpenOptions::new().write(true).open(root.join("file")).unwrap();
    file.write_all_at(b"in the middle", 1_000_001).unwrap();
    file.sync_all().unwrap();
    File::open(&root).unwrap().sync_all().unwrap();
    drop(file);
    fs::write(root.join("short"), "0123456789").unwrap();
    fs::OpenOptions::new().write(true).open(root.join("short")).unwrap().set_len(4).unwrap();
    symlink("short", root.join("link")).unwrap();
    mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    fs::set_permissions(root.join("short"), fs::Permissions::from_mode(0o4751)).unwrap();
    xattr::set(root.join("short"), "user.note", b"a note").unwrap();
    xattr::set(root.join("short"), "user.gone", b"").unwrap();
    xattr::remove(root.join("short"), "user.gone").unwrap();
    fs::rename(root.join("short"), root.join("renamed")).unwrap();
    fs::remove_file(root.join("link")).unwrap();
    symlink("renamed", root.join("link")).unwrap();
    for _ in 0..2 {
        let mut expected = bytes.clone();
        expected[1_000_001..1_000_014].copy_from_slice(b"in the middle");
        assert!(fs::read(root.join("file")).unwrap() == expected);
        assert_eq!(names(&root), ["fifo", "file", "link", "renamed"]);
        assert_eq!(fs::read_to_string(root.join("link")).unwrap(), "0123");
        let stat = fs::metadata(root.join("renamed")).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.len()), (0o4751, 4));
        assert_eq!(fs::metadata(root.join("fifo")).unwrap().mode(), nix::libc::S_IFIFO | 0o640);
        let listed: Vec<_> = xattr::list(root.join("renamed")).unwrap().collect();
        assert!(listed.contains(&"user.note".into()) && !listed.contains(&"user.gone".into()));
        assert_eq!(xattr::get(root.join("renamed"), "user.note").unwrap().unwrap(), b"a note");
        shown.remount();
    }
}

pub fn a_file_without_a_name_can_be_used_until_it_is_closed(shown: &mut dyn Writable) {
    let path = shown.path().join("file");
    let other = shown.path().join("other");
    fs::write(&path, "first").unwrap();
    let mut read_only = File::open(&path).unwrap();
    let mut written = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "a new one").unwrap();
    written.write_all(b"second and longer").unwrap();
    written.sync_all().unwrap();
    for file in [&mut read_only, &mut written] {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "second and longer");
        let stat = file.metadata().unwrap();
        assert_eq!((stat.nlink(), stat.len()), (0, 17));
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "a new one");
    // One that is only read, and is replaced.
    let mut replaced = File::open(&path).unwrap();
    fs::write(&other, "the other").unwrap();
    fs::rename(&other, &path).unwrap();
    let mut text = String::new();
    replaced.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), replaced.metadata().unwrap().nlink()), ("a new one", 0));
    assert_eq!(fs::read_to_string(&path).unwrap(), "the other");
}

pub fn a_file_without_a_name_keeps_its_attributes(shown: &mut dyn Writable) {
    let path = shown.path().join("file");
    fs::write(&path, "").unwrap();
    xattr::set(&path, "user.note", b"a note").unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let get = |name: &str| file.get_xattr(name).unwrap();
    assert_eq!(get("user.note").as_deref(), Some(&b"a note"[..]));
    file.set_xattr("user.other", b"another").unwrap();
    let listed: Vec<_> = file.list_xattr().unwrap().collect();
    assert!(["user.note", "user.other"].iter().all(|name| listed.contains(&(*name).into())));
    file.remove_xattr("user.note").unwrap();
    assert_eq!((get("user.note"), get("user.other").as_deref()), (None, Some(&b"another"[..])));
}

pub fn a_file_can_be_changed_before_the_guest_has_closed_it(shown: &mut dyn Writable) {
    // The kernel says that a file is closed, and goes on.
    let root = shown.path();
    let change = |folder: &str| {
        let folder = root.join(folder);
        fs::create_dir(&folder).unwrap();
        for number in 0..300 {
            let path = folder.join(number.to_string());
            let mode = 0o600 + number % 0o100;
            drop(File::create(&path).unwrap());
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            xattr::set(&path, "user.note", b"a note").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode, "{}", path.display());
        }
    };
    std::thread::scope(|scope| {
        for folder in ["a", "b"] {
            scope.spawn(move || change(folder));
        }
    });
}

pub fn a_new_file_is_what_was_made_of_it_before_it_is_closed(shown: &mut dyn Writable) {
    let at = |name: &str| shown.path().join(name);
    let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    // What the kernel hands over before a file is closed, once times or permissions are set.
    let make = |name: &str| {
        let mut file = File::options().read(true).write(true).create_new(true).open(at(name));
        let file = file.as_mut().unwrap();
        file.write_all(b"first bytes").unwrap();
        file.set_times(FileTimes::new().set_accessed(past).set_modified(past)).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o751)).unwrap();
        file.try_clone().unwrap()
    };
    let check = |stat: fs::Metadata, size: u64| {
        assert_eq!((stat.mode() & 0o7777, stat.len(), stat.nlink()), (0o751, size, 1));
        assert_eq!((stat.accessed().unwrap(), stat.modified().unwrap()), (past, past));
    };
    let [one, two, three, four] = ["one", "two", "three", "four"].map(make);
    check(one.metadata().unwrap(), 11);
    check(fs::metadata(at("one")).unwrap(), 11);
    for entry in fs::read_dir(shown.path()).unwrap().map(Result::unwrap) {
        if entry.file_name() == "one" {
            check(entry.metadata().unwrap(), 11);
        }
    }
    assert_eq!(fs::read(at("two")).unwrap(), b"first bytes");
    xattr::set(at("two"), "user.note", b"a note").unwrap();
    two.set_times(FileTimes::new().set_accessed(past).set_modified(past)).unwrap();
    fs::rename(at("three"), at("moved")).unwrap();
    four.set_len(5).unwrap();
    four.set_times(FileTimes::new().set_accessed(past).set_modified(past)).unwrap();
    drop((one, two, three, four));
    shown.remount();
    let at = |name: &str| shown.path().join(name);
    for (name, bytes) in [("one", "first bytes"), ("moved", "first bytes"), ("four", "first")] {
        check(fs::metadata(at(name)).unwrap(), bytes.len() as u64);
        assert_eq!(fs::read_to_string(at(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(xattr::get(at("two"), "user.note").unwrap().unwrap(), b"a note");
}

pub fn a_file_that_one_of_two_has_closed_can_be_written_by_the_other(shown: &mut dyn Writable) {
    let at = |name: &str| shown.path().join(name);
    let make = |name: &str| {
        let mut file = File::create_new(at(name)).unwrap();
        file.write_all(b"one").unwrap();
        let other = file.try_clone().unwrap();
        // Here it gets to the guest.
        drop(file);
        other
    };
    let [mut kept, mut moved, mut removed] = ["kept", "old", "removed"].map(make);
    fs::rename(at("old"), at("moved")).unwrap();
    fs::remove_file(at("removed")).unwrap();
    for file in [&mut kept, &mut moved, &mut removed] {
        file.write_all(b" and two").unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 11);
    }
    drop((kept, moved, removed));
    shown.remount();
    assert_eq!(fs::read_to_string(shown.path().join("kept")).unwrap(), "one and two");
    assert_eq!(fs::read_to_string(shown.path().join("moved")).unwrap(), "one and two");
    assert_eq!(errno(fs::metadata(shown.path().join("removed"))), Errno::ENOENT);
}

pub fn a_file_is_one_by_all_of_its_names(shown: &mut dyn Writable) {
    let [one, two] = ["one", "two"].map(|name| shown.path().join(name));
    fs::write(&one, "before").unwrap();
    fs::hard_link(&one, &two).unwrap();
    fs::write(&two, "after that").unwrap();
    assert_eq!(fs::read_to_string(&one).unwrap(), "after that");
    let (first, second) = (fs::metadata(&one).unwrap(), fs::metadata(&two).unwrap());
    assert_eq!((first.ino(), first.nlink(), first.len()), (second.ino(), 2, 10));
    fs::remove_file(&one).unwrap();
    assert_eq!(fs::metadata(&two).unwrap().nlink(), 1);
    fs::write(&two, "at last").unwrap();
    shown.remount();
    assert_eq!(fs::read_to_string(&two).unwrap(), "at last");
    assert_eq!(errno(fs::metadata(&one)), Errno::ENOENT);
}

pub fn what_cannot_be_done_fails_as_the_filesystem_says(shown: &mut dyn Writable) {
    let at = |name: &str| shown.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/file"), "").unwrap();
    fs::write(at("file"), "").unwrap();
    let new = |name: &str| OpenOptions::new().write(true).create_new(true).open(at(name));
    assert_eq!(errno(new("file")), Errno::EEXIST);
    assert_eq!(errno(new("missing/file")), Errno::ENOENT);
    assert_eq!(errno(new("file/file")), Errno::ENOTDIR);
    assert_eq!(errno(new(&"x".repeat(256))), Errno::ENAMETOOLONG);
    assert_eq!(errno(fs::create_dir(at("folder"))), Errno::EEXIST);
    assert_eq!(errno(fs::remove_dir(at("folder"))), Errno::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(at("file"))), Errno::ENOTDIR);
    assert_eq!(errno(fs::remove_file(at("folder"))), Errno::EISDIR);
    assert_eq!(errno(fs::remove_file(at("missing"))), Errno::ENOENT);
    assert_eq!(errno(fs::rename(at("folder"), at("folder/inside"))), Errno::EINVAL);
    assert_eq!(errno(fs::rename(at("file"), at("folder"))), Errno::EISDIR);
    assert_eq!(errno(fs::rename(at("folder"), at("file"))), Errno::ENOTDIR);
    assert_eq!(errno(OpenOptions::new().write(true).open(at("folder"))), Errno::EISDIR);
    assert_eq!(errno(fs::hard_link(at("folder"), at("linked"))), Errno::EPERM);
    let huge = OpenOptions::new().write(true).open(at("file")).unwrap();
    assert_eq!(errno(huge.set_len(u64::MAX >> 1)), Errno::EFBIG);
    assert_eq!(errno(xattr::set(at("file"), "nonsense", b"")), Errno::EOPNOTSUPP);
}

pub fn folders_move_with_all_that_is_in_them(shown: &mut dyn Writable) {
    let at = |name: &str| shown.path().join(name);
    fs::create_dir_all(at("a/b/c")).unwrap();
    fs::write(at("a/b/c/file"), "deep").unwrap();
    let mut open = OpenOptions::new().append(true).open(at("a/b/c/file")).unwrap();
    let read = File::open(at("a/b/c/file")).unwrap();
    fs::create_dir(at("x")).unwrap();
    fs::rename(at("a/b"), at("x/y")).unwrap();
    open.write_all(b" and deeper").unwrap();
    assert_eq!(fs::read_to_string(at("x/y/c/file")).unwrap(), "deep and deeper");
    assert_eq!(read.metadata().unwrap().len(), 15);
    assert_eq!(errno(fs::metadata(at("a/b"))), Errno::ENOENT);
    // Another folder of the old name is another folder.
    fs::create_dir_all(at("a/b/c")).unwrap();
    assert_eq!(names(&at("a/b/c")), Vec::<String>::new());
    fs::remove_file(at("x/y/c/file")).unwrap();
    assert_eq!(names(&at("x/y/c")), Vec::<String>::new());
    let removed = File::open(at("x/y/c")).unwrap();
    fs::remove_dir(at("x/y/c")).unwrap();
    assert_eq!(removed.metadata().unwrap().nlink(), 0);
}

pub fn what_a_folder_lists_is_what_is_in_it(shown: &mut dyn Writable) {
    let folder = shown.path().join("listed");
    fs::create_dir(&folder).unwrap();
    for n in 0..400 {
        fs::write(folder.join(format!("{n:03}")), format!("{n}")).unwrap();
    }
    assert_eq!(names(&folder).len(), 400);
    // Removed while the folder is read.
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        seen += 1;
    }
    assert_eq!((seen, names(&folder).len()), (400, 0));
    fs::write(folder.join("one more"), "").unwrap();
    assert_eq!(names(&folder), ["one more"]);
    fs::rename(folder.join("one more"), folder.join("moved")).unwrap();
    assert_eq!(names(&folder), ["moved"]);
    shown.remount();
    assert_eq!(names(&folder), ["moved"]);
}

pub fn appended_bytes_come_behind_all_others(shown: &mut dyn Writable) {
    let path = shown.path().join("log");
    fs::write(&path, "").unwrap();
    let open = || OpenOptions::new().append(true).open(&path).unwrap();
    let (mut one, mut other) = (open(), open());
    for n in 0..100 {
        writeln!(if n % 2 == 0 { &mut one } else { &mut other }, "line {n:03}").unwrap();
    }
    let expected: String = (0..100).map(|n| format!("line {n:03}\n")).collect();
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    let flags = nix::libc::O_DSYNC;
    let synced = OpenOptions::new().append(true).custom_flags(flags).open(&path);
    synced.unwrap().write_all(b"end").unwrap();
    drop((one, other));
    shown.remount();
    assert_eq!(fs::read_to_string(&path).unwrap(), expected + "end");
}

pub fn holes_are_made_and_found(shown: &mut dyn Writable) {
    const MIB: u64 = 1 << 20;
    let path = shown.path().join("sparse");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.write_all_at(&[7; 3 << 20], 8 * MIB).unwrap();
    file.sync_all().unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, (9 * MIB).cast_signed(), MIB.cast_signed()).unwrap();
    file.sync_all().unwrap();
    drop(file);
    for _ in 0..2 {
        let file = File::open(&path).unwrap();
        let find = |from: u64, what| lseek(&file, from.cast_signed(), what).unwrap();
        assert_eq!(find(0, SeekData).cast_unsigned(), 8 * MIB);
        assert_eq!(find(8 * MIB, SeekHole).cast_unsigned(), 9 * MIB);
        assert_eq!(find(9 * MIB, SeekData).cast_unsigned(), 10 * MIB);
        let mut bytes = [1; 3];
        file.read_exact_at(&mut bytes, 10 * MIB - 2).unwrap();
        assert_eq!(bytes, [0, 0, 7]);
        assert!(file.metadata().unwrap().blocks() < 3 << 11);
        drop(file);
        shown.remount();
    }
}

pub fn space_is_allocated(shown: &mut dyn Writable) {
    let path = shown.path().join("roomy");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&[7; 100_000], 0).unwrap();
    let allocate = |mode, length: i64| fallocate(&file, mode, 0, length);
    allocate(FallocateFlags::empty(), 300_000).unwrap();
    allocate(FallocateFlags::FALLOC_FL_KEEP_SIZE, 900_000).unwrap();
    // The kernel does not hand these to FUSE.
    for mode in [FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, FallocateFlags::FALLOC_FL_INSERT_RANGE] {
        assert_eq!(allocate(mode, 65_536), Err(Errno::EOPNOTSUPP));
    }
    drop(file);
    for _ in 0..2 {
        let bytes = fs::read(&path).unwrap();
        assert!(bytes[..100_000] == [7; 100_000] && bytes[100_000..] == [0; 200_000]);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 900_000);
        shown.remount();
    }
}

pub fn names_are_exchanged_or_left_alone_as_asked(shown: &mut dyn Writable) {
    let folder = shown.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let [one, other, new] = ["one", "other", "new"].map(|name| folder.join(name));
    fs::write(&one, "first").unwrap();
    fs::write(&other, "second").unwrap();
    let rename = |from: &Path, to: &Path, how| renameat2(AT_FDCWD, from, AT_FDCWD, to, how);
    let leave = RenameFlags::RENAME_NOREPLACE;
    assert_eq!(rename(&one, &other, leave), Err(Errno::EEXIST));
    assert_eq!(fs::read_to_string(&other).unwrap(), "second");
    rename(&one, &new, leave).unwrap();
    rename(&new, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(rename(&one, &other, RenameFlags::RENAME_EXCHANGE), Err(Errno::ENOENT));
    for _ in 0..2 {
        assert_eq!(names(&folder), ["new", "other"]);
        assert_eq!(fs::read_to_string(&new).unwrap(), "second");
        assert_eq!(fs::read_to_string(&other).unwrap(), "first");
        shown.remount();
    }
}

pub fn a_name_that_is_given_up_leaves_a_whiteout_if_asked(shown: &mut dyn Writable) {
    let folder = shown.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let [one, other, new] = ["one", "other", "new"].map(|name| folder.join(name));
    fs::write(&one, "first").unwrap();
    fs::write(&other, "second").unwrap();
    let rename = |from: &Path, to: &Path, how| renameat2(AT_FDCWD, from, AT_FDCWD, to, how);
    let whiteout = RenameFlags::RENAME_WHITEOUT;
    let leave = whiteout | RenameFlags::RENAME_NOREPLACE;
    assert_eq!(rename(&one, &other, leave), Err(Errno::EEXIST));
    rename(&one, &new, leave).unwrap();
    rename(&new, &other, whiteout).unwrap();
    for _ in 0..2 {
        assert_eq!(names(&folder), ["new", "one", "other"]);
        assert_eq!(fs::read_to_string(&other).unwrap(), "first");
        for gone in [&one, &new] {
            let stat = fs::symlink_metadata(gone).unwrap();
            assert_eq!((stat.mode() & nix::libc::S_IFMT, stat.rdev()), (nix::libc::S_IFCHR, 0));
        }
        shown.remount();
    }
}

/// Programs make one with a name instead, and remove that.
pub fn a_file_is_not_made_without_a_name(shown: &mut dyn Writable) {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
    let made = open(shown.path(), flags, Mode::S_IRUSR);
    assert_eq!(made.map(drop), Err(Errno::EOPNOTSUPP));
}

pub fn files_are_given_to_others(shown: &mut dyn Writable) {
    // Those to whom anybody may give a file of his own.
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    let [file, link] = ["file", "its link"].map(|name| shown.path().join(name));
    fs::write(&file, "").unwrap();
    symlink("file", &link).unwrap();
    chown(&file, Some(user), Some(group)).unwrap();
    lchown(&link, Some(user), Some(group)).unwrap();
    for _ in 0..2 {
        for path in [&file, &link] {
            let stat = fs::symlink_metadata(path).unwrap();
            assert_eq!((stat.uid(), stat.gid()), (user, group), "{}", path.display());
        }
        shown.remount();
    }
}

pub fn bytes_are_copied_from_file_to_file(shown: &mut dyn Writable) {
    let [from, to] = ["from", "to"].map(|name| shown.path().join(name));
    let bytes: Vec<u8> = (0..1_000_001u32).map(|n| (n % 251) as u8).collect();
    fs::write(&from, &bytes).unwrap();
    fs::write(&to, [9; 100]).unwrap();
    let (source, target) = (File::open(&from), OpenOptions::new().write(true).open(&to));
    let (source, target) = (source.unwrap(), target.unwrap());
    let (mut read_at, mut write_at) = (1, 50);
    while copy_file_range(&source, Some(&mut read_at), &target, Some(&mut write_at), 1 << 30)
        .unwrap()
        > 0
    {}
    drop((source, target));
    for _ in 0..2 {
        let copied = fs::read(&to).unwrap();
        assert!(copied[..50] == [9; 50] && copied[50..] == bytes[1..]);
        shown.remount();
    }
}

pub fn locks_hold_between_processes(shown: &mut dyn Writable) {
    let path = shown.path().join("locked");
    fs::write(&path, "").unwrap();
    let lock = || Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock);
    let held = lock().map_err(|(_, errno)| errno).unwrap();
    assert_eq!(lock().map_err(|(_, errno)| errno).err(), Some(Errno::EWOULDBLOCK));
    drop(held);
    assert!(lock().is_ok());
}

/// The kernel takes the locks of a process, and those of an open file, for those of two.
pub fn locks_of_ranges_keep_out_those_that_overlap(shown: &mut dyn Writable) {
    let path = shown.path().join("locked");
    fs::write(&path, "").unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let range = |kind: i32, start: i64, length: i64| nix::libc::flock {
        l_type: i16::try_from(kind).unwrap(),
        l_whence: i16::try_from(nix::libc::SEEK_SET).unwrap(),
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    let (ours, theirs) = (open(), open());
    let take = |kind| fcntl(&ours, FcntlArg::F_SETLK(&range(kind, 10, 100))).unwrap();
    let try_at = |kind, start| {
        let lock = range(kind, start, 10);
        let taken = fcntl(&theirs, FcntlArg::F_OFD_SETLK(&lock));
        if taken.is_ok() {
            let free = range(nix::libc::F_UNLCK, start, 10);
            fcntl(&theirs, FcntlArg::F_OFD_SETLK(&free)).unwrap();
        }
        taken.map(drop)
    };
    take(nix::libc::F_WRLCK);
    for start in [1, 50, 109] {
        assert_eq!(try_at(nix::libc::F_RDLCK, start), Err(Errno::EAGAIN), "{start}");
    }
    assert_eq!((try_at(nix::libc::F_WRLCK, 0), try_at(nix::libc::F_WRLCK, 110)), (Ok(()), Ok(())));
    take(nix::libc::F_RDLCK);
    assert_eq!(try_at(nix::libc::F_RDLCK, 50), Ok(()));
    assert_eq!(try_at(nix::libc::F_WRLCK, 50), Err(Errno::EAGAIN));
    drop(ours);
    assert_eq!(try_at(nix::libc::F_WRLCK, 50), Ok(()));
}
