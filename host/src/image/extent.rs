//! Opens what a descriptor names, where [`Reach`] lets it.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::descriptor::{Descriptor, Extent, Storage};
use super::error::Problem;
use super::file::{FileId, ImageFile, LocatedFile};
use super::name::FileName;
use super::reach::Reach;
use super::sparse::{self, SparseHeader};
use super::{SECTOR_SIZE, cowd, memory, sesparse};

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
    let reach = Reach { folder: home.folder(), allowed };
    let mut opener = Opener { reach, used: HashMap::new() };
    opener.used.insert(home.id, Use::Whole);
    let last = descriptor.extents.len() - 1;
    let place = |i| if i == last { Place::Last } else { Place::Before };
    let extents = descriptor.extents.iter().enumerate();
    extents.map(|(i, extent)| opener.open(extent, place(i))).collect()
}

struct Opener<'a> {
    reach: Reach<'a>,
    used: HashMap<FileId, Use>,
}

/// Whether other extents follow one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    Last,
}

/// What earlier extents use of a file.
enum Use {
    Whole,
    /// Ranges of bytes, none of which overlap.
    Ranges(Vec<(u64, u64)>),
}

impl Opener<'_> {
    fn open(&mut self, extent: &Extent, place: Place) -> Result<File, Problem> {
        let (name, opened) = match &extent.storage {
            Storage::Zero => {
                // In bounds: extents are at most MAX_DISK_SIZE.
                return memory::zeros(extent.sectors * SECTOR_SIZE).map_err(Problem::Io);
            }
            Storage::Flat { name, first_sector } => {
                (name, self.open_flat(name, *first_sector, extent.sectors))
            }
            Storage::Sparse(name) => {
                (name, self.open_sparse(name, extent.sectors, place, sparse_size))
            }
            Storage::SeSparse(name) => {
                (name, self.open_sparse(name, extent.sectors, place, sesparse::size))
            }
        };
        opened.map_err(|problem| Problem::Extent { name: name.clone(), problem: Box::new(problem) })
    }

    /// The first file that exists and may be named among those that `name` may mean.
    fn locate(
        &self,
        name: &FileName,
        locate: impl Fn(&Path) -> Result<LocatedFile, Problem>,
    ) -> Result<LocatedFile, Problem> {
        self.reach.first_of(&name.extent_candidates(self.reach.folder), locate)
    }

    fn open_flat(&mut self, name: &FileName, first: u64, sectors: u64) -> Result<File, Problem> {
        let file = self.locate(name, |path| self.reach.locate_plain(path))?.open()?;
        let start = first.saturating_mul(SECTOR_SIZE);
        let len = sectors * SECTOR_SIZE;
        // One that was cut short has some of them.
        let there = len.min(file.len.saturating_sub(start)).max(1);
        file.check_inside(start, there, "sectors that the descriptor counts")?;
        self.claim_range(file.id, (start, start + len))?;
        Ok(file.into_whole())
    }

    fn open_sparse(
        &mut self,
        name: &FileName,
        sectors: u64,
        place: Place,
        size: impl Fn(&ImageFile) -> Result<ExtentSize, Problem>,
    ) -> Result<File, Problem> {
        let file = self.locate(name, |path| self.reach.locate(path))?.open()?;
        let ExtentSize { sectors: header_sectors, grain_sectors } = size(&file)?;
        // QEMU goes by the header, so all later extents would slide.
        if header_sectors != sectors {
            return Err(Problem::ExtentSize { header_sectors, line_sectors: sectors });
        }
        // A request that begins in the last grain is QEMU's to the grain's end, whatever the
        // extent's is: what belongs to the next extent would be read from here.
        if place == Place::Before && !sectors.is_multiple_of(grain_sectors) {
            return Err(Problem::Unsupported {
                what: format!(
                    "its {sectors} sectors are no multiple of its grains of {grain_sectors} and others follow it"
                ),
                hint: "convert the disk with VMware's own tools",
            });
        }
        match self.used.insert(file.id, Use::Whole) {
            None => Ok(file.into_whole()),
            Some(_) => Err(Problem::Overlap),
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

/// What the header of a sparse extent says of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentSize {
    /// Sectors of the extent.
    pub sectors: u64,
    /// Sectors that are stored, or not, as one. Never 0.
    pub grain_sectors: u64,
}

/// The size of an extent with a `KDMV` or `COWD` header; either stands for both types.
///
/// # Errors
/// [`Problem`] of the header.
pub fn sparse_size(file: &ImageFile) -> Result<ExtentSize, Problem> {
    if !file.start(sparse::MAGIC.len())?.starts_with(&sparse::MAGIC) {
        return cowd::size(file);
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
    Ok(header.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ranges of the first sectors, each after each two others, against a list of what is taken.
    #[test]
    fn ranges_of_a_file_are_given_once() {
        const SECTORS: u64 = 5;
        let folder = tempfile::tempdir().unwrap();
        let id = FileId::at(folder.path()).unwrap();
        let ranges: Vec<(u64, u64)> =
            (0..SECTORS).flat_map(|a| (a + 1..=SECTORS).map(move |b| (a, b))).collect();
        for &one in &ranges {
            for &two in &ranges {
                for &three in &ranges {
                    let reach = Reach { folder: Path::new("/"), allowed: &[] };
                    let mut opener = Opener { reach, used: HashMap::new() };
                    let mut taken = [false; 5];
                    for range in [one, two, three] {
                        let sectors = (range.0..range.1).map(|n| usize::try_from(n).unwrap());
                        let free = sectors.clone().all(|sector| !taken[sector]);
                        assert_eq!(
                            opener.claim_range(id, range).is_ok(),
                            free,
                            "{one:?} {two:?} {three:?}"
                        );
                        if free {
                            sectors.for_each(|sector| taken[sector] = true);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn extent_lines_are_judged_as_with_numbers_that_cannot_overflow() {
        const FILE: u128 = 4 * 512;
        const MOST: u64 = super::super::MAX_DISK_SIZE / SECTOR_SIZE;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vmdk");
        std::fs::write(&path, "").unwrap();
        std::fs::write(folder.path().join("flat"), [0; 4 * 512]).unwrap();
        let home = ImageFile::open(&path).unwrap();
        let numbers = [0, 1, 3, 4, 5, MOST, MOST + 1, 1 << 55, (1 << 55) + 1, 1 << 63, u64::MAX];
        for sectors in numbers {
            for first in numbers {
                let text = format!(
                    "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
                     RW {sectors} FLAT \"flat\" {first}\n"
                );
                let opened = Descriptor::parse(text.as_bytes())
                    .and_then(|descriptor| open_all(&descriptor, &home, &[]));
                // One that was cut short has some of its sectors.
                let begins = u128::from(first) * 512 < FILE;
                let good = (1..=MOST).contains(&sectors) && begins;
                assert_eq!(opened.is_ok(), good, "{sectors} {first}");
            }
        }
    }
}
