//! VHDX that QEMU's driver does not read, through a real VM.

use std::fs;

use guestmnt_tests::differencing::{Changes, vhdx, vhdx_id};
use guestmnt_tests::images::put;
use guestmnt_tests::program::text;
use guestmnt_tests::showing::Showing;
use guestmnt_tests::vhdx_log::unreplayed;
use xtask::disks::filesystems::Kind;

const SECTOR: usize = 4096;
const MIB: usize = 1 << 20;

/// Sectors of a VHDX to keep in its log: its table of blocks, and others of every tenth MiB.
fn places(vhdx: &[u8]) -> Vec<usize> {
    let table = region(vhdx, "6677c22d23f600429d64115e9bfd4a08");
    let data = (4 * MIB..vhdx.len() - SECTOR).step_by(10 * MIB + SECTOR);
    [table].into_iter().chain(data).take(40).collect()
}

/// Where the region of an id is.
fn region(vhdx: &[u8], id: &str) -> usize {
    const REGIONS: usize = 192 << 10;
    let id: Vec<u8> =
        (0..16).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap()).collect();
    let mut entries = vhdx[REGIONS + 16..].chunks(32);
    let entry = entries.find(|entry| entry.starts_with(&id)).unwrap();
    usize::try_from(u64::from_le_bytes(entry[16..24].try_into().unwrap())).unwrap()
}

#[test]
fn a_log_is_replayed_in_memory() {
    let Some(showing) = Showing::new() else { return };
    showing.convert("vhdx", "block_size=1M", "closed.vhdx");
    let place = showing.place.path();
    let closed = fs::read(place.join("closed.vhdx")).unwrap();
    fs::remove_file(place.join("closed.vhdx")).unwrap();
    let dirty = unreplayed(&closed, &places(&closed));
    fs::write(place.join("dirty.vhdx"), &dirty).unwrap();

    let shown = showing.assert_shown(&["-a", "dirty.vhdx"]);
    assert!(shown.stderr.contains("dirty.vhdx: it was not closed; its log was"), "{shown:?}");
    let words = ["its log has to be replayed before it can be written", "hint: ", "--overlay"];
    showing.assert_refused(&["--rw", "-a", "dirty.vhdx"], &words);
    assert!(fs::read(place.join("dirty.vhdx")).unwrap() == dirty);

    // QEMU replays it into the file and then shows the same.
    showing.make("qemu-img", &["check", "-q", "-r", "all", "dirty.vhdx"]);
    assert!(fs::read(place.join("dirty.vhdx")).unwrap() != dirty);
    let image = text(&showing.image);
    showing.make("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", image, "dirty.vhdx"]);
    let shown = showing.assert_shown(&["-a", "dirty.vhdx"]);
    assert!(!shown.stderr.contains("its log"), "{shown:?}");
}

#[test]
fn the_logs_of_a_snapshot_and_its_parent_are_replayed_in_memory() {
    let Some(showing) = Showing::new() else { return };
    let place = showing.place.path();
    let disk = showing.bytes();
    let has = |sector: usize| sector % 5 < 3;
    let mut stale = disk.clone();
    stale.chunks_mut(512).enumerate().filter(|&(i, _)| has(i)).for_each(|(_, s)| s.fill(0x55));
    fs::write(place.join("raw"), stale).unwrap();
    showing.make("qemu-img", &["convert", "-f", "raw", "-O", "vhdx", "raw", "base.vhdx"]);
    fs::remove_file(place.join("raw")).unwrap();
    let base = fs::read(place.join("base.vhdx")).unwrap();
    fs::write(place.join("base.vhdx"), unreplayed(&base, &places(&base))).unwrap();

    let changes = Changes { disk: &disk, has: &has };
    let child = vhdx(changes, [1; 16], vhdx_id(&base), "base.vhdx");
    let bitmap = 4 * MIB;
    let places = [places(&child), vec![bitmap]].concat();
    fs::write(place.join("child.avhdx"), unreplayed(&child, &places)).unwrap();

    let shown = showing.assert_shown(&["-a", "child.avhdx"]);
    for name in ["child.avhdx", "base.vhdx"] {
        assert!(shown.stderr.contains(&format!("{name}: it was not closed")), "{shown:?}");
    }
}

#[test]
fn sectors_of_4096_bytes_are_seen_as_such() {
    // The ext4 of the other tests has blocks that are smaller than such sectors.
    let Some(showing) = Showing::of(Kind::Erofs) else { return };
    const START: u32 = 512;
    let filesystem = showing.bytes();
    let sectors = u32::try_from(filesystem.len() / 4096).unwrap();
    // A partition table that counts in such sectors.
    let mut disk = vec![0; START as usize * 4096];
    disk[0x1be + 4] = 0x83;
    disk[0x1be + 8..0x1be + 12].copy_from_slice(&START.to_le_bytes());
    disk[0x1be + 12..0x1be + 16].copy_from_slice(&sectors.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.extend(&filesystem);
    disk.resize(disk.len().next_multiple_of(MIB), 0);
    let place = showing.place.path();
    fs::write(place.join("raw"), disk).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", "raw", "4k.vhdx"];
    showing.make("qemu-img", &convert);
    let mut bytes = fs::read(place.join("4k.vhdx")).unwrap();
    // Neither the item nor a table has a checksum, and the disk is smaller than a chunk.
    let item = metadata_item(&bytes, "1dbf41816fa90947ba47f233a8faab5f");
    assert_eq!(bytes[item..item + 4], [0, 2, 0, 0]);
    put(&mut bytes, item, 4096, 4);
    fs::write(place.join("4k.vhdx"), bytes).unwrap();

    showing.assert_mounted(&["-a", "4k.vhdx", "-m", "/dev/sda1"]);
    let told = ["--blocksize", "512", "-a", "4k.vhdx", "-m", "/dev/sda1", "mnt"];
    assert_eq!(showing.place.run("guestmnt", &told).status, Some(1));
    let words = ["a vhdx with sectors of 4096 bytes", "--overlay"];
    showing.assert_refused(&["--rw", "-a", "4k.vhdx"], &words);
}

/// Where the value of a metadata item is.
fn metadata_item(vhdx: &[u8], id: &str) -> usize {
    let metadata = region(vhdx, "06a27c8b90479a4bb8fe575f050f886e");
    let id: Vec<u8> =
        (0..16).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap()).collect();
    let entry = vhdx[metadata + 32..].chunks(32).find(|entry| entry.starts_with(&id)).unwrap();
    let offset = u32::from_le_bytes(entry[16..20].try_into().unwrap());
    metadata + usize::try_from(offset).unwrap()
}
