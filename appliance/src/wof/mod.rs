//! Files that Windows keeps compressed with its overlay filter (WOF, CompactOS): an empty sparse file
//! with a reparse point, and what it holds in chunks in the stream `WofCompressedData`.
//!
//! The stream begins with where the chunks end, but for the last one, counted from behind that table
//! on; in 8 bytes each for files of 4 GiB and more, otherwise in 4. A chunk that did not get smaller
//! is kept as it is. Follows \[MS-FSCC\] 2.1.2 and FILE_PROVIDER_EXTERNAL_INFO_V1 in ntifs.h.
//!
//! **Invariant:** a chunk gives as many bytes as the file has in its place, or an error.

mod bits;
pub mod lzx;
pub mod xpress;

use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::inodes::Volume;
use crate::little_endian::u32_at;
use crate::ntfs::DATA;
use crate::streams::Stream;

/// The stream that has the chunks.
const STREAM: &str = "WofCompressedData";

/// How chunks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// XPRESS with codes of Huffman, in chunks of so many bytes.
    Xpress(usize),
    /// LZX.
    Lzx,
}

impl Algorithm {
    /// What the reparse point's data says, tag and lengths included; `None` for what no file is
    /// compressed with.
    #[must_use]
    pub fn of(reparse: &[u8]) -> Option<Self> {
        /// `WOF_CURRENT_VERSION`, `WOF_PROVIDER_FILE`, `FILE_PROVIDER_CURRENT_VERSION`.
        const FILE: [u32; 3] = [1, 2, 1];
        let word = |index: usize| u32_at(reparse, 8 + 4 * index);
        if [word(0)?, word(1)?, word(2)?] != FILE {
            return None;
        }
        match word(3)? {
            0 => Some(Self::Xpress(4 << 10)),
            1 => Some(Self::Lzx),
            2 => Some(Self::Xpress(8 << 10)),
            3 => Some(Self::Xpress(16 << 10)),
            _ => None,
        }
    }

    fn chunk(self) -> usize {
        match self {
            Self::Xpress(size) => size,
            Self::Lzx => lzx::CHUNK,
        }
    }

    fn decompress(self, packed: &[u8], size: usize) -> Option<Vec<u8>> {
        match self {
            Self::Xpress(_) => xpress::decompress(packed, size),
            Self::Lzx => lzx::decompress(packed, size),
        }
    }
}

/// A compressed file.
pub struct WofFile {
    volume: Arc<Volume>,
    algorithm: Algorithm,
    stream: Stream,
    /// Bytes that the file has.
    size: u64,
    /// The chunk that was read last, with its number.
    last: Mutex<Option<(u64, Vec<u8>)>>,
}

impl WofFile {
    /// The file `number` of `volume`, which has `size` bytes.
    ///
    /// # Errors
    /// `EIO` where its chunks are missing.
    pub fn open(
        volume: Arc<Volume>,
        number: u64,
        size: u64,
        algorithm: Algorithm,
    ) -> nix::Result<Self> {
        let stream = volume.records.stream(number, DATA, STREAM).ok_or(Errno::EIO)?;
        Ok(Self { volume, algorithm, stream, size, last: Mutex::default() })
    }

    /// Bytes that the file has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `destination` from byte `offset`. Returns how many bytes there were; fewer than it holds
    /// only at the file's end.
    ///
    /// # Errors
    /// `EIO` for a damaged chunk.
    pub fn read(&self, offset: u64, destination: &mut [u8]) -> nix::Result<usize> {
        let chunk = self.algorithm.chunk();
        let mut filled = 0;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        while filled < destination.len() && offset + (filled as u64) < self.size {
            let at = offset + filled as u64;
            let number = at / chunk as u64;
            if last.as_ref().is_none_or(|(known, _)| *known != number) {
                *last = Some((number, self.chunk(number)?));
            }
            let (_, bytes) = last.as_ref().ok_or(Errno::EIO)?;
            let from = usize::try_from(at % chunk as u64).map_err(|_| Errno::EIO)?;
            let piece = bytes.get(from..).filter(|piece| !piece.is_empty()).ok_or(Errno::EIO)?;
            let count = piece.len().min(destination.len() - filled);
            destination[filled..filled + count].copy_from_slice(&piece[..count]);
            filled += count;
        }
        Ok(filled)
    }

    /// A chunk, decompressed.
    fn chunk(&self, number: u64) -> nix::Result<Vec<u8>> {
        let records = &self.volume.records;
        let chunk = self.algorithm.chunk() as u64;
        let chunks = self.size.div_ceil(chunk);
        let wide = self.size > u64::from(u32::MAX);
        let width = if wide { 8 } else { 4 };
        let table = (chunks - 1) * width;
        let end_of = |number: u64| -> nix::Result<u64> {
            let mut end = [0; 8];
            self.stream.read(records, number * width, &mut end[..if wide { 8 } else { 4 }])?;
            Ok(u64::from_le_bytes(end))
        };
        let start = if number == 0 { 0 } else { end_of(number - 1)? };
        let end = if number + 1 < chunks {
            end_of(number)?
        } else {
            self.stream.size.checked_sub(table).ok_or(Errno::EIO)?
        };
        let size = chunk.min(self.size - number * chunk);
        let packed = end.checked_sub(start).filter(|packed| (1..=size).contains(packed));
        let packed = packed.ok_or(Errno::EIO)?;
        let length = |bytes: u64| usize::try_from(bytes).map_err(|_| Errno::EIO);
        let mut bytes = vec![0; length(packed)?];
        let at = table.checked_add(start).ok_or(Errno::EIO)?;
        self.stream.read(records, at, &mut bytes)?;
        if packed == size {
            return Ok(bytes);
        }
        self.algorithm.decompress(&bytes, length(size)?).ok_or(Errno::EIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reparse_point_says_how_a_file_is_compressed() {
        let data = |words: [u32; 4]| {
            let words = words.iter().flat_map(|word| word.to_le_bytes());
            [0x17, 0, 0, 0x80, 16, 0, 0, 0].into_iter().chain(words).collect::<Vec<u8>>()
        };
        let table = [
            ([1, 2, 1, 0], Some(Algorithm::Xpress(4096))),
            ([1, 2, 1, 1], Some(Algorithm::Lzx)),
            ([1, 2, 1, 2], Some(Algorithm::Xpress(8192))),
            ([1, 2, 1, 3], Some(Algorithm::Xpress(16384))),
            ([1, 2, 1, 4], None),
            ([1, 1, 1, 0], None),
            ([2, 2, 1, 0], None),
        ];
        for (words, expected) in table {
            assert_eq!(Algorithm::of(&data(words)), expected, "{words:?}");
        }
        assert_eq!(Algorithm::of(&data([1, 2, 1, 0])[..20]), None);
    }
}
