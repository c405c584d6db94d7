//! A stream of tar in pax format, as GNU tar, bsdtar and Python read it: with nanoseconds, extended
//! attributes, hard links, sparse files, device nodes. The same files give the same bytes.
//!
//! Follows pax of POSIX.1-2017, `SCHILY.xattr` of star, and "PAX Format, Version 1.0" of sparse
//! files in GNU tar's manual.

mod header;

use std::io::{self, Write};

use guestmnt_protocol::path::GuestPath;

use self::header::{BLOCK, Header, Kind, Records};
use super::{Complain, Progress};
use crate::files::{Contents, Item, Sink, Stretch, Trouble};

/// A stream that is being written.
pub struct Tar<'a, W: Write> {
    out: W,
    progress: Progress<'a>,
    complain: Complain<'a>,
}

impl<'a, W: Write> Tar<'a, W> {
    /// Begins a stream on `out`.
    pub fn to(out: W, progress: Progress<'a>, complain: Complain<'a>) -> Self {
        Self { out, progress, complain }
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// As write(2).
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Writes the header of a file and what does not fit into it.
    fn header(
        &mut self,
        item: &Item,
        kind: Kind,
        size: u64,
        link: &[u8],
        more: Records,
    ) -> io::Result<()> {
        let name = name(item.path, kind);
        let mut header = Header::of(kind, item.attr, size);
        let mut records = more;
        header.name(&name, &mut records);
        header.link(link, &mut records);
        header.numbers(item.attr, size, &mut records);
        for (name, value) in item.xattrs {
            records.add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if !records.is_empty() {
            let text = records.bytes();
            self.out.write_all(&Header::of_records(&name, text.len() as u64))?;
            self.out.write_all(text)?;
            self.pad(text.len() as u64)?;
        }
        self.out.write_all(&header.bytes())
    }

    /// Fills the last block of `length` bytes.
    fn pad(&mut self, length: u64) -> io::Result<()> {
        self.zeros(length.next_multiple_of(BLOCK as u64) - length)
    }

    fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        while count > 0 {
            let part = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
            self.out.write_all(&ZEROS[..part])?;
            count -= part as u64;
        }
        Ok(())
    }

    /// Writes the bytes of `stretches`. Where the guest cannot give them, zeros are in their place,
    /// since the header has said how many they are.
    fn stretches(&mut self, contents: &Contents, stretches: &[Stretch]) -> Result<(), Trouble> {
        let mut outcome = Ok(());
        for stretch in stretches {
            let mut missing = stretch.length;
            let read = if outcome.is_ok() {
                contents.read(*stretch, |_, bytes| {
                    self.out.write_all(bytes)?;
                    missing -= bytes.len() as u64;
                    (self.progress)(bytes.len() as u64);
                    Ok(())
                })
            } else {
                Ok(())
            };
            if let Err(trouble) = read {
                if matches!(trouble, Trouble::Host(_)) {
                    return Err(trouble);
                }
                outcome = Err(trouble);
            }
            self.zeros(missing)?;
        }
        outcome
    }
}

impl<W: Write> Sink for Tar<'_, W> {
    const XATTRS: bool = true;
    const CONTENTS: bool = true;

    fn enter(&mut self, item: &Item) -> Result<(), Trouble> {
        Ok(self.header(item, Kind::Folder, 0, b"", Records::default())?)
    }

    fn leave(&mut self, _: &Item) -> Result<(), Trouble> {
        Ok(())
    }

    fn file(&mut self, item: &Item, contents: &Contents) -> Result<(), Trouble> {
        let size = contents.size();
        let stretches = contents.stretches()?;
        let stored: u64 = stretches.iter().map(|stretch| stretch.length).sum();
        if stored == size {
            self.header(item, Kind::File, size, b"", Records::default())?;
            let done = self.stretches(contents, &stretches);
            self.pad(size)?;
            return done;
        }
        let map = map(&stretches, size);
        let length = map.len() as u64 + stored;
        let records = Records::of_sparse(&name(item.path, Kind::File), size);
        self.header(item, Kind::File, length, b"", records)?;
        self.out.write_all(&map)?;
        let done = self.stretches(contents, &stretches);
        self.pad(length)?;
        done
    }

    fn link(&mut self, item: &Item, first: &GuestPath) -> Result<(), Trouble> {
        let first = name(first, Kind::File);
        Ok(self.header(item, Kind::HardLink, 0, &first, Records::default())?)
    }

    fn other(&mut self, item: &Item) -> Result<(), Trouble> {
        let kind = match item.attr.mode & libc::S_IFMT {
            libc::S_IFLNK => Kind::SymbolicLink,
            libc::S_IFCHR => Kind::CharacterDevice,
            libc::S_IFBLK => Kind::BlockDevice,
            libc::S_IFIFO => Kind::Fifo,
            _ => return Err(Trouble::LeftOut("a socket")),
        };
        let target = item.target.map_or(&b""[..], |target| target.as_bytes());
        Ok(self.header(item, kind, 0, target, Records::default())?)
    }

    fn trouble(&mut self, path: &GuestPath, trouble: &Trouble) {
        (self.complain)(path, trouble);
    }
}

/// What a file is called in the stream: its path from the root, without a slash before it.
fn name(path: &GuestPath, kind: Kind) -> Vec<u8> {
    let mut name = path.as_bytes().to_vec();
    if name.is_empty() {
        name.push(b'.');
    }
    if kind == Kind::Folder {
        name.push(b'/');
    }
    name
}

/// Where the data of a sparse file is, in whole blocks.
fn map(stretches: &[Stretch], size: u64) -> Vec<u8> {
    let mut numbers: Vec<(u64, u64)> =
        stretches.iter().map(|stretch| (stretch.at, stretch.length)).collect();
    if numbers.last().is_none_or(|(at, length)| at + length < size) {
        // A hole at the end is told by no data there.
        numbers.push((size, 0));
    }
    let mut text = format!("{}\n", numbers.len());
    for (at, length) in numbers {
        text.push_str(&format!("{at}\n{length}\n"));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::attr::{Attr, Time};

    use super::*;

    fn path(text: &str) -> GuestPath {
        GuestPath::parse(text.as_bytes()).unwrap()
    }

    /// The stream of one file.
    fn stream(item: &Item) -> Vec<u8> {
        let (mut progress, mut complain) = (|_| (), |_: &GuestPath, _: &Trouble| ());
        let mut tar = Tar::to(Vec::new(), &mut progress, &mut complain);
        tar.file(item, &Contents::here(b"hello")).unwrap();
        tar.finish().unwrap()
    }

    #[test]
    fn a_plain_file_has_a_header_of_its_own_and_nothing_more() {
        let attr = Attr { mode: libc::S_IFREG | 0o4755, uid: 8, gid: 9, ..Attr::default() };
        let attr = Attr { modified: Time { secs: 8, nanos: 0 }, size: 5, ..attr };
        let attr = Attr { accessed: attr.modified, changed: attr.modified, ..attr };
        let at = path("/etc/file");
        let bytes = stream(&Item { path: &at, attr: &attr, target: None, xattrs: &Vec::new() });
        assert_eq!(bytes.len(), 4 * BLOCK);
        let field = |at: usize, length: usize| &bytes[at..at + length];
        assert_eq!(field(0, 10), b"etc/file\0\0");
        assert_eq!(field(100, 36), b"0004755\x000000010\x000000011\x0000000000005\0");
        assert_eq!(field(136, 12), b"00000000010\0");
        assert_eq!(field(156, 1), b"0");
        assert_eq!(field(257, 8), b"ustar\x0000");
        let sum: u32 = bytes[..148].iter().chain(&bytes[156..512]).map(|&b| u32::from(b)).sum();
        assert_eq!(field(148, 8), format!("{:06o}\0 ", sum + 8 * 32).as_bytes());
        assert_eq!(field(512, 6), b"hello\0");
    }

    #[test]
    fn what_does_not_fit_into_a_header_is_in_records_before_it() {
        let at = path(&format!("/{}", "x".repeat(300)));
        let attr = Attr { mode: libc::S_IFREG, uid: u32::MAX, ..Attr::default() };
        let attr = Attr { modified: Time { secs: -2, nanos: 500_000_000 }, ..attr };
        let xattrs = vec![(b"user.a".to_vec(), b"=\n\0".to_vec())];
        let bytes = stream(&Item { path: &at, attr: &attr, target: None, xattrs: &xattrs });
        assert_eq!(bytes[156], b'x');
        let has = |record: &[u8]| bytes.windows(record.len()).any(|window| window == record);
        assert!(has(format!("310 path={}\n", "x".repeat(300)).as_bytes()));
        assert!(has(b"18 uid=4294967295\n"));
        assert!(has(b"14 mtime=-1.5\n"));
        assert!(has(b"27 SCHILY.xattr.user.a==\n\0\n"));
    }

    #[test]
    fn a_map_is_whole_blocks_and_says_where_the_file_ends() {
        let stretches = [Stretch { at: 0, length: 4096 }, Stretch { at: 8192, length: 1 }];
        let map = map(&stretches, 100_000);
        assert_eq!(map.len(), BLOCK);
        assert!(map.starts_with(b"3\n0\n4096\n8192\n1\n100000\n0\n\0"));
        assert!(super::map(&stretches, 8193).starts_with(b"2\n0\n4096\n8192\n1\n\0"));
    }
}
