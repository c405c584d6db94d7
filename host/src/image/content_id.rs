//! The content id of a VMDK where it is stored: eight digits of a text that are written anew, in
//! their place and in one piece.
//!
//! VMware changes it whenever it first writes to a disk that it opened: what was made over the disk
//! notices by that.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::descriptor::{Cid, Descriptor};
use super::error::Problem;

/// Where a disk's content id is.
#[derive(Debug)]
pub struct ContentId {
    file: File,
    /// Of the first digit in the file.
    at: u64,
    digits: usize,
    now: Cid,
}

impl ContentId {
    /// That of the descriptor `text`, which is in `file` from byte `at` on.
    ///
    /// # Errors
    /// Where another one could not be put into its place.
    pub fn find(
        file: File,
        at: u64,
        text: &[u8],
        descriptor: &Descriptor,
    ) -> Result<Self, Problem> {
        let digits = digits(text).ok_or(Problem::Lacks("CID"))?;
        let found =
            Self { file, at: at + digits.start as u64, digits: digits.len(), now: descriptor.cid };
        // With another id it has to say what it says with this one.
        let next = found.next()?;
        let mut changed = text.to_owned();
        changed[digits].copy_from_slice(found.text(next).as_bytes());
        let expected = Descriptor { cid: next, ..descriptor.clone() };
        if Descriptor::parse(&changed)? != expected {
            return Err(Problem::damaged("its content id cannot be told from the rest"));
        }
        Ok(found)
    }

    /// Stores another one, and has the disk keep it.
    ///
    /// # Errors
    /// Those of pwrite(2) and fdatasync(2).
    pub fn renew(&self) -> io::Result<()> {
        self.file.write_all_at(self.text(self.next()?).as_bytes(), self.at)?;
        self.file.sync_data()
    }

    /// Another one that has as many digits.
    fn next(&self) -> io::Result<Cid> {
        let mut source = File::open("/dev/urandom")?;
        loop {
            let mut bytes = [0; 4];
            source.read_exact(&mut bytes)?;
            let unused = 4 * (8 - self.digits);
            let next = Cid(u32::from_le_bytes(bytes) >> unused);
            if next != self.now && next != Cid::NO_PARENT {
                return Ok(next);
            }
        }
    }

    fn text(&self, cid: Cid) -> String {
        format!("{:0width$x}", cid.0, width = self.digits)
    }
}

/// Where a descriptor's text has the digits of its content id.
fn digits(text: &[u8]) -> Option<Range<usize>> {
    let mut start = 0;
    for line in text.split(|&byte| byte == b'\n') {
        if let Some(found) = value(line) {
            return Some(start + found.start..start + found.end);
        }
        start += line.len() + 1;
    }
    None
}

/// Where the line `CID = DIGITS` has its digits, which may stand in quotes.
fn value(line: &[u8]) -> Option<Range<usize>> {
    let (key, rest) = line.trim_ascii_start().split_at_checked(3)?;
    let rest = key.eq_ignore_ascii_case(b"CID").then_some(rest)?.trim_ascii_start();
    let rest = rest.strip_prefix(b"=")?.trim_ascii_start();
    let rest = rest.strip_prefix(b"\"").unwrap_or(rest);
    let count = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let start = line.len() - rest.len();
    (1..=8).contains(&count).then_some(start..start + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "parentCID=ffffffff\ncreateType=\"vmfs\"\nRW 8 VMFS \"CID=1.vmdk\"\n";

    #[test]
    fn another_id_takes_the_place_of_the_old_one_and_nothing_else_changes() {
        for (before, after) in
            [("CID=fffffffe\n", ""), ("\tCID = \"00\"\r\n", ""), ("CID=7", " \n")]
        {
            let head = format!("# CID=00000000\nversion=1\n{before}{after}");
            let text = format!("{head}{REST}");
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(text.as_bytes(), 512).unwrap();
            let descriptor = Descriptor::parse(text.as_bytes()).unwrap();
            let id = ContentId::find(file, 512, text.as_bytes(), &descriptor).unwrap();
            id.renew().unwrap();
            let mut found = vec![0; text.len()];
            id.file.read_exact_at(&mut found, 512).unwrap();
            let changed = Descriptor::parse(&found).unwrap();
            assert_ne!(changed.cid, descriptor.cid, "{before}");
            assert_eq!(Descriptor { cid: descriptor.cid, ..changed }, descriptor);
            assert_eq!(id.file.metadata().unwrap().len(), 512 + text.len() as u64);
            let differ = found.iter().zip(text.as_bytes()).filter(|(a, b)| a != b).count();
            assert!((1..=id.digits).contains(&differ), "{before}");
        }
    }
}
