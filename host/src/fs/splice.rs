//! Bytes of files on their way into the kernel's page cache that do not come by here: the kernel copies
//! them from the cache of one file into that of the other, through a pipe.
//!
//! Source: `fuse_dev_splice_write()` and `fuse_notify_store()` in fs/fuse/dev.c; splice(2).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::nodes::NodeId;
use crate::disk::Piece;

/// Bytes that pass at once. A pipe holds so many pages; twice as many as a chunk has, for those that
/// are filled in part. Without privileges, a user's pipes have 64 MiB together.
const ROOM: i32 = 256 << 10;

/// `FUSE_NOTIFY_STORE` of include/uapi/linux/fuse.h.
const NOTIFY_STORE: i32 = 4;

/// Bytes of `struct fuse_out_header` and `struct fuse_notify_store_out`.
const HEADER: usize = 16 + 24;

static ZEROS: [u8; 4096] = [0; 4096];

/// The way into the kernel's page cache.
pub struct Splice {
    device: OwnedFd,
    /// Empty ones.
    pipes: Mutex<Vec<Pipe>>,
}

struct Pipe {
    reader: OwnedFd,
    writer: File,
}

impl Splice {
    /// By the descriptor of a FUSE mount.
    #[must_use]
    pub fn to(device: OwnedFd) -> Self {
        Self { device, pipes: Mutex::default() }
    }

    /// Stores `length` bytes at `offset` of a file; `pieces` says which they are, one behind the
    /// other.
    ///
    /// # Errors
    /// `WouldBlock` for more pieces than a pipe holds, `UnexpectedEof` for a file that got shorter,
    /// those of `pieces`: nothing is stored then. As pipe(2), `F_SETPIPE_SZ` and splice(2); what was
    /// stored until then is right.
    pub fn store<'a>(
        &self,
        node: NodeId,
        offset: u64,
        length: u32,
        pieces: impl FnOnce(&mut dyn FnMut(Piece<'a>) -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<()> {
        let pipe = self.pipes().pop().map_or_else(Pipe::new, Ok)?;
        pipe.put(&header(node, offset, length))?;
        pieces(&mut |piece| pipe.take(&piece))?;
        pipe.hand_over(&self.device, HEADER + length as usize)?;
        // One that something is left in goes: that would come before what follows.
        self.pipes().push(pipe);
        Ok(())
    }

    fn pipes(&self) -> MutexGuard<'_, Vec<Pipe>> {
        // A pipe is in it or not.
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(ROOM))?;
        Ok(Self { reader, writer: writer.into() })
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.writer).write_all(bytes)
    }

    fn take(&self, piece: &Piece) -> io::Result<()> {
        match *piece {
            Piece::Stored { file, offset, length } => self.take_stored(file, offset, length),
            Piece::Zeros(mut length) => {
                while length > 0 {
                    let part = length.min(ZEROS.len());
                    self.put(&ZEROS[..part])?;
                    length -= part;
                }
                Ok(())
            }
        }
    }

    fn take_stored(&self, file: &File, offset: u64, mut length: usize) -> io::Result<()> {
        let mut at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        while length > 0 {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            match splice(file, Some(&mut at), &self.writer, None, length, flags)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                taken => length -= taken,
            }
        }
        Ok(())
    }

    /// Hands all that was put here, which is `length` bytes, to `device`: one message.
    fn hand_over(&self, device: impl AsFd, length: usize) -> io::Result<()> {
        let taken = splice(&self.reader, None, device, None, length, SpliceFFlags::empty())?;
        if taken == length { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// What stands before the bytes.
fn header(node: NodeId, offset: u64, length: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let whole = u32::try_from(HEADER).expect("a few bytes") + length;
    // A notification is an answer to no request, and tells what it is in the place of an error.
    header[..4].copy_from_slice(&whole.to_ne_bytes());
    header[4..8].copy_from_slice(&NOTIFY_STORE.to_ne_bytes());
    header[16..24].copy_from_slice(&node.0.to_ne_bytes());
    header[24..32].copy_from_slice(&offset.to_ne_bytes());
    header[32..36].copy_from_slice(&length.to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    const NODE: NodeId = NodeId(0x0102_0304_0506_0708);

    /// A file whose bytes tell their places.
    fn image() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&(0..1 << 20).map(byte_at).collect::<Vec<u8>>()).unwrap();
        file
    }

    fn byte_at(place: usize) -> u8 {
        (place / 3 % 251).to_le_bytes()[0]
    }

    /// A way to a file instead of a mount, and the file.
    fn splice_to_file() -> (Splice, File) {
        let file = tempfile::tempfile().unwrap();
        (Splice::to(file.try_clone().unwrap().into()), file)
    }

    /// What came to `file` since this was called last.
    fn arrived(file: &mut File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        bytes
    }

    /// Stores these pieces of `image`; those of no file are zeros.
    fn store(splice: &Splice, image: &File, pieces: &[(Option<usize>, usize)]) -> io::Result<()> {
        let length = pieces.iter().map(|&(_, length)| u32::try_from(length).unwrap()).sum();
        splice.store(NODE, 1 << 40, length, |take| {
            pieces.iter().try_for_each(|&(offset, length)| match offset {
                Some(offset) => take(Piece::Stored { file: image, offset: offset as u64, length }),
                None => take(Piece::Zeros(length)),
            })
        })
    }

    #[test]
    fn pieces_of_files_and_zeros_arrive_behind_the_header_of_the_kernels_message() {
        let (image, (splice, mut file)) = (image(), splice_to_file());
        let pieces = [(Some(70_001), 65_536), (None, 5_000), (Some(0), 4_096), (Some(13), 1)];
        for _ in 0..3 {
            store(&splice, &image, &pieces).unwrap();
            let bytes = arrived(&mut file);
            let words = |range: std::ops::Range<usize>| {
                bytes[range].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            };
            // Length, code, no request; the file, the place, the bytes, nothing.
            assert!(words(0..16).eq([40 + 74_633, 4, 0, 0]));
            assert_eq!(bytes[16..24], NODE.0.to_ne_bytes());
            assert_eq!(bytes[24..32], (1u64 << 40).to_ne_bytes());
            assert!(words(32..40).eq([74_633, 0]));
            let expected = (70_001..135_537).map(byte_at).chain([0; 5_000]);
            let expected = expected.chain((0..4_096).map(byte_at)).chain([byte_at(13)]);
            assert!(expected.eq(bytes[40..].iter().copied()));
        }
        assert_eq!(splice.pipes().len(), 1);
    }

    #[test]
    fn what_does_not_fit_or_is_not_there_leaves_nothing_behind() {
        let (image, (splice, mut file)) = (image(), splice_to_file());
        let fragments: Vec<_> = (0..300).map(|n| (Some(n * 3_001), 1)).collect();
        let error = store(&splice, &image, &fragments).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let error = store(&splice, &image, &[(Some((1 << 20) - 10), 20)]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let failed = splice.store(NODE, 0, 9, |take| {
            take(Piece::Zeros(5))?;
            Err(io::ErrorKind::InvalidData.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(arrived(&mut file).is_empty());
        store(&splice, &image, &[(Some(1_000), 10)]).unwrap();
        assert!((1_000..1_010).map(byte_at).eq(arrived(&mut file)[40..].iter().copied()));
    }

    #[test]
    fn who_takes_no_message_gets_none() {
        let reader = File::open("/dev/zero").unwrap();
        let splice = Splice::to(reader.into());
        assert!(store(&splice, &image(), &[(Some(0), 10)]).is_err());
        assert_eq!(splice.pipes().len(), 0);
    }
}
