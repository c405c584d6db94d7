//! The sums of headers, put right: hardly a change by the fuzzer would come through otherwise.

/// Writes the sum of each block of tar that looks like a header, as if spaces stood in its own place.
pub fn seal(stream: &mut [u8]) {
    let headers = stream.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar"));
    for header in headers {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
}

/// Puts the checksum of VHDX into its place, the second four bytes. Source: RFC 3720, appendix B.4.
pub fn seal_crc32c(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ ((sum & 1) * 0x82f6_3b78))
    });
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}
