//! Plain sectors, with holes where blocks are zero.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Target;

/// Bytes that are a hole together or not at all.
pub const BLOCK: usize = 64 * 1024;

/// A file of plain sectors.
pub struct Raw<'f> {
    file: &'f File,
    size: u64,
}

impl<'f> Raw<'f> {
    /// One of `size` bytes in `file`, which is empty.
    pub fn new(file: &'f File, size: u64) -> Self {
        Self { file, size }
    }
}

impl Target for Raw<'_> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < bytes.len() {
            let run = |is_zero: bool| {
                let blocks = bytes[at..].chunks(BLOCK);
                blocks
                    .take_while(|block| is_zeros(block) == is_zero)
                    .map(<[u8]>::len)
                    .sum::<usize>()
            };
            at += run(true);
            let length = bytes[at..]
                .chunks(BLOCK)
                .take_while(|block| !is_zeros(block))
                .map(<[u8]>::len)
                .sum::<usize>();
            self.file.write_all_at(&bytes[at..at + length], offset + at as u64)?;
            at += length;
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.set_len(self.size)
    }

    fn read_back(&self, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 16 * BLOCK];
        let mut at = 0;
        while at < self.size {
            let left = usize::try_from(self.size - at).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(16 * BLOCK)];
            self.file.read_exact_at(part, at)?;
            take(part);
            at += part.len() as u64;
        }
        Ok(())
    }
}

/// Whether there are only zeros.
pub fn is_zeros(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}
