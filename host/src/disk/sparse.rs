//! The grains of VMware's hosted sparse extents (`KDMV`), found through their directory and
//! tables as QEMU's driver finds them.
//!
//! Source: Virtual Disk Format 5.0, "Hosted Sparse Extents"; block/vmdk.c of QEMU. The header was
//! checked when the image was opened; the tables are not, and each entry is checked when used.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::Piece;
use crate::image::SECTOR_SIZE;

const MAGIC: &[u8] = b"KDMV";

/// An entry of 1 stands for a grain of zeros.
const HAS_ZERO_GRAINS: u32 = 1 << 2;

/// Grains are compressed, each behind a marker.
const COMPRESSED_OR_MARKED: u32 = 1 << 16 | 1 << 17;

/// In place of the directory's sector: it is found by the footer.
const AT_END: u64 = u64::MAX;

/// Grain tables that are kept: 2 KiB each, for 32 MiB of the disk with usual grains.
const MAX_TABLES: usize = 4096;

/// Where the bytes at some place of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the extent's file, from this byte on.
    Stored(u64),
    /// Nowhere: they are zeros.
    Zero,
    /// In the parent, at the same place.
    Parent,
}

/// An extent with its tables.
pub struct SparseExtent {
    file: File,
    file_len: u64,
    capacity: u64,
    grain: u64,
    table_entries: u64,
    directory: u64,
    has_zero_grains: bool,
    /// By number; a missing one is `None`.
    tables: Mutex<HashMap<u64, Option<Arc<[u32]>>>>,
}

impl SparseExtent {
    /// The extent in `file`. `None` where that is of another kind, or where its grains are
    /// compressed.
    ///
    /// # Errors
    /// As pread(2), and `InvalidData` for a header that could not have been opened.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let mut header = [0; 512];
        file.read_exact_at(&mut header, 0)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let (flags, directory) = (word(8), long(56));
        let marked = flags & COMPRESSED_OR_MARKED != 0 || directory == AT_END;
        if !header.starts_with(MAGIC) || marked || header[77..79] != [0, 0] {
            return Ok(None);
        }
        let bytes =
            |sectors: u64| sectors.checked_mul(SECTOR_SIZE).ok_or(io::ErrorKind::InvalidData);
        let (capacity, grain) = (bytes(long(12))?, bytes(long(20))?);
        let table_entries = u64::from(word(44));
        if !grain.is_power_of_two() || !(1..=512).contains(&table_entries) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some(Self {
            file: file.try_clone()?,
            file_len: file.metadata()?.len(),
            capacity,
            grain,
            table_entries,
            directory: bytes(directory)?,
            has_zero_grains: flags & HAS_ZERO_GRAINS != 0,
            tables: Mutex::default(),
        }))
    }

    /// Bytes of a grain, never 0.
    #[must_use]
    pub fn grain(&self) -> u64 {
        self.grain
    }

    /// Where the bytes from `offset` on are, and how many of the next `length` are there, one
    /// behind the other.
    ///
    /// # Errors
    /// `InvalidData` where the tables lead out of the file or the extent; as pread(2).
    pub fn find(&self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let end = offset.checked_add(length).filter(|&end| end <= self.capacity);
        let end = end.ok_or(io::ErrorKind::InvalidData)?;
        let place = self.place(offset)?;
        let mut next = (offset / self.grain + 1) * self.grain;
        while next < end && self.place(next)? == place.after(next - offset) {
            next += self.grain;
        }
        Ok((place, next.min(end) - offset))
    }

    /// Gives `length` bytes from byte `offset` of the file to `take`.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn pieces<'a>(
        &'a self,
        offset: u64,
        length: usize,
        take: &mut dyn FnMut(Piece<'a>) -> io::Result<()>,
    ) -> io::Result<()> {
        take(Piece::Stored { file: &self.file, offset, length })
    }

    fn place(&self, offset: u64) -> io::Result<Place> {
        let grain = offset / self.grain;
        let Some(table) = self.table(grain / self.table_entries)? else {
            return Ok(Place::Parent);
        };
        let index = usize::try_from(grain % self.table_entries).expect("at most 512");
        match u64::from(table[index]) {
            0 => Ok(Place::Parent),
            1 if self.has_zero_grains => Ok(Place::Zero),
            sector => {
                let at = sector * SECTOR_SIZE;
                if at >= self.file_len {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Ok(Place::Stored(at + offset % self.grain))
            }
        }
    }

    /// The grain table with this number; `None` where it is not there, and nothing it would hold.
    fn table(&self, number: u64) -> io::Result<Option<Arc<[u32]>>> {
        // An insertion is all or nothing.
        let tables = || self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables().get(&number) {
            return Ok(table.clone());
        }
        let table = self.read_table(number)?;
        let mut tables = tables();
        if tables.len() >= MAX_TABLES {
            tables.clear();
        }
        tables.insert(number, table.clone());
        Ok(table)
    }

    fn read_table(&self, number: u64) -> io::Result<Option<Arc<[u32]>>> {
        let mut entry = [0; 4];
        let at = self.directory.checked_add(number * 4).ok_or(io::ErrorKind::InvalidData)?;
        self.file.read_exact_at(&mut entry, at)?;
        let sector = u64::from(u32::from_le_bytes(entry));
        if sector == 0 {
            return Ok(None);
        }
        let entries = usize::try_from(self.table_entries).expect("at most 512");
        let mut bytes = vec![0; entries * 4];
        self.file.read_exact_at(&mut bytes, sector * SECTOR_SIZE)?;
        let words = bytes.chunks_exact(4);
        Ok(Some(words.map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes"))).collect()))
    }
}

impl Place {
    /// The place `distance` bytes on, if it is stored one behind the other.
    fn after(self, distance: u64) -> Self {
        match self {
            Self::Stored(at) => Self::Stored(at + distance),
            other => other,
        }
    }
}
