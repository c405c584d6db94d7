//! Several filesystems in one VM: on partitions of several disks, nested into each other, listed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use guestmnt_protocol::bay::EMPTY_SECTORS;
use guestmnt_tests::program::{Workplace, disks, text};
use guestmnt_tests::specimens::{sha256, specimen};
use guestmnt_tests::tree::assert_same;
use xtask::disks::NEWEST;
use xtask::disks::filesystems::Kind;
use xtask::disks::manifest::Entry;
use xtask::disks::partitions::{gpt, mbr_with_logical};
use xtask::disks::specimens::MOUNTPOINTS;
use xtask::skips::skip;

type Entries = BTreeMap<String, Entry>;

/// The images of `kinds` and what is in them, if all are there.
fn all<const N: usize>(kinds: [Kind; N]) -> Option<[(PathBuf, Entries); N]> {
    let specimens: Vec<_> = kinds.into_iter().filter_map(specimen).collect();
    specimens.try_into().ok()
}

/// What is seen where `inner` is mounted on the folder `at` of `outer`.
fn nested(outer: &Entries, at: &str, inner: &Entries) -> Entries {
    let below = format!("{at}/");
    let mut entries = outer.clone();
    entries.retain(|name, _| !name.starts_with(&below));
    entries.extend(inner.iter().map(|(name, entry)| (format!("{below}{name}"), entry.clone())));
    entries
}

/// Gives the folders that are mounted on the times of what is mounted there.
fn with_times_of_roots(mut entries: Entries, mnt: &Path, places: &[&str]) -> Entries {
    use std::os::unix::fs::MetadataExt;
    for place in places {
        let metadata = mnt.join(place).metadata().unwrap();
        let entry = entries.get_mut(*place).unwrap();
        (entry.mtime, entry.mtime_nsec) = (metadata.mtime(), metadata.mtime_nsec());
    }
    entries
}

#[test]
fn filesystems_of_several_disks_are_mounted_in_each_other() {
    let kinds = [Kind::Ext4, Kind::Vfat, Kind::Exfat, Kind::Btrfs, Kind::Squashfs];
    let Some([ext4, vfat, exfat, btrfs, squashfs]) = all(kinds) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let (mbr, table) = (place.path().join("mbr"), place.path().join("gpt"));
    mbr_with_logical(&mbr, &[&ext4.0, &vfat.0, &exfat.0]).unwrap();
    gpt(&table, &[&exfat.0, &btrfs.0]).unwrap();
    let before = [&mbr, &table].map(|disk| sha256(disk));
    let [one, two, three] = MOUNTPOINTS;
    let deep = format!("{two}/{one}");

    let mut arguments = vec!["--format", "raw"];
    for disk in [&mbr, &table, &squashfs.0] {
        arguments.extend(["-a", text(disk)]);
    }
    let mounts = [
        format!("/dev/sda6:/{deep}"),
        format!("/dev/sdb2:/{two}"),
        format!("/dev/sdc:/{three}"),
        "/dev/sda1".to_owned(),
        format!("/dev/sda5:/{one}"),
    ];
    for mount in &mounts {
        arguments.extend(["-m", mount]);
    }
    arguments.push(text(&mnt));
    place.mount(&arguments);

    let inner = nested(&btrfs.1, one, &exfat.1);
    let expected = nested(&ext4.1, one, &vfat.1);
    let expected = nested(&expected, two, &inner);
    let expected = nested(&expected, three, &squashfs.1);
    assert_same(&mnt, &with_times_of_roots(expected, &mnt, &[one, two, three, &deep]));
    place.unmount(&mnt);
    place.assert_clean(&["mnt", "mbr", "gpt"]);
    assert_eq!([&mbr, &table].map(|disk| sha256(disk)), before);
}

#[test]
fn an_extended_partition_is_called_one() {
    let Some([ext4, vfat]) = all([Kind::Ext4, Kind::Vfat]) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let disk = place.path().join("disk");
    mbr_with_logical(&disk, &[&ext4.0, &vfat.0]).unwrap();
    let arguments = ["--format", "raw", "-a", text(&disk), "-m", "/dev/sda2", text(&mnt)];
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    // Before it, the first mount of a user may say more.
    let expected = "\
guestmnt: cannot mount /dev/sda2 on /: is an extended partition, which only holds others
Did you mean to mount one of these filesystems?
    /dev/sda1 (ext4)
    /dev/sda5 (vfat)
";
    assert!(finished.stderr.ends_with(expected), "{finished:?}");
    place.assert_clean(&["mnt", "disk"]);
}

#[test]
fn every_kind_is_listed_by_its_name() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let specimens: Vec<(Kind, PathBuf)> =
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, specimen(kind)?.0))).collect();
    if specimens.is_empty() {
        skip("no filesystem could be made");
        return;
    }
    let mut arguments = vec!["--format", "raw"];
    let mut expected = "\
guestmnt: cannot mount /dev/sda on /nowhere: no such directory in the image
Did you mean to mount one of these filesystems?
"
    .to_owned();
    for (letter, (kind, image)) in ('a'..='z').zip(&specimens) {
        arguments.extend(["-a", text(image)]);
        expected += &format!("    /dev/sd{letter} ({})\n", kind.name());
    }
    arguments.extend(["-m", "/dev/sda", "-m", "/dev/sda:/nowhere", text(&mnt)]);
    let finished = place.run("guestmnt", &arguments);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(finished.stderr.ends_with(&expected), "{finished:?}");
    place.assert_clean(&["mnt"]);
}

/// The first disks are put into devices that the guest has seen empty. One that is just as
/// large as nothing must be noticed all the same.
#[test]
fn a_disk_as_small_as_an_empty_bay_is_a_disk() {
    let Some([(image, entries)]) = all([Kind::Ext4]) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let tiny = place.path().join("tiny");
    fs::write(&tiny, vec![0; usize::try_from(EMPTY_SECTORS).unwrap() * 512]).unwrap();

    for boot in [&[][..], &["--no-template"]] {
        let disks = ["--format", "raw", "-a", text(&tiny), "-a", text(&image)];
        let arguments = [boot, &disks, &["-m", "/dev/sdb", text(&mnt)]].concat();
        place.mount(&arguments);
        assert_same(&mnt, &entries);
        place.unmount(&mnt);
    }
}

#[test]
fn alternate_data_streams_are_read_through_ntfs_3g() {
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let newest = disks().path(NEWEST);
    let (file, name) = ("Cosmological_Voids/streams.txt", "note");
    for (options, stream) in
        [("streams_interface=windows", format!("{file}:{name}")), ("", file.to_owned())]
    {
        let mount = format!("/dev/sda2:/:{options}:ntfs-3g");
        place.mount(&["-a", text(&newest), "-m", &mount, text(&mnt)]);
        let read = match options {
            // By its usual interface, a stream is an extended attribute.
            "" => xattr::get(mnt.join(&stream), format!("user.{name}")).unwrap().unwrap(),
            _ => fs::read(mnt.join(&stream)).unwrap(),
        };
        assert_eq!(String::from_utf8(read).unwrap(), "kept beside the file\n");
        assert_eq!(fs::read_to_string(mnt.join("ufos/ufo.txt")).unwrap(), "Ufos are not real\n");
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
}
