//! The blocks before a file's data: the header of ustar, and pax's records for what does not fit
//! into that.

use guestmnt_protocol::attr::{Attr, Time};

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Nothing: another name of an earlier file.
    HardLink,
    /// Nothing: a name that leads elsewhere.
    SymbolicLink,
    /// Nothing.
    CharacterDevice,
    /// Nothing.
    BlockDevice,
    /// Nothing.
    Folder,
    /// Nothing.
    Fifo,
}

impl Kind {
    fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::SymbolicLink => b'2',
            Self::CharacterDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Folder => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// Pax's records, `LENGTH KEY=VALUE`.
#[derive(Default)]
pub struct Records(Vec<u8>);

impl Records {
    /// Those of a sparse file with this name and size. Its header has another name, for readers
    /// that do not know of holes.
    pub fn of_sparse(name: &[u8], size: u64) -> Self {
        let mut records = Self::default();
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add(b"GNU.sparse.name", name);
        records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        records
    }

    /// Adds a record.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        // A space, an equals sign and a line break.
        let rest = key.len() + value.len() + 3;
        // The length counts its own digits.
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend(format!("{length} ").as_bytes());
        self.0.extend([key, b"=", value, b"\n"].concat());
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The header of a file.
pub struct Header([u8; BLOCK]);

impl Header {
    const NAME: std::ops::Range<usize> = 0..100;
    const MODE: std::ops::Range<usize> = 100..108;
    const UID: std::ops::Range<usize> = 108..116;
    const GID: std::ops::Range<usize> = 116..124;
    const SIZE: std::ops::Range<usize> = 124..136;
    const MTIME: std::ops::Range<usize> = 136..148;
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    const FLAG: usize = 156;
    const LINK: std::ops::Range<usize> = 157..257;
    const MAGIC: std::ops::Range<usize> = 257..265;
    const MAJOR: std::ops::Range<usize> = 329..337;
    const MINOR: std::ops::Range<usize> = 337..345;
    const PREFIX: std::ops::Range<usize> = 345..500;

    /// One with nothing but what fits in any case.
    pub fn of(kind: Kind, attr: &Attr, size: u64) -> Self {
        let mut header = Self([0; BLOCK]);
        header.number(Self::MODE, (attr.mode & 0o7777).into());
        header.number(Self::SIZE, size);
        header.0[Self::FLAG] = kind.flag();
        header.0[Self::MAGIC].copy_from_slice(b"ustar\x0000");
        let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
        let rdev = if is_device { attr.rdev } else { 0 };
        header.number(Self::MAJOR, libc::major(rdev).into());
        header.number(Self::MINOR, libc::minor(rdev).into());
        header
    }

    /// The header of the records of a file called `name`.
    pub fn of_records(name: &[u8], length: u64) -> [u8; BLOCK] {
        let attr = Attr { mode: 0o644, ..Attr::default() };
        let mut header = Self::of(Kind::File, &attr, length);
        header.0[Self::FLAG] = b'x';
        for field in [Self::UID, Self::GID, Self::MTIME] {
            header.number(field, 0);
        }
        // Only for readers that do not know of records.
        let last = name.rsplit(|&byte| byte == b'/').find(|part| !part.is_empty());
        let shown = [b"PaxHeaders/", last.unwrap_or(b"."), b""].concat();
        header.text(Self::NAME, &shown[..shown.len().min(100)]);
        header.bytes()
    }

    /// Sets the name; one that does not fit becomes a record.
    pub fn name(&mut self, name: &[u8], records: &mut Records) {
        if name.len() <= Self::NAME.len() {
            return self.text(Self::NAME, name);
        }
        let end = name.len().min(Self::PREFIX.len() + 1);
        let slash = name[..end].iter().rposition(|&byte| byte == b'/');
        if let Some(slash) = slash.filter(|&at| at > 0)
            && (1..=Self::NAME.len()).contains(&(name.len() - slash - 1))
        {
            self.text(Self::PREFIX, &name[..slash]);
            return self.text(Self::NAME, &name[slash + 1..]);
        }
        records.add(b"path", name);
        self.text(Self::NAME, &name[..Self::NAME.len()]);
    }

    /// Sets where a link leads.
    pub fn link(&mut self, target: &[u8], records: &mut Records) {
        if target.len() > Self::LINK.len() {
            records.add(b"linkpath", target);
        }
        self.text(Self::LINK, &target[..target.len().min(Self::LINK.len())]);
    }

    /// Sets owner, size and times.
    pub fn numbers(&mut self, attr: &Attr, size: u64, records: &mut Records) {
        let numbers = [
            (Self::UID, &b"uid"[..], u64::from(attr.uid)),
            (Self::GID, b"gid", u64::from(attr.gid)),
            (Self::SIZE, b"size", size),
        ];
        for (field, key, value) in numbers {
            if !self.number(field, value) {
                records.add(key, value.to_string().as_bytes());
            }
        }
        let Time { secs, nanos } = attr.modified;
        let whole = u64::try_from(secs).ok().filter(|_| nanos == 0);
        if !whole.is_some_and(|secs| self.number(Self::MTIME, secs)) {
            self.number(Self::MTIME, 0);
            records.add(b"mtime", decimal(attr.modified).as_bytes());
        }
        for (key, time) in [(&b"atime"[..], attr.accessed), (b"ctime", attr.changed)] {
            if time != attr.modified {
                records.add(key, decimal(time).as_bytes());
            }
        }
    }

    /// The block, with its checksum.
    pub fn bytes(&self) -> [u8; BLOCK] {
        let mut block = self.0;
        block[Self::CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        let text = format!("{sum:06o}\0 ");
        block[Self::CHECKSUM].copy_from_slice(text.as_bytes());
        block
    }

    fn text(&mut self, field: std::ops::Range<usize>, text: &[u8]) {
        self.0[field][..text.len()].copy_from_slice(text);
    }

    /// Sets a number in octal digits; false, and zero, where it has too many.
    fn number(&mut self, field: std::ops::Range<usize>, value: u64) -> bool {
        let digits = field.len() - 1;
        let text = format!("{value:0digits$o}");
        let fits = text.len() == digits;
        let text = if fits { text } else { "0".repeat(digits) };
        self.text(field, text.as_bytes());
        fits
    }
}

/// A moment in decimal digits.
fn decimal(Time { secs, nanos }: Time) -> String {
    // What is before 1970 counts back from there.
    let (sign, secs, nanos) = match (secs, nanos) {
        (secs @ ..0, 0) => ("-", secs.unsigned_abs(), 0),
        (secs @ ..0, nanos) => ("-", secs.unsigned_abs() - 1, 1_000_000_000 - nanos),
        (secs, nanos) => ("", secs.unsigned_abs(), nanos),
    };
    if nanos == 0 {
        return format!("{sign}{secs}");
    }
    format!("{sign}{secs}.{nanos:09}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_records_length_counts_itself() {
        for length in [0, 1, 80, 88, 89, 90, 91, 980, 988, 989, 990] {
            let mut records = Records::default();
            records.add(b"key", &vec![b'v'; length]);
            let said = records.0.split(|&byte| byte == b' ').next().unwrap();
            let said: usize = std::str::from_utf8(said).unwrap().parse().unwrap();
            assert_eq!(said, records.0.len());
        }
    }

    #[test]
    fn long_names_are_split_between_folders_or_become_records() {
        let split = |name: &str| {
            let mut header = Header([0; BLOCK]);
            let mut records = Records::default();
            header.name(name.as_bytes(), &mut records);
            let field = |field: std::ops::Range<usize>| {
                let bytes = &header.0[field];
                bytes.split(|&byte| byte == 0).next().unwrap().to_vec()
            };
            (field(Header::PREFIX).len(), field(Header::NAME).len(), !records.is_empty())
        };
        let (folder, file) = ("d".repeat(150), "f".repeat(90));
        assert_eq!(split(&"f".repeat(100)), (0, 100, false));
        assert_eq!(split(&"f".repeat(101)), (0, 100, true));
        assert_eq!(split(&format!("{folder}/{file}")), (150, 90, false));
        assert_eq!(split(&format!("{folder}{folder}/{file}")), (0, 100, true));
    }

    #[test]
    fn moments_are_decimal() {
        let table = [((5, 0), "5"), ((5, 1), "5.000000001"), ((-1, 0), "-1")];
        let more = [((-1, 900_000_000), "-0.1"), ((-2, 500_000_000), "-1.5")];
        for ((secs, nanos), text) in table.into_iter().chain(more) {
            assert_eq!(decimal(Time { secs, nanos }), text);
        }
    }
}
