//! What was brought to the disk is there, whatever dies at whatever moment; the overlay and the
//! filesystem in it are sound.

use std::fs;
use std::thread;
use std::time::Duration;

use guestmnt::session::record::Record;
use guestmnt_tests::chance::{Chance, rounds};
use guestmnt_tests::fsck::assert_sound;
use guestmnt_tests::live::{await_end, signal};
use guestmnt_tests::load::Synced;
use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xtask::disks::filesystems::Kind;
use xtask::process::Tool;

/// Who is killed.
#[derive(Clone, Copy)]
enum Victims {
    Qemu,
    Guestmnt,
    Both,
}

impl Victims {
    /// Their processes.
    fn of(self, server: u32, qemu: u32) -> Vec<u32> {
        match self {
            Self::Qemu => vec![qemu],
            Self::Guestmnt => vec![server],
            Self::Both => vec![qemu, server],
        }
    }
}

fn survives_kills(kind: Kind, victims: Victims) {
    let Some((image, _)) = specimen(kind) else { return };
    let mut shown = OverImage::new(&image);
    // Of the others, what was not synced may be in any order.
    let has_journal = [Kind::Ext4, Kind::Xfs, Kind::Btrfs].contains(&kind);
    if kind == Kind::Ntfs {
        // Which it is then.
        shown.options.push("--force-dirty".to_owned());
    }
    let mut chance = Chance::new();
    for round in 0..rounds(1) {
        let seed = chance.below(u64::MAX);
        let folder = shown.path().join(format!("round-{round}"));
        fs::create_dir(&folder).unwrap();
        let (server, qemu) = (shown.server(), Record::of(shown.server()).expect("served").qemu);
        let make = if has_journal { Synced::make } else { Synced::make_without_journal };
        let mut workers = ["a", "b"].map(|name| make(&folder.join(name)));
        thread::scope(|scope| {
            let [replacing, changing] = &mut workers;
            scope.spawn(|| replacing.replace_until_the_end(&mut Chance::seeded(seed)));
            scope.spawn(|| {
                let chance = &mut Chance::seeded(!seed);
                if has_journal {
                    changing.change_until_the_end(chance);
                } else {
                    changing.replace_until_the_end(chance);
                }
            });
            // Somewhere in the middle of it.
            thread::sleep(Duration::from_millis(300));
            chance.wait(1000);
            victims.of(server, qemu).into_iter().for_each(|one| signal(one, Signal::SIGKILL));
        });
        // What goes on without its VM is ended.
        let _ = kill(Pid::from_raw(server.cast_signed()), Signal::SIGTERM);
        shown.reap();
        await_end(qemu);
        let check = Tool::new("qemu-img").args(["check", "-q"]).arg(shown.overlay());
        check.args(["-r", "leaks"]).run().unwrap();
        // Which replays the journal.
        shown.mount();
        workers.iter().for_each(|synced| synced.assert_there());
        let times: u64 = workers.iter().map(|synced| synced.times).sum();
        println!("round {round}: {times} times synced before the end");
        shown.unmount();
        if has_journal {
            assert_sound(kind, shown.flattened().path());
            shown.mount();
            fs::remove_dir_all(&folder).unwrap();
        } else {
            // What was not synced may be damaged.
            fs::remove_file(shown.overlay()).unwrap();
            shown.mount();
        }
    }
}

/// As often as `cargo xtask faults` says.
mod many_times {
    use super::*;

    #[test]
    fn what_was_synced_to_ext4_survives_the_end_of_qemu() {
        survives_kills(Kind::Ext4, Victims::Qemu);
    }

    #[test]
    fn what_was_synced_to_ext4_survives_the_end_of_guestmnt() {
        survives_kills(Kind::Ext4, Victims::Guestmnt);
    }

    #[test]
    fn what_was_synced_to_ext4_survives_the_end_of_both() {
        survives_kills(Kind::Ext4, Victims::Both);
    }

    #[test]
    fn what_was_synced_to_xfs_survives_the_end_of_both() {
        survives_kills(Kind::Xfs, Victims::Both);
    }

    #[test]
    fn what_was_synced_to_btrfs_survives_the_end_of_both() {
        survives_kills(Kind::Btrfs, Victims::Both);
    }

    #[test]
    fn what_was_synced_to_ntfs_survives_the_end_of_both() {
        survives_kills(Kind::Ntfs, Victims::Both);
    }

    #[test]
    fn what_was_synced_to_fat_survives_the_end_of_both() {
        survives_kills(Kind::Vfat, Victims::Both);
    }

    #[test]
    fn what_was_synced_to_exfat_survives_the_end_of_both() {
        survives_kills(Kind::Exfat, Victims::Both);
    }
}
