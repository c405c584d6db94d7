//! Writes hives, the files of the Windows registry: small ones, of what the tests need.
//!
//! Follows "Windows registry file format specification" (msuhanov/regf), version 1.5.

/// A key with its values and the keys in it.
#[derive(Clone, Debug, Default)]
pub struct Key {
    name: String,
    values: Vec<(String, Data)>,
    keys: Vec<Key>,
}

/// What a value holds.
#[derive(Clone, Debug)]
pub enum Data {
    /// `REG_SZ`.
    Text(String),
    /// `REG_DWORD`.
    Number(u32),
    /// `REG_BINARY`.
    Bytes(Vec<u8>),
}

impl Key {
    /// An empty root.
    #[must_use]
    pub fn root() -> Self {
        Self { name: "ROOT".to_owned(), ..Self::default() }
    }

    /// Adds a value.
    pub fn set(&mut self, name: &str, data: impl Into<Data>) -> &mut Self {
        self.values.push((name.to_owned(), data.into()));
        self
    }

    /// The key at `path`, made where it is missing; names are separated by backslashes.
    pub fn at(&mut self, path: &str) -> &mut Self {
        path.split('\\').fold(self, |key, name| {
            let found = key.keys.iter().position(|key| key.name == name);
            let index = found.unwrap_or_else(|| {
                key.keys.push(Self { name: name.to_owned(), ..Self::default() });
                key.keys.len() - 1
            });
            &mut key.keys[index]
        })
    }

    /// The hive whose root this is.
    #[must_use]
    pub fn hive(&self) -> Vec<u8> {
        let mut cells = Cells(b"hbin".to_vec());
        cells.0.resize(BIN_HEADER, 0);
        let root = cells.add_key(self, u32::MAX, true);
        let size = cells.finish();
        let mut hive = vec![0; BASE];
        let fields: [(usize, u32); 10] = [
            (0, u32::from_le_bytes(*b"regf")),
            (0x04, 1), // Both sequence numbers alike: nothing is in a log.
            (0x08, 1),
            (0x14, 1), // Version 1.5.
            (0x18, 5),
            (0x20, 1), // Loaded as it is.
            (0x24, root),
            (0x28, size),
            (0x2c, 1),
            (0x1c, 0), // The hive itself, not its log.
        ];
        for (at, number) in fields {
            put(&mut hive, at, number);
        }
        sign(&mut hive);
        hive.extend(cells.0);
        hive
    }
}

/// Writes a log, by which a hive that was not closed can be completed.
pub struct Log {
    header: Vec<u8>,
    entries: Vec<u8>,
}

impl Log {
    /// A hive as it is left by who noted in a log what it lacks: change `number` is to come.
    #[must_use]
    pub fn dirty(mut hive: Vec<u8>, number: u32) -> Vec<u8> {
        put(&mut hive, 0x04, number + 1);
        put(&mut hive, 0x08, number);
        sign(&mut hive);
        hive
    }

    /// A log of `hive`, with nothing in it.
    #[must_use]
    pub fn of(hive: &[u8]) -> Self {
        const ENTRIES: u32 = 6;
        let mut header = hive[..SECTOR].to_vec();
        put(&mut header, 0x1c, ENTRIES);
        sign(&mut header);
        Self { header, entries: Vec::new() }
    }

    /// Adds change `number`, which makes the hive `after` of it, as an entry of Windows 8.1 and later.
    #[must_use]
    pub fn entry(mut self, number: u32, after: &[u8]) -> Self {
        let bins = &after[BASE..];
        let mut entry = vec![0; 40];
        entry[..4].copy_from_slice(b"HvLE");
        let pages: Vec<&[u8]> = bins.chunks(BASE).collect();
        for (at, page) in (0..).step_by(BASE).zip(&pages) {
            entry.extend(u32::try_from(at).expect("hives are small").to_le_bytes());
            entry.extend(self::number(page.len()).to_le_bytes());
        }
        entry.extend(bins);
        entry.resize(entry.len().next_multiple_of(SECTOR), 0);
        let size = self::number(entry.len());
        let fields = [(4, size), (0xc, number), (0x10, self::number(bins.len()))];
        for (at, field) in fields.into_iter().chain([(0x14, self::number(pages.len()))]) {
            put(&mut entry, at, field);
        }
        let contents = marvin(&entry[40..]);
        entry[24..32].copy_from_slice(&contents);
        let own = marvin(&entry[..32]);
        entry[32..40].copy_from_slice(&own);
        self.entries.extend(entry);
        self
    }

    /// The log's file.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        [self.header, self.entries].concat()
    }

    /// The file of a log of Windows 8 and before, which makes the hive `after` of it.
    #[must_use]
    pub fn sectors(mut self, after: &[u8]) -> Vec<u8> {
        const BITMAP: u32 = 1;
        let bins = &after[BASE..];
        put(&mut self.header, 0x1c, BITMAP);
        let number = u32::from_le_bytes(self.header[8..12].try_into().expect("four"));
        put(&mut self.header, 0x04, number);
        put(&mut self.header, 0x28, self::number(bins.len()));
        sign(&mut self.header);
        let mut log = self.header;
        log.extend(b"DIRT");
        log.extend(vec![0xff; bins.len() / SECTOR / 8]);
        log.resize(log.len().next_multiple_of(SECTOR), 0);
        log.extend(bins);
        log
    }
}

/// Marvin32 of whole words, by the seed of the registry.
fn marvin(bytes: &[u8]) -> [u8; 8] {
    let (mut low, mut high) = (0x7a4e_55c5_u32, 0x82ef_4d88_u32);
    let words = bytes.chunks_exact(4).map(|word| word.try_into().expect("four"));
    for word in words.map(u32::from_le_bytes).chain([0x80, 0]) {
        low = low.wrapping_add(word);
        high ^= low;
        low = low.rotate_left(20).wrapping_add(high);
        high = high.rotate_left(9) ^ low;
        low = low.rotate_left(27).wrapping_add(high);
        high = high.rotate_left(19);
    }
    (u64::from(high) << 32 | u64::from(low)).to_le_bytes()
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for Data {
    fn from(number: u32) -> Self {
        Self::Number(number)
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// Bytes before the first bin, and what bins are multiples of.
const BASE: usize = 4096;
/// What logs are multiples of.
const SECTOR: usize = 512;
/// Where in the header its checksum is.
const CHECKSUM: usize = 0x1fc;
/// Bytes of a bin before its first cell.
const BIN_HEADER: usize = 32;

/// The only bin.
struct Cells(Vec<u8>);

impl Cells {
    /// Adds a cell in use and returns its offset.
    fn add(&mut self, content: &[u8]) -> u32 {
        let at = self.0.len();
        let size = (content.len() + 4).next_multiple_of(8);
        let negative = -i32::try_from(size).expect("cells are small");
        self.0.extend(negative.to_le_bytes());
        self.0.extend(content);
        self.0.resize(at + size, 0);
        number(at)
    }

    fn add_key(&mut self, key: &Key, parent: u32, is_root: bool) -> u32 {
        // What a key holds names the key, so its place is taken first.
        let fixed = 0x4c;
        let at = self.add(&vec![0; fixed + key.name.len()]);
        let values: Vec<u32> =
            key.values.iter().map(|(name, data)| self.add_value(name, data)).collect();
        let mut sorted: Vec<&Key> = key.keys.iter().collect();
        sorted.sort_by_key(|key| key.name.to_ascii_uppercase());
        let keys: Vec<(u32, &str)> =
            sorted.iter().map(|key| (self.add_key(key, at, false), key.name.as_str())).collect();
        let value_list = if values.is_empty() { u32::MAX } else { self.add(&joined(&values)) };
        let key_list = if keys.is_empty() { u32::MAX } else { self.add(&key_list(&keys)) };
        let cell = &mut self.0[at as usize + 4..];
        cell[..2].copy_from_slice(b"nk");
        // The name is in one byte for each character; the root says that it is one.
        cell[2] = if is_root { 0x2c } else { 0x20 };
        put(cell, 0x10, parent);
        put(cell, 0x14, number(keys.len()));
        put(cell, 0x1c, key_list);
        put(cell, 0x20, u32::MAX);
        put(cell, 0x24, number(values.len()));
        put(cell, 0x28, value_list);
        put(cell, 0x2c, u32::MAX);
        put(cell, 0x30, u32::MAX);
        put(cell, 0x48, number(key.name.len()));
        cell[fixed..fixed + key.name.len()].copy_from_slice(key.name.as_bytes());
        at
    }

    fn add_value(&mut self, name: &str, data: &Data) -> u32 {
        let (kind, bytes) = match data {
            Data::Text(text) => {
                let units = text.encode_utf16().chain([0]);
                (1, units.flat_map(u16::to_le_bytes).collect())
            }
            Data::Bytes(bytes) => (3, bytes.clone()),
            Data::Number(number) => (4, number.to_le_bytes().to_vec()),
        };
        let mut cell = b"vk".to_vec();
        cell.resize(0x14, 0);
        cell[2..4].copy_from_slice(&u16::try_from(name.len()).expect("a short name").to_le_bytes());
        let length = number(bytes.len());
        if let Ok(inline) = <[u8; 4]>::try_from(bytes.as_slice()) {
            put(&mut cell, 4, length | 1 << 31);
            cell[8..12].copy_from_slice(&inline);
        } else {
            put(&mut cell, 4, length);
            let at = self.add(&bytes);
            put(&mut cell, 8, at);
        }
        put(&mut cell, 0xc, kind);
        cell[0x10] = 1;
        cell.extend(name.as_bytes());
        self.add(&cell)
    }

    /// Fills the bin up and returns its size.
    fn finish(&mut self) -> u32 {
        let used = self.0.len();
        // A rest has to have room for its own size.
        self.0.resize((used + 8).next_multiple_of(BASE), 0);
        let size = number(self.0.len());
        put(&mut self.0, used, size - number(used));
        put(&mut self.0, 8, size);
        size
    }
}

/// A list of the kind `lh`.
fn key_list(keys: &[(u32, &str)]) -> Vec<u8> {
    let count = u16::try_from(keys.len()).expect("few keys");
    let mut list = [b"lh".as_slice(), &count.to_le_bytes()].concat();
    for (at, name) in keys {
        let upper = name.bytes().map(|byte| u32::from(byte.to_ascii_uppercase()));
        let hash = upper.fold(0u32, |hash, byte| hash.wrapping_mul(37).wrapping_add(byte));
        list.extend(at.to_le_bytes());
        list.extend(hash.to_le_bytes());
    }
    list
}

fn joined(offsets: &[u32]) -> Vec<u8> {
    offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect()
}

/// Writes the checksum of a header.
fn sign(header: &mut [u8]) {
    let words = header[..CHECKSUM].chunks_exact(4).map(|word| word.try_into().expect("four"));
    let checksum = words.map(u32::from_le_bytes).fold(0, |sum, word| sum ^ word);
    put(header, CHECKSUM, checksum);
}

fn put(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

fn number(size: usize) -> u32 {
    u32::try_from(size).expect("hives of tests are small")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Tool, find_program};
    use crate::skips::skip;

    #[test]
    fn hivex_reads_what_is_written() {
        if find_program("hivexregedit").is_none() {
            return skip("hivexregedit is not installed");
        }
        let mut root = Key::root();
        root.at("Select").set("Current", 1).set("Name", "green");
        root.at("MountedDevices").set("long", vec![7; 12]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), root.hive()).unwrap();
        let printed = Tool::new("hivexregedit")
            .args(["--export", "--unsafe-printable-strings"])
            .arg(file.path())
            .arg("\\")
            .output()
            .unwrap();
        let printed = String::from_utf8(printed).unwrap();
        assert!(printed.contains("[\\Select]"), "{printed}");
        assert!(printed.contains("\"Current\"=dword:00000001"), "{printed}");
        assert!(printed.contains("\"Name\"=str(1):\"green\""), "{printed}");
        assert!(printed.contains("[\\MountedDevices]"), "{printed}");
    }
}
