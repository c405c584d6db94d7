//! A disk whose file ends before its partition does: nothing is made up for what is missing. It is not
//! mounted, with the reason, or its files are what they were, or errors.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::specimen;
use xtask::digest;
use xtask::disks::filesystems::Kind;
use xtask::disks::partitions::SECTOR;
use xtask::disks::sparse;

/// Where the partition begins.
const START: u64 = 1 << 20;

/// Writes a disk with an MBR and one partition, which holds `volume`; the file ends `percent` of the
/// way through it.
fn make_cut_disk(disk: &Path, volume: &Path, percent: u64) {
    let size = fs::metadata(volume).unwrap().len();
    let file = sparse::create(disk, START + size).unwrap();
    sparse::copy_into(volume, &file, START).unwrap();
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap().to_le_bytes();
    let mut entry = [0; 16];
    // Linux' type, and the same for all.
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&sectors(START));
    entry[12..].copy_from_slice(&sectors(size));
    file.write_all_at(&entry, 446).unwrap();
    file.write_all_at(&[0x55, 0xaa], 510).unwrap();
    file.set_len(START + size * percent / 100 / SECTOR * SECTOR).unwrap();
}

/// What became of files that were read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    right: usize,
    errors: usize,
}

/// What came of a cut disk of this kind, read in all ways. `None` where it was refused.
fn read_cut(kind: Kind, percent: u64) -> Option<Found> {
    let (volume, entries) = specimen(kind)?;
    let place = Workplace::new();
    let (disk, mnt) = (place.path().join("disk.img"), place.folder("mnt"));
    make_cut_disk(&disk, &volume, percent);
    let mut found = None;
    for way in [&[][..], &["--through-guest"], &["--through-guest", "--no-bulk-memory"]] {
        let arguments = ["--format", "raw", "-a", text(&disk), "-m", "/dev/sda1", text(&mnt)];
        let mounted = place.run("guestmnt", &[way, &arguments].concat());
        if mounted.status != Some(0) {
            assert_eq!(mounted.status, Some(1), "{mounted:?}");
            assert!(mounted.stderr.contains("cannot mount /dev/sda1"), "{mounted:?}");
            return None;
        }
        let found = found.get_or_insert_with(Found::default);
        // The second time, what can be read past the VM is.
        for (name, entry) in entries.iter().chain(&entries) {
            let Some(wanted) = &entry.file else { continue };
            match digest::of_file(&mnt.join(name)) {
                Ok(hash) => {
                    assert_eq!(hash, wanted.sha256, "{kind:?} {way:?}: {name} is made up");
                    found.right += 1;
                }
                Err(_) => found.errors += 1,
            }
        }
        place.unmount(&mnt);
    }
    place.assert_clean(&["disk.img", "mnt"]);
    found
}

#[test]
fn of_a_partition_that_ends_beyond_the_disk_nothing_is_made_up() {
    // Those that know their size are not mounted; the others show what is there.
    assert_eq!(read_cut(Kind::Ext4, 90), None);
    for (kind, percent) in [(Kind::Ntfs, 40), (Kind::Vfat, 4)] {
        let Some(found) = read_cut(kind, percent) else { continue };
        assert!(found.right > 0 && found.errors > 0, "{kind:?} {found:?}");
    }
}
