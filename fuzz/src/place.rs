//! A folder for the files that a run opens, and files with holes out of a few bytes.
//!
//! A file is given as its length (32 bits, little-endian) and then pieces: a position (32 bits), a
//! length (16 bits) and so many bytes. So a header at 256 KiB takes no 256 KiB of input.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

/// Bytes of the largest file.
const MOST: u32 = 4 << 20;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a folder is to be had");
}

/// Lends a folder that the runs of this thread share, each leaving it empty.
pub fn with_folder<T>(work: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with(|folder| {
        let result = work(folder.path());
        for entry in std::fs::read_dir(folder.path()).expect("it is ours").flatten() {
            std::fs::remove_file(entry.path()).expect("only files are put there");
        }
        result
    })
}

/// Writes the file at `path` that `bytes` stand for.
pub fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).expect("the folder is ours");
    let (length, mut pieces) = number::<4>(bytes);
    file.set_len(length.min(MOST).into()).expect("files of this length are to be had");
    while !pieces.is_empty() {
        let (at, rest) = number::<4>(pieces);
        let (length, rest) = number::<2>(rest);
        let (piece, rest) = rest.split_at(rest.len().min(length as usize));
        file.write_all_at(piece, at.min(MOST).into()).expect("there is room");
        pieces = rest;
    }
}

/// Takes `N` bytes off as a number; those that are missing are zero.
fn number<const N: usize>(bytes: &[u8]) -> (u32, &[u8]) {
    let (taken, rest) = bytes.split_at(bytes.len().min(N));
    (taken.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)), rest)
}
