//! Filesystems whose parts are on several disks, and disks that hold no filesystem, on a real VM.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Finished, Workplace, text};
use guestmnt_tests::specimens::{assembled, specimen};
use guestmnt_tests::tree::{assert_same, assert_same_but_times};
use xtask::disks::filesystems::Kind;
use xtask::disks::sparse;
use xtask::process::Tool;
use xtask::skips::skip;

/// Runs `guestimg` over `disks`.
fn guestimg(place: &Workplace, command: &str, disks: &[&Path], rest: &[&str]) -> Finished {
    let disks = disks.iter().flat_map(|disk| ["-a", text(disk)]);
    let arguments: Vec<&str> = [command, "--format", "raw"].into_iter().chain(disks).collect();
    place.run("guestimg", &[&arguments[..], rest].concat())
}

/// An empty file of `mebibytes` in `place`.
fn blank(place: &Workplace, name: &str, mebibytes: u64) -> PathBuf {
    let path = place.path().join(name);
    sparse::create(&path, mebibytes << 20).unwrap();
    path
}

#[test]
fn an_xfs_with_its_log_elsewhere_says_so_and_is_mounted_with_it() {
    if let Some(program) = Kind::Xfs.missing_program() {
        return skip(&format!("{program} is not installed"));
    }
    let place = Workplace::new();
    let (data, log) = (blank(&place, "data", 512), blank(&place, "log", 80));
    let prototype = place.path().join("prototype");
    let letter = place.path().join("letter");
    fs::write(&letter, "Dear reader\n").unwrap();
    fs::write(
        &prototype,
        format!("/\n0 0\nd--755 0 0\nletter ---644 0 0 {}\n$\n", letter.display()),
    )
    .unwrap();
    Tool::new("mkfs.xfs")
        .args(["-q", "-l", &format!("logdev={},size=64m", log.display()), "-p"])
        .args([&prototype, &data])
        .run()
        .unwrap();
    let finished = guestimg(&place, "ls", &[&data, &log], &["-m", "/dev/sda"]);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    let hint = "  hint: its log is on another device; give that with -a too, and name it: \
                -m /dev/sda:/:logdev=/dev/sdb\n";
    assert!(finished.stderr.contains(hint), "{finished:?}");
    let finished = guestimg(&place, "ls", &[&data, &log], &["-m", "/dev/sdb"]);
    assert!(finished.stderr.contains("holds the log of an XFS on another device"), "{finished:?}");

    let mount = ["-m", "/dev/sda:/:logdev=/dev/sdb", "/letter"];
    let finished = guestimg(&place, "cat", &[&data, &log], &mount);
    assert_eq!(finished.stdout, "Dear reader\n", "{finished:?}");
    let missing = guestimg(&place, "ls", &[&data], &["-m", "/dev/sda:/:logdev=/dev/sdb"]);
    assert!(missing.stderr.contains("logdev=/dev/sdb: no such device"), "{missing:?}");
}

/// A superblock of a member of a linear array, version 1.2. Source: include/uapi/linux/raid/md_p.h.
fn superblock(role: u16, start: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    let mut put = |at: usize, number: &[u8]| bytes[at..at + number.len()].copy_from_slice(number);
    put(0, &0xa92b_4efc_u32.to_le_bytes());
    put(4, &1_u32.to_le_bytes());
    put(16, b"a linear array's");
    put(32, b"elsewhere:7");
    put(72, &(-1_i32).to_le_bytes());
    put(80, &length.to_le_bytes());
    put(92, &2_u32.to_le_bytes());
    put(128, &start.to_le_bytes());
    put(136, &length.to_le_bytes());
    put(144, &8_u64.to_le_bytes());
    put(160, &u32::from(role).to_le_bytes());
    put(168, format!("member number {role:02}").as_bytes());
    put(220, &2_u32.to_le_bytes());
    put(256, &[0, 0, 1, 0]);
    let sum = bytes
        .chunks_exact(4)
        .fold(0_u64, |sum, word| sum + u64::from(u32::from_le_bytes(word.try_into().unwrap())));
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    bytes[216..220].copy_from_slice(&u32::try_from(sum & 0xffff_ffff).unwrap().to_le_bytes());
    bytes
}

#[test]
fn a_linear_array_is_one_member_behind_the_other() {
    const START: u64 = 2048;
    let Some((image, entries)) = specimen(Kind::Ext4) else { return };
    let filesystem = fs::read(image).unwrap();
    let place = Workplace::new();
    let first = filesystem.len() / 3 / 512 * 512;
    let parts = [&filesystem[..first], &filesystem[first..]];
    let disks: Vec<PathBuf> = (0..2)
        .map(|role: u16| {
            let path = place.path().join(format!("disk{role}"));
            let part = parts[usize::from(role)];
            let file = fs::File::create(&path).unwrap();
            let length = part.len() as u64 / 512;
            file.write_all_at(&superblock(role, START, length), 4096).unwrap();
            file.write_all_at(part, START * 512).unwrap();
            path
        })
        .collect();
    let mnt = place.folder("mnt");
    // In either order.
    for [one, other] in [[0, 1], [1, 0]] {
        let disks = ["-a", text(&disks[one]), "-a", text(&disks[other])];
        place.mount(&[&["--format", "raw"], &disks[..], &["-m", "/dev/md7", text(&mnt)]].concat());
        assert_same(&mnt, &entries);
        place.unmount(&mnt);
    }
    let finished = guestimg(&place, "ls", &[&disks[1]], &["-m", "/dev/md7"]);
    let said = "it is linear and lacks 1 of its 2 members\n  hint: give the image of the missing \
                member with another -a\n";
    assert!(finished.stderr.contains(said), "{finished:?}");
}

#[test]
fn a_btrfs_that_grew_out_of_a_seed_is_mounted_with_it() {
    let Some([seed, sprout]) = assembled(["seed.img", "sprout.img"]) else { return };
    let Some((_, entries)) = specimen(Kind::Ext4) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disks = ["--format", "raw", "-a", text(&seed), "-a", text(&sprout)];
    for device in ["/dev/sdb", "/dev/sda"] {
        place.mount(&[&disks[..], &["-m", device, text(&mnt)]].concat());
        assert_same_but_times(&mnt.join("seed"), &entries);
        assert_eq!(mnt.join("sprout").exists(), device == "/dev/sdb");
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
}

#[test]
fn what_is_no_filesystem_is_named_with_what_to_do() {
    let place = Workplace::new();
    let vmfs = blank(&place, "vmfs", 4);
    fs::File::options()
        .write(true)
        .open(&vmfs)
        .unwrap()
        .write_all_at(b"\x0d\xd0\x01\xc0", 1 << 20)
        .unwrap();
    let intel = blank(&place, "intel", 4);
    let end = (4 << 20) - 1024;
    let signature = b"Intel Raid ISM Cfg Sig. 1.2.02";
    fs::File::options().write(true).open(&intel).unwrap().write_all_at(signature, end).unwrap();
    let vmfs_said = "holds a VMFS datastore of VMware ESXi";
    let intel_said = "is a member of an Intel firmware RAID";
    let listed = guestimg(&place, "filesystems", &[&vmfs, &intel], &["--all", "--long"]);
    assert!(listed.stdout.contains("VMFS_volume_member"), "{listed:?}");
    assert!(listed.stdout.contains("isw_raid_member"), "{listed:?}");
    for said in
        [format!("/dev/sda {vmfs_said}\n  hint: "), format!("/dev/sdb {intel_said}\n  hint: ")]
    {
        assert!(listed.stderr.contains(&said), "{listed:?}");
    }
    let all = guestimg(&place, "ls", &[&vmfs, &intel], &["--all"]);
    assert_eq!(all.status, Some(1), "{all:?}");
    assert!(all.stderr.contains(vmfs_said) && all.stderr.contains(intel_said), "{all:?}");
    let named = guestimg(&place, "ls", &[&vmfs], &["-m", "/dev/sda"]);
    let said = format!(
        "cannot mount /dev/sda on /: {vmfs_said} (VMFS_volume_member)\n  hint: give the .vmdk"
    );
    assert!(named.stderr.contains(&said), "{named:?}");
}
