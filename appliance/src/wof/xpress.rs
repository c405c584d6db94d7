//! XPRESS with codes of Huffman, as WOF keeps files with it: one table for each chunk.
//!
//! Follows \[MS-XCA\] 2.2. **Invariant:** never more than the size of the chunk comes out.

use super::bits::{Bits, Code, copy_match};

/// Symbols: 256 bytes, and matches by the bits of their offset and their length.
const SYMBOLS: usize = 512;

/// The chunk of `size` bytes that `packed` holds; `None` where that is no such chunk.
#[must_use]
pub fn decompress(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    const LONG: u32 = 15;
    const MIN_MATCH: usize = 3;
    let (table, stream) = packed.split_at_checked(SYMBOLS / 2)?;
    let lengths: Vec<u8> = table.iter().flat_map(|pair| [pair & 15, pair >> 4]).collect();
    let code = Code::new(&lengths)?;
    let mut bits = Bits::new(stream);
    let mut out = Vec::with_capacity(size);
    while out.len() < size {
        let symbol = code.take(&mut bits)?;
        let Ok(byte) = u8::try_from(symbol) else {
            let found = u32::from(symbol) - 256;
            let offset_bits = found >> 4;
            let offset = (1 << offset_bits) + bits.take_of_16(offset_bits)?;
            let mut length = usize::try_from(found & LONG).ok()?;
            if found & LONG == LONG {
                length = match bits.byte()? {
                    u8::MAX => usize::from(u16::from_le_bytes([bits.byte()?, bits.byte()?])),
                    more => usize::from(more) + length,
                };
            }
            copy_match(&mut out, size, usize::try_from(offset).ok()?, length + MIN_MATCH)?;
            continue;
        };
        out.push(byte);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::bits::tests::{Writer, lines, unhex};
    use super::*;

    /// The table of a code in which these symbols have these lengths.
    fn table(symbols: &[(usize, u8)]) -> Vec<u8> {
        let mut table = vec![0; SYMBOLS / 2];
        for &(symbol, length) in symbols {
            table[symbol / 2] |= length << (4 * (symbol % 2));
        }
        table
    }

    #[test]
    fn matches_repeat_what_was_there() {
        // a: 0, b: 10, c: 110, the match with 1 bit of offset and a length of 15 or more: 111.
        let long = 256 + 16 + 15;
        let mut packed = table(&[(97, 1), (98, 2), (99, 3), (long, 3)]);
        // "abc", then from 3 bytes before: the offset is 2 + 1, the length 3 + 15 + 12.
        packed.extend(0b0101_1011_1100_0000u16.to_le_bytes());
        packed.extend(0u16.to_le_bytes());
        packed.push(12);
        let expected: Vec<u8> = b"abc".repeat(11);
        assert_eq!(decompress(&packed, 33), Some(expected));
    }

    #[test]
    fn what_a_compressor_made_is_what_it_was() {
        let packed = unhex(
            "000000000007000000000000000000000500000000000700376366666600000000000000000000000000\
            000000000000700060076700066700770500070000000000000000000000000000000000000000000000\
            000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
            000007000000000000000000000000000000000000000000000000070000000000000000000700000000\
            000000004000004000000000000000000000000000000000000070000073003000000000007000600000\
            000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
            000000004ed7d3d936954ee9f1746ed7a5f5f373345ee4d75e69e81e88929229052d98055b92b620056d\
            c9dd8205ba257c0b05f896122e05205c05c9b882710525e526c90531b7d1f906a7badd600778c206e40d\
            a02706c2de0d7c0627f406dfe080c206040e202806c2e00e8406281406e162868a06182e7eff06fd6ec5\
            500715c35c0c06503106c3c50c1506315cc5500615c35c0c06503106c3c5b01f0680de0000",
        );
        assert_eq!(decompress(&packed, lines().len()), Some(lines()));
    }

    #[test]
    fn bytes_alone_are_a_chunk() {
        let mut packed = vec![0x88; 128];
        packed.extend([0; 128]);
        let text = b"each byte has eight bits";
        let mut writer = Writer::default();
        text.iter().for_each(|&byte| writer.put(byte.into(), 8));
        packed.extend(writer.finish());
        assert_eq!(decompress(&packed, text.len()).as_deref(), Some(&text[..]));
        assert_eq!(decompress(&packed, text.len() + 40), None);
        assert_eq!(decompress(&packed[..255], text.len()), None);
    }

    #[test]
    fn a_match_from_before_the_chunk_is_refused() {
        let mut packed = table(&[(97, 1), (256 + 32, 1)]);
        packed.extend(0b0100_0000_0000_0000u16.to_le_bytes());
        assert_eq!(decompress(&packed, 8), None);
    }
}
