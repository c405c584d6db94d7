//! The records of the files of an NTFS volume, read from its device.
//!
//! **Invariant:** everything is untrusted: what makes no sense is not there. A file whose attributes
//! are spread over several records has those of the first.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::little_endian::u16_at;
use crate::ntfs::{Attribute, BOOT_LEN, Geometry, Runs, attributes, mend};

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
        Some(Self { device, geometry, table })
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
