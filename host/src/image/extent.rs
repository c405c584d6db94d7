//! Opens what a descriptor names, and decides whether it may be opened.
//!
//! **The folder rule.** A flat extent shows the bytes of any file as a disk, so a descriptor
//! from elsewhere could fetch the user's own files. Extents must therefore really lie in the
//! descriptor's folder: directly in it, symbolic links resolved. A flat extent there must
//! have no other name either, since a hard link brings a file from elsewhere into the
//! folder. Files that the user allows by name or folder are free of both rules.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use super::descriptor::{Descriptor, Extent, Storage};
use super::error::Problem;
use super::file::{FileId, ImageFile, LocatedFile};
use super::name::FileName;
use super::sparse::{self, SparseHeader};
use super::{SECTOR_SIZE, cowd, sesparse, zeros};

/// Opens the extents of `descriptor`, which is the text in `home`; one file for each, in
/// order. `allowed` are real paths.
///
/// # Errors
/// [`Problem::Extent`] for the first one that is missing, forbidden or damaged.
pub fn open_all(
    descriptor: &Descriptor,
    home: &ImageFile,
    allowed: &[PathBuf],
) -> Result<Vec<File>, Problem> {
    let mut opener = Opener { home, allowed, used: HashMap::new() };
    opener.used.insert(home.id, Use::Whole);
    descriptor.extents.iter().map(|extent| opener.open(extent)).collect()
}

struct Opener<'a> {
    home: &'a ImageFile,
    allowed: &'a [PathBuf],
    used: HashMap<FileId, Use>,
}

/// What earlier extents use of a file.
enum Use {
    Whole,
    /// Ranges of bytes, none of which overlap.
    Ranges(Vec<(u64, u64)>),
}

impl Opener<'_> {
    fn open(&mut self, extent: &Extent) -> Result<File, Problem> {
        let (name, opened) = match &extent.storage {
            Storage::Zero => {
                // In bounds: extents are at most MAX_DISK_SIZE.
                return zeros::file(extent.sectors * SECTOR_SIZE).map_err(Problem::Io);
            }
            Storage::Flat { name, first_sector } => {
                (name, self.open_flat(name, *first_sector, extent.sectors))
            }
            Storage::Sparse(name) => {
                (name, self.open_sparse(name, extent.sectors, sparse_capacity))
            }
            Storage::SeSparse(name) => {
                (name, self.open_sparse(name, extent.sectors, sesparse::capacity))
            }
        };
        opened.map_err(|problem| Problem::Extent { name: name.clone(), problem: Box::new(problem) })
    }

    fn open_flat(&mut self, name: &FileName, first: u64, sectors: u64) -> Result<File, Problem> {
        let (located, permission) = self.locate(name)?;
        if located.nlink > 1 && permission == Permission::Folder {
            return Err(Problem::HardLinked { nlink: located.nlink });
        }
        let file = located.open()?;
        let start = first.saturating_mul(SECTOR_SIZE);
        let len = sectors * SECTOR_SIZE;
        file.check_inside(start, len, "sectors that the descriptor counts")?;
        self.claim_range(file.id, (start, start + len))?;
        Ok(file.into_file())
    }

    fn open_sparse(
        &mut self,
        name: &FileName,
        sectors: u64,
        capacity: impl Fn(&ImageFile) -> Result<u64, Problem>,
    ) -> Result<File, Problem> {
        let file = self.locate(name)?.0.open()?;
        let header_sectors = capacity(&file)?;
        // QEMU goes by the header, so all later extents would slide.
        if header_sectors != sectors {
            return Err(Problem::ExtentSize { header_sectors, line_sectors: sectors });
        }
        match self.used.insert(file.id, Use::Whole) {
            None => Ok(file.into_file()),
            Some(_) => Err(Problem::Overlap),
        }
    }

    /// Finds the file that the descriptor calls `name`, where the folder rule lets it be
    /// opened. What is refused here was never readable.
    fn locate(&self, name: &FileName) -> Result<(LocatedFile, Permission), Problem> {
        let file = LocatedFile::at(&self.home.folder().join(name.as_path()))?;
        if self.allowed.iter().any(|path| file.real.starts_with(path)) {
            Ok((file, Permission::User))
        } else if file.folder() == self.home.folder() {
            Ok((file, Permission::Folder))
        } else {
            Err(Problem::OutsideFolder { real: file.real })
        }
    }

    fn claim_range(&mut self, id: FileId, range: (u64, u64)) -> Result<(), Problem> {
        match self.used.entry(id).or_insert_with(|| Use::Ranges(Vec::new())) {
            Use::Whole => Err(Problem::Overlap),
            Use::Ranges(ranges) => {
                let at = ranges.partition_point(|earlier| earlier.1 <= range.0);
                if ranges.get(at).is_some_and(|next| next.0 < range.1) {
                    return Err(Problem::Overlap);
                }
                ranges.insert(at, range);
                Ok(())
            }
        }
    }
}

/// Why a file may be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// It is in the descriptor's folder.
    Folder,
    /// The user said so.
    User,
}

/// The sectors of an extent with a `KDMV` or `COWD` header; either stands for both types.
fn sparse_capacity(file: &ImageFile) -> Result<u64, Problem> {
    if !file.start(sparse::MAGIC.len())?.starts_with(&sparse::MAGIC) {
        return cowd::capacity(file);
    }
    let header = SparseHeader::read(file)?;
    if header.has_footer {
        // QEMU computes the footer's place from the descriptor's length in this case.
        return Err(Problem::Unsupported {
            what: "it is a stream with its directory at the end, in a disk of several files"
                .to_owned(),
            hint: "convert the disk with VMware's own tools",
        });
    }
    Ok(header.capacity)
}
