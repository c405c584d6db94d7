//! Names that a descriptor gives to other files.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use guestmnt_protocol::path::Printable;

/// A file's name as an image states it: not empty, no control characters, no `scheme:` as
/// QEMU would take it. May be relative, absolute, or of Windows.
///
/// The bytes are those of the descriptor, whatever its `encoding` line says: a copy of the
/// image has file names of the same bytes, or of UTF-8 where both were converted.
#[derive(Clone, PartialEq, Eq)]
pub struct FileName(PathBuf);

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
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`NameError`] where they are not a name.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty);
        }
        if bytes.iter().any(u8::is_ascii_control) {
            return Err(NameError::Control);
        }
        if has_scheme(bytes) {
            return Err(NameError::Protocol);
        }
        Ok(Self(OsStr::from_bytes(bytes).into()))
    }

    /// The name as a path of this system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Where the file may be, by the name in a file in `folder`; likeliest first.
    ///
    /// Behind a Windows name, and where the whole name leads nowhere, the last part of the
    /// name is looked for beside the file.
    #[must_use]
    pub fn candidates(&self, folder: &Path) -> Vec<PathBuf> {
        let bytes = self.0.as_os_str().as_bytes();
        let mut paths = Vec::with_capacity(2);
        let separators: &[u8] = if is_windows(bytes) { b"/\\" } else { b"/" };
        let parts = || bytes.split(|b| separators.contains(b));
        if !is_windows(bytes) {
            paths.push(folder.join(&self.0));
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
        Printable(self.0.as_os_str().as_bytes()).fmt(f)
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
