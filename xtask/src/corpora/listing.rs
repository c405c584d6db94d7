//! What a tar stream of `guestimg tar` holds, as one line for each entry: what two programs that
//! read the same filesystem have to agree on.
//!
//! Follows pax of POSIX.1-2017 and "PAX Format, Version 1.0" of sparse files in GNU tar's manual.
//! This reader shares no code with the writer, whose output it judges.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};

use guestmnt_protocol::path::Printable;
use sha2::{Digest, Sha256};

/// Bytes of a block.
const BLOCK: usize = 512;

/// Bytes of the records of one entry, or of one map of holes.
const MOST_RECORDS: u64 = 16 << 20;

/// Files that are larger, holes counted, are not read for their digest.
const MOST_HASHED: u64 = 1 << 30;

/// What is put behind a path that was there already.
const AGAIN: &[u8] = b"\n";

/// Digits of a [`Listing`]'s digest.
const DIGITS: usize = 32;

/// What a path leads to. Hard links are entries of their own, each with the file's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A regular file: its size in bytes, and the SHA-256 of its contents.
    File { size: u64, digest: String },
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Link(Vec<u8>),
    /// A device, FIFO or socket: tar's letter for it.
    Special(char),
}

/// All entries, by their paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing(pub BTreeMap<Vec<u8>, Entry>);

impl Listing {
    /// Reads a stream to its end. One without any byte is an empty listing.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where it is no tar, or ends within an entry.
    pub fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut listing = Self::default();
        let mut records = BTreeMap::new();
        while let Some(header) = next_header(stream)? {
            if header.kind() == b'x' {
                records = read_records(&read_padded(stream, header.size()?)?)?;
                continue;
            }
            listing.add(&header, &std::mem::take(&mut records), stream)?;
        }
        Ok(listing)
    }

    fn add(
        &mut self,
        header: &Header,
        records: &Records,
        stream: &mut impl Read,
    ) -> io::Result<()> {
        let record = |key: &[u8]| records.get(key).cloned();
        let stored = match record(b"size") {
            Some(text) => decimal(&text)?,
            None => header.size()?,
        };
        let path = record(b"GNU.sparse.name").or_else(|| record(b"path"));
        let path = clean(&path.unwrap_or_else(|| header.path()));
        let link = record(b"linkpath").unwrap_or_else(|| header.link());
        let entry = match header.kind() {
            b'0' | 0 => match record(b"GNU.sparse.realsize") {
                Some(size) => read_sparse(stream, stored, decimal(&size)?)?,
                None => read_file(stream, stored)?,
            },
            b'1' => self.0.get(&clean(&link)).cloned().ok_or_else(|| bad("a link to nothing"))?,
            b'2' => Entry::Link(link),
            b'5' => Entry::Directory,
            kind => Entry::Special(kind.into()),
        };
        // A damaged directory can hold a name twice.
        let mut name = path;
        while self.0.contains_key(&name) {
            name.extend(AGAIN);
        }
        self.0.insert(name, entry);
        Ok(())
    }

    /// The regular files: path, size and SHA-256.
    pub fn files(&self) -> impl Iterator<Item = (&[u8], u64, &str)> {
        self.0.iter().filter_map(|(path, entry)| match entry {
            Entry::File { size, digest } => Some((path.as_slice(), *size, digest.as_str())),
            _ => None,
        })
    }

    /// Counts and one digest over all lines; `-` without any entry.
    #[must_use]
    pub fn summary(&self) -> String {
        if self.0.is_empty() {
            return "-".to_owned();
        }
        let (files, bytes) =
            self.files().fold((0, 0), |(n, sum), (_, size, _)| (n + 1, sum + size));
        let mut digest = hex(&Sha256::digest(self.to_string().as_bytes()));
        digest.truncate(DIGITS);
        format!("{} entries, {files} files, {bytes} bytes, {digest}", self.0.len())
    }
}

/// A line for each entry, sorted by path: path, type, size, SHA-256 or target, with tabs between.
impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, entry) in &self.0 {
            write!(f, "{}\t", Printable(path))?;
            match entry {
                Entry::File { size, digest } => writeln!(f, "file\t{size}\t{digest}")?,
                Entry::Directory => writeln!(f, "directory")?,
                Entry::Link(target) => writeln!(f, "link\t{}", Printable(target))?,
                Entry::Special(kind) => writeln!(f, "special\t{kind}")?,
            }
        }
        Ok(())
    }
}

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

struct Header([u8; BLOCK]);

impl Header {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn path(&self) -> Vec<u8> {
        let (prefix, name) = (text(&self.0[345..500]), text(&self.0[..100]));
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    fn size(&self) -> io::Result<u64> {
        let field = text(&self.0[124..136]).trim_ascii();
        let digits = std::str::from_utf8(field).ok();
        let size = digits.and_then(|digits| u64::from_str_radix(digits, 8).ok());
        size.ok_or_else(|| bad("a size is no octal number"))
    }
}

fn next_header(stream: &mut impl Read) -> io::Result<Option<Header>> {
    let mut block = [0; BLOCK];
    let mut filled = 0;
    while filled < BLOCK {
        match stream.read(&mut block[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(bad("the stream ends within a header")),
            count => filled += count,
        }
    }
    if block == [0; BLOCK] {
        io::copy(stream, &mut io::sink())?;
        return Ok(None);
    }
    Ok(Some(Header(block)))
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A path without `./` before it and `/` after it.
fn clean(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path).to_vec()
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| bad("a record is no number"))
}

fn read_padded(stream: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > MOST_RECORDS {
        return Err(bad("records are too long"));
    }
    let size = usize::try_from(size).map_err(|_| bad("records are too long"))?;
    let mut bytes = vec![0; size.next_multiple_of(BLOCK)];
    stream.read_exact(&mut bytes)?;
    bytes.truncate(size);
    Ok(bytes)
}

/// Reads lines `LENGTH KEY=VALUE`.
fn read_records(mut bytes: &[u8]) -> io::Result<Records> {
    let mut records = Records::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|&byte| byte == b' ').ok_or_else(|| bad("a record"))?;
        let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| bad("a record"))?;
        let line = bytes.get(space + 1..length).ok_or_else(|| bad("a record"))?;
        let line = line.strip_suffix(b"\n").ok_or_else(|| bad("a record"))?;
        let equals = line.iter().position(|&byte| byte == b'=').ok_or_else(|| bad("a record"))?;
        records.insert(line[..equals].to_vec(), line[equals + 1..].to_vec());
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn read_file(stream: &mut impl Read, size: u64) -> io::Result<Entry> {
    let mut hash = Hash::of(size);
    hash.take(stream, size)?;
    skip(stream, size.next_multiple_of(BLOCK as u64) - size)?;
    Ok(hash.entry())
}

/// A file of `size` bytes, stored as a map of `stored` bytes and the data: the count of extents,
/// then offset and length of each, a line for each number.
fn read_sparse(stream: &mut impl Read, stored: u64, size: u64) -> io::Result<Entry> {
    let mut map = Vec::new();
    let mut numbers = Vec::new();
    while numbers.first().is_none_or(|&count: &u64| (numbers.len() as u64) < 1 + 2 * count) {
        let mut block = [0; BLOCK];
        stream.read_exact(&mut block)?;
        map.extend(block);
        if map.len() as u64 > MOST_RECORDS.min(stored) {
            return Err(bad("a map of holes is too long"));
        }
        let lines = map.split(|&byte| byte == b'\n');
        let whole = map.iter().filter(|&&byte| byte == b'\n').count();
        numbers = lines.take(whole).map(decimal).collect::<io::Result<_>>()?;
    }
    let mut hash = Hash::of(size);
    for extent in numbers[1..].chunks_exact(2) {
        let [offset, length] = *extent else { unreachable!("chunks of two") };
        let hole = offset.checked_sub(hash.done).ok_or_else(|| bad("extents overlap"))?;
        hash.zeros(hole);
        hash.take(stream, length)?;
    }
    let rest = size.checked_sub(hash.done).ok_or_else(|| bad("extents after the end"))?;
    hash.zeros(rest);
    let data = stored - map.len() as u64;
    skip(stream, data.next_multiple_of(BLOCK as u64) - data)?;
    Ok(hash.entry())
}

/// Contents that are being hashed.
struct Hash {
    hasher: Option<Sha256>,
    size: u64,
    done: u64,
}

impl Hash {
    fn of(size: u64) -> Self {
        Self { hasher: (size <= MOST_HASHED).then(Sha256::new), size, done: 0 }
    }

    fn take(&mut self, stream: &mut impl Read, length: u64) -> io::Result<()> {
        let mut left = stream.take(length);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match left.read(&mut buffer)? {
                0 if left.limit() > 0 => return Err(bad("the stream ends within a file")),
                0 => return Ok(()),
                count => {
                    self.done += count as u64;
                    self.hasher.iter_mut().for_each(|hasher| hasher.update(&buffer[..count]));
                }
            }
        }
    }

    fn zeros(&mut self, count: u64) {
        self.done = self.done.saturating_add(count);
        let Some(hasher) = &mut self.hasher else { return };
        let zeros = [0; BLOCK];
        let mut left = count;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            hasher.update(&zeros[..part]);
            left -= part as u64;
        }
    }

    fn entry(self) -> Entry {
        let digest = self.hasher.map(|hasher| hex(&hasher.finalize()));
        Entry::File { size: self.size, digest: digest.unwrap_or_else(|| "large".to_owned()) }
    }
}

fn skip(stream: &mut impl Read, count: u64) -> io::Result<()> {
    io::copy(&mut stream.take(count), &mut io::sink()).map(drop)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not the tar that it should be: {what}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::process::Tool;

    fn packed(options: &[&str]) -> (tempfile::TempDir, Listing) {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let deep = format!("{}/{}", "d".repeat(120), "n".repeat(150));
        fs::create_dir(at(&"d".repeat(120))).unwrap();
        fs::write(at(&deep), "deep").unwrap();
        fs::write(at("abc"), "abc").unwrap();
        fs::hard_link(at("abc"), at("b\tc")).unwrap();
        symlink("nowhere", at("link")).unwrap();
        let sparse = fs::File::create(at("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", 3 << 20).unwrap();
        sparse.set_len(5 << 20).unwrap();
        let tar = Tool::new("tar").args(["--format=pax", "--sort=name", "-cf", "-"]).args(options);
        let stream = tar.arg("-C").arg(directory.path()).arg(".").output().unwrap();
        let listing = Listing::read(&mut stream.as_slice()).unwrap();
        (directory, listing)
    }

    #[test]
    fn holes_links_and_long_names_are_read_as_gnu_tar_writes_them() {
        let (_directory, listing) = packed(&["--sparse", "--sparse-version=1.0"]);
        let file = |name: &str| match &listing.0[name.as_bytes()] {
            Entry::File { size, digest } => (*size, digest[..8].to_owned()),
            other => panic!("{name}: {other:?}"),
        };
        let abc = (3, "ba7816bf".to_owned());
        assert_eq!((file("abc"), file("b\tc")), (abc.clone(), abc));
        assert_eq!(file(&format!("{}/{}", "d".repeat(120), "n".repeat(150))).0, 4);
        assert_eq!(listing.0[&b"link"[..]], Entry::Link(b"nowhere".to_vec()));
        assert_eq!(file("sparse").0, 5 << 20);
        assert!(listing.to_string().contains("b\\u{9}c\tfile\t3\t"), "{listing}");
        assert!(listing.summary().starts_with("7 entries, 4 files, 5242890 bytes, "));
    }

    #[test]
    fn a_file_has_one_digest_whether_its_holes_are_stored_or_not() {
        let sparse = packed(&["--sparse", "--sparse-version=1.0"]).1;
        assert_eq!(sparse.summary(), packed(&[]).1.summary());
    }

    #[test]
    fn a_name_that_appears_twice_is_two_entries() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "a").unwrap();
        let tar = Tool::new("tar").args(["--hard-dereference", "-cf", "-", "-C"]);
        let stream = tar.arg(directory.path()).args(["file", "file"]).output().unwrap();
        let listing = Listing::read(&mut stream.as_slice()).unwrap();
        assert!(listing.summary().starts_with("2 entries, 2 files, 2 bytes, "), "{listing}");
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), [7; 3000]).unwrap();
        let tar = Tool::new("tar").args(["-cf", "-", "-C"]).arg(directory.path()).arg("file");
        let stream = tar.output().unwrap();
        assert_eq!(Listing::read(&mut &stream[..0]).unwrap().summary(), "-");
        for length in [100, 512, 2000] {
            assert!(Listing::read(&mut &stream[..length]).is_err(), "{length}");
        }
    }
}
