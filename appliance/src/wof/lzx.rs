//! LZX, as WOF and WIM files have it: chunks of 32 KiB, each by itself.
//!
//! Follows \[MS-PATCH\] 2, with what WIM files do otherwise: a block's size is one bit where it is the
//! default, and the calls of x86 code are always translated, as if the file had 12,000,000 bytes.
//! **Invariant:** never more than the size of the chunk comes out.

use super::bits::{Bits, Code, copy_match};

/// Bytes of a chunk, and of a block unless it says otherwise.
pub const CHUNK: usize = 32 << 10;

/// Symbols for bytes and for matches: 30 slots of offsets, each with 8 lengths.
const MAIN: usize = 256 + 30 * 8;
/// Symbols for lengths of matches, and for how the lengths of codes are kept.
const LENGTHS: usize = 249;
const PRE: usize = 20;

/// The chunk of `size` bytes that `packed` holds; `None` where that is no such chunk.
#[must_use]
pub fn decompress(packed: &[u8], size: usize) -> Option<Vec<u8>> {
    if size > CHUNK {
        return None;
    }
    let mut bits = Bits::new(packed);
    let mut decoder = Decoder {
        main: vec![0; MAIN],
        length: vec![0; LENGTHS],
        recent: [1; 3],
        out: Vec::with_capacity(size),
        size,
    };
    while decoder.out.len() < size {
        decoder.block(&mut bits)?;
    }
    let mut out = decoder.out;
    untranslate(&mut out);
    Some(out)
}

struct Decoder {
    /// Lengths of codes, of which the next block says the differences.
    main: Vec<u8>,
    length: Vec<u8>,
    /// The last offsets.
    recent: [usize; 3],
    out: Vec<u8>,
    size: usize,
}

impl Decoder {
    fn block(&mut self, bits: &mut Bits) -> Option<()> {
        const VERBATIM: u32 = 1;
        const ALIGNED: u32 = 2;
        const UNCOMPRESSED: u32 = 3;
        let kind = bits.take(3)?;
        let length = if bits.take(1)? == 1 { CHUNK } else { bits.take(16)? as usize };
        let end = self.out.len() + length;
        if length == 0 || end > self.size {
            return None;
        }
        match kind {
            VERBATIM => self.compressed(bits, end, None),
            ALIGNED => {
                let lengths: Option<Vec<u8>> = (0..8).map(|_| byte(bits.take(3)?)).collect();
                self.compressed(bits, end, Some(Code::new(&lengths?)?))
            }
            UNCOMPRESSED => {
                bits.align()?;
                for recent in &mut self.recent {
                    let bytes = bits.bytes(4)?.try_into().ok()?;
                    *recent = u32::from_le_bytes(bytes) as usize;
                }
                self.out.extend(bits.bytes(length)?);
                // Words go on at an even place.
                if length % 2 == 1 && self.out.len() < self.size {
                    bits.bytes(1)?;
                }
                Some(())
            }
            _ => None,
        }
    }

    fn compressed(&mut self, bits: &mut Bits, end: usize, aligned: Option<Code>) -> Option<()> {
        const MIN_MATCH: usize = 2;
        const LONG: usize = 7;
        let (bytes, matches) = self.main.split_at_mut(256);
        read_lengths(bits, bytes)?;
        read_lengths(bits, matches)?;
        read_lengths(bits, &mut self.length)?;
        let (main, lengths) = (Code::new(&self.main)?, Code::new(&self.length)?);
        while self.out.len() < end {
            let symbol = usize::from(main.take(bits)?);
            let Some(found) = symbol.checked_sub(256) else {
                self.out.push(byte(u32::try_from(symbol).ok()?)?);
                continue;
            };
            let mut length = found % 8;
            if length == LONG {
                length += usize::from(lengths.take(bits)?);
            }
            let offset = self.offset(bits, found / 8, aligned.as_ref())?;
            copy_match(&mut self.out, end, offset, length + MIN_MATCH)?;
        }
        Some(())
    }

    /// The offset of a match, by its slot.
    fn offset(&mut self, bits: &mut Bits, slot: usize, aligned: Option<&Code>) -> Option<usize> {
        if slot < 3 {
            self.recent.swap(0, slot);
            return Some(self.recent[0]);
        }
        let extra = u32::try_from(slot / 2).ok()?.saturating_sub(1);
        let base = if slot < 4 { slot } else { (2 + slot % 2) << extra };
        let more = match aligned {
            Some(code) if extra >= 3 => {
                let high = bits.take(extra - 3)?;
                high << 3 | u32::from(code.take(bits)?)
            }
            _ => bits.take(extra)?,
        };
        let offset = base + more as usize - 2;
        self.recent = [offset, self.recent[0], self.recent[1]];
        Some(offset)
    }
}

/// Reads the lengths of a code, each as the difference from what it was.
fn read_lengths(bits: &mut Bits, lengths: &mut [u8]) -> Option<()> {
    let pre: Option<Vec<u8>> = (0..PRE).map(|_| byte(bits.take(4)?)).collect();
    let pre = Code::new(&pre?)?;
    let changed = |old: u8, by: u16| {
        let by = u8::try_from(by).ok().filter(|by| *by <= 16)?;
        Some((old + 17 - by) % 17)
    };
    let mut at = 0;
    while at < lengths.len() {
        let symbol = pre.take(bits)?;
        let (count, value) = match symbol {
            17 => (bits.take(4)? as usize + 4, 0),
            18 => (bits.take(5)? as usize + 20, 0),
            19 => {
                let count = bits.take(1)? as usize + 4;
                (count, changed(lengths[at], pre.take(bits)?)?)
            }
            _ => (1, changed(lengths[at], symbol)?),
        };
        // A run may go beyond the end.
        let end = (at + count).min(lengths.len());
        lengths[at..end].fill(value);
        at = end;
    }
    Some(())
}

/// Makes relative the targets of calls, which were made absolute so that they repeat.
fn untranslate(bytes: &mut [u8]) {
    const CALL: u8 = 0xe8;
    const FILE: i32 = 12_000_000;
    const TAIL: usize = 10;
    let mut at = 0;
    while at + TAIL < bytes.len() {
        if bytes[at] != CALL {
            at += 1;
            continue;
        }
        let Some(target) = bytes.get_mut(at + 1..at + 5) else { return };
        let absolute = i32::from_le_bytes([target[0], target[1], target[2], target[3]]);
        let position = i32::try_from(at).unwrap_or(i32::MAX);
        let relative = match absolute {
            0..FILE => Some(absolute - position),
            i32::MIN..0 if absolute >= -position => Some(absolute + FILE),
            _ => None,
        };
        if let Some(relative) = relative {
            target.copy_from_slice(&relative.to_le_bytes());
        }
        at += 5;
    }
}

fn byte(number: u32) -> Option<u8> {
    u8::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::super::bits::tests::{Writer, lines, unhex};
    use super::*;

    /// A block that holds `text` as it is.
    fn stored(text: &[u8]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.put(3, 3);
        writer.put(0, 1);
        writer.put(u32::try_from(text.len()).unwrap(), 16);
        writer.align();
        let mut packed = writer.finish();
        packed.extend([1, 0, 0, 0].repeat(3));
        packed.extend(text);
        packed
    }

    /// Lengths of a code: those of `symbols`, each at its place, by a code for lengths of which each
    /// has 5 bits.
    fn put_lengths(writer: &mut Writer, count: usize, symbols: &[(usize, u32)]) {
        (0..PRE).for_each(|_| writer.put(5, 4));
        for symbol in 0..count {
            let length = symbols.iter().find(|(at, _)| *at == symbol).map_or(0, |(_, n)| *n);
            writer.put((17 - length) % 17, 5);
        }
    }

    #[test]
    fn a_block_of_bytes_is_as_it_is() {
        let text = b"words that were not made smaller";
        assert_eq!(decompress(&stored(text), text.len()).as_deref(), Some(&text[..]));
        assert_eq!(decompress(&stored(text), text.len() - 1), None);
        assert_eq!(decompress(&stored(text)[..30], text.len()), None);
    }

    #[test]
    fn matches_repeat_what_was_there_and_offsets_are_remembered() {
        // Bytes a, b; slot 4 with its length of 2 + 3, slot 0 with the long one.
        let (slot4, slot0) = (256 + 4 * 8 + 3, 256 + 7);
        for aligned in [false, true] {
            let mut writer = Writer::default();
            writer.put(if aligned { 2 } else { 1 }, 3);
            writer.put(0, 1);
            writer.put(7 + 5 + 19, 16);
            if aligned {
                (0..8).for_each(|_| writer.put(3, 3));
            }
            put_lengths(&mut writer, 256, &[(97, 2), (98, 2)]);
            put_lengths(&mut writer, MAIN - 256, &[(slot0 - 256, 2), (slot4 - 256, 2)]);
            put_lengths(&mut writer, LENGTHS, &[(10, 1), (11, 1)]);
            // aababab; from 2 + 1 before: ababa is wrong, so it is the second of slot 4: 4 - 2 + 1.
            for symbol in [0, 0, 1, 0, 1, 0, 1] {
                writer.put(symbol, 2);
            }
            writer.put(3, 2);
            writer.put(1, 1);
            // The same offset: 2 + 7 + 10.
            writer.put(2, 2);
            writer.put(0, 1);
            let packed = writer.finish();
            let mut expected = b"aababab".to_vec();
            (0..24).for_each(|_| expected.push(expected[expected.len() - 3]));
            assert_eq!(decompress(&packed, expected.len()), Some(expected), "{aligned}");
        }
    }

    #[test]
    fn calls_are_made_relative() {
        let mut code = vec![0; 40];
        code[5] = CALL;
        code[6..10].copy_from_slice(&1005i32.to_le_bytes());
        code[20] = CALL;
        code[21..25].copy_from_slice(&(-3i32).to_le_bytes());
        code[35] = CALL;
        let mut plain = code.clone();
        plain[6..10].copy_from_slice(&1000i32.to_le_bytes());
        plain[21..25].copy_from_slice(&(12_000_000i32 - 3).to_le_bytes());
        assert_eq!(decompress(&stored(&code), code.len()), Some(plain));
    }

    const CALL: u8 = 0xe8;

    #[test]
    fn what_a_compressor_made_is_what_it_was() {
        let packed = unhex(
            "472000e20000020005334300675ef3064ba0edef689a1811c008035abfbf009a00000000004804868840\
            be66c8805bcf2f1320d9000000000000320343208025eff7bfdfae27b4bd50869cdb43394dc7e2bbd318\
            38ceeac3aef57c38bee3a3ed466ecddc1bba36756decdbdcdbcc5f8e329498de9288a40853242a13150a\
            4a45c5c272717fcc20840489224812419008824411248920ec05",
        );
        assert_eq!(decompress(&packed, lines().len()), Some(lines()));
    }

    #[test]
    fn no_chunk_makes_it_panic() {
        let packed = stored(b"some words");
        for bit in 0..packed.len() * 8 {
            let mut packed = packed.clone();
            packed[bit / 8] ^= 1 << (bit % 8);
            let _ = decompress(&packed, 10);
        }
        let mut noise = 1u32;
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..200)
                .map(|_| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    noise.to_le_bytes()[3]
                })
                .collect();
            let _ = decompress(&bytes, CHUNK);
            let _ = super::super::xpress::decompress(&bytes, 4096);
        }
    }
}
