//! Extended attributes of several files in one payload.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_SMALL_XATTR, MAX_XATTR_NAME};

/// The name of an extended attribute with its namespace: 1 to [`MAX_XATTR_NAME`] bytes, no NUL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct XattrName(Box<[u8]>);

/// Bytes that are no attribute's name, or no small value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrError;

impl fmt::Display for XattrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the name or not a small value of an extended attribute")
    }
}

impl std::error::Error for XattrError {}

impl XattrName {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`XattrError`] where they are not a name.
    pub fn new(bytes: &[u8]) -> Result<Self, XattrError> {
        let good = (1..=MAX_XATTR_NAME).contains(&bytes.len()) && !bytes.contains(&0);
        if good { Ok(Self(bytes.into())) } else { Err(XattrError) }
    }

    /// The name's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<serde_bytes::ByteBuf> for XattrName {
    type Error = XattrError;
    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Self, XattrError> {
        Self::new(&bytes)
    }
}

impl From<XattrName> for serde_bytes::ByteBuf {
    fn from(name: XattrName) -> Self {
        Self::from(name.0.into_vec())
    }
}

impl fmt::Debug for XattrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// An extended attribute's value of at most [`MAX_SMALL_XATTR`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct SmallValue(Box<[u8]>);

impl SmallValue {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`XattrError`] where they are too many.
    pub fn new(bytes: &[u8]) -> Result<Self, XattrError> {
        if bytes.len() <= MAX_SMALL_XATTR { Ok(Self(bytes.into())) } else { Err(XattrError) }
    }

    /// The value's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<serde_bytes::ByteBuf> for SmallValue {
    type Error = XattrError;
    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Self, XattrError> {
        Self::new(&bytes)
    }
}

impl From<SmallValue> for serde_bytes::ByteBuf {
    fn from(value: SmallValue) -> Self {
        Self::from(value.0.into_vec())
    }
}

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Its name.
    pub name: XattrName,
    /// Its value. `None` where it is longer or could not be read: then it has to be asked for by
    /// itself.
    pub value: Option<SmallValue>,
}

/// What one file has, in the order of listxattr(2), or the error of listing it.
pub type FileXattrs = Result<Vec<Xattr>, u16>;

/// Appends what one file has to `page` unless that made it longer than `limit` bytes. Returns
/// whether it fitted.
///
/// A page is the files' postcard forms, one behind the other.
pub fn push_file(page: &mut Vec<u8>, file: &FileXattrs, limit: usize) -> bool {
    let before = page.len();
    let written = postcard::to_io(file, &mut *page).is_ok();
    let fits = written && page.len() <= limit;
    if !fits {
        page.truncate(before);
    }
    fits
}

/// Takes what the first file has off `page`.
///
/// # Errors
/// The page is not in the form that [`push_file`] writes.
pub fn pop_file(page: &mut &[u8]) -> Result<FileXattrs, postcard::Error> {
    let (file, rest) = postcard::take_from_bytes(page)?;
    *page = rest;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_these_bytes() {
        let xattr = |name: &[u8], value: Option<&[u8]>| Xattr {
            name: XattrName::new(name).unwrap(),
            value: value.map(|value| SmallValue::new(value).unwrap()),
        };
        let some: FileXattrs = Ok(vec![xattr(b"user.a", Some(b"\0\xff")), xattr(b"user.b", None)]);
        let files: [FileXattrs; 3] = [some, Ok(Vec::new()), Err(95)];
        let mut page = Vec::new();
        assert!(files.iter().all(|file| push_file(&mut page, file, 4096)));
        assert_eq!(page, b"\x00\x02\x06user.a\x01\x02\0\xff\x06user.b\x00\x00\x00\x01\x5f");
        let mut rest = page.as_slice();
        for file in files {
            assert_eq!(pop_file(&mut rest).unwrap(), file);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_file_that_does_not_fit_leaves_the_page_as_it_was() {
        let mut page = vec![9];
        assert!(!push_file(&mut page, &Err(95), 2));
        assert_eq!(page, [9]);
    }

    #[test]
    fn names_are_checked_when_a_page_is_read() {
        for bytes in [&b"\x00\x01\x00\x00"[..], b"\x00\x01\x01\0\x00", b"\x00\x01\x02a"] {
            assert!(pop_file(&mut &*bytes).is_err(), "{bytes:?}");
        }
        let long = [&[0, 1, 0x80, 2][..], &[b'x'; 256], &[0]].concat();
        assert!(pop_file(&mut long.as_slice()).is_err());
    }

    #[test]
    fn values_are_checked_when_a_page_is_read() {
        let value = |length: usize| {
            let mut bytes = vec![0, 1, 1, b'a', 1];
            postcard::to_io(&length, &mut bytes).unwrap();
            bytes.resize(bytes.len() + length, 7);
            bytes
        };
        assert!(pop_file(&mut value(MAX_SMALL_XATTR).as_slice()).is_ok());
        assert!(pop_file(&mut value(MAX_SMALL_XATTR + 1).as_slice()).is_err());
    }
}
