//! What the guest found out about the operating systems on the disks: where each one's filesystems
//! belong, and what it calls itself.
//!
//! All of it was written by whoever made the image: texts may hold anything and are escaped before
//! they are shown; devices and paths are such by their types, but need not be there.

use serde::{Deserialize, Serialize};

use crate::path::GuestPath;
use crate::volume::Mountable;

/// An operating system on the disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// The filesystem that it starts from.
    pub root: Mountable,
    /// What kind it is of.
    pub family: Family,
    /// What it calls itself, such as `Debian GNU/Linux 12 (bookworm)`; empty where it does not say.
    pub product: String,
    /// Its version, such as `12` or `10.0.19045`; empty likewise.
    pub version: String,
    /// The name of the machine; empty likewise.
    pub host_name: String,
    /// Who has a folder on it.
    pub users: Vec<User>,
    /// The other filesystems and where it shows them, in no order.
    pub mounts: Vec<MountPoint>,
    /// Drive letters, in the order of the alphabet.
    pub drives: Vec<Drive>,
    /// What it names and the disks do not have, each in words.
    pub missing: Vec<String>,
}

/// A kind of operating systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Linux, by `os-release` or `fstab`.
    Linux,
    /// Windows NT and what came of it, by its registry.
    Windows,
}

/// Somebody with a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name.
    pub name: String,
    /// The folder, as the system writes it.
    pub home: String,
}

/// A filesystem that a system shows in one of its folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The filesystem.
    pub device: Mountable,
    /// The folder.
    pub at: GuestPath,
    /// Options that say what of the filesystem is meant, comma-separated.
    pub options: String,
}

/// A filesystem that Windows shows as a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// `A` to `Z`.
    pub letter: DriveLetter,
    /// The filesystem.
    pub device: Mountable,
}

/// A letter from `A` to `Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "char", into = "char")]
pub struct DriveLetter(char);

/// A character that names no drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDriveLetter;

impl std::fmt::Display for NoDriveLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a drive's letter")
    }
}

impl TryFrom<char> for DriveLetter {
    type Error = NoDriveLetter;
    fn try_from(letter: char) -> Result<Self, NoDriveLetter> {
        let upper = letter.to_ascii_uppercase();
        if upper.is_ascii_uppercase() { Ok(Self(upper)) } else { Err(NoDriveLetter) }
    }
}

impl std::str::FromStr for DriveLetter {
    type Err = NoDriveLetter;
    /// The letter alone, without a colon.
    fn from_str(text: &str) -> Result<Self, NoDriveLetter> {
        let mut letters = text.chars();
        match (letters.next(), letters.next()) {
            (Some(letter), None) => letter.try_into(),
            _ => Err(NoDriveLetter),
        }
    }
}

impl From<DriveLetter> for char {
    fn from(letter: DriveLetter) -> Self {
        letter.0
    }
}

impl std::fmt::Display for DriveLetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drives_have_letters_of_the_alphabet() {
        assert_eq!(
            DriveLetter::try_from('c').map(|letter| letter.to_string()),
            Ok("C:".to_owned())
        );
        for other in ['1', '\u{c4}', '\u{1b}', ' '] {
            assert_eq!(DriveLetter::try_from(other), Err(NoDriveLetter));
        }
    }

    #[test]
    fn a_drive_is_named_by_one_letter() {
        assert_eq!("c".parse(), DriveLetter::try_from('C'));
        for other in ["", "c:", "cd", "1"] {
            assert_eq!(other.parse::<DriveLetter>(), Err(NoDriveLetter), "{other}");
        }
    }
}
