//! Images whose files were cut short: says so when they are opened, and how QEMU opens them all the
//! same.

use std::fs::File;
use std::io;

use super::allocation::{self, Allocation};
use super::descriptor::{Descriptor, Storage};
use super::error::{ImageError, Problem};
use super::sector_map::{Granule, SectorMap};
use super::{Format, Link, MAX_DISK_SIZE, MAX_EXTENTS, Missing, SECTOR_SIZE, Source, memory};

/// Notes in `link` what is missing of it, with a warning.
///
/// # Errors
/// [`Problem`] of its tables.
pub fn examine(link: &mut Link) -> Result<(), Problem> {
    let Allocation { missing, end, is_partial } = allocation::examine(link)?;
    if is_partial {
        link.warnings.push("its tables are too large to tell whether it was cut short".to_owned());
    }
    if !missing.is_empty() {
        link.warnings.push(format!(
            "the file was cut short: it lacks {} bytes that its tables say it holds; reading them is \
             an error\n  hint: copy it once more from where it came from",
            missing.bytes()
        ));
    }
    if end > 0 && matches!(link.format, Format::Vpc | Format::Vhdx | Format::Parallels) {
        extend(link, end)?;
    }
    link.missing = missing;
    Ok(())
}

/// What of the disk that `chain` shows, the leaf first, is missing: a snapshot may hold what its
/// parent lacks.
///
/// # Errors
/// [`ImageError`] of the image at fault.
pub fn visible(chain: &[Link]) -> Result<Missing, ImageError> {
    let mut missing = Missing::default();
    for link in chain.iter().rev() {
        missing = allocation::seen_through(link, &missing)
            .map_err(|problem| ImageError::new(&link.path, problem))?;
    }
    Ok(missing)
}

/// Sectors that tables tell apart, and most bytes of tables for that: the finest that do are taken.
const GRANULES: [u64; 3] = [1, 8, 128];
const MAX_MAP: u64 = 32 << 20;

impl Missing {
    /// The tables of a qcow2 of `size` bytes that is missing where this is, for a node whose data
    /// node fails and whose backing node has the rest. What is missing in many places is made a
    /// little larger.
    ///
    /// # Errors
    /// Where the places are too many, and where there is no memory.
    pub(crate) fn tables(&self, size: u64) -> io::Result<File> {
        for granule in GRANULES.map(Granule::of_count) {
            let mut map = SectorMap::new(granule);
            let is_mapped = self.ranges().iter().try_for_each(|range| {
                let start = range.start / granule.len() * granule.len();
                let end = range.end.next_multiple_of(granule.len());
                map.store(start / SECTOR_SIZE, start / SECTOR_SIZE, (end - start) / SECTOR_SIZE)
            });
            if is_mapped.is_ok() && map.tables_len() <= MAX_MAP {
                return map.over_data_node(size);
            }
        }
        Err(io::Error::other("bytes are missing in too many places"))
    }
}

/// Puts zeros behind the file of `link`, up to byte `end`: QEMU's drivers of some formats refuse a
/// file that ends before its last block.
fn extend(link: &mut Link, end: u64) -> Result<(), Problem> {
    if end > 2 * MAX_DISK_SIZE {
        return Err(Problem::damaged("its table of blocks leads too far out of the file"));
    }
    let mut parts: Vec<(u64, u64)> = Vec::new();
    let mut files: Vec<File> = Vec::new();
    match &link.source {
        Source::File(file) => {
            parts.push((file.metadata()?.len().div_ceil(SECTOR_SIZE), 0));
            files.push(file.try_clone()?);
        }
        Source::Patched { descriptor, extents } if extents.len() < MAX_EXTENTS => {
            for (extent, file) in descriptor.extents.iter().zip(extents) {
                let Storage::Flat { first_sector, .. } = extent.storage else { continue };
                parts.push((extent.sectors, first_sector));
                files.push(file.try_clone()?);
            }
        }
        _ => {
            let len = link.files()[0].metadata()?.len();
            return Err(Problem::Truncated { what: "end of a block", len });
        }
    }
    let there: u64 = parts.iter().map(|(sectors, _)| sectors).sum();
    let further = end.div_ceil(SECTOR_SIZE).saturating_sub(there);
    if further > 0 {
        parts.push((further, 0));
        files.push(memory::zeros(further * SECTOR_SIZE)?);
    }
    link.source = Source::Patched { descriptor: Descriptor::of_flat_files(&parts), extents: files };
    Ok(())
}
