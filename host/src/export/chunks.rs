//! Puts bytes that come in pieces of any size into whole chunks, with the holes between them.
//!
//! The pieces may lie in memory that a guest can change. They are copied here, once, and only the
//! copy is looked at.

use std::io;

/// Bytes of a chunk, a multiple of a block's.
const CHUNK: u64 = 1 << 20;

/// Collects pieces; `take` gets the place of each chunk, its bytes or `None` for a hole, and how many
/// bytes it stands for.
pub struct Chunks<F> {
    size: u64,
    take: F,
    /// Where the bytes in `buffer` begin.
    start: u64,
    /// What is known of the chunk so far: as many bytes as it has, zeros where nothing came.
    buffer: Vec<u8>,
    /// Whether something came for it.
    used: bool,
}

impl<F: FnMut(u64, Option<&[u8]>, u64) -> io::Result<()>> Chunks<F> {
    /// For `size` bytes.
    pub fn of(size: u64, take: F) -> Self {
        Self { size, take, start: 0, buffer: Vec::new(), used: false }
    }

    /// Adds what is at `offset`, behind all that was added before.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn add(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.size);
        if end.is_none() || offset < self.start {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        while !bytes.is_empty() {
            self.go_to(offset)?;
            if !self.used {
                self.buffer.clear();
                let length = CHUNK.min(self.size - self.start);
                self.buffer.resize(usize::try_from(length).expect("a chunk"), 0);
                self.used = true;
            }
            let at = usize::try_from(offset - self.start).expect("within a chunk");
            let (part, rest) = bytes.split_at(bytes.len().min(self.buffer.len() - at));
            self.buffer[at..at + part.len()].copy_from_slice(part);
            offset += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Gives what is left, up to the end.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn finish(mut self) -> io::Result<()> {
        self.give()?;
        self.skip_to(self.size)
    }

    /// Makes the chunk current that `offset` is in.
    fn go_to(&mut self, offset: u64) -> io::Result<()> {
        let wanted = offset / CHUNK * CHUNK;
        if wanted > self.start || (self.used && offset >= self.start + self.buffer.len() as u64) {
            self.give()?;
            self.skip_to(wanted)?;
        }
        Ok(())
    }

    fn give(&mut self) -> io::Result<()> {
        if self.used {
            let length = self.buffer.len() as u64;
            (self.take)(self.start, Some(&self.buffer), length)?;
            self.start += length;
            self.used = false;
        }
        Ok(())
    }

    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        if offset > self.start {
            (self.take)(self.start, None, offset - self.start)?;
            self.start = offset;
        }
        Ok(())
    }
}
