//! What lies behind the valid data of a file is never shown, by whichever way its bytes come: NTFS
//! and exFAT with a valid data length, ext4 and XFS with unwritten extents.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use guestmnt_tests::ntfs_records::NtfsRecords;
use guestmnt_tests::program::{Workplace, text};
use xtask::Error;
use xtask::disks::filesystems::Kind;
use xtask::disks::mkfs;
use xtask::disks::ntfs::{Edit, Format, Volume};
use xtask::process::Tool;
use xtask::skips::skip;

/// What each file should hold; `None` where reading it is an error.
type Expected = BTreeMap<String, Option<Vec<u8>>>;

/// The ways that bytes come to a mount.
const WAYS: [&[&str]; 3] = [&[], &["--through-guest"], &["--through-guest", "--no-bulk-memory"]];

/// `content` as far as it is valid, and zeros.
fn cut(mut content: Vec<u8>, valid: usize) -> Vec<u8> {
    content[valid..].fill(0);
    content
}

/// What is shown of `found`, if it is not `expected`.
fn difference(found: &Result<Vec<u8>, i32>, expected: Option<&Vec<u8>>) -> Option<String> {
    match (found, expected) {
        (Err(_), None) => None,
        (Err(errno), Some(_)) => Some(format!("error {errno}")),
        (Ok(found), None) => Some(format!("{} bytes instead of an error", found.len())),
        (Ok(found), Some(expected)) if found == expected => None,
        (Ok(found), Some(expected)) => {
            let same = found.iter().zip(expected).take_while(|(one, other)| one == other).count();
            let wrong = found.iter().zip(expected).filter(|(one, other)| one != other).count();
            let (is, should) = (found.len(), expected.len());
            Some(format!("{is} bytes of {should}, {wrong} wrong ones, the first at {same}"))
        }
    }
}

/// Checks what comes of the files of `image`, by every way.
fn assert_shown(place: &Workplace, image: &Path, expected: &Expected) {
    let mut wrong = Vec::new();
    let mut check = |way: &str, name: &str, found: Result<Vec<u8>, i32>| {
        let difference = difference(&found, expected[name].as_ref());
        wrong.extend(difference.map(|difference| format!("{way}: {name}: {difference}")));
    };
    let number = |error: std::io::Error| error.raw_os_error().unwrap_or(0);
    let disk = ["--format", "raw", "-a", text(image), "-m", "/dev/sda"];
    let mnt = place.folder("mnt");
    for way in WAYS {
        place.mount(&[way, &disk, &[text(&mnt)]].concat());
        // Listed and in order, as a program that copies a directory reads them.
        assert!(fs::read_dir(&mnt).unwrap().count() >= expected.len());
        for name in expected.keys() {
            check(&format!("mount {way:?}"), name, fs::read(mnt.join(name)).map_err(number));
        }
        place.unmount(&mnt);
    }
    let readable =
        || expected.iter().filter(|(_, content)| content.is_some()).map(|(name, _)| name);
    let copy = place.folder("copy");
    let arguments = [&["cp"], &disk[..], &["/", text(&copy)]].concat();
    place.command("guestimg", &arguments).output().unwrap();
    for name in readable() {
        check("guestimg cp", name, fs::read(copy.join(name)).map_err(number));
    }
    fs::remove_dir_all(&copy).unwrap();
    let stream = place.command("guestimg", &[&["tar"], &disk[..]].concat()).output().unwrap();
    let (archive, unpacked) = (place.path().join("tar"), place.folder("unpacked"));
    fs::write(&archive, stream.stdout).unwrap();
    Tool::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&unpacked).run().unwrap();
    for name in readable() {
        check("guestimg tar", name, fs::read(unpacked.join(name)).map_err(number));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    fs::remove_file(archive).unwrap();
    fs::remove_dir_all(unpacked).unwrap();
    place.assert_clean(&["mnt", "image", "tree"]);
}

/// So many bytes, none of them zero.
fn filled(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251 + 1).to_le_bytes()[0]).collect()
}

/// Small files and larger ones, each with its valid data length.
fn files() -> Vec<(String, usize, usize)> {
    let small = (0..12).map(|n| (format!("small {n:02}"), 9000 + n, 5000 + n));
    let others = [
        ("block", 9000, 4096),
        ("large", 1_000_333, 999_999),
        ("large and long", 1_000_333, 100_000),
        ("large and never", 700_000, 0),
        ("never", 9000, 0),
        ("whole", 9000, 9000),
        ("whole large", 300_000, 300_000),
    ];
    let others = others.map(|(name, length, valid)| (name.to_owned(), length, valid));
    small.chain(others).collect()
}

fn expected_of(files: &[(String, usize, usize)]) -> Expected {
    let content = |length, valid| Some(cut(filled(length), valid));
    files.iter().map(|(name, length, valid)| (name.clone(), content(*length, *valid))).collect()
}

/// A directory with the files, as long as they are and all of them valid.
fn tree(place: &Workplace, files: &[(String, usize, usize)]) -> PathBuf {
    let tree = place.folder("tree");
    for (name, length, _) in files {
        fs::write(tree.join(name), filled(*length)).unwrap();
    }
    tree
}

#[test]
fn ntfs_reads_as_zeros_behind_the_valid_data_length() {
    let place = Workplace::new();
    let files = files();
    let tree = tree(&place, &files);
    // Of a sparse file a part behind a hole is valid; the encrypted one is no secret here.
    let script = "
        { head -c 100000; dd status=none conv=notrunc oflag=seek_bytes seek=200000 of=sparse; } \
            < 'whole large' > sparse
        cp --sparse=always sparse 'sparse and short'
        mkdir packed
        setfattr --name system.ntfs_attrib_be --value 0x00000810 packed
        yes 'the same line' | head -c 300000 > packed/text
        cp 'whole large' packed/noise
        mv packed/text packed/noise .
        cp 'whole large' secret
        head -c 300 'whole large' > resident
    ";
    let image = place.path().join("image");
    let format = Format { sectors: 24 << 11, start: 0, label: "valid" };
    let edits = [Edit::Tree(&tree), Edit::Script(script.to_owned())];
    let made = Volume::format(image.clone(), &format).and_then(|volume| volume.edit(&edits));
    match made {
        Ok(()) => {}
        Err(error @ (Error::Unfit { .. } | Error::Start { .. })) => {
            return skip(&error.to_string());
        }
        Err(error) => panic!("{error}"),
    }
    let mut volume = NtfsRecords::new(fs::read(&image).unwrap());
    for (name, length, valid) in &files {
        if valid < length {
            volume.set_valid_length(name, *valid as u64);
        }
    }
    volume.set_valid_length("sparse", 250_001);
    volume.set_valid_length("sparse and short", 150_000);
    volume.set_valid_length("text", 70_001);
    volume.set_valid_length("noise", 70_001);
    volume.set_flags("secret", 0x4000);
    fs::write(&image, volume.into_bytes()).unwrap();

    let mut expected = expected_of(&files);
    let mut sparse = vec![0; 400_000];
    sparse[..100_000].copy_from_slice(&filled(100_000));
    sparse[200_000..].copy_from_slice(&filled(300_000)[100_000..]);
    let text: Vec<u8> = b"the same line\n".iter().copied().cycle().take(300_000).collect();
    let others = [
        ("sparse", Some(cut(sparse.clone(), 250_001))),
        ("sparse and short", Some(cut(sparse, 150_000))),
        ("text", Some(cut(text, 70_001))),
        ("noise", Some(cut(filled(300_000), 70_001))),
        ("secret", None),
        ("resident", Some(filled(300))),
    ];
    expected.extend(others.map(|(name, content)| (name.to_owned(), content)));
    assert_shown(&place, &image, &expected);
}

#[test]
fn exfat_reads_as_zeros_behind_the_valid_data_length() {
    if let Some(program) = Kind::Exfat.missing_program() {
        return skip(&format!("exFAT needs {program}"));
    }
    let place = Workplace::new();
    let files = files();
    let image = place.path().join("image");
    mkfs::make(Kind::Exfat, &tree(&place, &files), &image).unwrap();
    let mut volume = fs::read(&image).unwrap();
    for (name, _, valid) in &files {
        set_exfat_valid_length(&mut volume, name, *valid as u64);
    }
    fs::write(&image, volume).unwrap();
    assert_shown(&place, &image, &expected_of(&files));
}

/// Sets `ValidDataLength` of a file with a short name. Source: exFAT file system specification, 7.6.
fn set_exfat_valid_length(volume: &mut [u8], name: &str, valid: u64) {
    const ENTRY: usize = 32;
    let mut wanted: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    wanted.resize(ENTRY - 2, 0);
    let is_set = |set: &[u8]| {
        set.len() == 3 * ENTRY
            && [set[0], set[ENTRY], set[2 * ENTRY]] == [0x85, 0xc0, 0xc1]
            && set[2 * ENTRY + 2..] == wanted[..]
    };
    let mut sets = (0..volume.len()).step_by(ENTRY);
    let at = sets.rfind(|&at| volume.get(at..at + 3 * ENTRY).is_some_and(is_set));
    let at = at.unwrap_or_else(|| panic!("no file {name}"));
    let set = &mut volume[at..at + 3 * ENTRY];
    set[ENTRY + 8..ENTRY + 16].copy_from_slice(&valid.to_le_bytes());
    let summed = set.iter().enumerate().filter(|(at, _)| !matches!(at, 2 | 3));
    let sum = summed.fold(0u16, |sum, (_, &byte)| sum.rotate_right(1).wrapping_add(byte.into()));
    set[2..4].copy_from_slice(&sum.to_le_bytes());
}

/// An image in which every byte that is not written later is an X.
fn image_of_x(place: &Workplace, size: usize) -> PathBuf {
    let image = place.path().join("image");
    fs::write(&image, vec![b'X'; size]).unwrap();
    image
}

#[test]
fn ext4_reads_as_zeros_where_extents_are_unwritten() {
    for features in ["inline_data,^bigalloc", "bigalloc,^inline_data"] {
        let place = Workplace::new();
        let tree = place.folder("tree");
        for (name, length) in [("inline", 50), ("before", 8192), ("tail", 5000), ("hole", 4096)] {
            fs::write(tree.join(name), filled(length)).unwrap();
        }
        let image = image_of_x(&place, 32 << 20);
        let mke2fs =
            Tool::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-I", "256", "-b", "4096"]);
        let mke2fs = mke2fs.args(["-E", "nodiscard", "-O", features, "-d"]);
        mke2fs.args([&tree, &image]).run().unwrap();
        // Blocks of a file that were allocated and never written.
        for (name, from, size) in [("before", 2, 90_000), ("tail", 2, 70_001), ("hole", 8, 80_000)]
        {
            for command in [
                format!("fallocate /{name} {from} 20"),
                format!("set_inode_field /{name} size {size}"),
            ] {
                Tool::new("debugfs").args(["-w", "-R", &command]).arg(&image).run().unwrap();
            }
        }
        let longer = |length, size| {
            let mut content = filled(length);
            content.resize(size, 0);
            Some(content)
        };
        let expected = [
            ("inline", longer(50, 50)),
            ("before", longer(8192, 90_000)),
            ("tail", longer(5000, 70_001)),
            ("hole", longer(4096, 80_000)),
        ];
        let expected = expected.map(|(name, content)| (name.to_owned(), content));
        assert_shown(&place, &image, &expected.into());
    }
}

#[test]
fn xfs_reads_as_zeros_where_extents_are_unwritten() {
    if let Some(program) = Kind::Xfs.missing_program() {
        return skip(&format!("XFS needs {program}"));
    }
    let place = Workplace::new();
    let tree = place.folder("tree");
    for (name, length) in [("small", 9000), ("large", 300_000), ("written", 9000)] {
        fs::write(tree.join(name), filled(length)).unwrap();
    }
    let image = place.path().join("image");
    mkfs::make(Kind::Xfs, &tree, &image).unwrap();
    for name in ["small", "large"] {
        let (path, write) = (format!("path /{name}"), "write u3.bmx[0].extentflag 1");
        Tool::new("xfs_db").args(["-x", "-c", &path, "-c", write]).arg(&image).run().unwrap();
    }
    let expected =
        [("small", vec![0; 9000]), ("large", vec![0; 300_000]), ("written", filled(9000))];
    let expected = expected.map(|(name, content)| (name.to_owned(), Some(content)));
    assert_shown(&place, &image, &expected.into());
}
