//! `guestimg filesystems` on real disks: rows, columns and order of virt-filesystems.

use std::path::PathBuf;

use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::specimens::assembled;
use serde_json::Value;
use xtask::disks::assembled::PASSPHRASE;
use xtask::disks::{BASE, NEWEST, SNAPSHOTS};
use xtask::process::Tool;

/// What is printed for `arguments`.
fn listed(arguments: &[&str]) -> String {
    let place = Workplace::new();
    let finished = place.run("guestimg", &[&["filesystems"], arguments].concat());
    assert_eq!(finished.status, Some(0), "{finished:?}");
    place.assert_clean(&[]);
    finished.stdout
}

/// The lines with runs of spaces made one, and UUIDs, which are random, made `UUID`.
fn without_uuids(printed: &str) -> Vec<String> {
    let word = |word: &str| {
        let random =
            word.len() >= 16 && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if random { "UUID".to_owned() } else { word.to_owned() }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    printed.lines().map(line).collect()
}

#[test]
fn the_snapshot_of_the_demo_is_listed_in_five_rows() {
    let newest = disks().path(NEWEST);
    let printed = listed(&["-a", text(&newest), "--all", "--long", "--uuid", "-h"]);
    let expected = [
        "Name Type VFS Label MBR Size Parent UUID",
        "/dev/sda1 filesystem ntfs System - 2.5G - UUID",
        "/dev/sda2 filesystem ntfs Volume - 1.5G - UUID",
        "/dev/sda1 partition - - 07 2.5G /dev/sda -",
        "/dev/sda2 partition - - 07 1.5G /dev/sda -",
        "/dev/sda device - - - 4.0G - -",
    ];
    assert_eq!(without_uuids(&printed), expected, "{printed}");
    assert_eq!(listed(&["-a", text(&newest)]), "/dev/sda1\n/dev/sda2\n");
    let csv = listed(&["-a", text(&newest), "--long", "--csv", "--no-title", "--partitions"]);
    let expected =
        "/dev/sda1,partition,07,2718957568,/dev/sda\n/dev/sda2,partition,07,1572864000,/dev/sda\n";
    assert_eq!(csv, expected);
}

#[test]
fn the_history_of_the_demos_disk_is_told_from_its_base_and_without_a_vm() {
    let disks = disks();
    let place = Workplace::with_own_cache();
    let finished = place
        .run("guestimg", &["chain", "--json", text(&disks.path(BASE)), text(&disks.path(NEWEST))]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let told: Value = serde_json::from_str(&finished.stdout).unwrap();
    let names = |list: &Value, key: &str| -> Vec<PathBuf> {
        let list = list.as_array().unwrap().iter();
        list.map(|one| one.get(key).unwrap_or(one).as_str().unwrap().into()).collect()
    };
    let real = |name: &&str| disks.path(name).canonicalize().unwrap();
    let chain: Vec<PathBuf> = [BASE].iter().chain(&SNAPSHOTS).map(real).collect();
    assert_eq!(names(&told["images"], "path"), chain);
    assert_eq!(names(&told["youngest"], ""), chain[3..]);
    for (image, parent) in told["images"].as_array().unwrap()[1..].iter().zip(&chain) {
        assert_eq!(image["parent"].as_str(), parent.to_str());
        assert_eq!(image["files"].as_array().unwrap().len(), 3);
    }
    // Nothing was started that leaves a trace, a template among them.
    assert!(!place.path().join(".cache").exists());
}

#[test]
fn volumes_of_lvm_are_listed_with_what_they_are_made_of() {
    let Some([a, b]) = assembled(["lvm-a.img", "lvm-b.img"]) else { return };
    let disks = ["--format", "raw", "-a", text(&a), "-a", text(&b), "--long"];
    let printed = listed(&[&disks[..], &["--lvs", "--vgs", "--pvs", "--uuid"]].concat());
    let expected = [
        "Name Type Size Parent UUID",
        "/dev/my-vg/root lv 41943040 /dev/my-vg UUID",
        "/dev/my-vg/thin lv 104857600 /dev/my-vg UUID",
        "/dev/my-vg vg 260046848 /dev/sda1,/dev/sdb UUID",
        "/dev/sda1 pv 130023424 - UUID",
        "/dev/sdb pv 130023424 - UUID",
    ];
    assert_eq!(without_uuids(&printed), expected, "{printed}");
}

#[test]
fn arrays_and_subvolumes_are_listed_by_the_names_that_mount_them() {
    let names = ["raid-a.img", "raid-b.img", "btrfs-a.img", "btrfs-b.img"];
    let Some(disks) = assembled(names) else { return };
    let mut arguments = vec!["--format", "raw"];
    for disk in &disks {
        arguments.extend(["-a", text(disk)]);
    }
    let printed = listed(&arguments);
    let expected = "/dev/sdc\nbtrfsvol:/dev/sdc/@\nbtrfsvol:/dev/sdc/@home\n/dev/sdd\n/dev/md0\n";
    assert_eq!(printed, expected);
}

#[test]
fn swap_and_what_is_unknown_are_listed_where_they_are_asked_for() {
    let place = Workplace::new();
    let [swap, unknown] = ["swap", "unknown"].map(|name| place.path().join(name));
    for image in [&swap, &unknown] {
        std::fs::write(image, vec![0; 1 << 20]).unwrap();
    }
    Tool::new("mkswap").args(["-L", "sleepy"]).arg(&swap).run().unwrap();
    let disks = ["--format", "raw", "-a", text(&swap), "-a", text(&unknown)];
    assert_eq!(listed(&disks), "");
    let printed = listed(&[&disks[..], &["--extra", "--long", "--csv", "--no-title"]].concat());
    let expected =
        "/dev/sda,filesystem,swap,sleepy,1048576,\n/dev/sdb,filesystem,unknown,,1048576,\n";
    assert_eq!(printed, expected);
}

#[test]
fn encrypted_volumes_are_listed_closed_and_open() {
    let Some(disks) = assembled(["luks1.img"]) else { return };
    let disk = ["--format", "raw", "-a", text(&disks[0]), "--long"];
    let closed = without_uuids(&listed(&disk));
    assert_eq!(closed[1], "/dev/sda filesystem crypto_LUKS - 67108864 -");
    let key = format!("all:key:{PASSPHRASE}");
    let printed = listed(&[&disk[..], &["--key", &key, "--json"]].concat());
    let rows: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(rows[0]["vfs"], "crypto_LUKS");
    assert_eq!(rows[1]["name"], "/dev/mapper/cryptsda");
    assert_eq!(rows[1]["vfs"], "ext4");
}
