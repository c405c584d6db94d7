//! The confinement of a QEMU that root starts: it is nobody, and as shut in as a user's.

use guestmnt::vm::confinement::{Confinement, Policy};
use guestmnt_tests::canary::{Aims, duties};
use guestmnt_tests::lacking::Lacking;
use guestmnt_tests::program::{Workplace, disks, is_root, text};
use xtask::disks::SYSTEM;
use xtask::skips::skip;

#[test]
fn roots_canary_gets_nowhere_and_each_layer_does_something() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let aims = Aims::new();
    let (outcomes, report) = aims.canary(&Confinement::default());
    if let Some(state) = report.missing().next() {
        skip(&format!("this host does not offer root all of the confinement: {state}"));
        return;
    }
    let done: Vec<_> = outcomes.iter().filter(|(_, error)| error.is_none()).collect();
    assert!(done.is_empty(), "{done:?}");
    assert!(aims.started(&Confinement::new(Policy::Required)).is_ok());
    for (part, prevented) in duties() {
        let (outcomes, _) = aims.canary(&Confinement::default().without(part));
        for name in prevented {
            assert_eq!(outcomes[*name], None, "without {part:?}: {name}");
        }
    }
}

#[test]
fn what_a_host_lacks_is_said_when_it_mounts_and_in_status() {
    if !is_root() {
        skip("the tests were not started by root");
        return;
    }
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = disks().path(SYSTEM);
    // Without a template, which root's first mount would make, and without trying KVM for that.
    let arguments = ["--no-template", "--accel", "tcg", "-a", text(&disk), "-m", "/dev/sda1"];
    for (lacking, layer) in [(Lacking::Landlock, "Landlock"), (Lacking::Seccomp, "seccomp")] {
        let mount = place.command("guestmnt", &[&arguments[..], &[text(&mnt)]].concat());
        let output = lacking.run(mount);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(said.contains("less confined") && said.contains(layer), "{said}");
        assert!(mnt.join("Windows").is_dir());
        let status = place.run("guestimg", &["status", text(&mnt)]);
        assert_eq!(status.status, Some(2), "{status:?}");
        assert!(status.stdout.contains(&format!("MISSING      {layer}")), "{status:?}");
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
}
