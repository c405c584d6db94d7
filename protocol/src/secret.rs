//! Keys of encrypted volumes. They are never shown: not by an error, a log or a debugger's print.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_SECRET;

/// A passphrase or key, at most [`MAX_SECRET`] bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct Secret(Vec<u8>);

/// A key of more than [`MAX_SECRET`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretTooLong;

impl fmt::Display for SecretTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key has at most {MAX_SECRET} bytes")
    }
}

impl std::error::Error for SecretTooLong {}

impl Secret {
    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Secret {
    type Error = SecretTooLong;
    fn try_from(bytes: Vec<u8>) -> Result<Self, SecretTooLong> {
        if bytes.len() > MAX_SECRET { Err(SecretTooLong) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<serde_bytes::ByteBuf> for Secret {
    type Error = SecretTooLong;
    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Self, SecretTooLong> {
        Self::try_from(bytes.into_vec())
    }
}

impl From<Secret> for serde_bytes::ByteBuf {
    fn from(secret: Secret) -> Self {
        Self::from(secret.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::try_from(b"hunter2".to_vec()).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert!(Secret::try_from(vec![0; MAX_SECRET + 1]).is_err());
    }
}
