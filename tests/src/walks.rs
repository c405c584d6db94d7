//! Programs that go through trees of small files, in any world: that they see what is there, and
//! that they cost the guest few requests. Requests are the same on every machine; times are not.
#![expect(missing_docs, reason = "the names of the bodies say what they show")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guestmnt::counts::Kind;
use guestmnt::fs::stats::Asked;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, copy_file_range, posix_fadvise};
use nix::sys::mman::MapFlags;
use nix::sys::sendfile::sendfile;
use tempfile::TempDir;
use xtask::skips::skip;

use crate::calls::Mapped;
use crate::chance::Chance;
use crate::worlds::World;

/// Makes a test of each body, in the world that the expression gives.
#[macro_export]
macro_rules! walks_in {
    ($world:expr) => {
        $crate::walks_in! { $world;
            opened_files_and_folders_cost_the_kernel_no_request,
            find_costs_one_request_for_a_folder,
            tar_costs_two_requests_for_a_folder,
            rsync_costs_two_requests_for_a_folder,
            cp_costs_three_requests_for_a_folder,
            who_goes_through_folders_finds_the_next_ones_listed,
            links_come_with_their_folder,
            small_files_have_their_own_bytes_in_every_order,
            many_processes_read_the_right_bytes_at_once,
            files_are_mapped_sent_and_copied,
            attributes_are_those_of_each_file,
        }
    };
    ($world:expr; $($body:ident,)*) => {
        $(
            #[test]
            fn $body() {
                $crate::walks::$body(&$world);
            }
        )*
    };
}

const FOLDERS: u64 = 20;
const FILES: usize = 100;

/// Requests besides those for each folder: the root, and what is found out once.
const ONCE: u64 = 15;

/// A tree of small files, of which some are empty.
fn tree() -> TempDir {
    let source = tempfile::tempdir().unwrap();
    for folder in 0..FOLDERS {
        let folder = source.path().join(format!("tree/folder-{folder:02}"));
        fs::create_dir_all(&folder).unwrap();
        for n in 0..FILES {
            fs::write(folder.join(format!("file-{n:03}")), content(n * 37 % 5000, n)).unwrap();
        }
    }
    source
}

/// Bytes that tell which file they are of.
fn content(length: usize, number: usize) -> Vec<u8> {
    number.to_le_bytes().into_iter().cycle().take(length).collect()
}

/// What a program may cost.
struct Cost {
    /// Requests to the guest for each folder.
    per_folder: u64,
    /// Requests of the kernel for each file, besides [`KERNEL_PER_FOLDER`].
    per_file: u64,
}

/// Requests of the kernel for each folder: that it is there, its pages, and its own attributes.
const KERNEL_PER_FOLDER: u64 = 8;

/// Runs a program over a tree in a new mount, at a cost of no more than this. Returns where it put
/// something, or nothing where there is no such program.
fn walk(world: &dyn World, cost: &Cost, program: &[&str]) -> Option<TempDir> {
    let source = tree();
    let target = tempfile::tempdir().unwrap();
    let shown = world.show(source.path(), "");
    let before = (shown.requests(), shown.asked_in_all());
    let tree = shown.path().join("tree");
    let place = |word: &&str| match *word {
        "TREE" => tree.clone(),
        "TARGET" => target.path().to_owned(),
        word => PathBuf::from(word),
    };
    let words: Vec<PathBuf> = program.iter().map(place).collect();
    let mut command = Command::new(&words[0]);
    // tar reads nothing for /dev/null.
    let output = match command.args(&words[1..]).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skip(&format!("there is no {}", program[0]));
            return None;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{output:?}");
    let requests = shown.requests() - before.0;
    let most = (FOLDERS + 1) * cost.per_folder + ONCE;
    assert!(requests >= FOLDERS && requests <= most, "{requests} requests, {most} at most");
    let asked = shown.asked_in_all() - before.1;
    let all_files = FOLDERS * FILES as u64;
    let most = all_files * cost.per_file + (FOLDERS + 1) * KERNEL_PER_FOLDER + ONCE;
    let kinds = || Asked::ALL.iter().map(|&kind| (kind.name(), shown.asked(kind)));
    let kinds = || kinds().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    assert!((FOLDERS..=most).contains(&asked), "{asked} requests, {most} at most: {:?}", kinds());
    if program.contains(&"TARGET") {
        assert_eq!(files(&target.path().join("tree")), files(&source.path().join("tree")));
    }
    Some(target)
}

/// The files below a folder by their paths from there, with what they hold.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (name, path) = (PathBuf::from(entry.file_name()), entry.path());
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

pub fn opened_files_and_folders_cost_the_kernel_no_request(world: &dyn World) {
    let source = tempfile::tempdir().unwrap();
    for n in 0..FILES {
        fs::write(source.path().join(n.to_string()), content(3000, n)).unwrap();
    }
    let shown = world.show(source.path(), "");
    // The first one asks, and is told that there is no need to.
    fs::read(shown.path().join("0")).unwrap();
    assert_eq!(fs::read_dir(shown.path()).unwrap().count(), FILES);
    let kinds = [Asked::Open, Asked::Flush, Asked::Release, Asked::OpenDir, Asked::ReleaseDir];
    let asked = || kinds.map(|kind| shown.asked(kind));
    let before = asked();
    let [opens, _, _, folders, _] = before;
    assert!(opens == 1 && folders <= 1, "{before:?}");

    for n in 1..FILES {
        assert_eq!(fs::read(shown.path().join(n.to_string())).unwrap(), content(3000, n));
        assert_eq!(fs::read_dir(shown.path()).unwrap().count(), FILES);
    }

    assert_eq!(asked(), before);
    let reads = shown.asked(Asked::Read);
    assert_eq!(reads, FILES as u64, "all that it is asked for are contents");
}

pub fn find_costs_one_request_for_a_folder(world: &dyn World) {
    walk(world, &Cost { per_folder: 1, per_file: 0 }, &["find", "TREE", "-printf", "%s\n"]);
}

pub fn tar_costs_two_requests_for_a_folder(world: &dyn World) {
    walk(world, &Cost { per_folder: 2, per_file: 1 }, &["tar", "-cf", "-", "TREE"]);
}

pub fn rsync_costs_two_requests_for_a_folder(world: &dyn World) {
    walk(world, &Cost { per_folder: 2, per_file: 1 }, &["rsync", "-a", "TREE", "TARGET"]);
}

pub fn cp_costs_three_requests_for_a_folder(world: &dyn World) {
    walk(world, &Cost { per_folder: 3, per_file: 4 }, &["cp", "-a", "TREE", "TARGET"]);
}

pub fn who_goes_through_folders_finds_the_next_ones_listed(world: &dyn World) {
    let source = tree();
    let shown = world.show(source.path(), "");
    let tree = fs::read_dir(shown.path().join("tree")).unwrap();
    let folders: Vec<PathBuf> = tree.map(|entry| entry.unwrap().path()).collect();
    let list = |folder| assert_eq!(fs::read_dir(folder).unwrap().count(), FILES);
    let before = shown.requests();

    folders[..3].iter().for_each(list);
    let deadline = Instant::now() + Duration::from_secs(60);
    while shown.requests() < before + 5 {
        assert!(Instant::now() < deadline, "{} requests", shown.requests() - before);
        thread::sleep(Duration::from_millis(5));
    }

    folders[3..].iter().for_each(list);
    assert_eq!(shown.requests(), before + FOLDERS);
}

pub fn links_come_with_their_folder(world: &dyn World) {
    let source = tempfile::tempdir().unwrap();
    for n in 0..200 {
        symlink(format!("target-{n}"), source.path().join(n.to_string())).unwrap();
    }
    let shown = world.show(source.path(), "");
    let before = shown.requests();
    for entry in fs::read_dir(shown.path()).unwrap() {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).unwrap();
        assert_eq!(target, Path::new(&format!("target-{}", entry.file_name().display())));
    }
    assert!(shown.requests() - before <= 4, "{}", shown.requests() - before);
}

pub fn small_files_have_their_own_bytes_in_every_order(world: &dyn World) {
    let source = tempfile::tempdir().unwrap();
    // Empty, small, as large as small ones may be, larger; many of the same size.
    let size = |n: usize| [0, 60, 4100, 64 * 1024, 64 * 1024 + 1][n % 5];
    for n in 0..300 {
        fs::write(source.path().join(format!("{n:03}")), content(size(n), n)).unwrap();
    }
    let names = |folder: &Path| -> Vec<usize> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.to_str().unwrap().parse().unwrap()).collect()
    };
    let forward: Vec<usize> = (0..300).collect();
    let backward: Vec<usize> = (0..300).rev().collect();
    let here_and_there: Vec<usize> = (0..300).map(|n| n * 97 % 300).collect();
    let twice: Vec<usize> = (0..300).chain(0..300).collect();
    let check = |folder: &Path, n: usize| {
        let bytes = fs::read(folder.join(format!("{n:03}"))).unwrap();
        assert!(bytes == content(size(n), n), "{n}: {} bytes", bytes.len());
    };
    // The first is the directory's own order.
    for order in [None, Some(forward), Some(backward), Some(here_and_there), Some(twice)] {
        let shown = world.show(source.path(), "");
        let listed = names(shown.path());
        order.unwrap_or(listed).into_iter().for_each(|n| check(shown.path(), n));
    }
    let shown = world.show(source.path(), "");
    names(shown.path());
    thread::scope(|scope| {
        for start in 0..8 {
            let folder = shown.path();
            scope.spawn(move || (0..300).for_each(|n| check(folder, (n + start * 40) % 300)));
        }
    });
}

pub fn many_processes_read_the_right_bytes_at_once(world: &dyn World) {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("large"), content(3_000_000, 7)).unwrap();
    for n in 0..64 {
        fs::write(source.path().join(format!("small-{n}")), content(20_000, n)).unwrap();
    }
    let shown = world.show(source.path(), "");
    // All wait until the pipe's other end is closed.
    let (waiting, go) = io::pipe().unwrap();
    let compare = |name: &str| {
        let mut cmp = Command::new("sh");
        cmp.args(["-c", "read go; exec cmp \"$0\" \"$1\""]).stdin(waiting.try_clone().unwrap());
        cmp.arg(shown.path().join(name)).arg(source.path().join(name)).spawn().unwrap()
    };
    let names = (0..64).flat_map(|n| ["large".to_owned(), format!("small-{n}")]);
    let started: Vec<_> = names.map(|name| compare(&name)).collect();
    assert_eq!(shown.asked(Asked::Read), 0);
    drop(go);
    for mut process in started {
        assert!(process.wait().unwrap().success());
    }
}

pub fn files_are_mapped_sent_and_copied(world: &dyn World) {
    let source = tempfile::tempdir().unwrap();
    // A program is mapped to be run.
    let program = source.path().join("program");
    fs::copy("/bin/echo", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let bytes = content(1_000_003, 9);
    fs::write(source.path().join("f"), &bytes).unwrap();
    let shown = world.show(source.path(), "");
    let output = Command::new(shown.path().join("program")).arg("it runs").output().unwrap();
    assert_eq!(output.stdout, b"it runs\n");

    assert_mapped(&shown.path().join("f"), &bytes);
    assert!(sent(&shown.path().join("f"), bytes.len()) == bytes);
    let copy = source.path().join("copy");
    copy_range(&shown.path().join("f"), &copy, bytes.len());
    assert!(fs::read(&copy).unwrap() == bytes);
}

/// Compares pages of a file that is mapped, with nothing of it read before: the last one first.
fn assert_mapped(path: &Path, bytes: &[u8]) {
    const PAGE: usize = 4096;
    let pages = bytes.len().div_ceil(PAGE);
    for flags in [MapFlags::MAP_SHARED, MapFlags::MAP_PRIVATE] {
        let file = File::open(path).unwrap();
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        // Behind the file's end, the last page is zeros.
        let length = NonZeroUsize::new(pages * PAGE).unwrap();
        let mapped = Mapped::of(&file, length, flags).unwrap();
        let mut chance = Chance::seeded(7);
        let random = (0..40).map(|_| usize::try_from(chance.below(pages as u64)).unwrap());
        for page in [pages - 1, 0, pages / 2].into_iter().chain(random) {
            let range = page * PAGE..((page + 1) * PAGE).min(bytes.len());
            assert!(mapped[range.clone()] == bytes[range], "page {page}, {flags:?}");
        }
        assert!(mapped[..bytes.len()] == *bytes, "{flags:?}");
        assert!(mapped[bytes.len()..].iter().all(|&byte| byte == 0), "{flags:?}");
    }
}

/// What comes out of a socket that a file is sent to with sendfile(2).
fn sent(path: &Path, length: usize) -> Vec<u8> {
    let file = File::open(path).unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let (here, mut there) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut sent = Vec::new();
            there.read_to_end(&mut sent).unwrap();
            sent
        });
        let mut left = length;
        while left > 0 {
            let count = sendfile(&here, &file, None, left).unwrap();
            assert_ne!(count, 0, "{left} bytes are missing");
            left -= count;
        }
        assert_eq!(sendfile(&here, &file, None, 1), Ok(0));
        drop(here);
        reader.join().unwrap()
    })
}

/// Copies a file with copy_file_range(2), which need not work between filesystems: then as whoever
/// calls it does, by reading and writing.
fn copy_range(from: &Path, to: &Path, length: usize) {
    let (mut source, mut target) = (File::open(from).unwrap(), File::create(to).unwrap());
    posix_fadvise(&source, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mut left = length;
    while left > 0 {
        match copy_file_range(&source, None, &target, None, left) {
            Ok(0) => panic!("{left} bytes are missing"),
            Ok(count) => left -= count,
            Err(Errno::EXDEV) if left == length => {
                assert_eq!(io::copy(&mut source, &mut target).unwrap(), length as u64);
                return;
            }
            Err(errno) => panic!("{errno}, {left} bytes are missing"),
        }
    }
}

pub fn attributes_are_those_of_each_file(world: &dyn World) {
    let source = tempfile::tempdir().unwrap();
    let path = |name: &str| source.path().join(name);
    for n in 0..40 {
        fs::write(path(&format!("plain-{n}")), "").unwrap();
    }
    for name in ["small", "large", "empty", "many"] {
        fs::write(path(name), "").unwrap();
    }
    symlink("small", path("link")).unwrap();
    fs::create_dir(path("folder")).unwrap();
    let many = (0..20).map(|n| ("many", format!("user.{n}"), vec![n; 40]));
    let mut set: Vec<(&str, String, Vec<u8>)> = many.collect();
    for (file, name, value) in [
        ("small", "user.one", b"1".to_vec()),
        ("small", "user.two", b"\0\xff\n".to_vec()),
        ("large", "user.large", vec![7; 3000]),
        ("large", "user.small", b"beside it".to_vec()),
        ("empty", "user.empty", Vec::new()),
        ("folder", "user.of.a.folder", b"too".to_vec()),
    ] {
        set.push((file, name.to_owned(), value));
    }
    for (file, name, value) in &set {
        xattr::set(path(file), name, value).unwrap();
    }
    let shown = world.show(source.path(), "");
    let names: Vec<_> =
        fs::read_dir(shown.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let before = shown.requests();
    for name in names.iter().filter(|name| *name != "link") {
        let file = shown.path().join(name);
        let own: Vec<_> = set.iter().filter(|(of, ..)| *name == **of).collect();
        let mut listed: Vec<OsString> = xattr::list(&file).unwrap().collect();
        let mut expected: Vec<OsString> = own.iter().map(|(_, name, _)| name.into()).collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected, "{name:?}");
        for (_, attribute, value) in own {
            assert_eq!(xattr::get(&file, attribute).unwrap().as_ref(), Some(value), "{name:?}");
        }
        for absent in ["user.none", "security.capability", "system.posix_acl_access"] {
            let errno = xattr::get(&file, absent).map_err(|error| error.raw_os_error());
            let expected = [Ok(None), Err(Some(Errno::EOPNOTSUPP as i32))];
            assert!(expected.contains(&errno), "{name:?} {absent}: {errno:?}");
        }
    }
    // One for all, one for the value that is too large to come along, and one for what each kind
    // of file says of each attribute that it does not have.
    assert!(shown.requests() - before <= 2 + 3 * 2, "{}", shown.requests() - before);
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_body_is_forgotten_in_the_list() {
        let source = include_str!("walks.rs");
        let (list, bodies) = source.split_once("const FOLDERS").unwrap();
        let names = bodies.lines().filter_map(|line| line.strip_prefix("pub fn "));
        for name in names.map(|rest| rest.split_once('(').unwrap().0) {
            assert!(list.contains(&format!(" {name},")), "{name}");
        }
    }
}
