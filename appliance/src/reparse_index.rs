//! The files of an NTFS volume with one kind of reparse point, by the volume's own index of these,
//! `$R` of the file `$Extend\$Reparse`.
//!
//! It is a B-tree in the order of tags, then of files. Only the nodes that may hold the wanted tag
//! are read: compressed Windows files have reparse points by the hundred thousand.
//!
//! Follows fs/ntfs3/ntfs.h and `compare_uint()` in fs/ntfs3/index.c of Linux. Everything is untrusted.
//! An index that is spread over several records of its file is not followed.

use std::collections::BTreeSet;

use crate::little_endian::{u16_at, u32_at, u64_at};
use crate::ntfs::{Runs, attributes, mend, record_number};
use crate::records::Records;

/// Kinds of attributes.
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;

/// The name of the index.
const NAME: &str = "$R";

/// Bytes of its root that are read: it is in a record.
const MAX_ROOT: u64 = 4096;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The numbers of the files' records.
    pub files: Vec<u64>,
    /// Whether these are all of them: nothing of the index was damaged or too much.
    pub is_whole: bool,
}

/// Up to `most` files with the reparse tag `tag`; `record` is that of the index' file.
#[must_use]
pub fn files_with_tag(records: &Records, record: &[u8], tag: u32, most: usize) -> Found {
    let mut search = Search { tag, most, files: Vec::new(), nodes: Vec::new() };
    let is_whole = search.run(records, record).is_some();
    Found { files: search.files, is_whole }
}

struct Search {
    tag: u32,
    most: usize,
    files: Vec<u64>,
    /// Nodes to be looked at.
    nodes: Vec<u64>,
}

impl Search {
    /// `None` where it had to leave something out.
    fn run(&mut self, records: &Records, record: &[u8]) -> Option<()> {
        let root = records.attribute(record, INDEX_ROOT, NAME, MAX_ROOT)?;
        let mut is_whole = self.visit(root.get(0x10..)?);
        let size = u64::from(u32_at(&root, 8)?);
        if !size.is_power_of_two() || !(512..=1 << 16).contains(&size) {
            return None;
        }
        let cluster = records.geometry.cluster;
        let unit = if cluster <= size { cluster } else { 512 };
        let runs = blocks_of(records, record);
        let mut seen = BTreeSet::new();
        while let Some(node) = self.nodes.pop() {
            let block = || {
                let runs = runs.as_ref().filter(|_| seen.insert(node))?;
                let mut block = records.read(runs, node.checked_mul(unit)?, size)?;
                mend(&mut block, b"INDX")?;
                (u64_at(&block, 0x10)? == node).then_some(block)
            };
            // What is in other nodes is found all the same.
            let visited = { block }().and_then(|block| self.visit(&block[0x18..]));
            is_whole = is_whole.and(visited);
        }
        is_whole
    }

    /// Takes the files of a node, which begins with its header, and notes the nodes below it that may
    /// have more.
    fn visit(&mut self, node: &[u8]) -> Option<()> {
        /// Of an entry.
        const KEY: usize = 0x10;
        const HAS_NODE: u16 = 1;
        const LAST: u16 = 2;
        let within = |at| u32_at(node, at).and_then(|offset| usize::try_from(offset).ok());
        let mut rest = node.get(within(0)?..within(4)?)?;
        let mut last_tag = 0;
        loop {
            let length = usize::from(u16_at(rest, 8)?);
            let flags = u16_at(rest, 0xc)?;
            let (entry, behind) = rest.split_at_checked(length).filter(|_| length >= KEY)?;
            let own = if flags & LAST == 0 { Some(u32_at(entry, KEY)?) } else { None };
            // What is below an entry comes before it.
            let is_between = last_tag <= self.tag && own.is_none_or(|own| self.tag <= own);
            if flags & HAS_NODE != 0 && is_between {
                self.nodes.push(u64_at(entry, length.checked_sub(8)?)?);
            }
            match own {
                None => return Some(()),
                Some(own) if own > self.tag => return Some(()),
                Some(own) if own < last_tag => return None,
                Some(own) if own == self.tag => {
                    if self.files.len() == self.most {
                        self.nodes.clear();
                        return None;
                    }
                    self.files.push(record_number(u64_at(entry, KEY + 4)?));
                }
                Some(_) => {}
            }
            last_tag = own.unwrap_or(last_tag);
            rest = behind;
        }
    }
}

/// Where the nodes of the index are but its root.
fn blocks_of(records: &Records, record: &[u8]) -> Option<Runs> {
    let name: Vec<u8> = NAME.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut all = attributes(record);
    all.find(|attribute| attribute.is(INDEX_ALLOCATION, &name))?.runs(&records.geometry)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::ntfs::{BOOT_LEN, Geometry};

    const TAG: u32 = 0xa000_0003;
    /// Clusters and nodes of 4 KiB.
    const NODE: u64 = 4096;
    /// The cluster at which the nodes are.
    const NODES: u64 = 16;

    fn entry(key: Option<(u32, u64)>, below: Option<u64>) -> Vec<u8> {
        let mut entry = vec![0; 0x10];
        if let Some((tag, file)) = key {
            entry.extend(tag.to_le_bytes());
            entry.extend((file | 3 << 48).to_le_bytes());
            entry.extend([0; 4]);
        }
        entry.extend(below.iter().flat_map(|node| node.to_le_bytes()));
        let length = u16::try_from(entry.len()).unwrap().to_le_bytes();
        entry[8..10].copy_from_slice(&length);
        entry[0xc] = u8::from(below.is_some()) | if key.is_none() { 2 } else { 0 };
        entry
    }

    /// Entries behind a header.
    fn node(entries: &[Vec<u8>], first: u32) -> Vec<u8> {
        let entries = entries.concat();
        let end = first + u32::try_from(entries.len()).unwrap();
        let mut node = [first.to_le_bytes(), end.to_le_bytes(), [0; 4], [0; 4]].concat();
        node.resize(first as usize, 0);
        node.extend(entries);
        node
    }

    /// A block of the index, as it is on the disk.
    fn block(own: u64, entries: &[Vec<u8>]) -> Vec<u8> {
        let mut block = b"INDX\x28\0\x09\0".to_vec();
        block.resize(0x10, 0);
        block.extend(own.to_le_bytes());
        block.extend(node(entries, 0x28));
        block.resize(4096, 0);
        // Zeros are what belongs at the sectors' ends: nothing reaches there.
        block
    }

    fn resident(kind: u32, value: &[u8]) -> Vec<u8> {
        let mut attribute = vec![0; 0x20];
        attribute[..4].copy_from_slice(&kind.to_le_bytes());
        attribute[0x10] = u8::try_from(value.len()).unwrap();
        (attribute[9], attribute[0x0a], attribute[0x14]) = (2, 0x18, 0x20);
        attribute[0x18..0x1c].copy_from_slice(b"$\0R\0");
        attribute.extend(value);
        attribute.resize(attribute.len().next_multiple_of(8), 0);
        let length = u8::try_from(attribute.len()).unwrap();
        attribute[4] = length;
        attribute
    }

    /// The record of a file with an index: its root's entries, and how many clusters it has.
    fn record(root: &[Vec<u8>], clusters: u32) -> Vec<u8> {
        let mut value = vec![0; 0x10];
        value[8..12].copy_from_slice(&4096u32.to_le_bytes());
        value.extend(node(root, 0x10));
        let mut outside = vec![0; 0x50];
        outside[..4].copy_from_slice(&INDEX_ALLOCATION.to_le_bytes());
        outside[4] = 0x50;
        (outside[8], outside[9], outside[0x0a], outside[0x20]) = (1, 2, 0x40, 0x44);
        outside[0x40..0x44].copy_from_slice(b"$\0R\0");
        let size = u64::from(clusters) * NODE;
        outside[0x30..0x38].copy_from_slice(&size.to_le_bytes());
        let [one, two, three, _] = clusters.to_le_bytes();
        outside[0x44..0x4a].copy_from_slice(&[0x13, one, two, three, NODES.to_le_bytes()[0], 0]);
        let mut record = vec![0; 0x38];
        record[0x14] = 0x38;
        record.extend(resident(INDEX_ROOT, &value));
        record.extend(outside);
        record.extend([0xff; 8]);
        let used = u32::try_from(record.len()).unwrap();
        record[0x18..0x1c].copy_from_slice(&used.to_le_bytes());
        record.resize(1024, 0);
        record
    }

    fn volume(blocks: &[(u64, Vec<u8>)]) -> Records {
        let device = tempfile::tempfile().unwrap();
        for (number, block) in blocks {
            device.write_all_at(block, (NODES + number) * NODE).unwrap();
        }
        let mut boot = [0; BOOT_LEN];
        boot[3..11].copy_from_slice(b"NTFS    ");
        (boot[0x0c], boot[0x0d], boot[0x30], boot[0x40]) = (2, 8, 4, 0xf6);
        boot[0x28..0x2c].copy_from_slice(&(1u32 << 24).to_le_bytes());
        Records { device, geometry: Geometry::parse(&boot).unwrap(), table: Runs::default() }
    }

    fn key(tag: u32, file: u64) -> Option<(u32, u64)> {
        Some((tag, file))
    }

    #[test]
    fn files_are_found_in_an_index_of_any_size() {
        // Others before and behind, in an index of 4 GiB, most of which is not there.
        let far = 999_999;
        let many = |from: u64| {
            let mut all: Vec<_> = (from..from + 50).map(|n| entry(key(TAG, n), None)).collect();
            all.push(entry(None, None));
            all
        };
        let mut first = vec![entry(key(TAG - 9, 7), Some(77_777)), entry(key(TAG, 30), None)];
        first.extend(many(31));
        let records = volume(&[(5, block(5, &first)), (far, block(far, &many(200)))]);
        let root = [
            entry(key(TAG - 10, 1), Some(88_888)),
            entry(key(TAG, 100), Some(5)),
            entry(key(TAG + 1, 9), Some(far)),
            entry(None, Some(66_666)),
        ];
        let record = record(&root, 1 << 20);
        let mut found = files_with_tag(&records, &record, TAG, 1000);
        found.files.sort_unstable();
        let expected = (30..81).chain([100]).chain(200..250).collect();
        assert_eq!(found, Found { files: expected, is_whole: true });
        let some = files_with_tag(&records, &record, TAG, 60);
        assert_eq!((some.files.len(), some.is_whole), (60, false));
    }

    #[test]
    fn what_is_damaged_is_told_and_the_rest_is_found() {
        let leaf =
            |own: u64, file: u64| block(own, &[entry(key(TAG, file), None), entry(None, None)]);
        let circle = block(2, &[entry(key(TAG, 9), Some(2)), entry(None, None)]);
        let mut torn = leaf(3, 3);
        torn[510] = 1;
        let blocks = [(1, leaf(1, 1)), (2, circle), (3, torn), (4, leaf(5, 4))];
        let records = volume(&blocks);
        let found = |below: u64| {
            let root = [entry(key(TAG, 7), Some(below)), entry(None, Some(1))];
            let Found { mut files, is_whole } =
                files_with_tag(&records, &record(&root, 100), TAG, 1000);
            files.sort_unstable();
            (files, is_whole)
        };
        // In a circle, torn, another one's, empty, beyond the index and beyond all numbers.
        assert_eq!(found(2), (vec![1, 7, 9], false));
        for below in [3, 4, 6, 200, u64::MAX] {
            assert_eq!(found(below), (vec![1, 7], false), "{below}");
        }
        let root = [entry(None, Some(1))];
        assert_eq!(files_with_tag(&records, &record(&root, 100), TAG, 9).files, [1]);
        assert!(!files_with_tag(&records, &[0; 1024], TAG, 9).is_whole);
    }
}
