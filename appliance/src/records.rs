//! The records of the files of an NTFS volume, read from its device.
//!
//! **Invariant:** everything is untrusted: what makes no sense is not there. A file whose attributes
//! are spread over several records has those of the first, but for the table of records itself.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::little_endian::{u16_at, u32_at, u64_at};
use crate::ntfs::{Attribute, BOOT_LEN, DATA, Geometry, Runs, attributes, mend, record_number};

/// `$ATTRIBUTE_LIST`
const ATTRIBUTE_LIST: u32 = 0x20;

/// Bytes of the list of the table's attributes: the most that Windows makes.
const MAX_LIST: u64 = 256 << 10;

/// Records that tell of a part of the table each.
const MAX_PARTS: usize = 1024;

/// An NTFS volume.
pub struct Records {
    /// The device.
    pub device: File,
    /// Its sizes.
    pub geometry: Geometry,
    /// Where the records are.
    pub table: Runs,
}

impl Records {
    /// Whether there is an NTFS on the volume with this node, whatever else is there.
    #[must_use]
    pub fn may_be_on(node: &Path) -> bool {
        let mut name = [0; 4];
        File::open(node).is_ok_and(|device| device.read_exact_at(&mut name, 3).is_ok())
            && name == *b"NTFS"
    }

    /// Those of the volume with this node; `None` where that is no NTFS.
    #[must_use]
    pub fn open(node: &Path) -> Option<Self> {
        let device = File::open(node).ok()?;
        let mut boot = [0; BOOT_LEN];
        device.read_exact_at(&mut boot, 0).ok()?;
        let geometry = Geometry::parse(&boot)?;
        let mut record = vec![0; usize::try_from(geometry.record).ok()?];
        device.read_exact_at(&mut record, geometry.table).ok()?;
        let table = geometry.table_runs(&mut record)?;
        let mut records = Self { device, geometry, table };
        // A table in so many pieces that one record does not tell of all: what was found of it serves.
        let _ = records.follow_list(&record);
        Some(records)
    }

    /// Adds what other records than the first, `record`, tell of the table.
    fn follow_list(&mut self, record: &[u8]) -> Option<()> {
        let list = self.attribute(record, ATTRIBUTE_LIST, "", MAX_LIST)?;
        let mut rest = list.as_slice();
        for _ in 0..MAX_PARTS {
            let length = usize::from(u16_at(rest, 4)?);
            let (entry, behind) = rest.split_at_checked(length).filter(|_| length >= 0x18)?;
            rest = behind;
            let first = u64_at(entry, 8)?;
            if u32_at(entry, 0)? != DATA || entry[6] != 0 || first == 0 {
                continue;
            }
            // It is in the table itself, in a part that is known by now.
            let part = self.record(record_number(u64_at(entry, 0x10)?))?;
            let mut data = attributes(&part).filter(|attribute| attribute.is(DATA, &[]));
            let runs = data.find_map(|attribute| attribute.runs_from(first, &self.geometry))?;
            self.table.append(runs)?;
        }
        None
    }

    /// `length` bytes at the beginning of what `runs` hold, from `offset` on.
    pub(crate) fn read(&self, runs: &Runs, offset: u64, length: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (start, length) in runs.places(offset, length) {
            let before = bytes.len();
            bytes.resize(before + usize::try_from(length).ok()?, 0);
            self.device.read_exact_at(&mut bytes[before..], start).ok()?;
        }
        (bytes.len() as u64 == length).then_some(bytes)
    }

    /// A record in use.
    #[must_use]
    pub fn record(&self, number: u64) -> Option<Vec<u8>> {
        const IN_USE: u16 = 1;
        let size = self.geometry.record;
        let mut record = self.read(&self.table, number.checked_mul(size)?, size)?;
        mend(&mut record, b"FILE")?;
        (u16_at(&record, 0x16)? & IN_USE != 0).then_some(record)
    }

    /// What an attribute holds, wherever that is.
    fn value(&self, attribute: Attribute, max: u64) -> Option<Vec<u8>> {
        if let Some(value) = attribute.value() {
            return Some(value.to_vec());
        }
        let size = attribute.size().filter(|size| *size <= max)?;
        self.read(&attribute.runs(&self.geometry)?, 0, size)
    }

    /// What the first attribute of this kind and name in a record holds, up to `max` bytes.
    #[must_use]
    pub fn attribute(&self, record: &[u8], kind: u32, name: &str, max: u64) -> Option<Vec<u8>> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let attribute = attributes(record).find(|attribute| attribute.is(kind, &name))?;
        self.value(attribute, max)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const CLUSTER: usize = 4096;

    /// A record of a file with these attributes.
    fn record(attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut record = b"FILE\x30\0\x03\0".to_vec();
        record.resize(0x38, 0);
        (record[0x14], record[0x16]) = (0x38, 1);
        record.extend(attributes.concat());
        record.extend([0xff; 8]);
        let used = u32::try_from(record.len()).unwrap();
        record[0x18..0x1c].copy_from_slice(&used.to_le_bytes());
        record.resize(1024, 0);
        record
    }

    /// Contents from the cluster `first` on.
    fn data(first: u8, list: &[u8]) -> Vec<u8> {
        let mut data = vec![0; 0x40];
        (data[0], data[4], data[8], data[0x20]) = (0x80, 0x50, 1, 0x40);
        (data[0x10], data[0x30]) = (first, 1);
        data.extend(list);
        data.resize(0x50, 0);
        data
    }

    /// The list of attributes: parts of the table, each its first cluster and its record.
    fn list(parts: &[(u8, u8)]) -> Vec<u8> {
        let mut list = vec![0; 0x18];
        list[0] = 0x20;
        for &(first, number) in parts {
            let mut entry = [0; 0x20];
            (entry[0], entry[4], entry[8], entry[0x10]) = (0x80, 0x20, first, number);
            list.extend(entry);
        }
        (list[4], list[0x14]) = (u8::try_from(list.len()).unwrap(), 0x18);
        list[0x10] = list[4] - 0x18;
        list
    }

    /// A volume whose table is at cluster 4, and what is in other clusters.
    fn volume(list: Vec<u8>, others: &[(usize, Vec<u8>)]) -> Option<Records> {
        let mut bytes = vec![0; 64 * CLUSTER];
        bytes[3..11].copy_from_slice(b"NTFS    ");
        (bytes[0x0c], bytes[0x0d], bytes[0x30], bytes[0x40]) = (2, 8, 4, 0xf6);
        bytes[0x29] = 2;
        let first = record(&[list, data(0, &[0x11, 1, 4, 0])]);
        bytes[4 * CLUSTER..][..1024].copy_from_slice(&first);
        for (at, other) in others {
            bytes[*at..][..other.len()].copy_from_slice(other);
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        Records::open(file.path())
    }

    #[test]
    fn a_table_that_several_records_tell_of_is_known_whole() {
        // Record 3 tells of cluster 1, record 5, which is there, of cluster 2.
        let parts = [(0, 0), (1, 3), (2, 5)];
        let others = [
            (4 * CLUSTER + 3 * 1024, record(&[data(1, &[0x11, 1, 20, 0])])),
            (20 * CLUSTER + 1024, record(&[data(2, &[0x11, 1, 30, 0])])),
            (30 * CLUSTER + 2048, record(&[])),
        ];
        let records = volume(list(&parts), &others).unwrap();
        assert!([0, 3, 5, 10].into_iter().all(|number| records.record(number).is_some()));
        assert_eq!(records.record(9), None);
        assert_eq!(records.record(12), None);
    }

    #[test]
    fn parts_of_a_table_that_make_no_sense_are_left_out() {
        let third = (4 * CLUSTER + 3 * 1024, record(&[data(1, &[0x11, 1, 20, 0])]));
        let there = (20 * CLUSTER + 1024, record(&[]));
        let knows = |parts: &[(u8, u8)]| {
            let records = volume(list(parts), &[third.clone(), there.clone()]).unwrap();
            (records.record(3).is_some(), records.record(5).is_some())
        };
        assert_eq!(knows(&[(1, 3)]), (true, true));
        // Of a record that is not in use, one beyond the table, another part, and the same twice.
        assert_eq!(knows(&[(1, 2)]), (true, false));
        assert_eq!(knows(&[(1, 200)]), (true, false));
        assert_eq!(knows(&[(2, 3)]), (true, false));
        assert_eq!(knows(&[(1, 3), (1, 3)]), (true, true));
        let mut torn = list(&[(1, 3)]);
        torn[0x1c] = 7;
        assert!(volume(torn, std::slice::from_ref(&third)).is_some());
    }
}
