//! Changes what the records of files say, in the bytes of an NTFS volume: what Windows writes and
//! no tool here does.
//!
//! Follows fs/ntfs3/ntfs.h of Linux.

use std::ops::Range;

/// `$FILE_NAME`, `$DATA`
const FILE_NAME: u32 = 0x30;
const DATA: u32 = 0x80;

/// The bytes of an NTFS volume.
pub struct NtfsRecords {
    bytes: Vec<u8>,
    /// Bytes of a record.
    record: usize,
}

impl NtfsRecords {
    /// Those of the volume `bytes`.
    ///
    /// # Panics
    /// Where that is no NTFS.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        assert_eq!(&bytes[3..7], b"NTFS");
        let sector = usize::from(u16::from_le_bytes([bytes[11], bytes[12]]));
        // Sectors of a cluster, and clusters of a record; negative powers of two where that is more.
        let cluster = match bytes[0x0d] {
            shift @ 0xe1.. => sector << shift.wrapping_neg(),
            sectors => sector * usize::from(sectors),
        };
        let record = match bytes[0x40] {
            shift @ 0xe1.. => 1 << shift.wrapping_neg(),
            clusters => cluster * usize::from(clusters),
        };
        Self { bytes, record }
    }

    /// The changed volume.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Has a file whose contents are outside of its record valid data up to byte `valid` only.
    ///
    /// # Panics
    /// Where there is no such file.
    pub fn set_valid_length(&mut self, name: &str, valid: u64) {
        let data = self.attribute(name, DATA);
        assert_eq!(self.bytes[data.start + 8], 1, "{name} is in its record");
        self.put(data.start + 0x38, &valid.to_le_bytes());
    }

    /// Sets flags of a file's contents: compressed is 1, encrypted 0x4000, sparse 0x8000.
    ///
    /// # Panics
    /// Where there is no such file.
    pub fn set_flags(&mut self, name: &str, flags: u16) {
        let data = self.attribute(name, DATA);
        self.put(data.start + 0x0c, &flags.to_le_bytes());
    }

    /// In how many pieces the contents of a file are, as far as its first record says it.
    ///
    /// # Panics
    /// Where there is no such file.
    #[must_use]
    pub fn pieces(&self, name: &str) -> usize {
        let data = self.attribute(name, DATA);
        let list = data.start + usize::from(self.u16_at(data.start + 0x20));
        let mut list = &self.bytes[list..data.end];
        let mut pieces = 0;
        while let Some((&sizes, behind)) = list.split_first().filter(|(sizes, _)| **sizes != 0) {
            list = &behind[usize::from(sizes & 0xf) + usize::from(sizes >> 4)..];
            pieces += 1;
        }
        pieces
    }

    /// Where the first attribute of this kind without a name is of the file `name`.
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn attribute(&self, name: &str, kind: u32) -> Range<usize> {
        let utf16: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let records = (0..self.bytes.len() / self.record).map(|number| number * self.record);
        for record in records.filter(|&at| self.bytes[at..].starts_with(b"FILE")) {
            let attributes = self.attributes(record);
            let of = |wanted: u32| {
                let is_it = |at: &&Range<usize>| {
                    self.u32_at(at.start) == wanted && self.bytes[at.start + 9] == 0
                };
                attributes.iter().find(is_it).cloned()
            };
            let is_its = |at: &Range<usize>| {
                self.u32_at(at.start) == FILE_NAME && is_named(&self.bytes[at.clone()], &utf16)
            };
            if attributes.iter().any(is_its)
                && let Some(found) = of(kind)
            {
                return found;
            }
        }
        panic!("no file {name} with the attribute {kind:#x}");
    }

    /// The attributes of the record at this byte.
    fn attributes(&self, record: usize) -> Vec<Range<usize>> {
        let mut all = Vec::new();
        let mut at = record + usize::from(self.u16_at(record + 0x14));
        let end = record + self.record;
        while at + 8 <= end && self.u32_at(at) != u32::MAX && self.u32_at(at) != 0 {
            let length = usize::try_from(self.u32_at(at + 4)).expect("a length");
            if length == 0 || at + length > end {
                break;
            }
            all.push(at..at + length);
            at += length;
        }
        all
    }

    /// Writes into a record.
    fn put(&mut self, at: usize, new: &[u8]) {
        // The last two bytes of each sector are kept elsewhere.
        assert!(at % 512 + new.len() <= 510, "a part of an attribute at a sector's end");
        self.bytes[at..at + new.len()].copy_from_slice(new);
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }
}

/// Whether the `$FILE_NAME` attribute `attribute` has this name, in UTF-16.
fn is_named(attribute: &[u8], name: &[u8]) -> bool {
    let value = usize::from(u16::from_le_bytes([attribute[0x14], attribute[0x15]]));
    let length = 2 * usize::from(attribute[value + 0x40]);
    attribute.get(value + 0x42..value + 0x42 + length) == Some(name)
}
