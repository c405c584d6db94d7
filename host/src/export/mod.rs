//! A disk, partition or volume as a file of the host: plain sectors or qcow2, with holes where
//! there are only zeros, and compared with what was read if that is wanted.
//!
//! **Invariant:** knows nothing of guests; what is exported is a [`Source`].

mod chunks;
mod qcow2;
mod raw;

use std::fmt;
use std::fs::File;
use std::io;
use std::str::FromStr;

use guestmnt_protocol::message::Extent;
use sha2::{Digest, Sha256};

use self::chunks::Chunks;
use self::qcow2::Qcow2;
use self::raw::Raw;
use crate::disk::DiskReader;
use crate::extract::Progress;
use crate::files::{Contents, Stretch, Trouble};
use crate::image::SECTOR_SIZE;

/// The form of the file that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Sectors, one behind the other.
    #[default]
    Raw,
    /// QEMU's, version 3.
    Qcow2,
}

impl FromStr for Form {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err("not one of the formats raw, qcow2"),
        }
    }
}

/// Bytes that can be exported.
pub trait Source {
    /// How many there are.
    fn size(&self) -> u64;

    /// Where they are, in order. All others are zeros.
    ///
    /// # Errors
    /// [`Trouble`].
    fn stretches(&self) -> Result<Vec<Stretch>, Trouble>;

    /// Hands the bytes of a stretch to `take`, in order.
    ///
    /// # Errors
    /// [`Trouble`]; the host's may be those of `take`.
    fn read(
        &self,
        stretch: Stretch,
        take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble>;
}

/// A file in one of the [`Form`]s that is being written from its start to its end.
trait Target {
    /// Writes what is at `offset`, of which neither end is within a block of 64 KiB but that the
    /// last may be the disk's. Blocks of zeros need not be stored.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes what makes a whole of it.
    fn finish(&mut self) -> io::Result<()>;

    /// Reads the disk of a whole file from its start to its end, with holes as zeros.
    fn read_back(&self, take: &mut dyn FnMut(&[u8])) -> io::Result<()>;
}

/// Why there is no export.
#[derive(Debug)]
pub enum ExportError {
    /// The source cannot be read.
    Read(Trouble),
    /// The file cannot be written.
    Write(io::Error),
    /// The file cannot be read again.
    ReadBack(io::Error),
    /// The file holds something else than what was written.
    Differs,
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(Trouble::Host(error)) => write!(f, "cannot read the disk: {error}"),
            Self::Read(trouble) => write!(f, "cannot read the disk: {trouble}"),
            Self::Write(error) if error.kind() == io::ErrorKind::StorageFull => f.write_str(
                "cannot write: no space left on the host's filesystem\n  hint: nothing was left \
                 there; another filesystem may have room",
            ),
            Self::Write(error) => write!(f, "cannot write: {error}"),
            Self::ReadBack(error) => write!(f, "cannot read what was written: {error}"),
            Self::Differs => f.write_str(
                "what was written reads differently\n  hint: do not trust the storage that it was \
                 written to",
            ),
        }
    }
}

impl std::error::Error for ExportError {}

/// Whether the file is read again and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// Writes what `source` holds to the empty `file`, in the form `form`. Returns the SHA-256 of the
/// disk where it was checked.
///
/// # Errors
/// [`ExportError`].
pub fn export(
    source: &dyn Source,
    file: &File,
    form: Form,
    check: Check,
    progress: Progress,
) -> Result<Option<String>, ExportError> {
    let size = match form {
        Form::Raw => source.size(),
        // It has whole sectors; what the last one lacks is zeros.
        Form::Qcow2 => source.size().next_multiple_of(SECTOR_SIZE),
    };
    let mut target: Box<dyn Target + '_> = match form {
        Form::Raw => Box::new(Raw::new(file, size)),
        Form::Qcow2 => Box::new(Qcow2::new(file, size)),
    };
    let mut digest = (check == Check::Yes).then(Sha256::new);
    // What stops the writing comes back through the reading.
    let mut failed = None;
    let mut chunks = Chunks::of(size, |offset, bytes: Option<&[u8]>, length| {
        if let Some(digest) = &mut digest {
            match bytes {
                Some(bytes) => digest.update(bytes),
                None => zeros(length, &mut |zeros| digest.update(zeros)),
            }
        }
        progress(length);
        bytes.map_or(Ok(()), |bytes| target.write(offset, bytes))
    });
    for stretch in source.stretches().map_err(ExportError::Read)? {
        let read = source.read(stretch, &mut |at, bytes| {
            chunks.add(at, bytes).map_err(|error| {
                let kind = error.kind();
                failed = Some(error);
                kind.into()
            })
        });
        if let Some(error) = failed {
            return Err(ExportError::Write(error));
        }
        read.map_err(ExportError::Read)?;
    }
    chunks.finish().map_err(ExportError::Write)?;
    target.finish().and_then(|()| file.sync_all()).map_err(ExportError::Write)?;
    let Some(expected) = digest.map(Sha256::finalize) else { return Ok(None) };
    let mut digest = Sha256::new();
    target.read_back(&mut |bytes| digest.update(bytes)).map_err(ExportError::ReadBack)?;
    if digest.finalize() != expected {
        return Err(ExportError::Differs);
    }
    Ok(Some(expected.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Hands `count` zeros to `take`, piece by piece.
fn zeros(mut count: u64, take: &mut dyn FnMut(&[u8])) {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    while count > 0 {
        let part = usize::try_from(count).unwrap_or(usize::MAX).min(ZEROS.len());
        take(&ZEROS[..part]);
        count -= part as u64;
    }
}

/// A whole disk that this process reads itself.
impl Source for DiskReader {
    fn size(&self) -> u64 {
        self.exact_size()
    }

    fn stretches(&self) -> Result<Vec<Stretch>, Trouble> {
        let size = self.exact_size();
        let mut stretches = Vec::new();
        let mut at = 0;
        while let Some(distance) = self.find(at, size - at, Extent::Data)? {
            let start = at + distance;
            let hole = self.find(start, size - start, Extent::Hole)?;
            let length = hole.unwrap_or(size - start);
            stretches.push(Stretch { at: start, length });
            at = start + length;
        }
        Ok(stretches)
    }

    fn read(
        &self,
        stretch: Stretch,
        take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        const PIECE: u64 = 1 << 20;
        let mut buffer = Vec::new();
        let end = stretch.at + stretch.length;
        let mut at = stretch.at;
        while at < end {
            // Up to the next whole piece, so that chunks are whole too.
            let size = (PIECE - at % PIECE).min(end - at);
            buffer.resize(usize::try_from(size).expect("a piece"), 0);
            DiskReader::read(self, &mut buffer, at)?;
            take(at, &buffer)?;
            at += size;
        }
        Ok(())
    }
}

/// A device that a guest shows as a file.
impl Source for Contents<'_> {
    fn size(&self) -> u64 {
        self.size()
    }

    fn stretches(&self) -> Result<Vec<Stretch>, Trouble> {
        Ok(self.stored()?)
    }

    fn read(
        &self,
        stretch: Stretch,
        take: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<(), Trouble> {
        self.read(stretch, take)
    }
}

#[cfg(test)]
mod tests;
