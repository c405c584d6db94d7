//! What XPRESS and LZX have in common: a stream of bits in words of 16, and codes of Huffman.
//!
//! Follows \[MS-XCA\] 2.2.4 and \[MS-PATCH\] 2.2. **Invariant:** no number of the stream is an index
//! before it is checked; what makes no sense gives nothing.

/// Bits of the longest code.
pub const MAX_BITS: u32 = 16;

/// Bits by which most symbols are found at once.
const FAST_BITS: u32 = 9;

/// Bits in little-endian words of 16, each from its highest on, with bytes between the words.
pub struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the highest on, and their number.
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, held: 0, count: 0 }
    }

    /// Holds `count` bits at least, [`MAX_BITS`] at most. Behind the stream there are zeros: of as
    /// many words as a decoder may look ahead.
    fn hold(&mut self, count: u32) -> Option<()> {
        const AHEAD: usize = 8;
        while self.count < count {
            let word = match self.bytes.get(self.at..self.at + 2) {
                Some(word) => u16::from_le_bytes([word[0], word[1]]),
                None if self.at < self.bytes.len() + AHEAD => 0,
                None => return None,
            };
            self.at += 2;
            self.held |= u64::from(word) << (48 - self.count);
            self.count += 16;
        }
        Some(())
    }

    /// The next bits, which stay.
    fn peek(&self, count: u32) -> u32 {
        if count == 0 { 0 } else { u32::try_from(self.held >> (64 - count)).unwrap_or(0) }
    }

    fn skip(&mut self, count: u32) {
        self.held <<= count;
        self.count -= count;
    }

    /// Takes `count` bits, [`MAX_BITS`] at most.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        self.hold(count)?;
        let bits = self.peek(count);
        self.skip(count);
        Some(bits)
    }

    /// Takes `count` bits as XPRESS does, which holds 16 whenever it takes some.
    pub fn take_of_16(&mut self, count: u32) -> Option<u32> {
        self.hold(16)?;
        self.take(count)
    }

    /// Takes a byte from behind the words that are held.
    pub fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// Goes on at the next word, leaving out at least one bit.
    pub fn align(&mut self) -> Option<()> {
        self.hold(1)?;
        let rest = self.count % 16;
        self.skip(if rest == 0 { 16 } else { rest });
        self.at -= usize::try_from(self.count / 8).ok()?;
        (self.held, self.count) = (0, 0);
        Some(())
    }

    /// Takes bytes where [`Bits::align`] has come to.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }
}

/// A canonical code of Huffman.
pub struct Code {
    /// Symbol and length by the first [`FAST_BITS`] bits; length 0 for longer codes.
    fast: Vec<(u16, u8)>,
    /// By length: the first code, and the place of its symbol in `symbols`.
    first: [(u32, usize); MAX_BITS as usize + 2],
    count: [u32; MAX_BITS as usize + 1],
    /// By length, then number.
    symbols: Vec<u16>,
}

impl Code {
    /// The code whose symbols have these lengths; 0 for those that it lacks. `None` for lengths that
    /// are no code.
    pub fn new(lengths: &[u8]) -> Option<Self> {
        let mut count = [0u32; MAX_BITS as usize + 1];
        for &length in lengths {
            *count.get_mut(usize::from(length))? += 1;
        }
        count[0] = 0;
        let mut first = [(0, 0); MAX_BITS as usize + 2];
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=MAX_BITS as usize {
            code = (code + count[length - 1]) << 1;
            first[length] = (code, place);
            place += count[length] as usize;
            if code + count[length] > 1 << length {
                return None;
            }
        }
        let mut symbols = vec![0; place];
        let mut next: Vec<usize> = first.iter().map(|&(_, place)| place).collect();
        let mut fast = vec![(0, 0); 1 << FAST_BITS];
        for (symbol, &length) in lengths.iter().enumerate() {
            if length == 0 {
                continue;
            }
            let symbol = u16::try_from(symbol).ok()?;
            let (at, length) = (usize::from(length), u32::from(length));
            let (code, place) = first[at];
            let code = code + u32::try_from(next[at] - place).ok()?;
            symbols[next[at]] = symbol;
            next[at] += 1;
            if length <= FAST_BITS {
                let from = usize::try_from(code << (FAST_BITS - length)).ok()?;
                let places = fast.get_mut(from..from + (1 << (FAST_BITS - length)))?;
                places.fill((symbol, u8::try_from(length).ok()?));
            }
        }
        Some(Self { fast, first, count, symbols })
    }

    /// Takes the next symbol.
    pub fn take(&self, bits: &mut Bits) -> Option<u16> {
        bits.hold(MAX_BITS)?;
        let (symbol, length) = self.fast[bits.peek(FAST_BITS) as usize];
        if length > 0 {
            bits.skip(u32::from(length));
            return Some(symbol);
        }
        for length in FAST_BITS + 1..=MAX_BITS {
            let (first, place) = self.first[length as usize];
            let code = bits.peek(length);
            if code >= first && code - first < self.count[length as usize] {
                bits.skip(length);
                return self.symbols.get(place + (code - first) as usize).copied();
            }
        }
        None
    }
}

/// Appends to `out`, which is to have `size` bytes, `length` bytes from `offset` bytes before its
/// end.
pub fn copy_match(out: &mut Vec<u8>, size: usize, offset: usize, length: usize) -> Option<()> {
    let start = out.len().checked_sub(offset).filter(|_| offset > 0)?;
    if length > size - out.len() {
        return None;
    }
    if offset >= length {
        out.extend_from_within(start..start + length);
    } else {
        for at in start..start + length {
            out.push(out[at]);
        }
    }
    Some(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Writes bits as [`Bits`] reads them.
    #[derive(Default)]
    pub struct Writer {
        pub bytes: Vec<u8>,
        held: u32,
        count: u32,
    }

    impl Writer {
        pub fn put(&mut self, value: u32, count: u32) {
            for bit in (0..count).rev() {
                self.held = self.held << 1 | value >> bit & 1;
                self.count += 1;
                if self.count == 16 {
                    self.bytes.extend(u16::try_from(self.held & 0xffff).unwrap().to_le_bytes());
                    (self.held, self.count) = (0, 0);
                }
            }
        }

        /// Fills the word with zeros; a whole one where it is full.
        pub fn align(&mut self) {
            self.put(0, 16 - self.count);
        }

        pub fn finish(mut self) -> Vec<u8> {
            if self.count > 0 {
                self.align();
            }
            self.bytes
        }
    }

    /// The bytes that these hexadecimal digits are.
    pub fn unhex(digits: &str) -> Vec<u8> {
        let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
        digits.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    /// What a compressor made the chunks of that the tests have.
    pub fn lines() -> Vec<u8> {
        let line = |n| format!("line {n} of a short text, line {n} of it\n");
        (0..30).map(line).collect::<String>().into_bytes()
    }

    #[test]
    fn bits_come_from_the_top_of_little_endian_words() {
        let mut bits = Bits::new(&[0x34, 0x12, 0xcd, 0xab, 7, 8]);
        assert_eq!([4, 8, 8].map(|count| bits.take(count)), [Some(1), Some(0x23), Some(0x4a)]);
        bits.align().unwrap();
        assert_eq!(bits.bytes(2), Some(&[7, 8][..]));
        assert_eq!(bits.bytes(1), None);
    }

    #[test]
    fn a_code_finds_short_and_long_symbols() {
        // 0: 1 bit; 1: 2 bits; 2 … 11: a bit longer each; the last two have as many.
        let lengths = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11];
        let code = Code::new(&lengths).unwrap();
        let mut writer = Writer::default();
        for symbol in 0..12u32 {
            let ones = symbol.min(11);
            writer.put((1 << ones) - 1, ones);
            writer.put(0, u32::from(symbol < 11));
        }
        let bytes = writer.finish();
        let mut bits = Bits::new(&bytes);
        let symbols: Vec<_> = (0..12).map(|_| code.take(&mut bits).unwrap()).collect();
        assert_eq!(symbols, (0..12).collect::<Vec<_>>());
    }

    #[test]
    fn lengths_that_are_no_code_are_refused() {
        assert!(Code::new(&[1, 1, 1]).is_none());
        assert!(Code::new(&[17]).is_none());
        assert!(
            Code::new(&[0, 0]).is_some_and(|code| code.take(&mut Bits::new(&[1, 2])).is_none())
        );
    }
}
