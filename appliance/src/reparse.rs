//! What NTFS keeps of a link of Windows: of a junction, a folder with a volume in it, or a symbolic
//! link.
//!
//! Follows \[MS-FSCC\] 2.1.2.4 and 2.1.2.5. Everything is untrusted: what makes no sense is no link.

use guestmnt_protocol::system::DriveLetter;

use crate::little_endian::{u16_at, u32_at};

/// The kind of the attribute that has it.
pub const ATTRIBUTE: u32 = 0xc0;

/// Most bytes of it.
pub const MAX_LEN: u64 = 16 << 10;

/// `IO_REPARSE_TAG_MOUNT_POINT`, of junctions and of folders with volumes in them.
pub const MOUNT_POINT: u32 = 0xa000_0003;

/// `IO_REPARSE_TAG_SYMLINK`
const SYMBOLIC_LINK: u32 = 0xa000_000c;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    kind: Kind,
    /// The target as Windows opens it, such as `\??\C:\Users`.
    substitute: String,
    /// The target as Windows shows it, such as `C:\Users`; may be missing.
    print: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Junction,
    Symbolic { relative: bool },
}

/// Where a path begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// At the root of the volume that the link itself is on.
    Own,
    /// At that of a drive.
    Drive(DriveLetter),
    /// At that of the volume with this GUID, without braces.
    Volume(String),
}

impl Root {
    /// Whether both are the same place: GUIDs are written with any letters.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Volume(one), Self::Volume(other)) => one.eq_ignore_ascii_case(other),
            _ => self == other,
        }
    }
}

/// A target that does not depend on the folder that the link is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absolute {
    /// Where it begins.
    pub root: Root,
    /// The way from there, none of it `.` or `..`.
    pub names: Vec<String>,
}

impl Link {
    /// Reads the value of a reparse point; `None` for one that is no link.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        /// `SYMLINK_FLAG_RELATIVE`
        const RELATIVE: u32 = 1;
        let (kind, names) = match u32_at(data, 0)? {
            MOUNT_POINT => (Kind::Junction, data.get(0x10..)?),
            SYMBOLIC_LINK => {
                let relative = u32_at(data, 0x10)? & RELATIVE != 0;
                (Kind::Symbolic { relative }, data.get(0x14..)?)
            }
            _ => return None,
        };
        let name = |at: usize| {
            let start = usize::from(u16_at(data, at)?);
            text(names.get(start..start + usize::from(u16_at(data, at + 2)?))?)
        };
        Some(Self { kind, substitute: name(8)?, print: name(0xc).unwrap_or_default() })
    }

    /// Whether it is a junction, or a folder with a volume in it.
    #[must_use]
    pub fn is_junction(&self) -> bool {
        self.kind == Kind::Junction
    }

    /// The target as it is stored.
    #[must_use]
    pub fn stored(&self) -> &str {
        &self.substitute
    }

    /// Whether ntfs3 makes the target `shown` of it.
    #[must_use]
    pub fn is_shown_as(&self, shown: &[u8]) -> bool {
        let print = self.print.replace('\\', "/");
        match self.kind {
            Kind::Symbolic { .. } => print.as_bytes() == shown,
            // It puts the way to the volume's root into the place of the drive.
            Kind::Junction => {
                let below = print.split_once(':').map_or("", |(_, below)| below);
                shown.starts_with(b"./")
                    && shown.ends_with(below.trim_start_matches('/').as_bytes())
            }
        }
    }

    /// The target, where it is absolute and on a volume of this machine.
    #[must_use]
    pub fn absolute(&self) -> Option<Absolute> {
        let target = self.substitute.as_str();
        let of_devices = ["\\??\\", "\\\\?\\", "\\\\.\\"];
        if let Some(name) = of_devices.iter().find_map(|prefix| target.strip_prefix(prefix)) {
            return volume(name).or_else(|| drive(name));
        }
        let rooted = target.starts_with('\\') && !target.starts_with("\\\\");
        if self.kind == (Kind::Symbolic { relative: true }) && rooted {
            return Some(Absolute { root: Root::Own, names: names(target)? });
        }
        drive(target)
    }
}

fn volume(name: &str) -> Option<Absolute> {
    let (guid, below) = name.strip_prefix("Volume{")?.split_once('}')?;
    Some(Absolute { root: Root::Volume(guid.to_owned()), names: below_root(below)? })
}

fn drive(name: &str) -> Option<Absolute> {
    let (letter, below) = name.split_once(':')?;
    let letter: DriveLetter = letter.parse().ok()?;
    Some(Absolute { root: Root::Drive(letter), names: below_root(below)? })
}

fn below_root(path: &str) -> Option<Vec<String>> {
    let whole = path.is_empty() || path.starts_with(['\\', '/']);
    if whole { names(path) } else { None }
}

/// The names in a path from a volume's root, above which there is nothing.
fn names(path: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for name in path.split(['\\', '/']) {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name if name.contains('\0') => return None,
            name => names.push(name.to_owned()),
        }
    }
    Some(names)
}

/// UTF-16 that is in order.
pub fn text(bytes: &[u8]) -> Option<String> {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units).collect::<Result<_, _>>().ok()
}

#[cfg(test)]
mod tests {
    use xtask::disks::reparse::{Link as Written, Target};

    use super::*;

    fn parsed(link: Written, target: &str) -> Link {
        Link::parse(&Target { link, target }.data()).unwrap()
    }

    /// Where a target begins, and the way from there.
    fn absolute(link: Written, target: &str) -> Option<String> {
        let Absolute { root, names } = parsed(link, target).absolute()?;
        let root = match root {
            Root::Own => "own".to_owned(),
            Root::Drive(letter) => letter.to_string(),
            Root::Volume(guid) => guid,
        };
        Some(format!("{root}/{}", names.join("/")))
    }

    #[test]
    fn absolute_targets_name_a_drive_or_a_volume_or_their_own() {
        let junctions = [
            ("\\??\\C:\\Users", Some("C:/Users")),
            ("\\??\\c:\\Users\\All Users\\", Some("C:/Users/All Users")),
            ("\\??\\D:", Some("D:/")),
            ("\\??\\Volume{4c1b-0a}\\", Some("4c1b-0a/")),
            ("\\\\?\\Volume{4c1b-0a}\\a\\b", Some("4c1b-0a/a/b")),
            ("\\\\?\\C:\\a", Some("C:/a")),
            ("C:\\a\\..\\..\\..\\b\\.", Some("C:/b")),
            ("\\??\\UNC\\server\\share", None),
            ("\\??\\Volume{4c1b-0a", None),
            ("\\??\\Volume{4c1b-0a}x", None),
            ("\\??\\CD:\\a", None),
            ("\\??\\C:a", None),
            ("\\??\\", None),
            ("", None),
        ];
        for (target, expected) in junctions {
            assert_eq!(absolute(Written::Junction, target).as_deref(), expected, "{target}");
        }
        assert_eq!(absolute(Written::Absolute, "\\??\\C:\\x").as_deref(), Some("C:/x"));
        for (target, expected) in
            [("\\Users\\x", Some("own/Users/x")), ("Users\\x", None), ("\\\\server\\x", None)]
        {
            assert_eq!(absolute(Written::Relative, target).as_deref(), expected, "{target}");
        }
        // As ntfs3 stores what is made in a mount.
        assert_eq!(absolute(Written::Absolute, "\\??\\\\etc\\x"), None);
        assert_eq!(absolute(Written::Absolute, "\\??\\file"), None);
    }

    #[test]
    fn what_ntfs3_shows_of_a_link_tells_it_from_another() {
        let junction = parsed(Written::Junction, "\\??\\C:\\Users\\ann");
        for shown in ["./Users/ann", "./../../Users/ann"] {
            assert!(junction.is_shown_as(shown.as_bytes()), "{shown}");
        }
        for shown in ["Users/ann", "./Users", "", "/Users/ann"] {
            assert!(!junction.is_shown_as(shown.as_bytes()), "{shown}");
        }
        let symbolic = parsed(Written::Absolute, "\\??\\C:\\Users");
        assert!(symbolic.is_shown_as(b"C:/Users"));
        assert!(!symbolic.is_shown_as(b"file"));
    }

    #[test]
    fn half_a_link_is_none() {
        for link in [Written::Junction, Written::Absolute, Written::Relative] {
            let data = Target { link, target: "\\??\\C:\\Users" }.data();
            // What is shown may be missing.
            for length in 0..data.len() - 2 * "C:\\Users".len() - 4 {
                assert_eq!(Link::parse(&data[..length]), None, "{length}");
            }
            for at in 0..data.len() {
                for wrong in [0, 0x80, 0xff] {
                    let mut data = data.clone();
                    data[at] = wrong;
                    let _ = Link::parse(&data).and_then(|link| link.absolute());
                }
            }
        }
        assert_eq!(Link::parse(&0x8000_0013_u32.to_le_bytes().repeat(8)), None);
    }
}
