//! NTFS with clusters, sectors and records of every size, and with a table of records in many pieces:
//! what a mount shows is what ntfs-3g shows.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guestmnt_tests::ntfs_records::NtfsRecords;
use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::specimens::sha256;
use xtask::Error;
use xtask::disks::ntfs::{Edit, Format, Sizes, Volume};
use xtask::disks::reparse::Link;
use xtask::skips::skip;

/// Makes the files.
const FILES: &str = r#"
    bytes() { head --bytes "$1" /dev/urandom; }
    : > empty
    for size in 1 100 300 500 700 3000 4095 4096 4097 70000 3000000; do bytes $size > "of $size"; done
    mkdir names names/other many links links/junction
    for name in 'Grüße aus Köln' '宇宙の空洞' '🐏' 'A long name of a file.text'; do
        echo "$name" > "names/$name"
    done
    ln 'names/🐏' names/other/linked
    setfattr --name system.ntfs_attrib_be --value 0x00000001 'names/Grüße aus Köln'
    for number in $(seq 300); do bytes $((number * 7)) > "many/$number"; done
    { bytes 10000; } | dd status=none oflag=seek_bytes seek=500000 of=hole
    mkdir packed
    setfattr --name system.ntfs_attrib_be --value 0x00000810 packed
    yes 'the same line' | head --bytes 200000 > packed/text || true
"#;

/// Files whose records fill holes between others.
const FRAGMENTS: &str = r#"
    mkdir pieces
    for piece in $(seq 400); do head --bytes 8192 /dev/urandom > "pieces/$piece"; done
    dd status=none if=/dev/zero of=filler bs=64K 2> /dev/null || true
    for piece in $(seq 2 2 400); do rm "pieces/$piece"; done
    for number in $(seq 1200); do echo "$number" > "many/after $number" || break; done
    rm filler
"#;

/// Prints what ntfs-3g says of everything, and the hashes of files, to the file that takes the
/// place of OUT.
const LOOK: &str = r#"
    find . -mindepth 1 -type f -printf '%P|%s|%n|%T@|%C@|' -exec sh -c 'sha256sum < "$1" | cut -c-64' sh {} \; > OUT
    find . -mindepth 1 -type d -printf '%P|directory|%T@|%C@\n' >> OUT
"#;

/// What the mount at `root` shows, in the words of [`LOOK`]; links are left out.
fn shown(root: &Path) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        // Attributes of all, then contents of all: what is told together comes together.
        paths.sort();
        for path in paths {
            let stat = fs::symlink_metadata(&path).unwrap();
            let mut line = path.strip_prefix(root).unwrap().display().to_string();
            let times = format!(
                "{}.{:09}0|{}.{:09}0",
                stat.mtime(),
                stat.mtime_nsec(),
                stat.ctime(),
                stat.ctime_nsec()
            );
            if stat.is_dir() {
                write!(line, "|directory|{times}").unwrap();
                folders.push(path);
            } else if stat.is_file() {
                write!(line, "|{}|{}|{times}|{}", stat.len(), stat.nlink(), sha256(&path)).unwrap();
            } else {
                continue;
            }
            lines.insert(line);
        }
    }
    lines
}

/// Compares the mount of a volume of these sizes, filled by `script`, with what ntfs-3g shows.
fn assert_as_ntfs_3g_shows(sizes: Sizes, sectors: u64, script: &str, fewest_pieces: usize) {
    let place = Workplace::new();
    let (image, listed) = (place.path().join("image"), place.path().join("listed"));
    let format = Format { sectors, start: 0, label: "sizes" };
    let junction = Edit::Link {
        at: "links/junction".to_owned(),
        link: Link::Junction,
        target: "\\??\\C:\\names\\other".to_owned(),
    };
    let look = LOOK.replace("OUT", text(&listed));
    let made = Volume::format_with(image.clone(), &format, sizes).and_then(|volume| {
        volume.edit(&[Edit::Script(script.to_owned()), junction])?;
        volume.edit(&[Edit::Script(look)])
    });
    match made {
        Ok(()) => {}
        Err(error @ (Error::Unfit { .. } | Error::Start { .. })) => {
            return skip(&error.to_string());
        }
        Err(error) => panic!("{sizes:?}: {error}"),
    }
    if fewest_pieces > 1 {
        let pieces = NtfsRecords::new(fs::read(&image).unwrap()).pieces("$MFT");
        assert!(pieces >= fewest_pieces, "the table of records is in {pieces} pieces");
    }
    let expected: BTreeSet<String> =
        fs::read_to_string(&listed).unwrap().lines().map(str::to_owned).collect();
    assert!(expected.len() > 300, "{expected:?}");
    let mnt = place.folder("mnt");
    let blocks = sizes.sector.to_string();
    let disk = ["--blocksize", &blocks, "--format", "raw", "-a", text(&image), "-m", "/dev/sda"];
    for way in [&[][..], &["--through-guest"]] {
        place.mount(&[way, &disk, &[text(&mnt)]].concat());
        let shown = shown(&mnt);
        let differ: Vec<_> = shown.symmetric_difference(&expected).take(20).collect();
        assert!(differ.is_empty(), "{sizes:?} {way:?}: {differ:#?}");
        // It is read from the volume, not as the driver shows it.
        let target = fs::read_link(mnt.join("links/junction")).unwrap();
        assert_eq!(target, Path::new("../names/other"), "{sizes:?}");
        place.unmount(&mnt);
    }
    place.assert_clean(&["image", "listed", "mnt"]);
}

/// Makes a test of each geometry: bytes of a sector and of a cluster, MiB.
macro_rules! geometries {
    ($($name:ident: $sector:literal, $cluster:literal, $size:literal;)*) => {
        mod as_ntfs_3g_shows {
            use xtask::disks::ntfs::Sizes;

            $(
                #[test]
                fn $name() {
                    let sizes = Sizes { sector: $sector, cluster: $cluster };
                    super::assert_as_ntfs_3g_shows(sizes, $size << 11, super::FILES, 1);
                }
            )*
        }
    };
}

geometries! {
    clusters_of_512_bytes: 512, 512, 48;
    clusters_of_4_kib: 512, 4096, 48;
    clusters_of_64_kib: 512, 65_536, 128;
    clusters_of_256_kib: 512, 262_144, 256;
    clusters_of_2_mib: 512, 2_097_152, 1536;
    sectors_and_records_of_4_kib: 4096, 4096, 64;
    sectors_of_4_kib_and_clusters_of_64_kib: 4096, 65_536, 128;
    sectors_of_4_kib_and_clusters_of_512_kib: 4096, 524_288, 512;
}

#[test]
fn a_table_of_records_in_many_pieces() {
    let sizes = Sizes { sector: 512, cluster: 4096 };
    let script = format!("{FILES}\n{FRAGMENTS}");
    assert_as_ntfs_3g_shows(sizes, 24 << 11, &script, 3);
}
