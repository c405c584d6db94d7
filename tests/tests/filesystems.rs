//! Each kind of filesystem on a real VM: its type probed, every file compared with what the image
//! was filled with, and the image unchanged afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use guestmnt_tests::dirty::marked_dirty;
use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{sha256, specimen, specimens};
use guestmnt_tests::tree::{assert_same, assert_same_but_times, assert_same_in_pieces};
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;
use xtask::disks::specimens::CROWD;
use xtask::process::Tool;

fn every_file_is_there_and_the_image_is_unchanged(kind: Kind) {
    let Some((image, entries)) = specimen(kind) else { return };
    let before = sha256(&image);
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    for way in [&[][..], &["--through-guest"], &["--through-guest", "--no-bulk-memory"]] {
        let disk = ["--format", "raw", "-a", text(&image), "-m", "/dev/sda", text(&mnt)];
        place.mount(&[way, &disk].concat());
        assert_same_in_pieces(&mnt, &entries);
        match kind.keeps().times {
            Some(_) => assert_same(&mnt, &entries),
            None => assert_same_but_times(&mnt, &entries),
        }
        place.unmount(&mnt);
    }
    place.assert_clean(&["mnt"]);
    assert_eq!(sha256(&image), before);
}

/// Makes a test of each kind.
macro_rules! each_kind {
    ($($name:ident: $kind:ident,)*) => {
        mod every_file_is_there_and_the_image_is_unchanged {
            use xtask::disks::filesystems::Kind;

            $(
                #[test]
                fn $name() {
                    super::every_file_is_there_and_the_image_is_unchanged(Kind::$kind);
                }
            )*
        }

        #[test]
        fn no_kind_is_forgotten() {
            assert_eq!([$(Kind::$kind,)*], Kind::ALL);
        }
    };
}

each_kind! {
    ext2: Ext2,
    ext3: Ext3,
    ext4: Ext4,
    xfs: Xfs,
    btrfs: Btrfs,
    vfat: Vfat,
    exfat: Exfat,
    iso9660_rock_ridge: Iso9660RockRidge,
    iso9660_joliet: Iso9660Joliet,
    udf: Udf,
    squashfs: Squashfs,
    erofs: Erofs,
    f2fs: F2fs,
    hfs: Hfs,
    hfsplus: HfsPlus,
    ntfs: Ntfs,
}

#[test]
fn a_folder_of_20_000_entries_is_read_whole() {
    let image = specimens().crowd();
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    place.mount(&["--format", "raw", "-a", text(&image), "-m", "/dev/sda", text(&mnt)]);
    let shown: Vec<String> = fs::read_dir(mnt.join("crowd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected: BTreeSet<String> = (0..CROWD).map(|n| format!("entry {n}")).collect();
    assert_eq!(shown.len(), expected.len());
    assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), expected);
    place.unmount(&mnt);
}

#[test]
fn ext4_has_nanoseconds_and_years_up_to_2446() {
    let place = Workplace::new();
    let (source, mnt) = (place.folder("source"), place.folder("mnt"));
    let image = place.path().join("image");
    // The low 32 bits of the seconds; the two above them and the nanoseconds.
    let table = [
        ("before-1970", "0xffed2979", "0x1d6f3454", (-1_234_567, 123_456_789)),
        ("after-2038", "0xffed2979", "0x1d6f3455", (4_293_732_729, 123_456_789)),
        ("in-2446", "0x7fffffff", "0xee6b27ff", (15_032_385_535, 999_999_999)),
    ];
    for (name, ..) in table {
        fs::write(source.join(name), "").unwrap();
    }
    mkfs::make(Kind::Ext4, &source, &image).unwrap();
    for (name, low, extra, _) in table {
        for request in
            [format!("sif {name} mtime {low}"), format!("sif {name} mtime_extra {extra}")]
        {
            Tool::new("debugfs").args(["-w", "-R", &request]).arg(&image).run().unwrap();
        }
    }
    place.mount(&["--format", "raw", "-a", text(&image), "-m", "/dev/sda", text(&mnt)]);
    for (name, _, _, expected) in table {
        let metadata = fs::metadata(mnt.join(name)).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), expected, "{name}");
    }
    place.unmount(&mnt);
}

#[test]
fn an_ntfs_that_is_marked_dirty_is_shown() {
    let Some((image, entries)) = specimen(Kind::Ntfs) else { return };
    let place = Workplace::new();
    let mnt = place.folder("mnt");
    let dirty = place.path().join("dirty");
    fs::write(&dirty, marked_dirty(fs::read(&image).unwrap())).unwrap();
    place.mount(&["--format", "raw", "-a", text(&dirty), "-m", "/dev/sda", text(&mnt)]);
    assert_same(&mnt, &entries);
    place.unmount(&mnt);
    place.assert_clean(&["dirty", "mnt"]);
}
