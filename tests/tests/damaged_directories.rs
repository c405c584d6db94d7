//! A directory of which a part is damaged: its names that can be read are shown, then an error, on a
//! real VM. A listing that lacks names never looks complete.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Workplace, text};
use xtask::Error;
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;
use xtask::disks::sparse;
use xtask::process::Tool;
use xtask::skips::skip;

/// Files of the directory `/many`.
const FILES: usize = 300;

/// A volume of `kind` with the directory `/many`. `None`, and a skip, where there can be none.
fn volume(place: &Workplace, kind: Kind) -> Option<PathBuf> {
    if let Some(program) = kind.missing_program() {
        skip(&format!("without {program} there is no {kind:?}"));
        return None;
    }
    let tree = place.folder("tree");
    fs::create_dir(tree.join("many")).unwrap();
    for number in 0..FILES {
        fs::write(tree.join(name(number)), number.to_string()).unwrap();
    }
    let image = place.path().join("image");
    match mkfs::make(kind, &tree, &image) {
        Ok(()) => Some(image),
        Err(error @ (Error::Unfit { .. } | Error::Start { .. })) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn name(number: usize) -> String {
    format!("many/a file with a longer name {number:03}")
}

/// Checks that of `/many` some files are shown, and that everything which lists it fails.
fn assert_incomplete(place: &Workplace, image: &Path) {
    let disk = ["--format", "raw", "-a", text(image), "-m", "/dev/sda"];
    let listed = place.run("guestimg", &[&["ls"], &disk[..], &["/many"]].concat());
    assert_eq!(listed.status, Some(1), "{listed:?}");
    assert!(listed.stderr.contains("/many: I/O error"), "{listed:?}");
    let names = listed.stdout.lines().count();
    assert!((1..FILES).contains(&names), "{names} names");

    let tar = place.path().join("tar");
    let mut command = place.command("guestimg", &[&["tar"], &disk[..], &["/"]].concat());
    let done = command.stdout(fs::File::create(&tar).unwrap()).status().unwrap();
    assert_eq!(done.code(), Some(1));
    let copied = place.run("guestimg", &[&["cp"], &disk[..], &["/many", "copy"]].concat());
    assert_eq!(copied.status, Some(1), "{copied:?}");

    let mnt = place.folder("mnt");
    place.mount(&[&disk[..], &[text(&mnt)]].concat());
    for _ in 0..2 {
        let entries: Vec<_> = fs::read_dir(mnt.join("many")).unwrap().collect();
        let seen = entries.iter().filter(|entry| entry.is_ok()).count();
        assert_eq!(seen, names);
        assert!(entries.last().is_some_and(Result::is_err));
    }
    place.unmount(&mnt);
    place.assert_clean(&["image", "tree", "tar", "copy", "mnt"]);
}

/// Where the pieces of `size` bytes are that hold more than ten names of files.
fn pieces(bytes: &[u8], size: usize, name: &[u8]) -> Vec<usize> {
    let names = |piece: &&[u8]| piece.windows(name.len()).filter(|at| *at == name).count();
    let found = bytes.chunks(size).enumerate().filter(|(_, piece)| names(piece) > 10);
    found.map(|(number, _)| number * size).collect()
}

fn overwrite(image: &Path, at: usize, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(image).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

#[test]
fn an_index_block_of_ntfs_without_its_signature() {
    let place = Workplace::new();
    let Some(image) = volume(&place, Kind::Ntfs) else { return };
    let name: Vec<u8> = "a file".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let blocks = pieces(&fs::read(&image).unwrap(), 4096, &name);
    let indexes = |at: &&usize| fs::read(&image).unwrap()[**at..].starts_with(b"INDX");
    overwrite(&image, *blocks.iter().filter(indexes).nth(3).unwrap(), &[0; 4]);
    assert_incomplete(&place, &image);
}

#[test]
fn a_block_of_ext4_with_a_wrong_checksum() {
    let place = Workplace::new();
    let Some(image) = volume(&place, Kind::Ext4) else { return };
    let blocks = pieces(&fs::read(&image).unwrap(), 1024, b"a file");
    overwrite(&image, blocks[3] + 100, b"#");
    assert_incomplete(&place, &image);
}

#[test]
fn a_fat_that_ends_in_the_middle_of_a_directory() {
    let place = Workplace::new();
    let Some(image) = volume(&place, Kind::Vfat) else { return };
    // Files whose names and contents come before what is added to the directory later.
    let filler = place.path().join("tree/filler");
    sparse::create(&filler, 20 << 20).unwrap();
    let mcopy = || Tool::new("mcopy").args(["-Q", "-i"]).arg(&image);
    mcopy().arg(&filler).arg("::/").run().unwrap();
    let late: Vec<PathBuf> = (0..40)
        .map(|number| {
            let file = place.path().join(format!("tree/a file that came later {number}"));
            fs::write(&file, "").unwrap();
            file
        })
        .collect();
    mcopy().args(&late).arg("::/many/").run().unwrap();
    let bytes = fs::read(&image).unwrap();
    let at = bytes.windows(11).rposition(|short| short == b"AFILET~1   ").unwrap();
    fs::File::options().write(true).open(&image).unwrap().set_len(at as u64 / 512 * 512).unwrap();
    assert_incomplete(&place, &image);
}

#[test]
fn names_that_make_no_sense_are_left_out_and_missed() {
    let place = Workplace::new();
    let Some(image) = volume(&place, Kind::Exfat) else { return };
    let bytes = fs::read(&image).unwrap();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    // The first one, and two that are side by side; the checksum of their entries is not looked at
    // by the driver.
    for number in ["000", "100", "101"] {
        // Fifteen units of a name are in one entry; the third holds the number.
        let found = bytes.windows(6).position(|window| window == utf16(number)).unwrap();
        overwrite(&image, found, &utf16("/"));
    }
    assert_incomplete(&place, &image);
}
