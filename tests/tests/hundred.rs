//! A hundred mounts and unmounts, one after the other in one process: what the library leaves behind
//! there that a program which ends would hide.
//!
//! The process is this program once more. Mounting forks, which takes a process with one thread, so that
//! libtest has no part in this: there is one test, and filters are taken as libtest takes them.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use guestmnt::session::Session;
use guestmnt::session::fuse_options::FuseOptions;
use guestmnt::session::plan::{DEFAULT_MEMORY_MIB, DiskSpec, Plan, WritesTo};
use guestmnt::session::selection::Selection;
use guestmnt::session::timings::Timings;
use guestmnt::session::watcher::Watcher;
use guestmnt::vm::accelerator::AcceleratorChoice;
use guestmnt::vm::confinement::Policy;
use guestmnt_tests::program::{Workplace, disks, given};
use nix::unistd::geteuid;
use xtask::disks::SYSTEM;

/// Names the folder to mount on to the process that does the rounds.
const MOUNTPOINT: &str = "GUESTMNT_ROUNDS_ON";
/// Names how many.
const COUNT: &str = "GUESTMNT_ROUNDS";

/// The round after which everything that is made once has been made, and the allocator has what it
/// keeps: its memory grows from 1.2 to 2.5 MiB in the first dozen.
const SETTLED: u32 = 20;

const ROUNDS: u32 = 100;

/// How much more memory of its own the process may have at the end than at [`SETTLED`], in KiB:
/// what an allocator keeps differs a little from round to round.
const GROWTH_KIB: u64 = 1024;

/// The name of the test, by which it is filtered.
const NAME: &str = "a_hundred_mounts_in_one_process_leave_it_and_its_folders_as_they_were";

fn main() {
    if env::var_os(MOUNTPOINT).is_some() {
        return rounds();
    }
    let mut filters = env::args().skip(1).filter(|word| !word.starts_with('-')).peekable();
    if filters.peek().is_none() || filters.any(|filter| NAME.contains(&filter)) {
        a_hundred_mounts_in_one_process_leave_it_and_its_folders_as_they_were();
        println!("test {NAME} ... ok");
    }
}

fn a_hundred_mounts_in_one_process_leave_it_and_its_folders_as_they_were() {
    let place = Workplace::with_own_cache();
    let mnt = place.folder("mnt");
    let rounds = |count: u32| {
        // The same program, even where it lies in a folder that this user cannot enter.
        let mut command = place.command("/proc/self/exe", &[]);
        command.env(MOUNTPOINT, &mnt).env("GUESTMNT_DISKS", given("GUESTMNT_DISKS"));
        command.env("GLIBC_TUNABLES", FRUGAL);
        let output = command.env(COUNT, count.to_string()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    };
    // Makes the template, which stays.
    rounds(1);
    let before = (tree(place.path()), ours_in_memory());
    rounds(ROUNDS);
    assert_eq!((tree(place.path()), ours_in_memory()), before);
    place.assert_clean(&["mnt"]);
}

/// Has the allocator give back what is freed. Else it keeps, for each thread that ever ran at the same
/// time as others, a receive buffer of FUSE with its 16 MiB: for a mount after the first it takes them
/// from where small pieces come from (mallopt(3), `M_MMAP_THRESHOLD`).
const FRUGAL: &str = "glibc.malloc.mmap_threshold=131072:glibc.malloc.arena_max=1";

/// What a process has that a mount could leave in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    children: Vec<String>,
}

fn rounds() {
    let mountpoint = given(MOUNTPOINT);
    let count: u32 = env::var(COUNT).unwrap().parse().unwrap();
    let mut settled = None;
    for round in 1..=count {
        mount_once(&mountpoint);
        await_threads();
        let now = (held(), anonymous_kib());
        assert_eq!(now.0.children, [""; 0], "after round {round}");
        if round == SETTLED {
            settled = Some(now);
        } else if let Some((held, memory_kib)) = &settled {
            assert_eq!(&now.0, held, "after round {round}, and after round {SETTLED}");
            let most = memory_kib + GROWTH_KIB;
            assert!(now.1 <= most, "{} KiB after round {round}, {memory_kib} before", now.1);
        }
    }
}

/// Mounts the system disk, looks at all of it that is not large, and unmounts it.
fn mount_once(mountpoint: &Path) {
    let disk =
        DiskSpec { path: disks().path(SYSTEM), format: None, block_size: None, overlay: None };
    let mut plan = Plan {
        disks: vec![disk],
        allow_paths: Vec::new(),
        on_missing: guestmnt::image::OnMissing::default(),
        selection: Selection::Named(vec!["/dev/sda1".parse().unwrap()]),
        keys: Vec::new(),
        declined: None,
        mountpoint: mountpoint.to_owned(),
        fuse_options: FuseOptions::default(),
        accelerator: AcceleratorChoice::Auto,
        use_template: true,
        memory_mib: DEFAULT_MEMORY_MIB,
        confinement: Policy::BestEffort,
        through_guest: false,
        bulk: true,
        timeout: Duration::from_secs(60),
        stats: false,
        writes: WritesTo::Nothing,
    };
    let watcher = Watcher::start().unwrap();
    let session = Session::start(&mut plan, &Timings::start(), watcher);
    let session = session.unwrap_or_else(|error| panic!("{error}"));
    let files: Vec<PathBuf> = tree(mountpoint).into_iter().filter(|path| path.is_file()).collect();
    assert!(files.len() > 3, "{files:?}");
    for file in files.iter().filter(|file| file.metadata().unwrap().len() < 1 << 20) {
        fs::read(file).unwrap();
    }
    session.end().unwrap_or_else(|error| panic!("{error}"));
}

/// Threads that answered for the mount end by themselves once it is gone.
fn await_threads() {
    let deadline = Instant::now() + Duration::from_secs(60);
    while held().threads > 1 {
        assert!(Instant::now() < deadline, "threads stay: {:?}", names_of_threads());
        thread::sleep(Duration::from_millis(2));
    }
}

fn held() -> Held {
    let threads: Vec<PathBuf> = entries(Path::new("/proc/self/task"));
    let children = threads.iter().flat_map(|thread| {
        let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    });
    Held {
        descriptors: entries(Path::new("/proc/self/fd")).len(),
        threads: threads.len(),
        children: children.collect(),
    }
}

fn names_of_threads() -> Vec<String> {
    let threads = entries(Path::new("/proc/self/task")).into_iter();
    threads.filter_map(|thread| fs::read_to_string(thread.join("comm")).ok()).collect()
}

/// Memory that is this process's alone, in KiB. Source: proc_pid_status(5).
fn anonymous_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse().ok()).expect("it is a number")
}

/// Everything below a folder, folders too.
fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let inner = entries(folder).into_iter().flat_map(|path| {
        let below = if path.is_dir() { tree(&path) } else { BTreeSet::new() };
        below.into_iter().chain([path])
    });
    inner.collect()
}

/// Shared memory of this user.
fn ours_in_memory() -> BTreeSet<PathBuf> {
    let ours = |path: &PathBuf| path.metadata().is_ok_and(|stat| stat.uid() == geteuid().as_raw());
    entries(Path::new("/dev/shm")).into_iter().filter(ours).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}
