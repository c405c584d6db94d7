//! Names and paths inside the image. Bytes, not UTF-8: the image says what they are.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_LINK, MAX_NAME, MAX_PATH};

/// Why some bytes are no name or path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// No bytes at all.
    Empty,
    /// More than [`MAX_NAME`] bytes in a name, [`MAX_PATH`] in a path, [`MAX_LINK`] in a target.
    TooLong,
    /// `.` or `..`.
    Dots,
    /// A NUL byte, or a slash within a name.
    ForbiddenByte,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty name",
            Self::TooLong => "name too long",
            Self::Dots => "name is . or ..",
            Self::ForbiddenByte => "NUL or slash in a name",
        })
    }
}

impl std::error::Error for PathError {}

/// One entry's name: 1 to [`MAX_NAME`] bytes, no `/`, no NUL, neither `.` nor `..`. Its clones share
/// the bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct EntryName(Arc<[u8]>);

impl EntryName {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`PathError`] where they are not a name.
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        check_name(bytes)?;
        Ok(Self(bytes.into()))
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn check_name(bytes: &[u8]) -> Result<(), PathError> {
    match bytes {
        [] => Err(PathError::Empty),
        b"." | b".." => Err(PathError::Dots),
        _ if bytes.len() > MAX_NAME => Err(PathError::TooLong),
        _ if bytes.iter().any(|b| matches!(b, 0 | b'/')) => Err(PathError::ForbiddenByte),
        _ => Ok(()),
    }
}

impl TryFrom<serde_bytes::ByteBuf> for EntryName {
    type Error = PathError;
    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Self, PathError> {
        Self::new(&bytes)
    }
}

impl From<EntryName> for serde_bytes::ByteBuf {
    fn from(name: EntryName) -> Self {
        Self::from(name.0.to_vec())
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Where a symbolic link leads, as it is stored: 1 to [`MAX_LINK`] bytes without NUL.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct LinkTarget(Box<[u8]>);

impl LinkTarget {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`PathError`] where no link can lead there.
    pub fn new(bytes: &[u8]) -> Result<Self, PathError> {
        match bytes {
            [] => Err(PathError::Empty),
            _ if bytes.len() > MAX_LINK => Err(PathError::TooLong),
            _ if bytes.contains(&0) => Err(PathError::ForbiddenByte),
            _ => Ok(Self(bytes.into())),
        }
    }

    /// The target's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<serde_bytes::ByteBuf> for LinkTarget {
    type Error = PathError;
    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Self, PathError> {
        Self::new(&bytes)
    }
}

impl From<LinkTarget> for serde_bytes::ByteBuf {
    fn from(target: LinkTarget) -> Self {
        Self::from(target.0.into_vec())
    }
}

impl fmt::Debug for LinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A path from the mounted root: names joined by single slashes, none at either end; empty for
/// the root itself. No component is `.` or `..`, so joining it to a folder cannot leave it
/// other than through a symbolic link.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct GuestPath(Vec<u8>);

impl GuestPath {
    /// The mounted root.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks `bytes`, which are in the form that the type describes.
    ///
    /// # Errors
    /// [`PathError`] where they are not.
    pub fn new(bytes: Vec<u8>) -> Result<Self, PathError> {
        if bytes.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        if !bytes.is_empty() {
            bytes.split(|&b| b == b'/').try_for_each(check_name)?;
        }
        Ok(Self(bytes))
    }

    /// Reads a path as a person writes it: a leading slash, doubled slashes and a trailing one
    /// are allowed.
    ///
    /// # Errors
    /// [`PathError`], for `..` among others: it would mean different things before and after
    /// a symbolic link.
    pub fn parse(text: &[u8]) -> Result<Self, PathError> {
        let parts: Vec<&[u8]> =
            text.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        Self::new(parts.join(&b'/'))
    }

    /// This path with `name` below it.
    ///
    /// # Errors
    /// [`PathError::TooLong`].
    pub fn join(&self, name: &EntryName) -> Result<Self, PathError> {
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.0.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(&name.0);
        if bytes.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        Ok(Self(bytes))
    }

    /// The path's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the mounted root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of names in it, 0 for the root.
    #[must_use]
    pub fn depth(&self) -> usize {
        if self.is_root() { 0 } else { 1 + self.0.iter().filter(|&&b| b == b'/').count() }
    }
}

impl TryFrom<serde_bytes::ByteBuf> for GuestPath {
    type Error = PathError;
    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Self, PathError> {
        Self::new(bytes.into_vec())
    }
}

impl From<GuestPath> for serde_bytes::ByteBuf {
    fn from(path: GuestPath) -> Self {
        Self::from(path.0)
    }
}

/// With a leading slash, unprintable bytes escaped, so that it can go to a terminal.
impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", Printable(&self.0))
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Shows bytes of the image to a person: UTF-8 as it is, control characters and everything
/// else escaped, so that no terminal acts on them.
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || is_invisible(c) {
                    write!(f, "{}", c.escape_unicode())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        Ok(())
    }
}

/// Characters that change how a terminal lays out what follows (Unicode's bidirectional
/// controls and separators).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_mislead_are_refused() {
        let table: &[(&[u8], PathError)] = &[
            (b"", PathError::Empty),
            (b".", PathError::Dots),
            (b"..", PathError::Dots),
            (b"a/b", PathError::ForbiddenByte),
            (b"a\0", PathError::ForbiddenByte),
            (&[b'x'; MAX_NAME + 1], PathError::TooLong),
        ];
        for (bytes, error) in table {
            assert_eq!(EntryName::new(bytes), Err(*error));
        }
        assert!(EntryName::new(b"...").is_ok());
        assert!(EntryName::new(b"\xff\xfe\n").is_ok());
    }

    #[test]
    fn targets_that_no_link_can_have_are_refused() {
        assert_eq!(LinkTarget::new(b""), Err(PathError::Empty));
        assert_eq!(LinkTarget::new(b"a\0"), Err(PathError::ForbiddenByte));
        assert_eq!(LinkTarget::new(&[b'x'; MAX_LINK + 1]), Err(PathError::TooLong));
        assert!(LinkTarget::new(b"../..//a/\xff").is_ok());
        assert!(LinkTarget::new(&[b'x'; MAX_LINK]).is_ok());
    }

    #[test]
    fn paths_never_climb() {
        for bad in ["..", "a/..", "/a", "a/", "a//b", "a/./b"] {
            assert!(GuestPath::new(bad.into()).is_err(), "{bad}");
        }
        assert!(GuestPath::parse(b"/a/../b").is_err());
        assert_eq!(GuestPath::parse(b"//a/./b/").unwrap().as_bytes(), b"a/b");
        assert!(GuestPath::parse(b"/").unwrap().is_root());
    }

    #[test]
    fn depth_counts_names() {
        assert_eq!(GuestPath::root().depth(), 0);
        assert_eq!(GuestPath::parse(b"/a/b").unwrap().depth(), 2);
    }

    #[test]
    fn printable_keeps_text_and_escapes_controls() {
        let shown = Printable("gr\u{fc}n\x1b[31m\u{202e}".as_bytes()).to_string();
        assert_eq!(shown, "gr\u{fc}n\\u{1b}[31m\\u{202e}");
        assert_eq!(Printable(b"\xff").to_string(), "\\xff");
    }
}
