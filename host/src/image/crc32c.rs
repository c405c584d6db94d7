//! CRC-32C, the checksum of VHDX. Source: RFC 3720, appendix B.4.

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What each byte adds to the sum.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0u32;
    while byte < 256 {
        let (mut sum, mut bit) = (byte, 0);
        while bit < 8 {
            sum = (sum >> 1) ^ ((sum & 1) * POLYNOMIAL);
            bit += 1;
        }
        table[byte as usize] = sum;
        byte += 1;
    }
    table
};

/// The checksum of `bytes`, of which the four at `hole` count as zeros: where the sum itself is
/// stored.
pub fn crc32c_without(bytes: &[u8], hole: usize) -> u32 {
    let end = hole + 4;
    let (before, after) = (&bytes[..hole], &bytes[end..]);
    !update(update(update(u32::MAX, before), &[0; 4]), after)
}

fn update(sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |sum, &byte| {
        let [low, ..] = sum.to_le_bytes();
        (sum >> 8) ^ TABLE[usize::from(low ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(!update(u32::MAX, b"123456789"), 0xe306_9283);
        // Appendix B.4: 32 bytes of zeros.
        assert_eq!(crc32c_without(&[0; 32], 8), 0x8a91_36aa);
        assert_eq!(
            crc32c_without(b"\0\0\0\0\0\0\0\0abcd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 8),
            0x8a91_36aa
        );
    }
}
