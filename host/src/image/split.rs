//! A raw disk in numbered pieces: `disk.001`, `disk.002`, and so on, one behind the other.
//!
//! QEMU has no driver that joins files, but that of VMDK does it: the pieces become the flat
//! extents of a descriptor made here, and nothing is copied.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::descriptor::Descriptor;
use super::error::Problem;
use super::file::ImageFile;
use super::reach::Reach;
use super::{BlockSize, Format, Link, MAX_DISK_SIZE, MAX_EXTENTS, Missing, SECTOR_SIZE, Source};

/// Entries of the folder that are looked at.
const MAX_ENTRIES: usize = 1 << 16;

/// Digits of a piece's number. Fewer are versions, years and the like.
const DIGITS: std::ops::RangeInclusive<usize> = 3..=6;

/// The pieces of a split disk: those that there are, by number.
pub struct Pieces {
    named: BTreeMap<u32, OsString>,
    own: u32,
}

impl Pieces {
    /// Those that `file` is one of: files of the same name beside it but for the number, which
    /// begins with 0 or 1. `None` where it is the only one.
    ///
    /// # Errors
    /// [`Problem::Io`].
    pub fn beside(file: &ImageFile) -> Result<Option<Self>, Problem> {
        let Some((stem, own)) = file.real.file_name().and_then(|name| numbered(name.as_bytes()))
        else {
            return Ok(None);
        };
        let mut named = BTreeMap::new();
        for entry in fs::read_dir(file.folder())?.take(MAX_ENTRIES) {
            let name = entry?.file_name();
            match numbered(name.as_bytes()) {
                Some((other, number)) if other == stem => named.insert(number, name),
                _ => None,
            };
        }
        let begins = named.keys().next().is_some_and(|&first| first <= 1);
        Ok((begins && named.len() > 1).then_some(Self { named, own }))
    }

    /// The first one, unless that is the file that these were found by.
    pub fn other_first(&self) -> Option<&Path> {
        let (first, name) = self.named.first_key_value()?;
        (*first != self.own).then_some(name.as_ref())
    }

    /// Opens the disk that `first` and the pieces behind it make.
    ///
    /// # Errors
    /// [`Problem::PieceMissing`] for a gap in the numbers, [`Problem::Piece`] for one that
    /// cannot be used, such as one that is shorter than others.
    pub fn open(self, first: ImageFile, allowed: &[PathBuf]) -> Result<Link, Problem> {
        let folder = first.folder().to_owned();
        let reach = Reach { folder: &folder, allowed };
        if self.named.len() > MAX_EXTENTS {
            return Err(Problem::TooManyExtents);
        }
        if let Some((number, _)) = (self.own..).zip(self.named.keys()).find(|(n, m)| n != *m) {
            return Err(Problem::PieceMissing(number));
        }
        let path = first.path.clone();
        let last = self.named.len() - 1;
        let mut files = vec![first];
        for name in self.named.values().skip(1).map(Path::new) {
            let opened = reach.locate_plain(name).and_then(|located| located.open());
            files.push(opened.map_err(|problem| of_piece(name, problem))?);
        }
        // What splits a disk makes all pieces but the last equally long. A shorter one was cut short.
        let full = files.iter().map(|file| file.len).max().unwrap_or(0);
        for (i, (file, name)) in files.iter().zip(self.named.values()).enumerate() {
            let problem = match file.len {
                0 => Problem::Empty,
                len if i < last && !len.is_multiple_of(SECTOR_SIZE) => Problem::OddPiece(len),
                len if i < last && len < full => Problem::ShortPiece { len, full },
                _ => continue,
            };
            return Err(of_piece(Path::new(name), problem));
        }
        // Lengths of files are below 2^63, and those of all pieces below 2^76.
        let sectors: Vec<(u64, u64)> =
            files.iter().map(|file| (file.len.div_ceil(SECTOR_SIZE), 0)).collect();
        let total: u128 = sectors.iter().map(|&(count, _)| u128::from(count)).sum();
        if total > u128::from(MAX_DISK_SIZE / SECTOR_SIZE) {
            return Err(Problem::TooLarge);
        }
        let descriptor = Descriptor::of_flat_files(&sectors);
        let extents = files.into_iter().map(ImageFile::into_whole).collect();
        Ok(Link {
            path,
            format: Format::Raw,
            size: descriptor.sectors() * SECTOR_SIZE,
            vmdk: None,
            block_size: BlockSize::default(),
            warnings: Vec::new(),
            source: Source::Described { descriptor, extents },
            missing: Missing::default(),
        })
    }
}

fn of_piece(name: &Path, problem: Problem) -> Problem {
    Problem::Piece { name: name.to_owned(), problem: Box::new(problem) }
}

/// Splits `NAME.NUMBER`.
fn numbered(name: &[u8]) -> Option<(&[u8], u32)> {
    let dot = name.iter().rposition(|&byte| byte == b'.')?;
    let digits = std::str::from_utf8(&name[dot + 1..]).ok()?;
    let is_number = DIGITS.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    Some((&name[..dot], digits.parse().ok().filter(|_| is_number)?))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Folder;
    use super::super::{Disk, OpenOptions};
    use super::*;

    fn lengths(folder: &Folder, lengths: &[(&str, usize)]) {
        for &(name, len) in lengths {
            folder.write(name, vec![0; len]);
        }
    }

    #[test]
    fn pieces_make_one_disk_in_the_order_of_their_numbers() {
        let folder = Folder::new();
        lengths(&folder, &[("a.001", 1024), ("a.002", 1024), ("a.003", 513), ("a.txt", 9)]);
        lengths(&folder, &[("b.000", 512), ("b.001", 512), ("a.b.001", 512), ("alone.001", 512)]);
        lengths(&folder, &[("c.v001", 512), ("c.1", 512), ("c.2", 512)]);
        let table = [
            ("a.001", 3072, 3),
            ("b.000", 1024, 2),
            ("a.b.001", 512, 1),
            ("alone.001", 512, 1),
            ("c.1", 512, 1),
        ];
        for (name, size, count) in table {
            let disk = folder.open(name).unwrap();
            assert_eq!((disk.size, disk.chain[0].format), (size, Format::Raw), "{name}");
            match &disk.chain[0].source {
                Source::Described { extents, .. } => assert_eq!(extents.len(), count, "{name}"),
                _ => assert_eq!(count, 1, "{name}"),
            }
        }
    }

    #[test]
    fn numbers_go_on_with_more_digits() {
        let folder = Folder::new();
        for i in 0..=1001 {
            folder.write(&format!("a.{i:03}"), [0; 512]);
        }
        assert_eq!(folder.open("a.000").unwrap().size, 1002 * 512);
    }

    #[test]
    fn pieces_that_do_not_fit_are_refused_with_the_reason() {
        let outside = Folder::new();
        let secret = outside.write("secret", [0; 512]);
        let whole = || vec![("a.001", 512), ("a.002", 512)];
        let table = [
            (whole(), "a.002", "it holds only a piece of a disk"),
            (whole(), "a.002", "hint: open DIR/a.001 instead"),
            (vec![("a.001", 512), ("a.003", 512)], "a.001", "its piece number 2 is missing"),
            (
                vec![("a.001", 511), ("a.002", 512)],
                "a.001",
                "its piece a.001: its 511 bytes are no",
            ),
            (vec![("a.001", 512), ("a.002", 0)], "a.001", "its piece a.002: it is empty"),
            (
                vec![("a.001", 1024), ("a.002", 512), ("a.003", 1024)],
                "a.001",
                "its piece a.002: its 512 bytes are fewer than the 1024 of others",
            ),
            (vec![("a.001", 512), ("a.002", 1024)], "a.001", "its piece a.001: its 512 bytes are"),
            (vec![("a.001", 512)], "a.001", "its piece a.002: it is outside"),
            (whole(), "a.001", "the first piece of a split qcow2"),
        ];
        for (files, name, words) in table {
            let folder = Folder::new();
            lengths(&folder, &files);
            if words.contains("outside") {
                std::os::unix::fs::symlink(&secret, folder.path.join("a.002")).unwrap();
            }
            if words.contains("qcow2") {
                folder.write("a.001", super::super::fixtures::qcow2(512));
            }
            let error = folder.open(name).unwrap_err().to_string();
            let words = words.replace("DIR", &folder.path.display().to_string());
            assert!(error.contains(&words), "{error}");
        }
    }

    #[test]
    fn a_later_piece_opens_alone_where_the_user_says_that_it_is_raw() {
        let folder = Folder::new();
        lengths(&folder, &[("a.001", 1024), ("a.002", 512)]);
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let size = |name: &str| Disk::open(&folder.path.join(name), &options).unwrap().size;
        assert_eq!((size("a.001"), size("a.002")), (1536, 512));
    }
}
