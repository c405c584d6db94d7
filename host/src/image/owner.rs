//! Finds the descriptor of an extent that was taken for a disk.

use std::fs;
use std::path::{Path, PathBuf};

use super::MAX_DESCRIPTOR;
use super::descriptor::{Descriptor, Storage};
use super::error::path_bytes;
use super::file::ImageFile;

/// Entries of the folder that are looked at, and files that are read: this only helps to
/// say more, so a huge folder need not be searched to its end.
const MAX_ENTRIES: usize = 4096;
const MAX_READ: usize = 256;

/// The descriptor in the folder of `extent` that names it, if one does.
pub fn descriptor_naming(extent: &ImageFile) -> Option<PathBuf> {
    let wanted = extent.path.file_name()?;
    let folder = match extent.path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::read_dir(folder)
        .ok()?
        .take(MAX_ENTRIES)
        .filter_map(|entry| Some(extent.path.with_file_name(entry.ok()?.file_name())))
        .filter(|path| path_bytes(path).to_ascii_lowercase().ends_with(b".vmdk"))
        .take(MAX_READ)
        .find(|path| read_descriptor(path).is_some_and(|found| names(&found, wanted.as_ref())))
}

fn read_descriptor(path: &Path) -> Option<Descriptor> {
    let file = ImageFile::open(path).ok()?;
    if file.len > MAX_DESCRIPTOR as u64 {
        return None;
    }
    Descriptor::parse(&file.start(MAX_DESCRIPTOR).ok()?).ok()
}

fn names(descriptor: &Descriptor, wanted: &Path) -> bool {
    descriptor.extents.iter().any(|extent| match &extent.storage {
        Storage::Flat { name, .. } | Storage::Sparse(name) | Storage::SeSparse(name) => {
            wanted.file_name().is_some_and(|wanted| name.ends_in(wanted))
        }
        Storage::Zero => false,
    })
}
