//! How large the sectors of a disk are for the guest.

use std::fmt;
use std::str::FromStr;

/// Bytes of the sectors that the guest's kernel sees. No image says it, yet partition tables
/// count in it: a disk with sectors of 4096 bytes has another table than one with 512.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockSize {
    /// As nearly all virtual disks have it.
    #[default]
    Bytes512,
    /// As disks called 4Kn have it.
    Bytes4096,
}

/// A text that names no [`BlockSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizeError;

impl fmt::Display for BlockSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("neither 512 nor 4096")
    }
}

impl std::error::Error for BlockSizeError {}

impl BlockSize {
    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bytes512 => 512,
            Self::Bytes4096 => 4096,
        }
    }
}

impl FromStr for BlockSize {
    type Err = BlockSizeError;

    fn from_str(text: &str) -> Result<Self, BlockSizeError> {
        match text {
            "512" => Ok(Self::Bytes512),
            "4096" => Ok(Self::Bytes4096),
            _ => Err(BlockSizeError),
        }
    }
}
