//! Which programs a mount starts, as strace(1) sees it. It takes root to trace an ordinary user's mount:
//! what others trace gives up set-user-id programs, and fusermount3 is one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use guestmnt_tests::program::{Workplace, disks, is_root, text};
use xtask::disks::SYSTEM;
use xtask::skips::skip;
use xtask::user::{self, Ordinary};

#[test]
fn a_restored_mount_starts_qemu_once_and_fusermount_and_nothing_else() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let place = Workplace::new();
    let user = Ordinary::find().unwrap();
    let [home, mnt, traces] = ["home", "mnt", "traces"].map(|name| place.folder(name));
    for folder in [&home, &mnt] {
        chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    let disk = disks().path(SYSTEM);
    let command = |arguments: &[&str]| {
        let mut command = place.command("guestmnt", arguments);
        command.env("HOME", &home).env("XDG_CACHE_HOME", &home).env("TMPDIR", &home);
        command
    };
    let mut prepare = command(&["--accel", "tcg", "--prepare"]);
    let prepared = prepare.uid(user.uid.as_raw()).gid(user.gid.as_raw()).output().unwrap();
    assert!(prepared.status.success(), "{prepared:?}");

    let source = ["--accel", "tcg", "--timings", "-a", text(&disk), "-m", "/dev/sda1"];
    let mount = command(&[&source[..], &["--fd", "1", text(&mnt)]].concat());
    let mut strace = Command::new("strace");
    // A file for each process, so that no call is cut in two by another's.
    strace.args(["-ff", "-qq", "-s", "200", "-e", "trace=execve,execveat", "-u", user::NAME]);
    strace.arg("-o").arg(traces.join("trace")).arg(mount.get_program()).args(mount.get_args());
    strace.env_clear().envs(mount.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let strace = strace.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut running) = strace.spawn() else {
        skip("strace is not installed");
        return;
    };
    let answers = running.stdout.take().unwrap().read_exact(&mut [0]).is_ok();
    if answers {
        place.unmount(&mnt);
    }
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let programs = started(&traces);
    if programs.is_empty() {
        skip(&format!("strace sees nothing here: {}", said.lines().next().unwrap_or_default()));
        return;
    }
    assert!(answers && said.contains("\nrestored "), "{said}");

    let names = programs.iter().map(|call| call.split('"').nth(1).unwrap());
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for name in names.map(|path| path.rsplit('/').next().unwrap()) {
        *counts.entry(name).or_default() += 1;
    }
    let expected = ["fusermount3", "guestmnt", "qemu-system-x86_64"].map(|name| (name, 1));
    assert_eq!(counts, BTreeMap::from(expected), "{programs:#?}");
    let is_asked = |call: &String| call.contains("qemu-system") && call.contains("version\"");
    assert!(!programs.iter().any(is_asked), "{programs:#?}");
    place.assert_clean(&["home", "mnt", "traces"]);
}

/// The calls by which a program was started, of all processes.
fn started(traces: &Path) -> Vec<String> {
    let mut calls = Vec::new();
    for trace in fs::read_dir(traces).unwrap() {
        let trace = fs::read(trace.unwrap().path()).unwrap();
        let trace = String::from_utf8_lossy(&trace);
        let done = trace.lines().filter(|line| line.starts_with("exec") && line.ends_with(" = 0"));
        calls.extend(done.map(str::to_owned));
    }
    calls
}
