//! Reads keys and values of the Windows registry's files, the hives, cell by cell where they are.
//!
//! A `SOFTWARE` has a hundred MiB and more, and a guest has less memory than that: so nothing is read
//! but what lies on the way to a key. Values that are stored in several pieces, which begin at 16 KiB, are
//! left out. A hive that was not closed is read with its [logs](super::hive_log).
//!
//! Follows "Windows registry file format specification" (msuhanov/regf). Everything is untrusted:
//! what makes no sense is not there.

use std::fs::File;
use std::io;

use super::hive_log::{LoggedFile, State};
use crate::little_endian::{u16_at, u32_at};

/// Where the cells begin, in bytes.
pub const BASE: u64 = 4096;

/// Bytes of a cell that are read: the largest list of subkeys and the largest value in one piece fit.
const MAX_CELL: usize = 1 << 20;

/// Subkeys or values of one key that are looked at.
const MAX_ENTRIES: usize = 1 << 16;

/// Lists in an index of subkeys; with a thousand in each there are more than [`MAX_ENTRIES`].
const MAX_LISTS: usize = 1024;

/// A hive.
pub struct Hive {
    file: LoggedFile,
    root: Offset,
}

/// Where a cell is, from [`BASE`] on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset(u32);

/// A key.
pub struct Key<'hive> {
    hive: &'hive Hive,
    /// The key's cell, which has its fixed part in full.
    cell: Vec<u8>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its name.
    pub name: String,
    kind: u32,
    /// Its bytes.
    pub data: Vec<u8>,
}

impl Hive {
    /// The hive in `file`, of which `logs` are the logs; `None` where it holds none.
    #[must_use]
    pub fn open(file: File, logs: impl FnOnce() -> Vec<File>) -> Option<Self> {
        let file = LoggedFile::open(file, logs)?;
        let root = Offset(file.root()?);
        Some(Self { file, root })
    }

    /// How it was left.
    #[must_use]
    pub fn state(&self) -> State {
        self.file.state()
    }

    /// The key at `path` from the root; names are separated by backslashes.
    #[must_use]
    pub fn key(&self, path: &str) -> Option<Key<'_>> {
        let root = Key::at(self, self.root)?;
        path.split('\\').try_fold(root, |key, name| key.subkey(name))
    }

    /// The contents of a cell that is in use, up to [`MAX_CELL`] bytes.
    fn cell(&self, at: Offset) -> Option<Vec<u8>> {
        let start = BASE + u64::from(at.0);
        let mut size = [0; 4];
        // Cells begin at multiples of eight bytes, so this comes in one piece.
        if self.file.read_at(&mut size, start).ok()? < size.len() {
            return None;
        }
        // In use is what has a size below zero, which counts itself.
        let size = i32::from_le_bytes(size).checked_neg()?.checked_sub(4)?;
        let size = usize::try_from(size).ok()?.min(MAX_CELL);
        // A size may promise more than the file has.
        let mut cell = Vec::new();
        let mut piece = [0; 4096];
        while cell.len() < size {
            let wanted = piece.len().min(size - cell.len());
            match self.file.read_at(&mut piece[..wanted], start + 4 + cell.len() as u64) {
                Ok(0) => break,
                Ok(count) => cell.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(cell)
    }
}

impl<'hive> Key<'hive> {
    /// Bytes of a key's cell before its name.
    const FIXED: usize = 0x4c;

    fn at(hive: &'hive Hive, at: Offset) -> Option<Self> {
        let cell = hive.cell(at)?;
        (cell.starts_with(b"nk") && cell.len() >= Self::FIXED).then_some(Self { hive, cell })
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> String {
        const ONE_BYTE: u16 = 0x20;
        let length = usize::from(u16_at(&self.cell, 0x48).unwrap_or(0));
        let name = self.cell.get(Self::FIXED..Self::FIXED + length).unwrap_or_default();
        text(name, u16_at(&self.cell, 2).is_some_and(|flags| flags & ONE_BYTE != 0))
    }

    /// The key `name` in this one, by any spelling of its letters.
    #[must_use]
    pub fn subkey(&self, name: &str) -> Option<Self> {
        let hash = hash(name);
        let candidates = self.entries().filter(|entry| entry.hash.is_none_or(|has| has == hash));
        let mut keys = candidates.filter_map(|entry| Self::at(self.hive, entry.at));
        keys.find(|key| key.name().eq_ignore_ascii_case(name))
    }

    /// All keys in this one.
    pub fn subkeys(&self) -> impl Iterator<Item = Self> {
        self.entries().filter_map(|entry| Self::at(self.hive, entry.at))
    }

    /// The value `name`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<Value> {
        self.values().find(|value| value.name.eq_ignore_ascii_case(name))
    }

    /// All values that are stored in one piece.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        let count = u32_at(&self.cell, 0x24).and_then(|count| usize::try_from(count).ok());
        let list = u32_at(&self.cell, 0x28).filter(|_| count.is_some_and(|count| count > 0));
        let list = list.and_then(|at| self.hive.cell(Offset(at))).unwrap_or_default();
        let count = count.unwrap_or(0).min(MAX_ENTRIES).min(list.len() / 4);
        (0..count).filter_map(move |n| self.value_at(Offset(u32_at(&list, 4 * n)?)))
    }

    fn value_at(&self, at: Offset) -> Option<Value> {
        const FIXED: usize = 0x14;
        const ONE_BYTE: u16 = 1;
        const INLINE: u32 = 1 << 31;
        let cell = self.hive.cell(at)?;
        if !cell.starts_with(b"vk") || cell.len() < FIXED {
            return None;
        }
        let name_length = usize::from(u16_at(&cell, 2)?);
        let name = cell.get(FIXED..FIXED + name_length)?;
        let size = u32_at(&cell, 4)?;
        let length = usize::try_from(size & !INLINE).ok()?;
        let data = if size & INLINE != 0 {
            cell.get(8..8 + length.min(4))?.to_vec()
        } else if length == 0 {
            Vec::new()
        } else {
            let mut data = self.hive.cell(Offset(u32_at(&cell, 8)?))?;
            if data.len() < length || length > MAX_ONE_PIECE {
                return None;
            }
            data.truncate(length);
            data
        };
        let name = text(name, u16_at(&cell, 0x10)? & ONE_BYTE != 0);
        Some(Value { name, kind: u32_at(&cell, 0xc)?, data })
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let some = u32_at(&self.cell, 0x14).is_some_and(|count| count > 0);
        let list = u32_at(&self.cell, 0x1c).filter(|_| some).map(Offset);
        let list = list.and_then(|at| self.hive.cell(at)).unwrap_or_default();
        // An index of lists has lists in it, and no further index. One of them at a time is held.
        let (own, others) = if list.starts_with(b"ri") {
            (Vec::new(), offsets(&list, 4).take(MAX_LISTS).collect())
        } else {
            (leaf(&list), Vec::new())
        };
        let others = others.into_iter().filter_map(|entry| self.hive.cell(entry.at));
        own.into_iter().chain(others.flat_map(|list| leaf(&list))).take(MAX_ENTRIES)
    }
}

/// The largest value in one piece, in bytes.
const MAX_ONE_PIECE: usize = 16_344;

/// A subkey in a list.
struct Entry {
    at: Offset,
    /// Of its name, where the list has it.
    hash: Option<u32>,
}

/// The subkeys in a list that is no index.
fn leaf(list: &[u8]) -> Vec<Entry> {
    match list.get(..2) {
        Some(b"li") => offsets(list, 4).collect(),
        Some(b"lf") => offsets(list, 8).collect(),
        Some(b"lh") => {
            let hashes = (0..).map(|n| u32_at(list, 8 + 8 * n));
            offsets(list, 8).zip(hashes).map(|(entry, hash)| Entry { hash, ..entry }).collect()
        }
        _ => Vec::new(),
    }
}

/// Offsets in a list whose elements have `step` bytes.
fn offsets(list: &[u8], step: usize) -> impl Iterator<Item = Entry> {
    let count = usize::from(u16_at(list, 2).unwrap_or(0));
    (0..count)
        .map_while(move |n| Some(Entry { at: Offset(u32_at(list, 4 + step * n)?), hash: None }))
}

/// The hash in lists of the kind `lh`, of names in ASCII.
fn hash(name: &str) -> u32 {
    let upper = name.bytes().map(|byte| u32::from(byte.to_ascii_uppercase()));
    upper.fold(0, |hash: u32, byte| hash.wrapping_mul(37).wrapping_add(byte))
}

impl Value {
    /// The text that it is: of the types `REG_SZ` and `REG_EXPAND_SZ`, up to the first NUL.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let text = text(&self.data, false);
        let text = text.split('\0').next().unwrap_or_default().to_owned();
        matches!(self.kind, 1 | 2).then_some(text)
    }

    /// The number that it is: of the type `REG_DWORD`.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        if self.kind == 4 { u32_at(&self.data, 0) } else { None }
    }
}

/// Text of one byte for each character, Latin-1, or of UTF-16.
fn text(bytes: &[u8], one_byte: bool) -> String {
    if one_byte {
        return bytes.iter().copied().map(char::from).collect();
    }
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use xtask::disks::hive;

    use super::*;

    fn open(bytes: &[u8]) -> Option<Hive> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Hive::open(file, Vec::new)
    }

    #[test]
    fn keys_and_values_are_found_by_any_spelling() {
        let mut root = hive::Key::root();
        root.at("One\\Two")
            .set("Text", "gr\u{fc}n")
            .set("Number", 7)
            .set("Bytes", vec![1, 2, 3, 4, 5]);
        root.at("One\\Three");
        let hive = open(&root.hive()).unwrap();
        let key = hive.key("ONE\\two").unwrap();
        assert_eq!(key.value("text").unwrap().text().as_deref(), Some("gr\u{fc}n"));
        assert_eq!(key.value("Number").unwrap().number(), Some(7));
        assert_eq!(key.value("Bytes").unwrap().data, [1, 2, 3, 4, 5]);
        assert_eq!(key.value("Number").unwrap().text(), None);
        let names: Vec<String> = hive.key("One").unwrap().subkeys().map(|key| key.name()).collect();
        assert_eq!(names, ["Three", "Two"]);
        assert!(hive.key("One\\Four").is_none());
        assert!(open(b"regf").is_none());
    }

    #[test]
    fn lists_of_all_kinds_are_followed() {
        let entry = |at: u32| at.to_le_bytes();
        let list = |kind: &[u8], elements: &[u8], count: u8| [kind, &[count, 0], elements].concat();
        let found = |list: Vec<u8>| -> Vec<u32> {
            leaf(&list).into_iter().map(|entry| entry.at.0).collect()
        };
        let short = [entry(1), entry(2)].concat();
        let long = [entry(1), entry(99), entry(2), entry(99)].concat();
        assert_eq!(found(list(b"li", &short, 2)), [1, 2]);
        assert_eq!(found(list(b"lf", &long, 2)), [1, 2]);
        assert_eq!(found(list(b"lh", &long, 2)), [1, 2]);
        // A count that promises too much, and what is no list.
        assert_eq!(found(list(b"li", &short, 200)), [1, 2]);
        assert!(found(list(b"xx", &short, 2)).is_empty());
    }
}
