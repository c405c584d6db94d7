//! Reads a tar stream: POSIX.1-2001 (ustar and pax, see [`super::pax`]), GNU's long names and large
//! numbers, and sparse files in GNU tar's "PAX Format, Version 1.0".
//!
//! **Invariant:** no length from the stream is allocated for before it was checked.

use std::collections::VecDeque;
use std::io::{self, Read};

use guestmnt_protocol::attr::Time;

use super::pax::{Extension, Sparse};

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

impl<R: Read> TarReader<R> {
    /// One from the first byte of `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, stretches: VecDeque::new(), left: 0, padding: 0 }
    }

    /// The next entry; what is left of the one before is passed over. `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for what is no tar, `UnexpectedEof` for a stream that was cut off.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let mut header = [0; BLOCK];
            self.read_exact(&mut header)?;
            if header == [0; BLOCK] {
                // Whoever writes the stream is not to be stopped in the middle.
                io::copy(&mut self.stream, &mut io::sink())?;
                return Ok(None);
            }
            check_sum(&header)?;
            let size = number(&header[124..136])?;
            match header[156] {
                b'x' => extension.read(&self.extension(size)?)?,
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
                    let entry = entry(&header, extension, kind, whole.unwrap_or(size))?;
                    self.stretches = match entry.kind {
                        Kind::File if is_told => self.map(entry.size)?,
                        Kind::File => [(0, self.left)].into(),
                        _ => VecDeque::new(),
                    };
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Reads more of what the current file holds. Tells where in it that is, and how many bytes;
    /// `None` when all is read, or where it is no file. What is never told is zeros.
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
        self.read_exact(buffer)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut_off(),
            _ => error,
        })
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
            return Err(cut_off());
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

/// The entry of a header, for which what an extension says goes first.
fn entry(header: &[u8; BLOCK], extension: Extension, kind: Kind, size: u64) -> io::Result<Entry> {
    let field = |at: usize, len: usize| text(&header[at..at + len]);
    let is_posix = &header[257..263] == b"ustar\0";
    let path = match (field(0, 100), field(345, 155)) {
        (name, prefix) if is_posix && !prefix.is_empty() => [prefix, name].join(&b'/'),
        (name, _) => name.to_vec(),
    };
    let small = |at: usize| -> io::Result<u32> {
        u32::try_from(number(&header[at..at + 8])?).map_err(|_| damaged("a number is too large"))
    };
    let secs =
        i64::try_from(number(&header[136..148])?).map_err(|_| damaged("a time is too late"))?;
    let is_device = matches!(kind, Kind::Character | Kind::Block);
    let device = if is_device { (small(329)?, small(337)?) } else { (0, 0) };
    let (uid, gid) = (
        extension.uid.map_or_else(|| small(108), Ok)?,
        extension.gid.map_or_else(|| small(116), Ok)?,
    );
    let path = extension.sparse.name.or(extension.path).unwrap_or(path);
    // Before there were folders, a slash told of one.
    let is_folder = kind == Kind::File && path.ends_with(b"/");
    Ok(Entry {
        path,
        kind: if is_folder { Kind::Folder } else { kind },
        link: extension.link.unwrap_or_else(|| field(157, 100).to_vec()),
        size,
        mode: small(100)?,
        owner: (uid, gid),
        modified: extension.modified.unwrap_or(Time { secs, nanos: 0 }),
        device,
        xattrs: extension.xattrs,
    })
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

/// How compressed streams begin, and what is said of them.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "it is compressed, which `gzip -dc` undoes"),
    (b"BZh", "it is compressed, which `bzip2 -dc` undoes"),
    (b"\xfd7zXZ\0", "it is compressed, which `xz -dc` undoes"),
    (b"\x28\xb5\x2f\xfd", "it is compressed, which `zstd -dc` undoes"),
];

/// Checks a header's sum, which is reckoned as if spaces stood in its own place.
fn check_sum(header: &[u8; BLOCK]) -> io::Result<()> {
    let bytes = header.iter().enumerate();
    let sum: u64 =
        bytes.map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u64::from(byte) }).sum();
    if number(&header[148..156]).is_ok_and(|told| told == sum) {
        return Ok(());
    }
    let known = COMPRESSED.into_iter().find(|(magic, _)| header.starts_with(magic));
    Err(damaged(known.map_or("it is no tar stream", |(_, what)| what)))
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

/// The bytes before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends too early")
}

pub(super) fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flag: u8, size: usize) -> Vec<u8> {
        header_of("f", flag, size)
    }

    /// A header with its sum.
    fn header_of(name: &str, flag: u8, size: usize) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
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
        while let Some(entry) = reader.next_entry()? {
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

    /// Before there were folders, they were files whose names end so.
    #[test]
    fn a_folder_holds_no_bytes_whatever_its_size_says() {
        for (name, pieces) in [("f", vec![(0, 4)]), ("/", vec![])] {
            let stream = [header_of(name, b'0', 4), blocks(b"four"), vec![0; 2 * BLOCK]].concat();
            assert_eq!(read_all(&stream).unwrap(), pieces, "{name}");
        }
    }

    #[test]
    fn streams_that_mislead_are_errors() {
        let gzip = [b"\x1f\x8b".as_slice(), &[0xee; 600]].concat();
        for (bytes, expected) in [
            (&b""[..], "ends too early"),
            (&[1; 512], "no tar stream"),
            (&[b'0'; 600], "no tar stream"),
            (&header(b'0', 5), "ends too early"),
            (&gzip, "gzip -dc"),
        ] {
            let mut reader = TarReader::new(bytes);
            let said = loop {
                match reader.next_entry() {
                    Ok(entry) => assert!(entry.is_some()),
                    Err(error) => break error.to_string(),
                }
            };
            assert!(said.contains(expected), "{said}");
        }
        assert!(TarReader::new(&[0; 1024][..]).next_entry().unwrap().is_none());
    }
}
