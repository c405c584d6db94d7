//! Bytes as a chunk of a file that WOF compressed. The first one says how, the next two how many bytes
//! are to come out, less one; the others are the chunk.

use guestmnt_appliance::wof::{lzx, xpress};

/// Decompresses it, if it can be.
///
/// # Panics
/// Where other than so many bytes come out.
pub fn run(bytes: &[u8]) {
    let Some(out) = decompressed(bytes) else { return };
    assert_eq!(out.len(), size([bytes[1], bytes[2]]));
}

fn size(bytes: [u8; 2]) -> usize {
    usize::from(u16::from_le_bytes(bytes)) + 1
}

/// What comes out.
#[must_use]
pub fn decompressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let (&[how, low, high], packed) = bytes.split_first_chunk()?;
    let size = size([low, high]);
    if how % 2 == 0 { xpress::decompress(packed, size) } else { lzx::decompress(packed, size) }
}
