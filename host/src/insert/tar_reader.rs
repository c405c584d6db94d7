//! Reads a tar stream: POSIX.1-2001 (ustar and pax), GNU's long names and large numbers, and
//! sparse files in GNU tar's "PAX Format, Version 1.0".
//!
//! **Invariant:** no length from the stream is allocated for before it was checked.

use std::collections::VecDeque;
use std::io::{self, Read};

use guestmnt_protocol::attr::Time;

const BLOCK: usize = 512;

/// Most bytes of a long name or of pax records: with extended attributes of 64 KiB each.
const MAX_EXTENSION: u64 = 4 << 20;

/// What an entry is, by its type flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// One more name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A folder.
    Folder,
    /// A FIFO.
    Fifo,
    /// A sparse file in an older form, or something unknown.
    Other,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name as it is written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// Bytes of a file.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Last change of the contents.
    pub modified: Time,
    /// A device's number: major and minor.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A stream.
pub struct TarReader<R> {
    stream: R,
    /// Where in the current file the bytes go that were not read: offset and length, by offset.
    stretches: VecDeque<(u64, u64)>,
    /// Bytes of the current entry that were not read.
    left: u64,
    /// Bytes behind them that fill its last block.
    padding: u64,
}

/// What extension headers say of the entry behind them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// What the records of a sparse file say.
#[derive(Default)]
struct Sparse {
    /// Whether there are such.
    is_told: bool,
    major: Option<u32>,
    minor: Option<u32>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> TarReader<R> {
    /// One from the first byte of `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, stretches: VecDeque::new(), left: 0, padding: 0 }
    }

    /// The next entry; what is left of the one before is passed over. `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for what is no tar, `UnexpectedEof` for a stream that was cut off.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let mut header = [0; BLOCK];
            self.stream.read_exact(&mut header)?;
            if header == [0; BLOCK] {
                // Whoever writes the stream is not to be stopped in the middle.
                io::copy(&mut self.stream, &mut io::sink())?;
                return Ok(None);
            }
            check_sum(&header)?;
            let size = number(&header[124..136])?;
            match header[156] {
                b'x' => extension.read_pax(&self.extension(size)?)?,
                b'L' => extension.path = Some(text(&self.extension(size)?).to_vec()),
                b'K' => extension.link = Some(text(&self.extension(size)?).to_vec()),
                b'g' => drop(self.extension(size)?),
                flag => {
                    let size = extension.size.unwrap_or(size);
                    let Sparse { is_told, major, minor, size: whole, .. } = extension.sparse;
                    let kind = match kind(flag) {
                        Kind::File if is_told && (major, minor) != (Some(1), Some(0)) => {
                            Kind::Other
                        }
                        kind => kind,
                    };
                    // The others have no contents, whatever their size says.
                    let has_contents = matches!(kind, Kind::File | Kind::Other);
                    self.expect(if has_contents { size } else { 0 });
                    let entry = extension.entry(&header, kind, whole.unwrap_or(size))?;
                    self.stretches = match is_told && kind == Kind::File {
                        true => self.map(entry.size)?,
                        false => [(0, self.left)].into(),
                    };
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads more of what the current file holds. Tells where in it that is, and how many bytes;
    /// `None` when all is read. What is never told is zeros.
    ///
    /// # Errors
    /// `UnexpectedEof` for a stream that was cut off.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(u64, usize)>> {
        while self.stretches.front().is_some_and(|&(_, length)| length == 0) {
            self.stretches.pop_front();
        }
        let Some(&(offset, length)) = self.stretches.front() else { return Ok(None) };
        let count = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        self.bytes(&mut buffer[..count])?;
        self.stretches[0] = (offset + count as u64, length - count as u64);
        Ok(Some((offset, count)))
    }

    /// Fills `buffer` with contents of the entry as they are stored.
    fn bytes(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let count = buffer.len() as u64;
        self.left = self.left.checked_sub(count).ok_or_else(|| damaged("an entry is too short"))?;
        self.stream.read_exact(buffer)
    }

    /// Where the bytes of a sparse file of `size` bytes go: numbers, each in a line, in whole blocks
    /// before them.
    fn map(&mut self, size: u64) -> io::Result<VecDeque<(u64, u64)>> {
        let bad = || damaged("the map of a sparse file makes no sense");
        let mut block = [0; BLOCK];
        let mut at = BLOCK;
        let mut number = |reader: &mut Self| -> io::Result<u64> {
            let mut number: u64 = 0;
            loop {
                if at == BLOCK {
                    reader.bytes(&mut block)?;
                    at = 0;
                }
                at += 1;
                match block[at - 1] {
                    b'\n' => return Ok(number),
                    digit @ b'0'..=b'9' => {
                        let next = number.checked_mul(10).ok_or_else(bad)?;
                        number = next.checked_add(u64::from(digit - b'0')).ok_or_else(bad)?;
                    }
                    _ => return Err(bad()),
                }
            }
        };
        let mut stretches = VecDeque::new();
        let (mut end, mut stored) = (0u64, 0u64);
        // A false count ends with the entry.
        for _ in 0..number(self)? {
            let (offset, length) = (number(self)?, number(self)?);
            let next = offset.checked_add(length).filter(|&next| offset >= end && next <= size);
            end = next.ok_or_else(bad)?;
            stored += length;
            stretches.push_back((offset, length));
        }
        if stored == self.left { Ok(stretches) } else { Err(bad()) }
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        if io::copy(&mut (&mut self.stream).take(rest), &mut io::sink())? < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.expect(0);
        Ok(())
    }

    /// The contents of an extension header.
    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(size).ok().filter(|_| size <= MAX_EXTENSION);
        let mut bytes = vec![0; len.ok_or_else(|| damaged("an extension header is too long"))?];
        self.expect(size);
        self.bytes(&mut bytes)?;
        Ok(bytes)
    }
}

impl Extension {
    /// Reads records of `LENGTH KEY=VALUE\n`; values may hold any bytes.
    fn read_pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        let bad = || damaged("an extension header makes no sense");
        while !records.is_empty() {
            let space = records.iter().position(|&byte| byte == b' ').ok_or_else(bad)?;
            let length: usize = digits(&records[..space]).ok_or_else(bad)?;
            let record = records.get(space + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(digits(value).ok_or_else(bad)?),
                b"uid" => self.uid = Some(digits(value).ok_or_else(bad)?),
                b"gid" => self.gid = Some(digits(value).ok_or_else(bad)?),
                b"mtime" => self.modified = Some(time(value).ok_or_else(bad)?),
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.note(key, value);
                    }
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            records = &records[length..];
        }
        Ok(())
    }

    fn entry(self, header: &[u8; BLOCK], kind: Kind, size: u64) -> io::Result<Entry> {
        let field = |at: usize, len: usize| text(&header[at..at + len]);
        let is_posix = &header[257..263] == b"ustar\0";
        let path = match (field(0, 100), field(345, 155)) {
            (name, prefix) if is_posix && !prefix.is_empty() => [prefix, name].join(&b'/'),
            (name, _) => name.to_vec(),
        };
        let small = |at: usize| -> io::Result<u32> {
            u32::try_from(number(&header[at..at + 8])?)
                .map_err(|_| damaged("a number is too large"))
        };
        let secs =
            i64::try_from(number(&header[136..148])?).map_err(|_| damaged("a time is too late"))?;
        let is_device = matches!(kind, Kind::Character | Kind::Block);
        let device = if is_device { (small(329)?, small(337)?) } else { (0, 0) };
        let (uid, gid) =
            (self.uid.map_or_else(|| small(108), Ok)?, self.gid.map_or_else(|| small(116), Ok)?);
        let path = self.sparse.name.or(self.path).unwrap_or(path);
        // Before there were folders, a slash told of one.
        let is_folder = kind == Kind::File && path.ends_with(b"/");
        Ok(Entry {
            path,
            kind: if is_folder { Kind::Folder } else { kind },
            link: self.link.unwrap_or_else(|| field(157, 100).to_vec()),
            size,
            mode: small(100)?,
            owner: (uid, gid),
            modified: self.modified.unwrap_or(Time { secs, nanos: 0 }),
            device,
            xattrs: self.xattrs,
        })
    }
}

impl Sparse {
    fn note(&mut self, key: &[u8], value: &[u8]) {
        self.is_told = true;
        match key {
            b"major" => self.major = digits(value),
            b"minor" => self.minor = digits(value),
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" => self.size = digits(value),
            _ => {}
        }
    }
}

fn kind(flag: u8) -> Kind {
    match flag {
        b'0' | b'7' | 0 => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Folder,
        b'6' => Kind::Fifo,
        _ => Kind::Other,
    }
}

/// Checks a header's sum, which is reckoned as if spaces stood in its own place.
fn check_sum(header: &[u8; BLOCK]) -> io::Result<()> {
    let bytes = header.iter().enumerate();
    let sum: u64 =
        bytes.map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u64::from(byte) }).sum();
    if number(&header[148..156])? == sum { Ok(()) } else { Err(damaged("it is no tar stream")) }
}

/// A number in octal digits, or, as GNU's tar writes large ones, in bytes.
fn number(field: &[u8]) -> io::Result<u64> {
    let bad = || damaged("a number makes no sense");
    if field[0] == 0x80 {
        let bytes = &field[1..];
        let (high, low) = bytes.split_at(bytes.len().saturating_sub(8));
        if high.iter().any(|&byte| byte != 0) {
            return Err(bad());
        }
        return Ok(low.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)));
    }
    let text = text(field).trim_ascii();
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    if text.is_empty() { Ok(0) } else { u64::from_str_radix(text, 8).map_err(|_| bad()) }
}

fn digits<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    // A fraction goes away from zero, and nanoseconds count up.
    if whole.starts_with('-') && nanos > 0 {
        return Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { secs, nanos })
}

/// The bytes before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_from_the_second_before() {
        for (text, secs, nanos) in
            [("5", 5, 0), ("5.25", 5, 250_000_000), ("-0.5", -1, 500_000_000), ("-2", -2, 0)]
        {
            assert_eq!(time(text.as_bytes()), Some(Time { secs, nanos }), "{text}");
        }
        assert_eq!(time(b"x"), None);
    }

    #[test]
    fn records_may_hold_any_bytes() {
        let mut extension = Extension::default();
        extension.read_pax(b"12 path=a/b\n30 SCHILY.xattr.user.x=1\n2=3\0\n").unwrap();
        assert_eq!(extension.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extension.xattrs, [(b"user.x".to_vec(), b"1\n2=3\0".to_vec())]);
        for bad in [&b"9 path=a"[..], b"x path=a\n", b"99 path=a\n", b"0 a=b\n", b"5 a=b\nz"] {
            assert!(Extension::default().read_pax(bad).is_err(), "{bad:?}");
        }
    }

    /// A header with its sum.
    fn header(flag: u8, size: usize) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..1].copy_from_slice(b"f");
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[148..156].fill(b' ');
        header[156] = flag;
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    /// Contents in whole blocks.
    fn blocks(bytes: &[u8]) -> Vec<u8> {
        let mut blocks = bytes.to_vec();
        blocks.resize(bytes.len().next_multiple_of(BLOCK), 0);
        blocks
    }

    fn read_all(stream: &[u8]) -> io::Result<Vec<(u64, usize)>> {
        let mut reader = TarReader::new(stream);
        let (mut pieces, mut buffer) = (Vec::new(), [0; 100]);
        while let Some(entry) = reader.next()? {
            while let Some((at, count)) = reader.read(&mut buffer)? {
                assert!(at + count as u64 <= entry.size && count <= buffer.len());
                pieces.push((at, count));
            }
        }
        Ok(pieces)
    }

    #[test]
    fn of_sparse_files_each_stretch_comes_with_its_place_and_nothing_is_out_of_bounds() {
        let records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n\
                        28 GNU.sparse.realsize=9000\n";
        let stored = [blocks(b"2\n1000\n50\n8990\n10\n"), vec![7; 60]].concat();
        let stream = [
            header(b'x', records.len()),
            blocks(records),
            header(b'0', stored.len()),
            blocks(&stored),
            vec![0; 2 * BLOCK],
        ];
        let stream = stream.concat();
        assert_eq!(read_all(&stream).unwrap(), [(1000, 50), (8990, 10)]);
        for at in 0..stream.len() {
            for flip in [1, 4, 0x80] {
                let mut mutant = stream.clone();
                mutant[at] ^= flip;
                // An error or pieces within the file; read_all checks.
                let _ = read_all(&mutant);
            }
            let _ = read_all(&stream[..at]);
        }
    }

    #[test]
    fn streams_that_mislead_are_errors() {
        let errors = |bytes: &[u8]| TarReader::new(bytes).next().is_err();
        assert!(errors(b""));
        assert!(errors(&[1; 512]));
        assert!(errors(&[b'0'; 600]));
        assert!(TarReader::new(&[0; 1024][..]).next().unwrap().is_none());
    }
}
