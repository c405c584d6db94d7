//! What a trial of the corpus calls a fault, shown with programs that commit it in guestmnt's place.
//! A program of its own, because it adopts the processes that others leave behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::corpus::trial::{self, Exhibit, Fault, Outcome};
use xtask::corpus::{Built, Family, Ground};

#[test]
fn what_a_program_does_wrong_is_seen() {
    let everybody = |mode| fs::Permissions::from_mode(mode);
    let temp = tempfile::Builder::new().permissions(everybody(0o755)).tempdir().unwrap();
    let folder = |name: &str| temp.path().join(name);
    let built = Built { programs: folder("bin"), appliance: folder("none"), cache: folder("none") };
    fs::create_dir(&built.programs).unwrap();
    let script = |name: &str, lines: &str| {
        let path = built.programs.join(name);
        fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs::set_permissions(&path, everybody(0o755)).unwrap();
    };
    script("guestunmnt", "exit 0");
    script("xtask", r#"echo '{"entries":1,"bytes":2,"errors":{},"cut":false}'"#);
    let image = folder("image");
    let family = Family::new(Duration::from_millis(300)).unwrap();
    let ground = Ground::new(folder("ground"), &built).unwrap();
    let run = |lines: &str| {
        fs::write(&image, [7; 4096]).unwrap();
        fs::set_permissions(&image, everybody(0o666)).unwrap();
        script("guestmnt", lines);
        let exhibit = Exhibit { image: &image, device: "/dev/sda", passphrase: None };
        let verdict = trial::run(&exhibit, &ground, &family).unwrap();
        (verdict.outcome, verdict.faults)
    };
    let refused = |reason: &str| Outcome::Refused(reason.to_owned());

    let (outcome, faults) = run("echo ready; exit 0");
    assert!(matches!(outcome, Outcome::Mounted(walk) if walk.bytes == 2));
    assert_eq!(faults, []);
    assert_eq!(run("echo 'guestmnt: no' >&2; exit 1"), (refused("no"), vec![]));

    let (_, faults) = run("kill -SEGV $$");
    assert!(matches!(&faults[..], [Fault::Crash(how)] if how.contains("SIGSEGV")), "{faults:?}");
    let (_, faults) = run("echo ready; exit 3");
    assert!(matches!(&faults[..], [Fault::Crash(_)]), "{faults:?}");
    let (_, faults) = run("echo \"thread 'fuse' panicked at x.rs\" >&2; exit 1");
    assert!(matches!(&faults[..], [Fault::Crash(how)] if how.contains("'fuse'")), "{faults:?}");

    let path = image.display();
    let (_, faults) = run(&format!("echo changed >> {path}; exit 1"));
    assert_eq!(faults, [Fault::Changed]);
    let (_, faults) = run("touch $TMPDIR/left; exit 1");
    let left = ground.folder().join("tmp/left");
    assert_eq!(faults, [Fault::File(left.clone())]);
    fs::remove_file(left).unwrap();

    let (_, faults) = run("sleep 600 > /dev/null 2>&1 & exit 1");
    let [Fault::Process(pid, name)] = &faults[..] else { panic!("{faults:?}") };
    assert_eq!(name, "sleep");
    kill(Pid::from_raw((*pid).try_into().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(run("sleep 0.1 > /dev/null 2>&1 & exit 1").1, [], "it had its time");
}
