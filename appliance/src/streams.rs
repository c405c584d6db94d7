//! What an attribute of a file of NTFS holds, wherever its parts are: in the file's record, outside
//! of it, or in further records that a list of attributes names.
//!
//! **Invariant:** everything is untrusted: what makes no sense is not there, and nothing is made up
//! for what is missing.

use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::little_endian::{u16_at, u64_at};
use crate::ntfs::{Attribute, Runs, attributes, record_number};
use crate::records::Records;

/// `$ATTRIBUTE_LIST`
const LIST: u32 = 0x20;

/// Most bytes of such a list. Source: fs/ntfs3/attrlist.c.
const MAX_LIST: u64 = 256 << 10;

/// Flags of an attribute.
const COMPRESSED: u16 = 0x00ff;
const ENCRYPTED: u16 = 0x4000;
const SPARSE: u16 = 0x8000;

/// What an attribute holds.
pub struct Stream {
    /// Bytes that it has.
    pub size: u64,
    flags: u16,
    kept: Kept,
}

enum Kept {
    /// These bytes.
    Here(Vec<u8>),
    /// At these places, up to the byte from which on nothing was written.
    Outside(Runs, u64),
}

impl Records {
    /// The attribute of this kind and name of the file `number`.
    #[must_use]
    pub fn stream(&self, number: u64, kind: u32, name: &str) -> Option<Stream> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let record = self.record(number)?;
        let list = attributes(&record).find(|attribute| attribute.is(LIST, &[]));
        let Some(list) = list else {
            let first = attributes(&record).find(|attribute| attribute.is(kind, &name))?;
            return Stream::begin(first, self)?.whole();
        };
        let list = Stream::begin(list, self)?.whole().filter(|list| list.size <= MAX_LIST)?;
        let mut bytes = vec![0; usize::try_from(list.size).ok()?];
        list.read(self, 0, &mut bytes).ok()?;
        let mut found: Option<Stream> = None;
        for part in parts(&bytes).filter(|part| part.kind == kind && part.name == name) {
            let record = self.record(part.record)?;
            let mut attributes = attributes(&record);
            let attribute = attributes.find(|attribute| {
                attribute.is(kind, &name) && attribute.begins_at().unwrap_or(0) == part.first
            })?;
            match &mut found {
                None => found = Some(Stream::begin(attribute, self)?),
                Some(stream) => stream.go_on(attribute, self)?,
            }
        }
        found?.whole()
    }
}

/// A part of an attribute, by the list of a file's attributes.
struct Part<'a> {
    kind: u32,
    name: &'a [u8],
    /// The first cluster that it holds.
    first: u64,
    /// The record that it is in.
    record: u64,
}

fn parts(mut list: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        const HEADER: usize = 0x1a;
        let length = usize::from(u16_at(list, 4)?);
        let (part, behind) = list.split_at_checked(length).filter(|_| length >= HEADER)?;
        list = behind;
        let at = usize::from(part[7]);
        Some(Part {
            kind: u32::from_le_bytes(part[..4].try_into().ok()?),
            name: part.get(at..at + 2 * usize::from(part[6])).unwrap_or_default(),
            first: u64_at(part, 8)?,
            record: record_number(u64_at(part, 16)?),
        })
    })
}

impl Stream {
    /// The part with which an attribute begins.
    fn begin(attribute: Attribute, records: &Records) -> Option<Self> {
        let flags = attribute.flags()?;
        if let Some(value) = attribute.value() {
            return Some(Self {
                size: value.len() as u64,
                flags,
                kept: Kept::Here(value.to_vec()),
            });
        }
        let runs = attribute.runs(&records.geometry)?;
        let written = attribute.written()?;
        Some(Self { size: attribute.size()?, flags, kept: Kept::Outside(runs, written) })
    }

    fn go_on(&mut self, attribute: Attribute, records: &Records) -> Option<()> {
        let Kept::Outside(runs, _) = &mut self.kept else { return None };
        runs.append(attribute.later_runs(&records.geometry)?)
    }

    /// Itself, where what it holds can be told by where it is.
    fn whole(self) -> Option<Self> {
        (self.flags & ENCRYPTED == 0).then_some(self)
    }

    /// Whether some of it has no place, since it is sparse.
    #[must_use]
    pub fn has_holes(&self) -> bool {
        let Kept::Outside(runs, _) = &self.kept else { return false };
        let placed: u64 = runs.places(0, self.size).map(|(_, length)| length).sum();
        self.flags & SPARSE != 0 && placed < self.size
    }

    /// Fills `bytes` from byte `offset` on.
    ///
    /// # Errors
    /// `EIO` where it does not hold as many, or the device does not; `EOPNOTSUPP` where NTFS
    /// compressed it.
    pub fn read(&self, records: &Records, offset: u64, bytes: &mut [u8]) -> nix::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or(Errno::EIO)?;
        match &self.kept {
            _ if self.flags & COMPRESSED != 0 => Err(Errno::EOPNOTSUPP),
            Kept::Here(value) => {
                let start = usize::try_from(offset).map_err(|_| Errno::EIO)?;
                bytes.copy_from_slice(&value[start..start + bytes.len()]);
                Ok(())
            }
            Kept::Outside(_, written) if end > *written => Err(Errno::EIO),
            Kept::Outside(runs, _) => {
                let mut filled = 0;
                for (start, length) in runs.places(offset, bytes.len() as u64) {
                    let length = usize::try_from(length).map_err(|_| Errno::EIO)?;
                    let piece = bytes.get_mut(filled..filled + length).ok_or(Errno::EIO)?;
                    records.device.read_exact_at(piece, start).map_err(|_| Errno::EIO)?;
                    filled += length;
                }
                // What has no place would have been taken for what is behind it.
                if filled == bytes.len() { Ok(()) } else { Err(Errno::EIO) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_the_parts_of_attributes() {
        let mut list = Vec::new();
        for (first, record) in [(0u64, 40u64), (7, 41)] {
            let mut part = vec![0; 0x20];
            part[..8].copy_from_slice(&[0x80, 0, 0, 0, 0x20, 0, 2, 0x1a]);
            part[8..16].copy_from_slice(&first.to_le_bytes());
            part[16..24].copy_from_slice(&(record | 3 << 48).to_le_bytes());
            part[0x1a..0x1e].copy_from_slice(b"a\0b\0");
            list.extend(part);
        }
        let found = |list: &[u8]| -> Vec<_> {
            parts(list)
                .map(|part| (part.kind, part.name.to_vec(), part.first, part.record))
                .collect()
        };
        let name = b"a\0b\0".to_vec();
        assert_eq!(found(&list), [(0x80, name.clone(), 0, 40), (0x80, name.clone(), 7, 41)]);
        assert_eq!(found(&list[..0x3f]), [(0x80, name, 0, 40)]);
        list[4] = 3;
        assert_eq!(found(&list), []);
    }
}
