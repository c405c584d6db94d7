//! Reads the tables of an image, which lie one after the other or anywhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::error::Problem;
use super::super::missing::Missing;
use super::Allocation;

/// Bytes that are read at once of tables that follow each other.
const WINDOW: usize = 256 << 10;

/// The bytes of an image: those of one file, or of parts of several, one behind the other.
pub struct Stored<'f> {
    parts: Vec<Part<'f>>,
    /// How many they are.
    pub len: u64,
}

/// `len` bytes of `file` from `start` on, which are at `at` of the image.
struct Part<'f> {
    at: u64,
    len: u64,
    file: &'f File,
    start: u64,
}

impl<'f> Stored<'f> {
    /// `len` bytes of `file` from `start` on.
    pub fn new(file: &'f File, start: u64, len: u64) -> Self {
        Self { parts: vec![Part { at: 0, len, file, start }], len }
    }

    /// What `parts` joins: of each file so many bytes, from such a place on.
    pub fn joined(parts: impl Iterator<Item = (&'f File, u64, u64)>) -> Self {
        let mut all = Self { parts: Vec::new(), len: 0 };
        for (file, start, len) in parts {
            all.parts.push(Part { at: all.len, len, file, start });
            all.len = all.len.saturating_add(len);
        }
        all
    }

    /// Reads some bytes at `offset`, none at the end. What the last sector of a file lacks is zeros.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let number = self.parts.partition_point(|part| part.at.saturating_add(part.len) <= offset);
        let Some(part) = self.parts.get(number) else { return Ok(0) };
        let within = offset - part.at;
        let most = usize::try_from(part.len - within).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        match part.file.read_at(buffer, part.start + within)? {
            0 if self.parts.len() > 1 => {
                buffer.fill(0);
                Ok(buffer.len())
            }
            count => Ok(count),
        }
    }
}

/// The tables in an image.
pub struct Tables<'f> {
    stored: Stored<'f>,
    window: Vec<u8>,
    window_at: u64,
    left: u64,
    end: u64,
    is_partial: bool,
}

impl<'f> Tables<'f> {
    /// Those in `stored`, of which up to `budget` bytes are read.
    pub fn new(stored: Stored<'f>, budget: u64) -> Self {
        Self { stored, window: Vec::new(), window_at: 0, left: budget, end: 0, is_partial: false }
    }

    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        self.stored.len
    }

    /// Bytes that may still be read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Notes that a block ends at byte `end` of the image.
    pub fn note_end(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// What is to be told in the end.
    pub fn finish(self) -> Allocation {
        let end = if self.end > self.stored.len { self.end } else { 0 };
        Allocation { missing: Missing::default(), end, is_partial: self.is_partial }
    }

    /// The `len` bytes at `offset`: fewer where the image ends before; `None` where no more tables
    /// are to be read.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn get(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>, Problem> {
        let there = self.stored.len.saturating_sub(offset).min(len as u64);
        if there > self.left {
            self.is_partial = true;
            return Ok(None);
        }
        self.left -= there;
        let there = usize::try_from(there).expect("at most len");
        if there == 0 {
            return Ok(Some(&[]));
        }
        let window_end = self.window_at + self.window.len() as u64;
        let is_inside = offset >= self.window_at && offset + there as u64 <= window_end;
        if !is_inside {
            // What begins where the last one ended is likely to be followed by more.
            let follows = offset >= self.window_at && offset <= window_end && window_end > 0;
            let most = if follows { there.max(WINDOW) } else { there };
            let rest = usize::try_from(self.stored.len - offset).unwrap_or(usize::MAX);
            self.window.resize(most.min(rest), 0);
            self.window_at = offset;
            let mut filled = 0;
            while filled < self.window.len() {
                let at = offset + filled as u64;
                match self.stored.read_at(&mut self.window[filled..], at)? {
                    0 => break,
                    count => filled += count,
                }
            }
            self.window.truncate(filled);
        }
        let from = usize::try_from(offset - self.window_at).expect("within the window");
        let to = (from + there).min(self.window.len());
        Ok(Some(&self.window[from.min(to)..to]))
    }

    /// The `N` bytes of a header at `offset`.
    ///
    /// # Errors
    /// [`Problem::Truncated`] where they are not there; those of pread(2).
    pub fn header<const N: usize>(
        &mut self,
        offset: u64,
        what: &'static str,
    ) -> Result<[u8; N], Problem> {
        let len = self.stored.len;
        let bytes = self.get(offset, N)?.unwrap_or_default();
        bytes.try_into().map_err(|_| Problem::Truncated { what, len })
    }
}
