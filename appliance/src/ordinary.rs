//! Ordinary files of NTFS: what a file's record says of it, where that is all there is to say.
//!
//! The driver takes some 30,000 instructions to look a file up and make an inode of its record, which
//! a listing does for each file; reading the record takes a fiftieth of that. So files of which the
//! driver would say just what is in their record are not asked of it: regular ones with one record,
//! no reparse point, no extended attributes, and contents that are stored as they are. All others
//! are, as is everything that looks odd.
//!
//! Follows `ntfs_read_mft()` in fs/ntfs3/inode.c and `mi_enum_attr()` in fs/ntfs3/record.c of Linux.
//! **Invariant:** stricter than these: what they refuse is no ordinary file, down to the attributes of
//! which nothing is told here, at which the driver would end the record.

use guestmnt_protocol::attr::{Attr, Time};

use crate::agreement::Class;
use crate::little_endian::{u16_at, u32_at, u64_at};
use crate::ntfs::{Attribute, DATA, Geometry, Whole, attributes, begins_soundly, record_number};

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
    class: Class,
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

    /// The number of its record.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The class of files that it belongs to.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class
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
        if number < FIRST_USER_RECORD || !is_plain_record(record) || !begins_soundly(record) {
            return None;
        }
        let (mut standard, mut data) = (None, None);
        let (mut links, mut is_named, mut last_kind) = (0, false, 0);
        let mut class = Class::default();
        let mut attributes = attributes(record);
        for attribute in &mut attributes {
            let kind = attribute.kind();
            if kind < last_kind || !attribute.is_sound(geometry) {
                return None;
            }
            last_kind = kind;
            match kind {
                STANDARD if standard.is_none() => standard = Some(Standard::read(attribute)?),
                FILE_NAME => {
                    let found = FileName::read(attribute)?;
                    // The short name for DOS is another name of the same link.
                    if found.is_for_dos {
                        class = class.with(Class::SHORT_NAME);
                    } else {
                        links += 1;
                        is_named |= found.folder == folder && is_text(found.name, name);
                    }
                }
                OBJECT_ID | SECURITY => class = class.with(Class::MORE_ATTRIBUTES),
                // Another stream, of which stat(2) says nothing.
                DATA if attribute.has_name() => class = class.with(Class::STREAMS),
                DATA if data.is_none() => data = Some(contents(attribute, geometry)?),
                _ => return None,
            }
        }
        let (standard, (size, taken, held)) = (standard?, data?);
        let Standard { is_read_only, accessed, modified, changed } = standard;
        class = class
            .with_if(links > 1, Class::LINKS)
            .with_if(is_read_only, Class::READ_ONLY)
            .with_if(matches!(held, Held::Here(_)), Class::RESIDENT)
            .with_if(matches!(held, Held::Stored { length, .. } if length < size), Class::IN_PART);
        let facts =
            Facts { number, size, taken, links, is_read_only, class, accessed, modified, changed };
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
        /// It may be a link of Interix.
        const SYSTEM: u32 = 4;
        let value = attribute.value().filter(|value| value.len() >= LENGTH)?;
        if u32_at(value, 0x20)? & SYSTEM != 0 {
            return None;
        }
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
        const DOS: u8 = 2;
        /// Of one with a name of one letter.
        const LENGTH: usize = 0x44;
        let value = attribute.value().filter(|value| value.len() >= LENGTH)?;
        let [length, kind] = *value.get(0x40..0x42)? else { return None };
        let name = value.get(0x42..0x42 + 2 * usize::from(length))?;
        Some(Self { folder: record_number(u64_at(value, 0)?), is_for_dos: kind == DOS, name })
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ntfs::BOOT_LEN;

    /// Those of a file of this class, of which the driver says `attr`.
    pub(crate) fn facts(class: Class, attr: &Attr) -> Facts {
        Facts {
            number: attr.ino,
            size: attr.size,
            taken: attr.blocks * 512,
            links: attr.nlink,
            is_read_only: attr.mode & WRITING == 0,
            class,
            accessed: attr.accessed,
            modified: attr.modified,
            changed: attr.changed,
        }
    }

    const FOLDER: u64 = 5;
    const NUMBER: u64 = 40;

    /// Clusters of 4 KiB, a volume of 1 GiB.
    fn geometry() -> Geometry {
        let mut sector = [0; BOOT_LEN];
        sector[3..11].copy_from_slice(b"NTFS    ");
        (sector[0x0c], sector[0x0d], sector[0x30], sector[0x40]) = (2, 8, 4, 0xf6);
        sector[0x28..0x2c].copy_from_slice(&(1u32 << 21).to_le_bytes());
        Geometry::parse(&sector).unwrap()
    }

    fn put(bytes: &mut [u8], at: usize, number: &[u8]) {
        bytes[at..at + number.len()].copy_from_slice(number);
    }

    /// An attribute whose value is in the record.
    fn resident(kind: u32, value: &[u8]) -> Vec<u8> {
        let length = (0x18 + value.len()).next_multiple_of(8);
        let mut attribute = vec![0; length];
        put(&mut attribute, 0, &kind.to_le_bytes());
        put(&mut attribute, 4, &u32::try_from(length).unwrap().to_le_bytes());
        put(&mut attribute, 0x10, &u32::try_from(value.len()).unwrap().to_le_bytes());
        attribute[0x14] = 0x18;
        put(&mut attribute, 0x18, value);
        attribute
    }

    fn standard(attributes: u32) -> Vec<u8> {
        let mut value = [0; 0x48];
        // Made, modified, changed, accessed: seconds and a half after 1970 began.
        for (at, seconds) in [(0, 1), (8, 1), (16, 2), (24, 3)] {
            let units: u64 = (11_644_473_600 + seconds) * 10_000_000 + 5_000_000;
            put(&mut value, at, &units.to_le_bytes());
        }
        put(&mut value, 0x20, &attributes.to_le_bytes());
        resident(STANDARD, &value)
    }

    fn file_name(folder: u64, kind: u8, name: &str) -> Vec<u8> {
        let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut value = vec![0; 0x42 + units.len()];
        put(&mut value, 0, &(folder | 7 << 48).to_le_bytes());
        (value[0x40], value[0x41]) = (u8::try_from(units.len() / 2).unwrap(), kind);
        put(&mut value, 0x42, &units);
        resident(FILE_NAME, &value)
    }

    /// Contents outside of the record: sizes in bytes.
    fn stored(clusters: u64, size: u64, written: u64, list: &[u8]) -> Vec<u8> {
        let length = (0x40 + list.len()).next_multiple_of(8);
        let mut attribute = vec![0; length];
        put(&mut attribute, 0, &DATA.to_le_bytes());
        put(&mut attribute, 4, &u32::try_from(length).unwrap().to_le_bytes());
        (attribute[8], attribute[0x20]) = (1, 0x40);
        put(&mut attribute, 0x18, &clusters.wrapping_sub(1).to_le_bytes());
        put(&mut attribute, 0x28, &(clusters * 4096).to_le_bytes());
        put(&mut attribute, 0x30, &size.to_le_bytes());
        put(&mut attribute, 0x38, &written.to_le_bytes());
        put(&mut attribute, 0x40, list);
        attribute
    }

    fn record(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut record = vec![0; 0x38];
        (record[0x14], record[0x16]) = (0x38, 1);
        record.extend(attributes.concat());
        record.extend([0xff; 4]);
        record.extend([0; 4]);
        let used = u32::try_from(record.len()).unwrap();
        put(&mut record, 0x18, &used.to_le_bytes());
        put(&mut record, 0x1c, &1024u32.to_le_bytes());
        record.resize(1024, 0);
        record
    }

    fn read(record: &[u8], name: &str) -> Option<Ordinary<'static>> {
        let record: &'static [u8] = record.to_vec().leak();
        Ordinary::read(record, NUMBER, &geometry(), FOLDER, name.as_bytes())
    }

    /// Two clusters at cluster 0x100, one at 0x90.
    const TWO_PIECES: [u8; 8] = [0x21, 2, 0x00, 0x01, 0x11, 1, 0x90, 0];

    #[test]
    fn a_small_file_is_told_by_its_record() {
        let bytes = record(&[
            standard(0x20),
            file_name(FOLDER, 0, "naïve 🐮.txt"),
            resident(DATA, b"hello"),
        ]);
        let file = read(&bytes, "naïve 🐮.txt").unwrap();
        assert_eq!(file.held, Held::Here(b"hello"));
        let example = Attr { mode: libc::S_IFREG | 0o755, uid: 7, volume: 2, ..Attr::default() };
        let at = |secs| Time { secs, nanos: 500_000_000 };
        let expected = Attr {
            ino: NUMBER,
            nlink: 1,
            size: 5,
            modified: at(1),
            changed: at(2),
            accessed: at(3),
            ..example
        };
        assert_eq!(file.facts.like(&example), expected);
        assert!(file.facts.agree_with(&expected) && file.facts.is_writable());
        assert!(!file.facts.agree_with(&Attr { size: 6, ..expected }));
        assert!(!file.facts.agree_with(&Attr { mode: libc::S_IFLNK | 0o755, ..expected }));
    }

    #[test]
    fn a_file_outside_of_its_record_is_told_as_far_as_its_first_piece() {
        let table = [
            (stored(3, 9000, 9000, &TWO_PIECES), (0x100 * 4096, 8192)),
            (stored(3, 9000, 5000, &TWO_PIECES), (0x100 * 4096, 5000)),
            (stored(2, 5000, 5000, &[0x21, 2, 0x00, 0x01]), (0x100 * 4096, 5000)),
            (stored(0, 0, 0, &[0]), (0, 0)),
        ];
        for (data, (start, length)) in table {
            let file = read(&record(&[standard(0), file_name(FOLDER, 1, "a"), data.clone()]), "a");
            let file = file.unwrap_or_else(|| panic!("{data:x?}"));
            assert_eq!(file.held, Held::Stored { start, length });
        }
    }

    #[test]
    fn links_are_names_but_those_for_dos() {
        let bytes = record(&[
            standard(1),
            file_name(FOLDER, 2, "LONGNA~1"),
            file_name(FOLDER, 1, "long name"),
            file_name(9, 0, "elsewhere"),
            resident(OBJECT_ID, &[0; 16]),
            resident(DATA, b""),
        ]);
        let file = read(&bytes, "long name").unwrap();
        let example = Attr { mode: libc::S_IFREG | 0o777, ..Attr::default() };
        let attr = file.facts.like(&example);
        assert_eq!((attr.nlink, attr.mode), (2, libc::S_IFREG | 0o555));
        assert!(!file.facts.is_writable());
        for name in ["LONGNA~1", "elsewhere", "Long name", "long nam", "long name2", ""] {
            assert_eq!(read(&bytes, name), None, "{name}");
        }
    }

    #[test]
    fn another_stream_does_not_count() {
        let mut stream = resident(DATA, b"n\0other");
        // Its name is before what it holds.
        (stream[9], stream[0x0a], stream[0x10], stream[0x14]) = (1, 0x18, 5, 0x1a);
        let with = |streams: &[Vec<u8>]| {
            let first = [standard(0), file_name(FOLDER, 1, "a")];
            read(&record(&[&first[..], streams].concat()), "a").map(|file| file.held)
        };
        assert_eq!(with(&[resident(DATA, b"own"), stream.clone()]), Some(Held::Here(b"own")));
        assert_eq!(with(&[stream]), None);
    }

    #[test]
    fn whatever_the_driver_does_more_with_is_left_to_it() {
        let own = [standard(0), file_name(FOLDER, 1, "a"), resident(DATA, b"own")];
        let good = record(&own);
        assert!(read(&good, "a").is_some());
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        // Not in use, a directory, an index; of another size; a part of another file's.
        for (at, byte) in [(0x16, 0), (0x16, 3), (0x16, 9), (0x1d, 8), (0x20, 1), (0x26, 1)] {
            assert_eq!(read(&changed(at, byte), "a"), None, "{at:#x} {byte}");
        }
        // A list of attributes, index, reparse point, extended attributes, encryption, and unknown.
        for kind in [0x20, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0x100, 0x110] {
            let mut all = own.to_vec();
            all.push(resident(kind, &[0; 8]));
            all.sort_by_key(|attribute| u32_at(attribute, 0));
            assert_eq!(read(&record(&all), "a"), None, "{kind:#x}");
        }
        // Twice, missing, in another order.
        let [standard, name, data] = own;
        for wrong in [
            vec![standard.clone(), standard.clone(), name.clone(), data.clone()],
            vec![standard.clone(), name.clone(), data.clone(), data.clone()],
            vec![name.clone(), data.clone()],
            vec![standard.clone(), data.clone()],
            vec![standard.clone(), name.clone()],
            vec![name.clone(), standard.clone(), data.clone()],
        ] {
            assert_eq!(read(&record(&wrong), "a"), None);
        }
        let system = Ordinary::read(&good, 23, &geometry(), FOLDER, b"a");
        assert_eq!(system, None);
    }

    #[test]
    fn attributes_at_which_the_driver_ends_a_record_make_no_ordinary_file() {
        let with = |more: &[Vec<u8>]| {
            let mut all = vec![standard(0), file_name(FOLDER, 1, "a"), resident(DATA, b"own")];
            all.extend_from_slice(more);
            all.sort_by_key(|attribute| u32_at(attribute, 0));
            read(&record(&all), "a")
        };
        let changed = |attribute: &[u8], at: usize, bytes: &[u8]| {
            let mut attribute = attribute.to_vec();
            put(&mut attribute, at, bytes);
            attribute
        };
        // What is not told of the file has to be sound all the same.
        for kind in [OBJECT_ID, SECURITY] {
            let good = resident(kind, &[7; 16]);
            assert!(with(std::slice::from_ref(&good)).is_some(), "{kind:#x}");
            for (at, bytes) in [
                // Its value is longer than the attribute, begins behind it, is partly behind it.
                (0x10, &[0x11, 0, 0, 0][..]),
                (0x14, &[0xff, 0]),
                (0x14, &[0x20, 0]),
                // A name in its value; neither in the record nor outside of it.
                (0x09, &[1, 0x18]),
                (0x08, &[2]),
            ] {
                assert_eq!(
                    with(&[changed(&good, at, bytes)]),
                    None,
                    "{kind:#x} {at:#x} {bytes:x?}"
                );
            }
        }
        // Another stream: one that is compressed by no flag, and one whose sizes make no sense.
        let mut stream = stored(3, 9000, 9000, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        (stream[9], stream[0x0a], stream[0x20]) = (1, 0x40, 0x42);
        put(&mut stream, 0x40, b"n\0");
        assert!(with(std::slice::from_ref(&stream)).is_some());
        for (at, byte) in
            [(0x22, 4), (0x28, 1), (0x30, 0xff), (0x38, 0xff), (0x10, 9), (0x20, 0x41)]
        {
            assert_eq!(with(&[changed(&stream, at, &[byte, 0xff])]), None, "{at:#x}");
        }
        let packed = stored(3, 9000, 9000, &TWO_PIECES);
        assert_eq!(with(&[]).map(|file| file.facts.size()), Some(3));
        let own = |data: Vec<u8>| {
            read(&record(&[standard(0), file_name(FOLDER, 1, "a"), data]), "a").is_some()
        };
        assert!(own(packed.clone()) && !own(changed(&packed, 0x22, &[4])));
    }

    #[test]
    fn a_name_without_a_letter_is_refused_as_the_driver_does() {
        let mut short = resident(FILE_NAME, &[0; 0x42]);
        put(&mut short, 0x18, &FOLDER.to_le_bytes());
        let names = |more: Vec<u8>| {
            read(&record(&[standard(0), file_name(FOLDER, 1, "a"), more, resident(DATA, b"")]), "a")
        };
        assert!(names(file_name(9, 1, "b")).is_some());
        assert_eq!(names(short), None);
    }

    #[test]
    fn records_that_begin_elsewhere_are_refused_as_the_driver_does() {
        let good = record(&[standard(0), file_name(FOLDER, 1, "a"), resident(DATA, b"")]);
        for first in [0x28u8, 0x3c, 0x39] {
            // What is there is sound.
            let mut bytes = good.clone();
            bytes.copy_within(0x38..0x300, usize::from(first));
            bytes[0x14] = first;
            assert_eq!(read(&bytes, "a"), None, "{first:#x}");
        }
    }

    #[test]
    fn files_are_of_the_class_of_what_makes_them_special() {
        let class = |attributes: u32, links: &[u8], data: Vec<Vec<u8>>| {
            let names = links.iter().map(|&kind| file_name(FOLDER, kind, "a"));
            let all: Vec<_> = [standard(attributes)].into_iter().chain(names).chain(data).collect();
            read(&record(&all), "a").unwrap().facts.class()
        };
        let here = || vec![resident(DATA, b"own")];
        let pieces = |written| vec![stored(3, 9000, written, &TWO_PIECES)];
        let whole = || vec![stored(2, 5000, 5000, &[0x21, 2, 0, 1])];
        let with = |bits: &[Class]| bits.iter().fold(Class::default(), |all, &bit| all.with(bit));
        assert_eq!(class(0, &[1], whole()), Class::default());
        assert_eq!(class(0, &[1], here()), with(&[Class::RESIDENT]));
        assert_eq!(class(1, &[1, 0], whole()), with(&[Class::READ_ONLY, Class::LINKS]));
        assert_eq!(class(0, &[2, 1], whole()), with(&[Class::SHORT_NAME]));
        assert_eq!(class(0, &[1], pieces(9000)), with(&[Class::IN_PART]));
    }

    #[test]
    fn contents_that_are_not_stored_as_they_are_are_left_to_the_driver() {
        let held = |data: Vec<u8>| {
            let file = read(&record(&[standard(0), file_name(FOLDER, 1, "a"), data]), "a");
            file.map(|file| file.held)
        };
        let good = stored(3, 9000, 9000, &TWO_PIECES);
        assert!(held(good.clone()).is_some());
        // Compressed, encrypted, sparse.
        for flags in [[1, 0], [0, 0x40], [0, 0x80]] {
            let mut data = good.clone();
            put(&mut data, 0x0c, &flags);
            assert_eq!(held(data), None, "{flags:x?}");
        }
        let table: [(u64, u64, u64, &[u8]); 9] = [
            // Larger than what is allocated, written beyond the end.
            (3, 12_289, 9000, &TWO_PIECES),
            (3, 9000, 9001, &TWO_PIECES),
            // Fewer or more clusters than said, none.
            (4, 9000, 9000, &TWO_PIECES),
            (2, 5000, 5000, &TWO_PIECES),
            (3, 9000, 9000, &[0]),
            // A hole, beyond the volume, nonsense behind the last run.
            (3, 9000, 9000, &[0x21, 2, 0, 1, 0x01, 1, 0]),
            (3, 9000, 9000, &[0x31, 3, 0xfe, 0xff, 0x03, 0]),
            (3, 9000, 9000, &[0x21, 3, 0, 1, 0x9f, 1]),
            (u64::MAX / 4096, 9000, 9000, &TWO_PIECES),
        ];
        for (clusters, size, written, list) in table {
            let data = stored(clusters % (1 << 51), size, written, list);
            assert_eq!(held(data), None, "{clusters} {size} {written} {list:x?}");
        }
    }

    #[test]
    fn times_before_1970_are_left_to_the_driver() {
        assert_eq!(time(11_644_473_600 * 10_000_000), Some(Time { secs: 0, nanos: 0 }));
        assert_eq!(time(11_644_473_600 * 10_000_000 - 1), None);
        assert_eq!(time(u64::MAX), None);
    }

    #[test]
    fn no_record_makes_it_panic() {
        let good =
            record(&[standard(0), file_name(FOLDER, 1, "a"), stored(3, 9000, 9000, &TWO_PIECES)]);
        for length in 0..good.len() {
            assert_eq!(read(&good[..length], "a"), None, "{length}");
        }
        for bit in 0..8 * 0x180 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = read(&bytes, "a");
        }
    }
}
