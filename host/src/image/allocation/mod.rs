//! Which blocks of a disk an image holds by its own tables, and which of these lie past the end of
//! its files, as after a copy that was interrupted. QEMU reads zeros there.
//!
//! Tables are read as QEMU's drivers read them. Their headers were checked when the image was
//! opened; no entry is trusted. Work is bounded by [`MAX_TABLES`], since a small file that is
//! mostly hole can claim any number of tables.
//!
//! **Invariant:** opens nothing, and reads tables only, never blocks.

mod cowd;
mod parallels;
mod qcow2;
mod qed;
mod sesparse;
mod sparse;
mod tables;
mod vdi;
mod vhd;
mod vhdx;

use std::fs::File;
use std::ops::Range;

use self::tables::{Stored, Tables};
use super::descriptor::{Descriptor, Storage};
use super::error::Problem;
use super::missing::{Missing, Subtraction};
use super::{Format, Link, SECTOR_SIZE, Source};

/// Most bytes of tables that are read of one image: those of 16 TiB in VMDK's usual grains.
const MAX_TABLES: u64 = if cfg!(test) { 16 << 20 } else { 1 << 30 };

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// In the image, which may also say that they are zeros.
    Held,
    /// In the image by its tables, and past the end of its file.
    Missing,
}

/// Takes blocks in the order of the disk; the ranges are bytes of it. What is not told of is the
/// parent's, or zero.
struct Visitor<'v> {
    /// Whether blocks are wanted that are [`Block::Held`].
    wants_held: bool,
    base: u64,
    visit: &'v mut dyn FnMut(Range<u64>, Block),
}

impl Visitor<'_> {
    fn tell(&mut self, range: Range<u64>, block: Block) {
        if self.wants_held || block == Block::Missing {
            (self.visit)(self.base + range.start..self.base + range.end, block);
        }
    }
}

/// What a look at the tables of an image found.
#[derive(Debug, Default)]
pub struct Allocation {
    /// What of the disk is missing.
    pub missing: Missing,
    /// Where the last block ends that the tables name, in bytes of the file; 0 where that is not
    /// past the end of the file.
    pub end: u64,
    /// Whether there were more tables than are read, so that more may be missing.
    pub is_partial: bool,
}

/// Looks for what is missing in the image `link`, of which the parents do not matter.
///
/// # Errors
/// Those of pread(2), and [`Problem::Truncated`] for a table without which nothing can be told.
pub fn examine(link: &Link) -> Result<Allocation, Problem> {
    // The map of such an image was made from its tables, which were looked at then.
    if matches!(link.source, Source::Mapped { .. }) {
        return Ok(Allocation { missing: link.missing.clone(), ..Allocation::default() });
    }
    let mut missing = Missing::default();
    let mut visit = |range: Range<u64>, _| missing.push(range);
    let mut visitor = Visitor { wants_held: false, base: 0, visit: &mut visit };
    let seen = walk(link, &mut visitor)?;
    Ok(Allocation { missing: missing.before(link.size), ..seen })
}

/// What is left of `below`, which is missing in the parents of `link`, where `link` does not hold it
/// itself; and what is missing in `link`.
///
/// # Errors
/// As [`examine`].
pub fn seen_through(link: &Link, below: &Missing) -> Result<Missing, Problem> {
    if below.is_empty() {
        return Ok(link.missing.clone());
    }
    let mut subtraction = Subtraction::from(below);
    let mut visit = |range: Range<u64>, _| subtraction.take(&range);
    walk(link, &mut Visitor { wants_held: true, base: 0, visit: &mut visit })?;
    Ok(subtraction.finish().before(link.size).union(&link.missing))
}

/// Tells `visitor` of the blocks of `link`. What is missing is left to the caller.
fn walk(link: &Link, visitor: &mut Visitor) -> Result<Allocation, Problem> {
    let size = link.size;
    let stored = match &link.source {
        Source::File(file) => Stored::new(file, 0, file.metadata()?.len()),
        Source::Part { file, offset, len } => Stored::new(file, *offset, *len),
        Source::Described { descriptor, extents } => {
            return walk_extents(descriptor, extents, visitor);
        }
        // Tables that were made here; all that they name is there, or known to be missing.
        Source::Mapped { extents, .. } => Stored::new(&extents[0], 0, u64::MAX),
        Source::Patched { descriptor, extents } => {
            let parts = descriptor.extents.iter().zip(extents);
            Stored::joined(parts.filter_map(|(extent, file)| match extent.storage {
                Storage::Flat { first_sector, .. } => {
                    Some((file, first_sector * SECTOR_SIZE, extent.sectors * SECTOR_SIZE))
                }
                _ => None,
            }))
        }
    };
    let mut tables = Tables::new(stored, MAX_TABLES);
    match (&link.source, link.format) {
        (Source::Mapped { .. }, _) | (_, Format::Qcow2) => {
            qcow2::walk(&mut tables, size, visitor)?;
        }
        (_, Format::Raw) => visitor.tell(0..size, Block::Held),
        (_, Format::Vmdk) => sparse::walk(&mut tables, size, visitor)?,
        (_, Format::Vdi) => vdi::walk(&mut tables, size, visitor)?,
        (_, Format::Qed) => qed::walk(&mut tables, size, visitor)?,
        (_, Format::Parallels) => parallels::walk(&mut tables, size, visitor)?,
        (_, Format::Vpc) => vhd::walk(&mut tables, size, visitor)?,
        (_, Format::Vhdx) => vhdx::walk(&mut tables, size, visitor)?,
    }
    Ok(tables.finish())
}

fn walk_extents(
    descriptor: &Descriptor,
    extents: &[File],
    visitor: &mut Visitor,
) -> Result<Allocation, Problem> {
    let mut all = Allocation::default();
    let mut budget = MAX_TABLES;
    for (extent, file) in descriptor.extents.iter().zip(extents) {
        // In bounds: extents were checked to be smaller than the largest disk.
        let size = extent.sectors * SECTOR_SIZE;
        let stored = Stored::new(file, 0, file.metadata()?.len());
        let len = stored.len;
        let mut tables = Tables::new(stored, budget);
        match &extent.storage {
            Storage::Zero => visitor.tell(0..size, Block::Held),
            Storage::Flat { first_sector, .. } => {
                let there = len.saturating_sub(first_sector.saturating_mul(SECTOR_SIZE)).min(size);
                visitor.tell(0..there, Block::Held);
                visitor.tell(there..size, Block::Missing);
            }
            Storage::Sparse(_) => sparse::walk(&mut tables, size, visitor)?,
            Storage::SeSparse(_) => sesparse::walk(&mut tables, size, visitor)?,
        }
        budget = tables.left();
        all.is_partial |= tables.finish().is_partial;
        visitor.base += size;
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
