//! `guestimg commit`: what an overlay holds becomes the image's, also when that is interrupted.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use guestmnt_tests::chance::Chance;
use guestmnt_tests::live::await_end;
use guestmnt_tests::program::text;
use guestmnt_tests::showing::Showing;
use guestmnt_tests::specimens::sha256;
use guestmnt_tests::written::{assert_written, write_to_overlay};

const OVERLAY: [&str; 2] = ["--overlay", "o.qcow2"];

fn commit(showing: &Showing, disk: &[&str]) {
    let words = [&["commit", "--json"], disk, &OVERLAY].concat();
    let finished = showing.place.run("guestimg", &words);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let told: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(told[0]["image"], *disk.last().unwrap(), "{finished:?}");
    assert!(!showing.place.path().join(OVERLAY[1]).exists());
}

#[test]
fn the_leaf_of_a_chain_gets_what_its_overlay_holds() {
    let Some(showing) = Showing::new() else { return };
    let at = |name: &str| showing.place.path().join(name);
    showing.convert("vmdk", "subformat=monolithicFlat", "base.vmdk");
    let over = ["-F", "vmdk", "-b", "base.vmdk", "leaf.vmdk"];
    showing.make("qemu-img", &[&["create", "-q", "-f", "vmdk"], &over[..]].concat());
    let base = sha256(&at("base-flat.vmdk"));
    let before = fs::read(at("leaf.vmdk")).unwrap();
    let disk = ["-a", "leaf.vmdk"];
    write_to_overlay(&showing.place, &disk, OVERLAY[1]);
    assert!(fs::read(at("leaf.vmdk")).unwrap() == before, "the image was written too early");

    let refused = showing.place.run("guestimg", &["commit", "-a", "base.vmdk", "--overlay", "o"]);
    assert!(refused.stderr.contains("leaf.vmdk was made over it"), "{refused:?}");
    commit(&showing, &disk);
    assert_written(&showing.place, &disk);
    showing.make("qemu-img", &["check", "-f", "vmdk", "leaf.vmdk"]);
    assert_eq!(sha256(&at("base-flat.vmdk")), base, "the parent was written");
    // The text of the descriptor, of which the content id is all that may differ.
    let id = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(&bytes[512..10_752]).into_owned();
        let line = text.lines().find(|line| line.starts_with("CID=")).map(str::to_owned);
        (line.clone(), text.replace(&line.unwrap(), ""))
    };
    let (before, after) = (id(&before), id(&fs::read(at("leaf.vmdk")).unwrap()));
    assert!(before.0 != after.0 && before.1 == after.1, "{before:?} {after:?}");
}

/// What an overlay's header says is done with it.
fn is_being_committed(overlay: &Path) -> bool {
    let mut state = [0];
    File::open(overlay).is_ok_and(|file| file.read_exact_at(&mut state, 112).is_ok())
        && state == [2]
}

#[test]
fn a_commit_that_was_killed_is_gone_on_with_and_nothing_else_can_be_done() {
    let Some(showing) = Showing::new() else { return };
    let at = |name: &str| showing.place.path().join(name);
    showing.convert("raw", "", "disk");
    let disk = ["--format", "raw", "-a", "disk"];
    write_to_overlay(&showing.place, &disk, OVERLAY[1]);
    // With its time, by which the overlay knows it.
    let copy = |from: &str, to: &str| showing.make("cp", &["-p", text(&at(from)), text(&at(to))]);
    copy("disk", "disk.kept");
    copy("o.qcow2", "o.kept");
    let mut chance = Chance::new();
    let interrupt = |chance: &mut Chance| {
        copy("disk.kept", "disk");
        copy("o.kept", "o.qcow2");
        let words = [&["commit"], &disk[..], &OVERLAY].concat();
        let mut running = showing.place.command("guestimg", &words).spawn().unwrap();
        while !is_being_committed(&at("o.qcow2")) && running.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(100));
        }
        chance.wait(20);
        let process = running.id();
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
        running.kill().unwrap();
        running.wait().unwrap();
        // QEMU goes with it, and with QEMU its locks: a moment later.
        for child in children.unwrap_or_default().split_whitespace() {
            await_end(child.parse().unwrap());
        }
        at("o.qcow2").exists()
    };
    // Where the machine is busy, all may be done before it is killed.
    assert!((0..20).any(|_| interrupt(&mut chance)), "nothing was interrupted");
    let words = ["its changes were being written to", "hint: `guestimg commit`"];
    showing.assert_refused(&[&disk[..], &OVERLAY].concat(), &words);
    let forgotten = showing.place.run("guestimg", &[&["discard"], &disk[..], &OVERLAY].concat());
    assert!(forgotten.stderr.contains(words[0]), "{forgotten:?}");
    commit(&showing, &disk);
    assert_written(&showing.place, &disk);
    showing.make("e2fsck", &["-fn", "disk"]);
}
