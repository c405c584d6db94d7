//! Names of extended attributes of HFS+, read from the volume's tree of attributes.
//!
//! hfsplus drops the last letter of each name that it lists, and more; asked by its name, an attribute
//! is found unless that has a colon, of which the driver makes a slash. So names, and the values of
//! such attributes, are read from the device, and whatever cannot be read is an error, never an
//! attribute less.
//!
//! Follows Apple's Technical Note TN1150. **Invariant:** everything is untrusted: what makes no sense
//! gives nothing, and no walk is longer than [`MAX_NODES`].

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What statfs(2) calls hfsplus, `HFSPLUS_SUPER_MAGIC`.
pub const MAGIC: i64 = 0x482b;

/// Nodes that are read for one file.
const MAX_NODES: usize = 4096;

/// Largest node, and most levels of a tree.
const MAX_NODE: usize = 32 << 10;
const MAX_DEPTH: usize = 16;

/// The attribute that the driver makes of what the catalog says of a file.
const FINDER_INFO: &str = "osx.com.apple.FinderInfo";

/// The names of the attributes of file `number` of the volume on `node`, as the driver wants them;
/// `listed` is what it listed. `None` where they cannot be read.
#[must_use]
pub fn names(node: &Path, number: u64, listed: &[u8]) -> Option<Vec<String>> {
    let mut names: Vec<String> = attributes(node, number)?.into_keys().collect();
    let cut = &FINDER_INFO.as_bytes()[..FINDER_INFO.len() - 1];
    let is_listed = listed.split(|&byte| byte == 0).any(|name| name.starts_with(cut));
    if is_listed && !names.iter().any(|name| name == FINDER_INFO) {
        names.push(FINDER_INFO.to_owned());
        names.sort();
    }
    Some(names)
}

/// The value of the attribute `name`, as the driver wants it, of file `number` of the volume on `node`.
/// `None` where it cannot be read, or is not in the tree of attributes itself.
#[must_use]
pub fn value(node: &Path, number: u64, name: &str) -> Option<Vec<u8>> {
    attributes(node, number)?.remove(name)?
}

/// The attributes of file `number` of the volume on `node`, by the names that the driver wants, each
/// with its value where that is in the tree of attributes itself.
fn attributes(node: &Path, number: u64) -> Option<BTreeMap<String, Option<Vec<u8>>>> {
    let tree = Tree::open(File::open(node).ok()?)?;
    let attributes = tree.attributes(u32::try_from(number).ok()?)?;
    Some(attributes.into_iter().map(|(name, value)| (shown(&name), value)).collect())
}

/// A name of the volume as the driver wants it: those of Linux have their own namespaces.
fn shown(name: &str) -> String {
    let is_of_linux =
        ["user.", "trusted.", "security.", "system."].iter().any(|space| name.starts_with(space));
    if is_of_linux { name.to_owned() } else { format!("osx.{name}") }
}

/// The tree of attributes.
struct Tree<D> {
    device: D,
    /// Where it is, as first bytes and lengths.
    extents: Vec<(u64, u64)>,
    node: usize,
    root: u32,
}

/// What a node is.
#[derive(PartialEq, Eq)]
enum Kind {
    Leaf,
    Index,
}

struct Record<'a> {
    file: u32,
    /// UTF-16, big-endian.
    name: &'a [u8],
    /// What follows the key.
    data: &'a [u8],
}

impl<D: FileExt> Tree<D> {
    fn open(device: D) -> Option<Self> {
        const HEADER: u64 = 1024;
        const FORK: usize = 352;
        let mut header = [0; 512];
        device.read_exact_at(&mut header, HEADER).ok()?;
        if !matches!(&header[..2], b"H+" | b"HX") {
            return None;
        }
        let block = u64::from(u32_at(&header, 40)?);
        let extents = header[FORK + 16..FORK + 80].chunks_exact(8).map(|extent| {
            let number = |at| u32_at(extent, at).map(u64::from);
            Some((number(0)?.checked_mul(block)?, number(4)?.checked_mul(block)?))
        });
        let mut tree =
            Self { device, extents: extents.collect::<Option<_>>()?, node: 512, root: 0 };
        let first = tree.read(0)?;
        tree.root = u32_at(&first, 16)?;
        tree.node = usize::from(u16_at(&first, 32)?);
        (tree.node.is_power_of_two() && (512..=MAX_NODE).contains(&tree.node)).then_some(tree)
    }

    /// A node. Those beyond the extents in the volume's header are not found.
    fn read(&self, number: u32) -> Option<Vec<u8>> {
        let mut at = u64::from(number).checked_mul(self.node as u64)?;
        let mut bytes = vec![0; self.node];
        let mut filled = 0;
        for &(start, length) in &self.extents {
            if filled < bytes.len() && at < length {
                let count = (bytes.len() - filled).min(usize::try_from(length - at).ok()?);
                let piece = &mut bytes[filled..filled + count];
                self.device.read_exact_at(piece, start.checked_add(at)?).ok()?;
                filled += count;
                at = 0;
            } else {
                at = at.saturating_sub(length);
            }
        }
        (filled == bytes.len()).then_some(bytes)
    }

    /// The attributes of `file`, each with its value where that is in its record.
    fn attributes(&self, file: u32) -> Option<BTreeMap<String, Option<Vec<u8>>>> {
        let mut attributes = BTreeMap::new();
        if self.root == 0 {
            return Some(attributes);
        }
        let mut node = self.read(self.root)?;
        for _ in 0..MAX_DEPTH {
            if kind(&node)? == Kind::Leaf {
                break;
            }
            // The last one before the file's own, which may begin in the middle of what it is over.
            let mut child = None;
            for record in records(&node) {
                let record = record?;
                if child.is_some() && record.file >= file {
                    break;
                }
                child = Some(u32_at(record.data, 0)?);
            }
            node = self.read(child?)?;
        }
        for _ in 0..MAX_NODES {
            if kind(&node)? != Kind::Leaf {
                return None;
            }
            for record in records(&node) {
                let Record { file: of, name, data } = record?;
                if of > file {
                    return Some(attributes);
                }
                if of == file {
                    let units =
                        name.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
                    let name: Result<String, _> = char::decode_utf16(units).collect();
                    let name = name.ok().filter(|name| !name.is_empty() && !name.contains('\0'))?;
                    // Further extents of a value come under the same name.
                    attributes.entry(name).or_insert_with(|| inline_value(data));
                }
            }
            match u32_at(&node, 0)? {
                0 => return Some(attributes),
                next => node = self.read(next)?,
            }
        }
        None
    }
}

/// The value in a record: `kHFSPlusAttrInlineData`.
fn inline_value(data: &[u8]) -> Option<Vec<u8>> {
    const INLINE: u32 = 0x10;
    const VALUE: usize = 16;
    let length = usize::try_from(u32_at(data, 12)?).ok()?;
    let value = data.get(VALUE..)?.get(..length)?;
    (u32_at(data, 0)? == INLINE).then(|| value.to_vec())
}

fn kind(node: &[u8]) -> Option<Kind> {
    match node.get(8)? {
        0xff => Some(Kind::Leaf),
        0 => Some(Kind::Index),
        _ => None,
    }
}

/// The records of a node.
fn records(node: &[u8]) -> impl Iterator<Item = Option<Record<'_>>> {
    const KEY: usize = 14;
    let record = move |number: usize| {
        let place = node.len().checked_sub(2 * (number + 1))?;
        let record = node.get(usize::from(u16_at(node, place)?)..place)?;
        let data = record.get(2 + usize::from(u16_at(record, 0)?)..)?;
        let name = record.get(KEY..KEY + 2 * usize::from(u16_at(record, 12)?))?;
        Some(Record { file: u32_at(record, 4)?, name, data })
    };
    (0..usize::from(u16_at(node, 10).unwrap_or(0))).map(record)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const NODE: usize = 512;

    fn put(bytes: &mut [u8], at: usize, value: u32, width: usize) {
        bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[4 - width..]);
    }

    /// A node of records, each a file, a name and what follows.
    fn node(kind: u8, next: u32, records: &[(u32, &str, u32)]) -> Vec<u8> {
        let mut node = vec![0; NODE];
        put(&mut node, 0, next, 4);
        node[8] = kind;
        put(&mut node, 10, u32::try_from(records.len()).unwrap(), 2);
        let mut at = 14;
        for (number, (file, name, data)) in records.iter().enumerate() {
            put(&mut node, NODE - 2 * (number + 1), u32::try_from(at).unwrap(), 2);
            let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
            put(&mut node, at, u32::try_from(12 + name.len()).unwrap(), 2);
            put(&mut node, at + 4, *file, 4);
            put(&mut node, at + 12, u32::try_from(name.len() / 2).unwrap(), 2);
            node[at + 14..at + 14 + name.len()].copy_from_slice(&name);
            at += 14 + name.len();
            put(&mut node, at, *data, 4);
            at += 4;
        }
        node
    }

    /// A volume whose tree has a root over two leaves, in two extents.
    fn volume() -> tempfile::NamedTempFile {
        let mut header = node(1, 0, &[]);
        put(&mut header, 16, 1, 4);
        put(&mut header, 32, 512, 2);
        let nodes = [
            header,
            node(0, 0, &[(16, "a", 2), (18, "com.apple.quarantine", 3)]),
            node(0xff, 3, &[(16, "a", 0), (17, "user.x", 0), (18, "com.apple.metadata", 0)]),
            node(0xff, 0, &[(18, "com.apple.quarantine", 0), (18, "ä", 0), (20, "z", 0)]),
        ];
        let mut bytes = vec![0; 8192];
        bytes[1024..1026].copy_from_slice(b"H+");
        put(&mut bytes, 1024 + 40, 512, 4);
        for (at, value) in [(0, 4), (4, 1), (8, 8), (12, 3)] {
            put(&mut bytes, 1024 + 352 + 16 + at, value, 4);
        }
        for (number, node) in nodes.iter().enumerate() {
            let at = if number == 0 { 4 * NODE } else { (7 + number) * NODE };
            bytes[at..at + NODE].copy_from_slice(node);
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn names_are_read_with_their_last_letters() {
        let volume = volume();
        let found = |number| names(volume.path(), number, b"").unwrap();
        assert_eq!(found(17), ["user.x"]);
        let many = ["osx.com.apple.metadata", "osx.com.apple.quarantine", "osx.ä"];
        assert_eq!(found(18), many);
        assert_eq!(found(19), Vec::<String>::new());
        assert_eq!(found(20), ["osx.z"]);
        let with_finder = names(volume.path(), 17, b"osx.com.apple.FinderInf\0").unwrap();
        assert_eq!(with_finder, ["osx.com.apple.FinderInfo", "user.x"]);
    }

    #[test]
    fn a_tree_that_makes_no_sense_is_no_list() {
        let volume = volume();
        let bytes = std::fs::read(volume.path()).unwrap();
        for at in (1024..1024 + 512).chain(2048..8192) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            std::fs::write(volume.path(), bytes).unwrap();
            let _ = names(volume.path(), 18, b"");
        }
        std::fs::write(volume.path(), &bytes[..4096]).unwrap();
        assert_eq!(names(volume.path(), 18, b""), None);
    }
}
