//! What a Windows remembers of volumes, mounted or not: `MountedDevices` in its registry.
//!
//! A volume is known by the signature of the disk and its first byte in an MBR, by the partition's GUID
//! in a GPT.

use guestmnt_protocol::volume::VolumeName;

use super::MAX_ITEMS;
use super::hive::{Hive, Key, Value};
use super::named::Volumes;
use crate::reparse::Root;

/// Drives and volumes, each with what is remembered of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MountedDevices(Vec<(Root, Remembered)>);

impl MountedDevices {
    /// Those in the hive `SYSTEM`.
    #[must_use]
    pub fn of(system: &Hive) -> Self {
        let key = system.key("MountedDevices");
        let values = key.iter().flat_map(Key::values).take(MAX_ITEMS);
        let known = |value: Value| Some((root(&value.name)?, Remembered::parse(&value.data)?));
        Self(values.filter_map(known).collect())
    }

    /// Those that are on the disks, for a Windows on `root`.
    pub fn volumes<'a>(
        &'a self,
        volumes: &'a Volumes,
        root: &'a VolumeName,
    ) -> impl Iterator<Item = (&'a Root, &'a VolumeName)> {
        let found = |(name, remembered): &'a (Root, Remembered)| {
            Some((name, remembered.volume(volumes, root)?))
        };
        self.0.iter().filter_map(found)
    }
}

/// What the value `name` is about.
fn root(name: &str) -> Option<Root> {
    if let Some(volume) = name.strip_prefix("\\??\\Volume{") {
        return volume.strip_suffix('}').map(|guid| Root::Volume(guid.to_owned()));
    }
    let letter = name.strip_prefix("\\DosDevices\\")?.strip_suffix(':')?;
    letter.parse().ok().map(Root::Drive)
}

/// What Windows remembers of a volume.
#[derive(Debug, PartialEq, Eq)]
enum Remembered {
    /// In an MBR.
    Place { signature: u32, start: u64 },
    /// In a GPT, or on dynamic disks: its GUID.
    Partition([u8; 16]),
}

impl Remembered {
    /// A value of `MountedDevices`; `None` for drives that are removed or no disks.
    fn parse(data: &[u8]) -> Option<Self> {
        if let Some(guid) = data.strip_prefix(b"DMIO:ID:") {
            return guid.try_into().ok().map(Self::Partition);
        }
        let (signature, start) = data.split_first_chunk()?;
        let signature = u32::from_le_bytes(*signature);
        Some(Self::Place { signature, start: u64::from_le_bytes(start.try_into().ok()?) })
    }

    fn volume<'v>(&self, volumes: &'v Volumes, root: &VolumeName) -> Option<&'v VolumeName> {
        match self {
            Self::Place { signature, start } => volumes.at(*signature, *start, root),
            Self::Partition(guid) => {
                let find = |guid: String| volumes.find(&format!("PARTUUID={guid}"), root);
                // The database of dynamic disks has its bytes as people write them.
                find(little_endian(*guid)).or_else(|| find(big_endian(*guid)))
            }
        }
    }
}

/// A GUID as people write it; its first three numbers are little-endian.
fn little_endian(guid: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
    let [i, j, k, l, m, n, o, p] = rest;
    big_endian([d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p])
}

/// A GUID whose bytes stand in the order in which people write them.
fn big_endian(guid: [u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>| -> String {
        guid[range].iter().map(|byte| format!("{byte:02x}")).collect()
    };
    [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_stands_in_the_order_of_a_gpt_or_of_dynamic_disks() {
        // 0fc63daf-8483-4772-8e79-3d69d8477de4 as a GPT has it.
        let guid = [
            0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47,
            0x7d, 0xe4,
        ];
        let data = [b"DMIO:ID:".as_slice(), &guid].concat();
        assert_eq!(Remembered::parse(&data), Some(Remembered::Partition(guid)));
        assert_eq!(little_endian(guid), "0fc63daf-8483-4772-8e79-3d69d8477de4");
        assert_eq!(big_endian(guid), "af3dc60f-8384-7247-8e79-3d69d8477de4");
        assert_eq!(Remembered::parse(&data[..23]), None);
    }

    #[test]
    fn a_place_is_signature_and_first_byte() {
        let data = [0x78, 0x56, 0x34, 0x12, 0, 0, 0x10, 0, 0, 0, 0, 0];
        let place = Remembered::Place { signature: 0x1234_5678, start: 1 << 20 };
        assert_eq!(Remembered::parse(&data), Some(place));
        // A removable drive's name, and nothing.
        assert_eq!(Remembered::parse(b"\\\0?\0?\0\\\0U\0S\0B\0"), None);
        assert_eq!(Remembered::parse(b""), None);
    }
}
