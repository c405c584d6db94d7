//! Folders of an NTFS volume into which Windows mounts other volumes, by the volume's own index of
//! reparse points. The kernel's driver shows them as links that cannot be read.
//!
//! Follows fs/ntfs3/ntfs.h of Linux. Everything is untrusted: what makes no
//! sense gives nothing, and that something may be missing is part of the answer.

use std::path::Path;

use guestmnt_protocol::path::GuestPath;

use crate::little_endian::{u16_at, u32_at, u64_at};
use crate::ntfs::{attributes, mend, record_number};
use crate::records::Records;
use crate::reparse::{self, Absolute, Link, Root, text};
use crate::reparse_index::{self, Found};

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

/// The record of the root directory, and of the one with the volume's own files.
const ROOT: u64 = 5;
const EXTEND: u64 = 11;

/// Bytes of the index of [`EXTEND`] that are read: it has a handful of files.
const MAX_INDEX: u64 = 1 << 20;

/// Mount points and junctions that are looked at, and folders above one. Some programs make
/// junctions by the ten thousand.
const MAX_POINTS: usize = 1 << 17;
const MAX_DEPTH: usize = 128;

/// The mount points of a volume.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct VolumeMounts {
    /// Those that were found.
    pub points: Vec<VolumeMount>,
    /// Whether there may be others: a part of the volume's index or the record of one of them cannot
    /// be read, or they are too many.
    pub is_incomplete: bool,
}

/// The mount points of the volume with this node; none where that is no NTFS.
#[must_use]
pub fn volume_mounts(node: &Path) -> VolumeMounts {
    let found = || {
        let records = Records::open(node)?;
        let extend = records.record(EXTEND)?;
        let own = index(&records, &extend, "$I30");
        let file = own.iter().find(|entry| {
            name_in(entry.get(KEY..).unwrap_or_default()).as_deref() == Some("$Reparse")
        });
        // Without a reparse point there need not be such a file.
        let Some(file) = file else { return Some(VolumeMounts::default()) };
        let record = records.record(record_number(u64_at(file, 0)?))?;
        let tag = reparse::MOUNT_POINT;
        let Found { files, is_whole } =
            reparse_index::files_with_tag(&records, &record, tag, MAX_POINTS);
        let mut found = VolumeMounts { points: Vec::new(), is_incomplete: !is_whole };
        for point in files {
            match mount_at(&records, point) {
                Some(mount) => found.points.extend(mount),
                None => found.is_incomplete = true,
            }
        }
        Some(found)
    };
    let nothing = || VolumeMounts { is_incomplete: Records::may_be_on(node), points: Vec::new() };
    found().unwrap_or_else(nothing)
}

/// Where an index entry's key begins.
const KEY: usize = 0x10;

/// The entries of the index `name` of a file, those of its blocks that are not in use as well:
/// what an entry says is confirmed by the file that it names.
fn index(records: &Records, record: &[u8], name: &str) -> Vec<Vec<u8>> {
    let root = records.attribute(record, INDEX_ROOT, name, MAX_INDEX).unwrap_or_default();
    let mut entries = entries_of(root.get(0x10..).unwrap_or_default());
    let size = u32_at(&root, 8).and_then(|size| usize::try_from(size).ok());
    let size = size.filter(|size| size.is_power_of_two() && (512..=1 << 16).contains(size));
    let blocks = records.attribute(record, INDEX_ALLOCATION, name, MAX_INDEX).unwrap_or_default();
    for block in size.iter().flat_map(|size| blocks.chunks_exact(*size)) {
        let mut block = block.to_vec();
        if mend(&mut block, b"INDX").is_some() {
            entries.extend(entries_of(&block[0x18..]));
        }
    }
    entries
}

/// The mount point with this record; `Some(None)` where it is a junction, `None` where it cannot be
/// read.
fn mount_at(records: &Records, point: u64) -> Option<Option<VolumeMount>> {
    let record = records.record(point)?;
    let data = records.attribute(&record, reparse::ATTRIBUTE, "", reparse::MAX_LEN)?;
    let Some(volume) = volume_of(&Link::parse(&data)?) else { return Some(None) };
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
        record = records.record(parent)?;
    }
    names.reverse();
    let at = GuestPath::new(names.join("/").into_bytes()).ok()?;
    Some(Some(VolumeMount { at, volume }))
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
    Some((name_in(value)?, record_number(u64_at(value, 0)?)))
}

/// The volume of a mount point; `None` for a junction.
fn volume_of(link: &Link) -> Option<String> {
    match link.absolute()? {
        Absolute { root: Root::Volume(guid), names } if names.is_empty() && link.is_junction() => {
            Some(guid)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
