//! MD's level "linear": one member behind the other. Linux 6.8 to 6.13 have no driver for it, so its
//! table for device-mapper is made from the members' superblocks.
//!
//! Follows include/uapi/linux/raid/md_p.h, superblocks of version 1, and drivers/md/md-linear.c.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::little_endian::{u16_at, u32_at, u64_at};

/// What a superblock begins with, and its version.
const MAGIC: u32 = 0xa92b_4efc;
const VERSION: u32 = 1;

/// The level, as an unsigned number.
const LINEAR: u32 = u32::MAX;

/// Bytes of the superblock up to the roles, and of these as far as they are looked at.
const HEAD: usize = 256;
const ROLES: usize = 2 * 1024;

/// A member as its superblock has it, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    /// Members of the whole array.
    of: u32,
    /// Its place among them.
    role: u16,
    start: u64,
    length: u64,
}

/// Why there is no table.
#[derive(Debug, PartialEq, Eq)]
pub enum NoTable {
    /// The array is of another level.
    NotLinear,
    /// Members that are missing, of how many.
    Missing(u32, u32),
    /// The superblocks contradict each other.
    Damaged,
}

/// The table of the array on `members`.
///
/// # Errors
/// [`NoTable`].
pub fn table(members: &[PathBuf]) -> Result<String, NoTable> {
    let read = members.iter().map(|node| Some((Member::of(node)?, node.clone())));
    let read: Option<Vec<(Member, PathBuf)>> = read.collect();
    table_of(read.ok_or(NoTable::NotLinear)?)
}

fn table_of(mut members: Vec<(Member, PathBuf)>) -> Result<String, NoTable> {
    members.sort_by_key(|(member, _)| member.role);
    let all = members.first().map(|(member, _)| member.of).ok_or(NoTable::Damaged)?;
    let there = u32::try_from(members.len()).map_err(|_| NoTable::Damaged)?;
    if there < all {
        return Err(NoTable::Missing(all - there, all));
    }
    let mut at: u64 = 0;
    let mut table = String::new();
    for (expected, (Member { of, role, start, length }, node)) in (0..).zip(&members) {
        if *of != all || u32::from(*role) != expected {
            return Err(NoTable::Damaged);
        }
        table.push_str(&format!("{at} {length} linear {} {start}\n", node.display()));
        at = at.checked_add(*length).ok_or(NoTable::Damaged)?;
    }
    Ok(table)
}

impl Member {
    /// That on the device with the node `node`, if it is one of a linear array.
    fn of(node: &Path) -> Option<Self> {
        let device = File::open(node).ok()?;
        let size = crate::devices::size_of_node(node).ok()?;
        // Version 1.2, 1.1, and 1.0, which is 8 KiB and more before the end.
        let last = (size / 512).checked_sub(16).map(|sector| sector / 8 * 8 * 512);
        [Some(4096), Some(0), last].into_iter().flatten().find_map(|at| {
            let mut bytes = vec![0; HEAD + ROLES];
            device.read_exact_at(&mut bytes, at).ok()?;
            Self::parse(&bytes, at, size)
        })
    }

    fn parse(bytes: &[u8], at: u64, size: u64) -> Option<Self> {
        let is_one = u32_at(bytes, 0)? == MAGIC
            && u32_at(bytes, 4)? == VERSION
            && u32_at(bytes, 72)? == LINEAR
            && u64_at(bytes, 144)? == at / 512;
        is_one.then_some(())?;
        let (of, chunk) = (u32_at(bytes, 92)?, u64::from(u32_at(bytes, 88)?));
        let (start, length) = (u64_at(bytes, 128)?, u64_at(bytes, 136)?);
        let number = usize::try_from(u32_at(bytes, 160)?).ok()?;
        let role = u16_at(bytes, HEAD + number.checked_mul(2)?)?;
        let length = length.checked_div(chunk).map_or(length, |chunks| chunks * chunk);
        let fits = start.checked_add(length).is_some_and(|end| end <= size / 512);
        (fits && length > 0 && of > 0).then_some(Self { of, role, start, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_one_behind_the_other_by_their_roles() {
        let member = |role: u16, node: &str| {
            (Member { of: 2, role, start: 2048, length: 1000 + u64::from(role) }, node.into())
        };
        let table = table_of(vec![member(1, "/dev/b"), member(0, "/dev/a")]).unwrap();
        assert_eq!(table, "0 1000 linear /dev/a 2048\n1000 1001 linear /dev/b 2048\n");
        assert_eq!(table_of(vec![member(1, "/dev/b")]), Err(NoTable::Missing(1, 2)));
        let twice = vec![member(1, "/dev/b"), member(1, "/dev/c")];
        assert_eq!(table_of(twice), Err(NoTable::Damaged));
    }
}
