//! Each kind of filesystem on a real VM: its type probed, every file compared with what the image
//! was filled with, and the image unchanged afterwards.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use guestmnt_tests::dirty::marked_dirty;
use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::{sha256, specimen, specimens};
use guestmnt_tests::told::told;
use guestmnt_tests::tree::{assert_same, assert_same_but_times, assert_same_in_pieces};
use xtask::disks::filesystems::Kind;
use xtask::disks::specimens::CROWD;
use xtask::disks::{mkfs, sparse};
use xtask::process::Tool;
use xtask::skips::skip;

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

/// On Btrfs, since it takes mke2fs an hour to put as many into one folder.
#[test]
fn a_folder_of_200_000_entries_takes_few_requests() {
    const COUNT: usize = 200_000;
    if let Some(program) = Kind::Btrfs.missing_program() {
        return skip(&format!("{program} is not installed"));
    }
    let place = Workplace::new();
    let source = place.folder("source");
    for number in 0..COUNT {
        File::create(source.join(number.to_string())).unwrap();
    }
    let image = place.path().join("image");
    sparse::create(&image, 512 << 20).unwrap();
    let make = Tool::new("mkfs.btrfs").args(["-q", "--rootdir"]).args([&source, &image]);
    make.run().unwrap();
    let disk = ["--format", "raw", "-a", text(&image), "-m", "/dev/sda"];
    let told = told(&place, &disk, |mnt| {
        let mut seen = vec![false; COUNT];
        for entry in fs::read_dir(mnt).unwrap() {
            let number: usize = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
            assert!(!std::mem::replace(&mut seen[number], true), "{number}");
        }
        assert!(seen.iter().all(|seen| *seen));
    });
    // Some 50 bytes for each, in pages of 256 KiB; the kernel takes 4 KiB at least.
    assert!(told.guest.of("readdir") <= 60 && told.guest.total <= 70, "{told:?}");
    assert!(told.kernel.total <= COUNT as u64 / 15, "{told:?}");
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
