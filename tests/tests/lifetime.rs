//! How mounts begin and end on a real VM, and that nothing is left behind.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guestmnt_tests::live::{Live, await_end, gone, server, signal};
use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::told::told;
use nix::sys::signal::Signal;
use xtask::disks::SYSTEM;

/// The system disk, mounted.
fn mounted() -> Live {
    let disk = disks().path(SYSTEM);
    Live::mount(Workplace::new(), &["-a", text(&disk), "-m", "/dev/sda1"])
}

#[test]
fn after_guestunmnt_nothing_is_left() {
    let mounted = mounted();
    let (server, qemu) = (mounted.server, mounted.qemu());
    assert!(mounted.mountpoint.join("Windows").is_dir());
    mounted.place.unmount(&mounted.mountpoint);
    assert!(gone(server) && gone(qemu), "still there when guestunmnt returned");
    assert!(fs::read_dir(&mounted.mountpoint).unwrap().next().is_none());
    mounted.place.assert_clean(&["mnt"]);
}

#[test]
fn a_mount_that_was_unmounted_by_other_means_ends_as_well() {
    let mounted = mounted();
    let path = text(&mounted.mountpoint);
    let status = Command::new("fusermount3").args(["-u", path]).status().unwrap();
    assert!(status.success());
    mounted.place.assert_clean(&["mnt"]);
}

#[test]
fn signals_unmount() {
    for ending in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mounted = mounted();
        // A file that is open does not keep the mount.
        let file = File::open(mounted.mountpoint.join("Windows")).unwrap();
        signal(mounted.server, ending);
        mounted.place.assert_clean(&["mnt"]);
        drop(file);
    }
}

/// One that lets a signal through gets it in the place of the thread that waits for it: then the
/// process ends by it, or where it is ignored, as after nohup(1), not at all.
#[test]
fn no_thread_lets_a_signal_through_that_ends_the_mount() {
    let mounted = mounted();
    let wanted = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
    let wanted: u64 = wanted.into_iter().map(|signal| 1 << (signal as u32 - 1)).sum();
    let threads = fs::read_dir(format!("/proc/{}/task", mounted.server)).unwrap();
    let mut count = 0;
    for thread in threads {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap();
        let blocked = u64::from_str_radix(field("SigBlk:").trim(), 16).unwrap();
        assert_eq!(blocked & wanted, wanted, "{}", field("Name:"));
        count += 1;
    }
    assert!(count > 4, "{count} threads");
    mounted.place.unmount(&mounted.mountpoint);
}

#[test]
fn when_guestmnt_is_killed_qemu_and_the_mount_go_with_it() {
    let mounted = mounted();
    let qemu = mounted.qemu();
    signal(mounted.server, Signal::SIGKILL);
    mounted.place.assert_clean(&["mnt"]);
    // Nobody is left by whom it could be known as this mount's.
    await_end(qemu);
    assert!(fs::read_dir(&mounted.mountpoint).unwrap().next().is_none());
}

#[test]
fn a_busy_mount_stays_and_its_user_is_named() {
    let mounted = mounted();
    let mut file =
        File::open(mounted.mountpoint.join("Users/Public/Documents/desktop.ini")).unwrap();
    let finished = mounted.place.run("guestunmnt", &["--no-retry", text(&mounted.mountpoint)]);
    assert_eq!(finished.status, Some(2), "{finished:?}");
    let me = format!("process {} ", std::process::id());
    assert!(finished.stderr.contains(&me), "{finished:?}");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(!bytes.is_empty());
    drop(file);
    mounted.place.unmount(&mounted.mountpoint);
    mounted.place.assert_clean(&["mnt"]);
}

#[test]
fn guestunmnt_tries_again_while_the_mount_is_busy() {
    let mounted = mounted();
    let file = File::open(mounted.mountpoint.join("Users/Public/Documents/desktop.ini")).unwrap();
    let mut command =
        mounted.place.command("guestunmnt", &["-v", "--retry", "3", text(&mounted.mountpoint)]);
    let mut running = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = running.stderr.take().unwrap();
    let mut said = vec![0; 10];
    // It says on the first failure that it will try again.
    stderr.read_exact(&mut said).unwrap();
    drop(file);
    assert!(running.wait().unwrap().success());
    mounted.place.assert_clean(&["mnt"]);
}

#[test]
fn guestunmnt_waits_for_a_descriptor_to_close() {
    let mounted = mounted();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command =
        mounted.place.command("guestunmnt", &["--fd", "0", text(&mounted.mountpoint)]);
    let mut running = command.stdin(reader).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.try_wait().unwrap().is_none());
    assert!(mounted.mountpoint.join("Windows").is_dir());
    drop((writer, command));
    assert!(running.wait().unwrap().success());
    mounted.place.assert_clean(&["mnt"]);
}

#[test]
fn what_is_no_mount_of_ours_gives_status_3() {
    let place = Workplace::new();
    let folder = place.folder("mnt");
    for path in [text(&folder), "/proc", "/nonexistent"] {
        let finished = place.run("guestunmnt", &["--no-retry", path]);
        assert_eq!(finished.status, Some(3), "{path}: {finished:?}");
        assert!(finished.stderr.contains("not a mount of guestmnt"), "{finished:?}");
    }
    let finished = place.run("guestunmnt", &["-q", "/proc"]);
    assert_eq!((finished.status, finished.stderr.as_str()), (Some(3), ""));
    assert_eq!(place.run("guestunmnt", &["--nonsense", "/proc"]).status, Some(1));
}

fn in_foreground(place: &Workplace, arguments: &[&str]) -> Child {
    place
        .command("guestmnt", arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn in_the_foreground_each_request_of_ls_can_be_seen() {
    let place = Workplace::new();
    let mountpoint = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let mut command = place.command(
        "guestmnt",
        &["--no-fork", "-x", "--fd", "1", "-a", text(&disk), "-m", "/dev/sda1", text(&mountpoint)],
    );
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut byte = [0];
    running.stdout.take().unwrap().read_exact(&mut byte).unwrap();
    assert!(Command::new("ls").arg("-l").arg(&mountpoint).status().unwrap().success());
    place.unmount(&mountpoint);
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    for request in ["opendir /: ok", "readdirplus /: ok"] {
        assert!(said.contains(request), "no {request} in\n{said}");
    }
    // No guest answers faster than this.
    let took =
        |line: &str| line.split_once("readdirplus /: ok (")?.1.strip_suffix(" us)")?.parse().ok();
    let longest: Option<u64> = said.lines().filter_map(took).max();
    assert!(longest > Some(10), "{longest:?} us in\n{said}");
    place.assert_clean(&["mnt"]);
}

/// The steps of one start, whose times have to add up.
fn steps(place: &Workplace, options: &[&str]) -> Vec<String> {
    let mountpoint = place.path().join("mnt");
    fs::create_dir_all(&mountpoint).unwrap();
    let disk = disks().path(SYSTEM);
    let mount = ["--timings", "-a", text(&disk), "-m", "/dev/sda1", text(&mountpoint)];
    let began = Instant::now();
    let finished = place.run("guestmnt", &[options, &mount].concat());
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    assert_eq!(finished.status, Some(0), "{finished:?}");
    place.unmount(&mountpoint);

    let table = finished.stderr.lines().skip_while(|line| !line.starts_with("step "));
    let mut steps = Vec::new();
    let mut before = 0.0;
    for line in table.skip(1) {
        let (rest, since) = line.rsplit_once(' ').unwrap();
        let (name, ms) = rest.trim_end().rsplit_once(' ').unwrap();
        let [ms, since] = [ms, since].map(|number| number.parse::<f64>().unwrap());
        assert!(since >= before, "{line}: earlier than the step before\n{}", finished.stderr);
        // Each is rounded by itself.
        assert!((since - before - ms).abs() < 0.2, "{line}\n{}", finished.stderr);
        before = since;
        steps.push(name.trim_end().to_owned());
    }
    assert!(before <= took_ms + 0.1, "{before} ms of {took_ms} ms\n{}", finished.stderr);
    steps
}

#[test]
fn timings_tell_the_steps_of_each_kind_of_start_in_order() {
    let place = Workplace::with_own_cache();
    // The guest wakes up while QEMU opens the disks: whichever is done first.
    let names = |options: &[&str]| {
        let mut names = steps(&place, options);
        if let Some(n) = names.iter().position(|name| name == "daemon awake") {
            let pair = if names[n - 1] == "disks attached" { n - 1 } else { n };
            names[pair..=pair + 1].sort();
        }
        names
    };
    let ends = ["daemon awake", "disks attached", "disks visible", "mounted", "FUSE ready"];
    let all = |begin: &[&'static str]| [begin, &ends].concat();
    let made = all(&["chain opened", "template made", "QEMU up", "restored"]);
    assert_eq!(names(&[]), made);
    let found = all(&["chain opened", "template found", "QEMU up", "restored"]);
    assert_eq!(names(&[]), found);
    assert_eq!(names(&["--no-template"]), all(&["chain opened", "QEMU up"]));
    place.assert_clean(&["mnt"]);
}

#[test]
fn requests_are_told_at_the_end() {
    let place = Workplace::new();
    let disk = disks().path(SYSTEM);
    let file = "Users/Public/Documents/desktop.ini";
    let mut length = 0;
    let told = told(&place, &["-a", text(&disk), "-m", "/dev/sda1"], |mnt| {
        for _ in 0..2 {
            length = fs::read(mnt.join(file)).unwrap().len() as u64;
            assert!(fs::read_dir(mnt).unwrap().count() > 1);
        }
        assert!(fs::metadata(mnt.join("missing")).is_err());
    });
    // Each of these once: the kernel keeps what it was told.
    let [lookups, reads, folders] = ["lookup", "read", "opendir"].map(|kind| told.kernel.of(kind));
    assert_eq!((lookups, reads, folders), (5, 1, 1), "{told:?}");
    assert_eq!((told.kernel.of("open"), told.kernel.of("release")), (1, 0), "{told:?}");
    assert!((1..=4).contains(&told.kernel.of("readdirplus")), "{told:?}");
    assert_eq!((told.kernel.bytes, told.reads.total, told.reads.bytes), (length, 1, length));
    let stats = lookups + told.kernel.of("getattr");
    assert_eq!((told.guest.of("stat"), told.guest.of("readdir")), (stats, 1), "{told:?}");
    for tally in [&told.kernel, &told.reads, &told.landed, &told.guest] {
        assert_eq!(tally.total, tally.kinds.values().sum::<u64>(), "{told:?}");
    }
    place.assert_clean(&["mnt"]);
}

#[test]
fn the_pid_file_holds_the_servers_number_while_it_lives() {
    let place = Workplace::new();
    let mountpoint = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    let pid_file = place.path().join("pid");
    place.mount(&[
        "--pid-file",
        text(&pid_file),
        "-a",
        text(&disk),
        "-m",
        "/dev/sda1",
        text(&mountpoint),
    ]);
    let pid: u32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert_eq!(pid, server(&mountpoint));
    place.unmount(&mountpoint);
    assert!(!pid_file.exists());
    place.assert_clean(&["mnt"]);
}

#[test]
fn a_signal_during_the_launch_leaves_nothing() {
    for delay_ms in [20, 200, 1000] {
        let place = Workplace::new();
        let mountpoint = place.folder("mnt");
        let disk = disks().path(SYSTEM);
        let mut running = in_foreground(
            &place,
            &["--no-fork", "-a", text(&disk), "-m", "/dev/sda1", text(&mountpoint)],
        );
        std::thread::sleep(Duration::from_millis(delay_ms));
        signal(running.id(), Signal::SIGTERM);
        running.wait().unwrap();
        place.assert_clean(&["mnt"]);
    }
}

#[test]
fn the_mount_is_read_only_nosuid_nodev() {
    let mounted = mounted();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(text(&mounted.mountpoint))).unwrap();
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(line.split([' ', ',']).any(|word| word == flag), "{line}");
    }
    mounted.place.unmount(&mounted.mountpoint);
}

#[test]
fn many_reads_while_it_is_unmounted_end_with_an_error_or_the_bytes() {
    let mounted = mounted();
    let path = mounted.mountpoint.join("Users/Public/Documents/desktop.ini");
    let wanted = fs::read(&path).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    if let Ok(file) = File::open(&path) {
                        let mut bytes = vec![0; wanted.len()];
                        if file.read_exact_at(&mut bytes, 0).is_ok() {
                            assert_eq!(bytes, wanted);
                        }
                    }
                }
            });
        }
        signal(mounted.server, Signal::SIGTERM);
    });
    mounted.place.assert_clean(&["mnt"]);
}
