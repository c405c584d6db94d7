//! Folders of an NTFS volume into which Windows mounts other volumes, by the volume's own index of
//! reparse points. The kernel's driver shows them as links that cannot be read.
//!
//! Follows fs/ntfs3/ntfs.h of Linux and \[MS-FSCC\] 2.1.2.5. Everything is untrusted: what makes no
//! sense gives nothing. An index that is spread over several records of its file is not followed.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use guestmnt_protocol::path::GuestPath;

use crate::ntfs::{Attribute, BOOT_LEN, Geometry, Runs, attributes, mend, u16_at, u32_at, u64_at};

/// A folder and what is mounted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// The folder, from the volume's root.
    pub at: GuestPath,
    /// The GUID by which Windows knows the other volume, without braces, as it is stored.
    pub volume: String,
}

/// Kinds of attributes.
const FILE_NAME: u32 = 0x30;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;
const REPARSE_POINT: u32 = 0xc0;

/// `IO_REPARSE_TAG_MOUNT_POINT`, of junctions as well.
const MOUNT_POINT: u32 = 0xa000_0003;

/// The record of the root directory, and of the one with the volume's own files.
const ROOT: u64 = 5;
const EXTEND: u64 = 11;

/// Bytes of an index that are read: compressed Windows files have reparse points by the ten thousand.
const MAX_INDEX: u64 = 8 << 20;

/// Mount points that are looked at, and folders above one.
const MAX_POINTS: usize = 1024;
const MAX_DEPTH: usize = 128;

/// The mount points of the volume with this node.
#[must_use]
pub fn volume_mounts(node: &Path) -> Vec<VolumeMount> {
    let found = || {
        let volume = Volume::open(node)?;
        let extend = volume.record(EXTEND)?;
        let own = volume.index(&extend, "$I30");
        let file = own.iter().find(|entry| {
            name_in(entry.get(KEY..).unwrap_or_default()).as_deref() == Some("$Reparse")
        })?;
        let index = volume.index(&volume.record(number(u64_at(file, 0)?))?, "$R");
        let points = index.iter().filter(|entry| u32_at(entry, KEY) == Some(MOUNT_POINT));
        let numbers = points.filter_map(|entry| Some(number(u64_at(entry, KEY + 4)?)));
        Some(numbers.take(MAX_POINTS).filter_map(|point| volume.mount_at(point)).collect())
    };
    found().unwrap_or_default()
}

/// Where an index entry's key begins.
const KEY: usize = 0x10;

/// A record's number in a reference to it, whose upper bits say how often the record was used.
fn number(reference: u64) -> u64 {
    reference & 0xffff_ffff_ffff
}

struct Volume {
    device: File,
    geometry: Geometry,
    table: Runs,
}

impl Volume {
    fn open(node: &Path) -> Option<Self> {
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
    fn read(&self, runs: &Runs, offset: u64, length: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (start, length) in runs.places(offset, length) {
            let before = bytes.len();
            bytes.resize(before + usize::try_from(length).ok()?, 0);
            self.device.read_exact_at(&mut bytes[before..], start).ok()?;
        }
        (bytes.len() as u64 == length).then_some(bytes)
    }

    /// A record in use.
    fn record(&self, number: u64) -> Option<Vec<u8>> {
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

    fn attribute(&self, record: &[u8], kind: u32, name: &str, max: u64) -> Option<Vec<u8>> {
        let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let attribute = attributes(record).find(|attribute| attribute.is(kind, &name))?;
        self.value(attribute, max)
    }

    /// The entries of the index `name` of a file, those of its blocks that are not in use as well:
    /// what an entry says is confirmed by the file that it names.
    fn index(&self, record: &[u8], name: &str) -> Vec<Vec<u8>> {
        let root = self.attribute(record, INDEX_ROOT, name, MAX_INDEX).unwrap_or_default();
        let mut entries = entries_of(root.get(0x10..).unwrap_or_default());
        let size = u32_at(&root, 8).and_then(|size| usize::try_from(size).ok());
        let size = size.filter(|size| size.is_power_of_two() && (512..=1 << 16).contains(size));
        let blocks = self.attribute(record, INDEX_ALLOCATION, name, MAX_INDEX).unwrap_or_default();
        for block in size.iter().flat_map(|size| blocks.chunks_exact(*size)) {
            let mut block = block.to_vec();
            if mend(&mut block, b"INDX").is_some() {
                entries.extend(entries_of(&block[0x18..]));
            }
        }
        entries
    }

    fn mount_at(&self, point: u64) -> Option<VolumeMount> {
        let record = self.record(point)?;
        let data = self.attribute(&record, REPARSE_POINT, "", 1 << 14)?;
        let volume = volume_of(&data)?;
        let mut names = Vec::new();
        let mut record = record;
        loop {
            let (name, parent) = name_and_parent(&record)?;
            names.push(name);
            if parent == ROOT {
                break;
            }
            if names.len() == MAX_DEPTH {
                return None;
            }
            record = self.record(parent)?;
        }
        names.reverse();
        let at = GuestPath::new(names.join("/").into_bytes()).ok()?;
        Some(VolumeMount { at, volume })
    }
}

/// The entries of a node of an index, which begins with its header.
fn entries_of(node: &[u8]) -> Vec<Vec<u8>> {
    const LAST: u16 = 2;
    let within = |at| u32_at(node, at).and_then(|offset| usize::try_from(offset).ok());
    let bounds = within(0).zip(within(4)).and_then(|(first, end)| node.get(first..end));
    let mut rest = bounds.unwrap_or_default();
    let mut entries = Vec::new();
    while let Some(length) = u16_at(rest, 8).map(usize::from)
        && u16_at(rest, 0xc).is_some_and(|flags| flags & LAST == 0)
        && length >= KEY
        && let Some((entry, behind)) = rest.split_at_checked(length)
    {
        entries.push(entry.to_vec());
        rest = behind;
    }
    entries
}

/// The name in a `$FILE_NAME`.
fn name_in(value: &[u8]) -> Option<String> {
    let length = 2 * usize::from(*value.get(0x40)?);
    text(value.get(0x42..0x42 + length)?)
}

/// A file's name, not the short one for DOS, and the directory that it is in.
fn name_and_parent(record: &[u8]) -> Option<(String, u64)> {
    const DOS: u8 = 2;
    let names = attributes(record).filter(|attribute| attribute.is(FILE_NAME, &[]));
    let mut names = names.filter_map(|attribute| attribute.value());
    let value = names.find(|value| value.get(0x41).is_some_and(|namespace| *namespace != DOS))?;
    Some((name_in(value)?, number(u64_at(value, 0)?)))
}

/// The volume in the data of a mount point; `None` for a junction.
fn volume_of(data: &[u8]) -> Option<String> {
    if u32_at(data, 0)? != MOUNT_POINT {
        return None;
    }
    let at = 0x10 + usize::from(u16_at(data, 8)?);
    let name = text(data.get(at..at + usize::from(u16_at(data, 0xa)?))?)?;
    let guid = name.strip_prefix("\\??\\Volume{")?.trim_end_matches('\\').strip_suffix('}')?;
    Some(guid.to_owned())
}

/// UTF-16 that is in order.
fn text(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units).collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reparse_data(target: &str) -> Vec<u8> {
        let name: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let length = u16::try_from(name.len()).unwrap();
        let mut data = MOUNT_POINT.to_le_bytes().to_vec();
        for number in [length + 12, 0, 0, length, length + 2, 0] {
            data.extend(number.to_le_bytes());
        }
        data.extend(name);
        data.extend([0; 4]);
        data
    }

    #[test]
    fn mount_points_are_told_from_junctions() {
        let guid = "4c1b02c1-d990-11dc-99ae-806e6f6e6963";
        let point = reparse_data(&format!("\\??\\Volume{{{guid}}}\\"));
        assert_eq!(volume_of(&point).as_deref(), Some(guid));
        assert_eq!(volume_of(&reparse_data("\\??\\C:\\Users")), None);
        for length in 0..point.len() - 6 {
            assert_eq!(volume_of(&point[..length]), None, "{length}");
        }
    }

    #[test]
    fn entries_that_lead_out_of_a_node_end_it() {
        let mut node = vec![0; 0x10];
        node[0] = 0x10;
        let mut entry = vec![7; 0x20];
        entry[8..10].copy_from_slice(&0x20u16.to_le_bytes());
        entry[0xc..0xe].copy_from_slice(&[0, 0]);
        node.extend(&entry);
        node.extend(&entry);
        node[4] = 0x50;
        assert_eq!(entries_of(&node).len(), 2);
        for (at, wrong) in [(0x18, 0), (0x18, 0xff), (0, 0xff), (4, 0xff), (0x1c, 2)] {
            let mut node = node.clone();
            node[at] = wrong;
            assert!(entries_of(&node).is_empty(), "{at}");
        }
        assert!(entries_of(&[]).is_empty());
    }
}
