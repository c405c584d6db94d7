//! Names that a descriptor gives to other files.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use guestmnt_protocol::path::Printable;

use super::encoding::TextEncoding;

/// A file's name as an image states it: not empty, no control characters, no `scheme:` as
/// QEMU would take it. May be relative, absolute, or of Windows.
///
/// Where the text has an encoding, the file is looked for by the name in UTF-8 first, then by the
/// very bytes: a copy of the image has one or the other.
#[derive(Clone, PartialEq, Eq)]
pub struct FileName {
    /// As it is shown and looked for first.
    path: PathBuf,
    /// The bytes in the text, where they are others.
    stored: Option<PathBuf>,
}

/// Why some bytes are no [`FileName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// No bytes.
    Empty,
    /// A control character.
    Control,
    /// `nbd:`, `json:` and the like.
    Protocol,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "has an empty file name",
            Self::Control => "has a file name with a control character",
            Self::Protocol => "names a protocol and not a file",
        })
    }
}

impl FileName {
    /// Checks `bytes`, which are taken as they are.
    ///
    /// # Errors
    /// [`NameError`] where they are not a name.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        Self::encoded(bytes, TextEncoding::UNKNOWN)
    }

    /// Checks `bytes` from a text in `encoding`.
    ///
    /// # Errors
    /// [`NameError`] where they are not a name.
    pub fn encoded(bytes: &[u8], encoding: TextEncoding) -> Result<Self, NameError> {
        let as_path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        match encoding.to_utf8(bytes) {
            Some(text) => {
                check(&text)?;
                Ok(Self {
                    path: as_path(&text),
                    stored: check(bytes).ok().map(|()| as_path(bytes)),
                })
            }
            None => check(bytes).map(|()| Self { path: as_path(bytes), stored: None }),
        }
    }

    /// The name as a path of this system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.path
    }

    /// Whether it names a file wherever the text is: `/vm/a.vmdk`, `C:\\vm\\a.vmdk`.
    #[must_use]
    pub fn is_absolute(&self) -> bool {
        let bytes = self.path.as_os_str().as_bytes();
        self.path.is_absolute() || has_drive(bytes) || bytes.starts_with(b"\\")
    }

    /// Whether it names a device of Windows.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.path.as_os_str().as_bytes().starts_with(b"\\\\.\\")
    }

    /// Where an extent of this name may be, for a descriptor in `folder`; likeliest first. Beside
    /// the descriptor are looked for those that were elsewhere on another machine.
    #[must_use]
    pub fn extent_candidates(&self, folder: &Path) -> Vec<PathBuf> {
        let mut candidates = self.candidates(folder);
        if !self.is_absolute() {
            let within = |path: &PathBuf| path.parent() == Some(folder);
            let is_part = |part: &Component| matches!(part, Component::Normal(_));
            let parts = self.path.components().filter(is_part).count();
            candidates.retain(|path| parts == 1 || !within(path));
        }
        candidates
    }

    /// Where the name itself says that the file is, in a file in `folder`; `None` for a name that only
    /// Windows understands.
    #[must_use]
    pub fn stated(&self, folder: &Path) -> Option<PathBuf> {
        let bytes = self.path.as_os_str().as_bytes();
        let is_foreign = is_windows(bytes) && (has_drive(bytes) || bytes.starts_with(b"\\"));
        if is_foreign { None } else { self.candidates(folder).into_iter().next() }
    }

    /// Where the file may be, by the name in a file in `folder`; likeliest first.
    ///
    /// Behind a Windows name, and where the whole name leads nowhere, the last part of the
    /// name is looked for beside the file.
    #[must_use]
    pub fn candidates(&self, folder: &Path) -> Vec<PathBuf> {
        let mut paths = places(&self.path, folder);
        for path in self.stored.iter().flat_map(|stored| places(stored, folder)) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }

    /// Whether a file of this name, wherever it is, is called `last`.
    #[must_use]
    pub fn ends_in(&self, last: &OsStr) -> bool {
        let folder = Path::new("/");
        self.candidates(folder).iter().any(|path| path.file_name() == Some(last))
    }
}

/// Checks the bytes of a name.
fn check(bytes: &[u8]) -> Result<(), NameError> {
    if bytes.is_empty() {
        return Err(NameError::Empty);
    }
    if bytes.iter().any(u8::is_ascii_control) {
        return Err(NameError::Control);
    }
    if has_scheme(bytes) {
        return Err(NameError::Protocol);
    }
    Ok(())
}

/// Where the file called `name` may be; see [`FileName::candidates`].
fn places(name: &Path, folder: &Path) -> Vec<PathBuf> {
    let bytes = name.as_os_str().as_bytes();
    let mut paths = Vec::with_capacity(2);
    let separators: &[u8] = if is_windows(bytes) { b"/\\" } else { b"/" };
    let parts = || bytes.split(|b| separators.contains(b));
    if !is_windows(bytes) {
        paths.push(folder.join(name));
    } else if !has_drive(bytes) && !bytes.starts_with(b"\\") {
        let parts: Vec<&[u8]> = parts().collect();
        paths.push(folder.join(OsStr::from_bytes(&parts.join(&b'/'))));
    }
    let last = parts().next_back().unwrap_or_default();
    if !matches!(last, b"" | b"." | b"..") {
        let beside = folder.join(OsStr::from_bytes(last));
        if !paths.contains(&beside) {
            paths.push(beside);
        }
    }
    paths
}

/// `C:` in front.
fn has_drive(bytes: &[u8]) -> bool {
    matches!(bytes, [letter, b':', ..] if letter.is_ascii_alphabetic())
}

/// A drive, or backslashes where a Linux path has slashes.
fn is_windows(bytes: &[u8]) -> bool {
    has_drive(bytes) || (bytes.contains(&b'\\') && !bytes.contains(&b'/'))
}

/// Letters, digits, `+`, `-` and `.` before a colon; one letter alone is a drive.
/// Source: RFC 3986, 3.1.
fn has_scheme(bytes: &[u8]) -> bool {
    let Some(colon) = bytes.iter().position(|&b| b == b':') else { return false };
    let scheme = &bytes[..colon];
    scheme.len() > 1
        && scheme[0].is_ascii_alphabetic()
        && scheme.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(self.path.as_os_str().as_bytes()).fmt(f)
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_and_control_characters_are_refused() {
        let table: &[(&[u8], NameError)] = &[
            (b"", NameError::Empty),
            (b"a\nb", NameError::Control),
            (b"a\0b", NameError::Control),
            (b"a\x7fb", NameError::Control),
            (b"nbd:localhost:10809", NameError::Protocol),
            (b"nbd+unix:///?socket=/s", NameError::Protocol),
            (b"json:{\"driver\":\"null-co\"}", NameError::Protocol),
            (b"ssh://host/file", NameError::Protocol),
            (b"fat:rw:/etc", NameError::Protocol),
            (b"file:/etc/passwd", NameError::Protocol),
        ];
        for (bytes, error) in table {
            assert_eq!(FileName::new(bytes), Err(*error));
        }
        for good in [&b"a b.vmdk"[..], "gr\u{fc}n.vmdk".as_bytes(), b"\xfc.vmdk", b"at 12:30.vmdk"]
        {
            assert!(FileName::new(good).is_ok());
        }
    }

    #[test]
    fn extents_are_beside_the_descriptor_where_their_name_is_of_elsewhere() {
        let table: &[(&str, &[&str])] = &[
            ("a.vmdk", &["/vm/a.vmdk"]),
            ("./a.vmdk", &["/vm/./a.vmdk"]),
            ("sub/a.vmdk", &["/vm/sub/a.vmdk"]),
            ("/vmfs/volumes/5bd0b7d5/x/a.vmdk", &["/vmfs/volumes/5bd0b7d5/x/a.vmdk", "/vm/a.vmdk"]),
            ("C:\\VMs\\x\\a.vmdk", &["/vm/a.vmdk"]),
        ];
        for (name, expected) in table {
            let name = FileName::new(name.as_bytes()).unwrap();
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(name.extent_candidates(Path::new("/vm")), expected, "{name}");
        }
    }

    #[test]
    fn encoded_names_are_looked_for_in_utf_8_and_as_they_are_stored() {
        let encoding = TextEncoding::named(b"Shift_JIS");
        // A backslash is the second byte of the first letter.
        let name = FileName::encoded(b"\x83\x5c.vmdk", encoding).unwrap();
        let stored = OsStr::from_bytes(b"/vm/\x83/.vmdk");
        let expected = [Path::new("/vm/ソ.vmdk"), Path::new(stored)];
        assert_eq!(name.candidates(Path::new("/vm"))[..2], expected);
        assert_eq!(name.to_string(), FileName::new("ソ.vmdk".as_bytes()).unwrap().to_string());
        let name = FileName::encoded("Prüf.vmdk".as_bytes(), encoding).unwrap();
        assert!(name.candidates(Path::new("/vm")).contains(&PathBuf::from("/vm/Prüf.vmdk")));
        assert_eq!(FileName::encoded(b"nbd:\x83\x5c", encoding), Err(NameError::Protocol));
    }

    #[test]
    fn candidates_go_from_the_whole_name_to_its_last_part() {
        let table: &[(&str, &[&str])] = &[
            ("base.vmdk", &["/vm/base.vmdk"]),
            ("../b/base.vmdk", &["/vm/../b/base.vmdk", "/vm/base.vmdk"]),
            ("/b/base.vmdk", &["/b/base.vmdk", "/vm/base.vmdk"]),
            ("C:\\b\\base.vmdk", &["/vm/base.vmdk"]),
            ("C:/b/base.vmdk", &["/vm/base.vmdk"]),
            ("\\\\server\\b\\base.vmdk", &["/vm/base.vmdk"]),
            ("..\\b\\base.vmdk", &["/vm/../b/base.vmdk", "/vm/base.vmdk"]),
            ("..", &["/vm/.."]),
            ("C:\\b\\", &[]),
        ];
        for (name, expected) in table {
            let name = FileName::new(name.as_bytes()).unwrap();
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(name.candidates(Path::new("/vm")), expected, "{name}");
        }
    }
}
