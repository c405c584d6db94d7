//! Sparse files: copying what is in them and leaving out their holes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::Error;

/// Bytes moved at a time.
const PIECE: usize = 1 << 20;

/// Makes `path` a file of `size` bytes that is one hole, and opens it for reading and writing.
///
/// # Errors
/// [`Error::File`].
pub fn create(path: &Path, size: u64) -> Result<File, Error> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.open(path).map_err(Error::file("create", path))?;
    file.set_len(size).map_err(Error::file("set the size of", path))?;
    Ok(file)
}

/// Copies the data of `from` into `to`, `offset` bytes further on. What `to` has in the place of
/// a hole stays.
///
/// # Errors
/// [`Error::File`].
pub fn copy_into(from: &Path, to: &File, offset: u64) -> Result<(), Error> {
    let source = File::open(from).map_err(Error::file("open", from))?;
    let copy = || -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        for (start, end) in data_ranges(&source)? {
            let mut at = start;
            while at < end {
                let left = usize::try_from(end - at).unwrap_or(PIECE);
                let piece = &mut buffer[..PIECE.min(left)];
                source.read_exact_at(piece, at)?;
                to.write_all_at(piece, offset + at)?;
                at += piece.len() as u64;
            }
        }
        Ok(())
    };
    copy().map_err(Error::file("copy", from))
}

/// Ranges of `file` that are not holes, in order.
///
/// # Errors
/// Those of lseek(2).
pub fn data_ranges(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let position = |at: i64| u64::try_from(at).expect("lseek returns no negative position");
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match lseek(file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(ranges),
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek(file, start, Whence::SeekHole)?;
        ranges.push((position(start), position(end)));
        at = end;
    }
}

/// Bytes that the files below `folder` take, without their holes.
///
/// # Errors
/// [`Error::File`].
pub fn size_on_disk(folder: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).map_err(Error::file("list", folder))? {
        let path = entry.map_err(Error::file("list", folder))?.path();
        let meta = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
        sum += if meta.is_dir() { size_on_disk(&path)? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// Fills the folder `to` with the tree `from`: files are hard links, or copies where the two are
/// on different file systems.
///
/// # Errors
/// [`Error::File`].
pub fn link_tree(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::file("create", to))?;
    for entry in fs::read_dir(from).map_err(Error::file("list", from))? {
        let entry = entry.map_err(Error::file("list", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            link_tree(&source, &target)?;
        } else {
            link_or_copy(&source, &target)?;
        }
    }
    Ok(())
}

/// Makes `to` a hard link to the file `from`, or a copy with holes where it cannot be one.
///
/// # Errors
/// [`Error::File`].
pub fn link_or_copy(from: &Path, to: &Path) -> Result<(), Error> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    copy(from, to)
}

/// Copies the file `from` with its holes and its mode.
///
/// # Errors
/// [`Error::File`].
pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let meta = fs::metadata(from).map_err(Error::file("look at", from))?;
    let file = create(to, meta.len())?;
    copy_into(from, &file, 0)?;
    file.set_permissions(meta.permissions()).map_err(Error::file("set the mode of", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_stay_holes_and_data_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let source = create(&from, 64 << 20).unwrap();
        source.write_all_at(b"middle", 32 << 20).unwrap();
        let target = create(&to, 100 << 20).unwrap();

        copy_into(&from, &target, 4096).unwrap();

        let mut bytes = [0; 6];
        target.read_exact_at(&mut bytes, (32 << 20) + 4096).unwrap();
        assert_eq!(&bytes, b"middle");
        assert!(target.metadata().unwrap().blocks() * 512 < 4 << 20);
    }
}
