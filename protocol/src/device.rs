//! Device names as people write them after `-m`, and as the listings print them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_DISKS;

/// A disk or one of its partitions: `/dev/sda`, `/dev/sdb2`.
///
/// The letter counts the `-a` options, so it is the disk's LUN; it says nothing about the name
/// that the guest's kernel chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u8, u16)", into = "(u8, u16)")]
pub struct DeviceName {
    /// The disk's number and LUN, from 0.
    pub disk: u8,
    /// The partition's number from 1, or 0 for the whole disk.
    pub partition: u16,
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNameError;

impl fmt::Display for DeviceNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a device name such as /dev/sda1")
    }
}

impl std::error::Error for DeviceNameError {}

impl DeviceName {
    /// The whole disk with number `disk`.
    #[must_use]
    pub fn whole(disk: u8) -> Self {
        Self { disk, partition: 0 }
    }
}

impl TryFrom<(u8, u16)> for DeviceName {
    type Error = DeviceNameError;
    fn try_from((disk, partition): (u8, u16)) -> Result<Self, DeviceNameError> {
        if usize::from(disk) < MAX_DISKS {
            Ok(Self { disk, partition })
        } else {
            Err(DeviceNameError)
        }
    }
}

impl From<DeviceName> for (u8, u16) {
    fn from(name: DeviceName) -> Self {
        (name.disk, name.partition)
    }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    /// Accepts `/dev/sdXN` and, as its aliases, `/dev/vdXN`, `/dev/hdXN` and `/dev/xvdXN`; the `/dev/` may
    /// be missing.
    fn from_str(text: &str) -> Result<Self, DeviceNameError> {
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        let rest = ["sd", "vd", "hd", "xvd"]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))
            .ok_or(DeviceNameError)?;
        let digits = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
        let (letters, number) = rest.split_at(digits);
        let partition = match number {
            "" => 0,
            _ if number.starts_with('0') || !number.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(DeviceNameError);
            }
            _ => number.parse().map_err(|_| DeviceNameError)?,
        };
        let disk = disk_of_letters(letters).ok_or(DeviceNameError)?;
        Self::try_from((disk, partition))
    }
}

/// `a` is 0, `z` 25, `aa` 26.
fn disk_of_letters(letters: &str) -> Option<u8> {
    if letters.is_empty() || letters.len() > 2 {
        return None;
    }
    let number = letters.bytes().fold(0u32, |n, b| n * 26 + u32::from(b - b'a') + 1);
    u8::try_from(number - 1).ok()
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("/dev/sd")?;
        let letter = |n: u8| char::from(b'a' + n % 26);
        if self.disk >= 26 {
            write!(f, "{}", letter(self.disk / 26 - 1))?;
        }
        write!(f, "{}", letter(self.disk))?;
        if self.partition > 0 {
            write!(f, "{}", self.partition)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_aliases_are_read() {
        let table = [
            ("/dev/sda", (0, 0)),
            ("/dev/sda1", (0, 1)),
            ("/dev/vdb12", (1, 12)),
            ("/dev/hdc3", (2, 3)),
            ("/dev/xvdd", (3, 0)),
            ("sdz9", (25, 9)),
            ("/dev/sdaa1", (26, 1)),
            ("/dev/sdiu", (254, 0)),
        ];
        for (text, (disk, partition)) in table {
            assert_eq!(text.parse(), Ok(DeviceName { disk, partition }), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "/dev/",
            "/dev/sd",
            "/dev/sd1",
            "/dev/sda0",
            "/dev/sda01",
            "/dev/sda-1",
            "/dev/sdA1",
            "/dev/sda99999",
            "/dev/sdiv",
            "/dev/sdzzz",
            "/dev/nvme0n1",
            "/dev/sda1x",
            "/dev/sda+1",
        ] {
            assert_eq!(text.parse::<DeviceName>(), Err(DeviceNameError), "{text}");
        }
    }

    #[test]
    fn every_disk_prints_as_it_reads() {
        for disk in 0..u8::try_from(MAX_DISKS).unwrap() {
            for partition in [0, 1, 128] {
                let name = DeviceName { disk, partition };
                assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
    }
}
