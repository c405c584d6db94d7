//! Files of NTFS with a reparse point, on a real VM: of placeholders nothing is made up, what was
//! brought back is read, links of WSL and Interix lead, and what WOF compressed is decompressed.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guestmnt_tests::program::{Workplace, text};
use nix::errno::Errno;
use xtask::Error;
use xtask::disks::ntfs::{Edit, Format, Volume};
use xtask::skips::skip;

const FORMAT: Format<'_> = Format { sectors: 16 << 11, start: 0, label: "reparse" };

/// A volume that this script fills. `None`, and a skip, where there can be none.
fn volume(place: &Workplace, script: String) -> Option<PathBuf> {
    let image = place.path().join("image");
    let made = Volume::format(image.clone(), &FORMAT)
        .and_then(|volume| volume.edit(&[Edit::Script(script)]));
    match made {
        Ok(()) => Some(image),
        Err(error @ (Error::Unfit { .. } | Error::Start { .. })) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The line of a script that makes a file a reparse point.
fn reparse(name: &str, tag: u32, data: &[u8]) -> String {
    let length = u16::try_from(data.len()).unwrap().to_le_bytes();
    let whole = [&tag.to_le_bytes()[..], &length, &[0, 0], data].concat();
    let hex: String = whole.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("setfattr --name system.ntfs_reparse_data --value 0x{hex} '{name}'\n")
}

fn cat(place: &Workplace, image: &Path, file: &str) -> guestmnt_tests::program::Finished {
    place.run("guestimg", &["cat", "--format", "raw", "-a", text(image), "-m", "/dev/sda", file])
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn of_placeholders_nothing_is_made_up() {
    let away = [
        ("cloud", 0x9000_601a, 100_000),
        ("small cloud", 0x9000_101a, 5000),
        ("wim", 0x8000_0017, 50_000),
        ("hierarchical", 0xc000_0004, 50_000),
        ("older hierarchical", 0x8000_0006, 5000),
        ("deduplicated", 0x8000_0013, 100_000),
        ("not known", 0x8000_1234, 5000),
    ];
    let wim = [&1u32.to_le_bytes()[..], &1u32.to_le_bytes(), &[3; 44]].concat();
    let data = |tag| if tag == 0x8000_0017 { wim.as_slice() } else { &[1; 100] };
    let mut script = String::new();
    for (name, tag, size) in away {
        script += &format!("truncate --size {size} '{name}'\n");
        script += &reparse(name, tag, data(tag));
    }
    let here = [("cloud here", 0x9000_601a, 30_000), ("in the record", 0x9000_601a, 20)];
    for (name, tag, size) in here {
        script += &format!("head --bytes {size} /dev/zero | tr '\\0' x > '{name}'\n");
        script += &reparse(name, tag, data(tag));
    }
    // With bytes, which Windows would fetch anew.
    script += "echo old > offline\n";
    script += &reparse("offline", 0xc000_0004, &[1; 40]);
    script += "setfattr --name system.ntfs_attrib_be --value 0x00001020 offline\n";
    script += "echo plain > plain\n";
    let place = Workplace::new();
    let Some(image) = volume(&place, script) else { return };
    let away: Vec<_> = away.iter().map(|&(name, tag, _)| (name, tag)).collect();
    let away = [away, vec![("offline", 0xc000_0004)]].concat();

    for &(name, tag) in &away {
        let printed = cat(&place, &image, &format!("/{name}"));
        assert_eq!((printed.status, printed.stdout.as_str()), (Some(1), ""), "{printed:?}");
        let (path, tag) = (format!("cannot read /{name}"), format!("{tag:#010x}"));
        assert!(printed.stderr.contains(&path) && printed.stderr.contains(&tag), "{printed:?}");
    }
    let printed = cat(&place, &image, "/cloud here");
    assert_eq!((printed.status, printed.stdout.len()), (Some(0), 30_000));

    let tar = place.path().join("tar");
    let disk = ["--format", "raw", "-a", text(&image), "-m", "/dev/sda"];
    let mut command = place.command("guestimg", &[&["tar"], &disk[..], &["/"]].concat());
    let status = command.stdout(fs::File::create(&tar).unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let copy = place.folder("copy");
    let copied = place.run("guestimg", &[&["cp"], &disk[..], &["/", text(&copy)]].concat());
    assert_eq!(copied.status, Some(1), "{copied:?}");
    for &(name, _) in &away {
        assert!(copied.stderr.contains(&format!("/{name}: ")), "{name}: {copied:?}");
    }

    let mnt = place.folder("mnt");
    for way in [&[][..], &["--through-guest"]] {
        place.mount(&[way, &disk[..], &[text(&mnt)]].concat());
        // Together, as who lists the directory first, and once more.
        let listed = fs::read_dir(&mnt).unwrap().count();
        assert_eq!(listed, away.len() + here.len() + 1);
        for _ in 0..2 {
            for &(name, _) in &away {
                assert_eq!(
                    errno(fs::read(mnt.join(name))),
                    Some(Errno::EOPNOTSUPP as i32),
                    "{name}"
                );
            }
            for (name, _, size) in here {
                assert_eq!(fs::read(mnt.join(name)).unwrap(), vec![b'x'; size], "{name}");
            }
            assert_eq!(fs::read_to_string(mnt.join("plain")).unwrap(), "plain\n");
        }
        place.unmount(&mnt);
    }
    place.assert_clean(&["image", "tar", "copy", "mnt"]);
}

#[test]
fn links_of_wsl_and_interix_lead() {
    let mut script = "mkdir d\necho here > d/file\n: > wsl\n".to_owned();
    script += &reparse("wsl", 0xa000_001d, &[&[2, 0, 0, 0][..], b"d/file"].concat());
    script += "printf 'IntxLNK\\001d\\000/\\000f\\000i\\000l\\000e\\000' > interix\n\
        printf 'IntxLNK\\001d\\000/\\000f\\000i\\000l\\000e\\000' > ordinary\n\
        setfattr --name system.ntfs_attrib_be --value 0x00000004 interix\n";
    let place = Workplace::new();
    let Some(image) = volume(&place, script) else { return };
    let disk = ["--format", "raw", "-a", text(&image), "-m", "/dev/sda"];
    let mnt = place.folder("mnt");
    for listed_first in [false, true] {
        place.mount(&[&disk[..], &[text(&mnt)]].concat());
        if listed_first {
            assert_eq!(fs::read_dir(&mnt).unwrap().count(), 4);
        }
        for link in ["wsl", "interix"] {
            assert_eq!(fs::read_link(mnt.join(link)).unwrap(), Path::new("d/file"), "{link}");
            assert_eq!(fs::read_to_string(mnt.join(link)).unwrap(), "here\n", "{link}");
        }
        assert!(fs::symlink_metadata(mnt.join("ordinary")).unwrap().is_file());
        place.unmount(&mnt);
    }
    let copy = place.folder("copy");
    let copied = place.run("guestimg", &[&["cp"], &disk[..], &["/", text(&copy)]].concat());
    assert_eq!(copied.status, Some(0), "{copied:?}");
    assert_eq!(cat(&place, &image, "/wsl").stdout, "here\n");
    place.assert_clean(&["image", "copy", "mnt"]);
}

/// Text of sixteen letters, and its chunk by XPRESS: each letter has a code of four bits.
fn xpress(text: &str) -> Vec<u8> {
    let mut lengths = [0u8; 256];
    for letter in b"0123456789abcdef".iter().map(|&letter| usize::from(letter)) {
        lengths[letter / 2] |= 4 << (4 * (letter % 2));
    }
    let digits: Vec<u16> =
        text.chars().map(|c| u16::try_from(c.to_digit(16).unwrap()).unwrap()).collect();
    let words = digits
        .chunks(4)
        .map(|four| (0..4).fold(0, |word: u16, at| word << 4 | four.get(at).copied().unwrap_or(0)));
    lengths.into_iter().chain(words.flat_map(u16::to_le_bytes)).collect()
}

/// A chunk by LZX, as a compressor made it, of 30 lines.
const LZX: &str = "472000e20000020005334300675ef3064ba0edef689a1811c008035abfbf009a00000000004804868840be66c8\
    805bcf2f1320d9000000000000320343208025eff7bfdfae27b4bd50869cdb43394dc7e2bbd31838ceeac3aef5\
    7c38bee3a3ed466ecddc1bba36756decdbdcdbcc5f8e329498de9288a40853242a13150a4a45c5c272717fcc20\
    840489224812419008824411248920ec05";

/// Chunks as a stream has them: behind a table of where they end.
fn stream(chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut end = 0;
    let mut bytes = Vec::new();
    for chunk in &chunks[..chunks.len() - 1] {
        end += u32::try_from(chunk.len()).unwrap();
        bytes.extend(end.to_le_bytes());
    }
    bytes.extend(chunks.concat());
    bytes
}

#[test]
fn what_wof_compressed_is_decompressed() {
    let letters: String = (0..40_000u32).map(|n| format!("{:x}", n * n % 241 % 16)).collect();
    let lines: String =
        (0..30).map(|n| format!("line {n} of a short text, line {n} of it\n")).collect();
    let lzx: Vec<u8> = (0..LZX.len() / 2)
        .map(|at| u8::from_str_radix(&LZX[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let split = |size: usize| -> Vec<Vec<u8>> {
        let pieces = letters.as_bytes().chunks(size);
        // The second chunk is kept as it is.
        let chunk = |(n, piece): (usize, &[u8])| {
            if n == 1 { piece.to_vec() } else { xpress(std::str::from_utf8(piece).unwrap()) }
        };
        pieces.enumerate().map(chunk).collect()
    };
    let mut damaged = split(4096);
    damaged[2].fill(0);
    let files = [
        ("xpress 4K", 0u32, letters.as_str(), split(4096)),
        ("xpress 8K", 2, &letters, split(8192)),
        ("xpress 16K", 3, &letters, split(16384)),
        ("lzx", 1, &lines, vec![lzx]),
        ("damaged", 0, &letters, damaged),
    ];
    let place = Workplace::new();
    let mut script = String::new();
    for (name, algorithm, content, chunks) in &files {
        let packed = place.path().join(name);
        fs::write(&packed, stream(chunks)).unwrap();
        script += &format!("truncate --size {} '{name}'\n", content.len());
        script += &format!("cat '{}' > '{name}:WofCompressedData'\n", text(&packed));
        let words = [1, 2, 1, *algorithm].map(u32::to_le_bytes).concat();
        script += &reparse(name, 0x8000_0017, &words);
    }
    let Some(image) = volume(&place, script) else { return };
    let disk = ["--format", "raw", "-a", text(&image), "-m", "/dev/sda"];
    let mnt = place.folder("mnt");
    for way in [&[][..], &["--through-guest"]] {
        place.mount(&[way, &disk[..], &[text(&mnt)]].concat());
        for (name, _, content, _) in &files {
            let file = fs::File::open(mnt.join(name)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), content.len() as u64);
            if *name == "damaged" {
                assert_eq!(errno(fs::read(mnt.join(name))), Some(Errno::EIO as i32));
                continue;
            }
            for (at, length) in [(0, 10), (1000, 150), (4090, 20_000), (content.len() - 3, 3)] {
                let Some(expected) = content.as_bytes().get(at..at + length) else { continue };
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, at as u64).unwrap();
                assert!(bytes == expected, "{name} at {at}");
            }
            assert!(fs::read(mnt.join(name)).unwrap() == content.as_bytes(), "{name}");
        }
        place.unmount(&mnt);
    }
    let copy = place.folder("copy");
    let copied = place.run("guestimg", &[&["cp"], &disk[..], &["/", text(&copy)]].concat());
    assert_eq!(copied.status, Some(1), "{copied:?}");
    assert!(copied.stderr.contains("/damaged: I/O error"), "{copied:?}");
    for (name, _, content, _) in &files[..4] {
        assert!(fs::read(copy.join(name)).unwrap() == content.as_bytes(), "{name}");
        assert_eq!(cat(&place, &image, &format!("/{name}")).stdout, **content, "{name}");
    }
    let names = files.iter().map(|(name, ..)| *name);
    place.assert_clean(&names.chain(["image", "copy", "mnt"]).collect::<Vec<_>>());
}
