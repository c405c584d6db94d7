//! Ordinary files of NTFS: what a file's record says of it, where that is all there is to say.
//!
//! The driver takes some 30,000 instructions to look a file up and make an inode of its record, which
//! a listing does for each file; reading the record takes a fiftieth of that. So files of which the
//! driver would say just what is in their record are not asked of it: regular ones with one record,
//! no reparse point, no extended attributes, and contents that are stored as they are. All others
//! are, as is everything that looks odd.
//!
//! Follows `ntfs_read_mft()` in fs/ntfs3/inode.c and `mi_enum_attr()` in fs/ntfs3/record.c of Linux.
//! **Invariant:** stricter than these: what they refuse is no ordinary file.

use guestmnt_protocol::attr::{Attr, Time};

use crate::little_endian::{u16_at, u32_at, u64_at};
use crate::ntfs::{Attribute, DATA, Geometry, Whole, attributes};

/// `$STANDARD_INFORMATION`
const STANDARD: u32 = 0x10;
/// `$FILE_NAME`
const FILE_NAME: u32 = 0x30;
/// `$OBJECT_ID`
const OBJECT_ID: u32 = 0x40;
/// `$SECURITY_DESCRIPTOR`
const SECURITY: u32 = 0x50;

/// The first record that is not one of NTFS' own files.
const FIRST_USER_RECORD: u64 = 24;

/// Permission bits that a file does not have whose attributes say that it is read-only.
const WRITING: u32 = 0o222;

/// What a record says of an ordinary file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    number: u64,
    size: u64,
    /// Bytes that it takes.
    taken: u64,
    links: u32,
    is_read_only: bool,
    accessed: Time,
    modified: Time,
    changed: Time,
}

/// What an ordinary file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held<'a> {
    /// These bytes, which stand in the record.
    Here(&'a [u8]),
    /// So many bytes from one place on the volume on; fewer than its size where it is in several
    /// pieces, or was not written to its end.
    Stored {
        /// The first one's place, in bytes.
        start: u64,
        /// How many they are.
        length: u64,
    },
}

/// An ordinary file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordinary<'a> {
    /// What stat(2) says of it.
    pub facts: Facts,
    /// What it holds.
    pub held: Held<'a>,
}

impl Facts {
    /// Attributes of the file, by those of another ordinary file of the volume that can be written:
    /// owner, permissions and the like are the same for all.
    #[must_use]
    pub fn like(&self, other: &Attr) -> Attr {
        Attr {
            ino: self.number,
            mode: if self.is_read_only { other.mode & !WRITING } else { other.mode },
            nlink: self.links,
            size: self.size,
            blocks: self.taken / 512,
            accessed: self.accessed,
            modified: self.modified,
            changed: self.changed,
            ..*other
        }
    }

    /// Whether `attr`, which the driver gave of this very file, is what other files can be told by.
    #[must_use]
    pub fn agree_with(&self, attr: &Attr) -> bool {
        attr.mode & libc::S_IFMT == libc::S_IFREG && self.like(attr) == *attr
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the file may be written as far as its own attributes go.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !self.is_read_only
    }
}

impl<'a> Ordinary<'a> {
    /// What the record `number` says, which was mended, of the file with this name in the directory
    /// with the number `folder`. `None` where that is no ordinary file, or not this one.
    #[must_use]
    pub fn read(
        record: &'a [u8],
        number: u64,
        geometry: &Geometry,
        folder: u64,
        name: &[u8],
    ) -> Option<Self> {
        if number < FIRST_USER_RECORD || !is_plain_record(record) {
            return None;
        }
        let (mut standard, mut data) = (None, None);
        let (mut links, mut is_named, mut last_kind) = (0, false, 0);
        let mut attributes = attributes(record);
        for attribute in &mut attributes {
            let kind = attribute.kind();
            if kind < last_kind {
                return None;
            }
            last_kind = kind;
            match kind {
                STANDARD if standard.is_none() => standard = Some(Standard::read(attribute)?),
                FILE_NAME => {
                    let found = FileName::read(attribute)?;
                    // The short name for DOS is another name of the same link.
                    if !found.is_for_dos {
                        links += 1;
                        is_named |= found.folder == folder && is_text(found.name, name);
                    }
                }
                OBJECT_ID | SECURITY => {}
                // Another stream, of which stat(2) says nothing.
                DATA if attribute.has_name() => {}
                DATA if data.is_none() => data = Some(contents(attribute, geometry)?),
                _ => return None,
            }
        }
        let (standard, (size, taken, held)) = (standard?, data?);
        let Standard { is_read_only, accessed, modified, changed } = standard;
        let facts = Facts { number, size, taken, links, is_read_only, accessed, modified, changed };
        (is_named && attributes.have_ended()).then_some(Self { facts, held })
    }
}

/// Whether a record is that of a file, in use, and the first one of its file.
fn is_plain_record(record: &[u8]) -> bool {
    /// In use, and neither a directory nor one of the indexes or files of NTFS itself.
    const IN_USE: u16 = 1;
    let total = u32_at(record, 0x1c).and_then(|total| usize::try_from(total).ok());
    u16_at(record, 0x16) == Some(IN_USE)
        && total == Some(record.len())
        && u64_at(record, 0x20) == Some(0)
}

struct Standard {
    is_read_only: bool,
    accessed: Time,
    modified: Time,
    changed: Time,
}

impl Standard {
    fn read(attribute: Attribute) -> Option<Self> {
        const LENGTH: usize = 0x30;
        const READ_ONLY: u32 = 1;
        let value = attribute.value().filter(|value| value.len() >= LENGTH)?;
        Some(Self {
            is_read_only: u32_at(value, 0x20)? & READ_ONLY != 0,
            modified: time(u64_at(value, 0x08)?)?,
            changed: time(u64_at(value, 0x10)?)?,
            accessed: time(u64_at(value, 0x18)?)?,
        })
    }
}

/// A moment in units of 100 ns since 1601; `None` before 1970, of which not all drivers say the same.
fn time(units: u64) -> Option<Time> {
    const PER_SECOND: u64 = 10_000_000;
    const BEFORE_1970: u64 = 11_644_473_600 * PER_SECOND;
    let since = units.checked_sub(BEFORE_1970).filter(|&since| i64::try_from(since).is_ok())?;
    let secs = i64::try_from(since / PER_SECOND).ok()?;
    let nanos = u32::try_from(since % PER_SECOND).ok()? * 100;
    Some(Time { secs, nanos })
}

struct FileName<'a> {
    /// The number of the directory that it is in.
    folder: u64,
    is_for_dos: bool,
    /// UTF-16.
    name: &'a [u8],
}

impl<'a> FileName<'a> {
    fn read(attribute: Attribute<'a>) -> Option<Self> {
        const NUMBER: u64 = (1 << 48) - 1;
        const DOS: u8 = 2;
        let value = attribute.value()?;
        let [length, kind] = *value.get(0x40..0x42)? else { return None };
        let name = value.get(0x42..0x42 + 2 * usize::from(length))?;
        Some(Self { folder: u64_at(value, 0)? & NUMBER, is_for_dos: kind == DOS, name })
    }
}

/// Whether `utf16` is the same text as `utf8`.
fn is_text(utf16: &[u8], utf8: &[u8]) -> bool {
    let units = || utf16.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    if utf16.len() == 2 * utf8.len() && utf8.is_ascii() {
        return units().eq(utf8.iter().map(|&byte| u16::from(byte)));
    }
    let Ok(text) = std::str::from_utf8(utf8) else { return false };
    units().eq(text.encode_utf16())
}

/// Size, bytes that are taken, and what there is, of a file whose contents are stored as they are.
fn contents<'a>(attribute: Attribute<'a>, geometry: &Geometry) -> Option<(u64, u64, Held<'a>)> {
    if !attribute.is_plain() {
        return None;
    }
    if let Some(here) = attribute.value() {
        let size = here.len() as u64;
        return Some((size, size, Held::Here(here)));
    }
    let Whole { size, written, allocated, runs } = attribute.whole(geometry)?;
    let (start, length) = runs.places(0, written).next().unwrap_or_default();
    Some((size, allocated, Held::Stored { start, length }))
}
