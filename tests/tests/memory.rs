//! What a mount takes of the host's memory for itself, as `guestimg status` tells it: what the guest
//! has written to of its memory, QEMU's and guestmnt's own, and bulk memory. What nobody else could use
//! does not grow with what is read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Stdio};

use guestmnt_tests::program::{Workplace, disks, text};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::Value;
use xtask::disks::NEWEST;

const MIB: u64 = 1 << 20;

/// A file larger than all that a mount may have, and its length in bytes.
const LARGE: (&str, u64) = ("mysql-installer-community-5.6.14.0.msi", 200_822_784);

/// How often it is read.
const READS: u64 = 3;

#[test]
fn memory_of_a_mount_is_bounded_however_much_the_guest_reads() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = disks().path(NEWEST);
    let mount = ["--through-guest", "--stats", "--fd", "1", "-a", text(&disk), "-m", "/dev/sda2"];
    let mut server = start(&place, &[&mount[..], &[text(&mnt)]].concat());

    let after_mount = memory(&place, &mnt);
    assert!(after_mount < 64 * MIB, "{} MiB after the mount", after_mount / MIB);

    let file = mnt.join(LARGE.0);
    for read in 1..=READS {
        assert_eq!(read_afresh(&file), LARGE.1);
        let memory = memory(&place, &mnt);
        assert!(memory < 160 * MIB, "{} MiB after reading {read} times", memory / MIB);
    }

    place.unmount(&mnt);
    let mut said = String::new();
    server.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(server.wait().unwrap().success(), "{said}");
    // Else it was the host's cache that was read.
    let counts = said.lines().find(|line| line.starts_with("guestmnt: guest: ")).unwrap();
    let bytes = counts.rsplit(", ").next().and_then(|text| text.strip_suffix(" bytes"));
    assert!(bytes.unwrap().parse::<u64>().unwrap() >= READS * LARGE.1, "{said}");
    place.assert_clean(&["mnt"]);
}

/// Starts a mount that stays in the foreground, and returns when it answers.
fn start(place: &Workplace, arguments: &[&str]) -> Child {
    let mut command = place.command("guestmnt", arguments);
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    server.stdout.take().unwrap().read_exact(&mut [0]).expect("it says that it is ready");
    server
}

/// Bytes that `guestimg status` says.
fn memory(place: &Workplace, mountpoint: &Path) -> u64 {
    let finished = place.run("guestimg", &["status", "--json", text(mountpoint)]);
    let shown: Value = serde_json::from_str(&finished.stdout).unwrap();
    shown[0]["memory"].as_u64().unwrap_or_else(|| panic!("{finished:?}"))
}

/// Reads a file to its end, nothing of which is in this host's cache. Gives its length.
fn read_afresh(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    io::copy(&mut file, &mut io::sink()).unwrap()
}
