//! Partition tables that the kernel refuses, or does not look for: the GPT of an image that was cut off
//! or of whose two copies one is damaged, one in other sectors than the disk's, an MBR beside an empty
//! GPT, a disklabel of BSD without an MBR around it.
//!
//! The kernel's own findings stay as they are. Only where it found no partition, and there are signs of
//! a table, is the disk looked at again; all but a few disks cost one read from memory. What is found is
//! added by `BLKPG`, so that it is a partition like any other from there on.
//!
//! **Invariant:** a GPT is never preferred to an MBR that does not announce it: it may be older.

mod bsd;
mod gpt;
mod mbr;

use std::fs::File;
use std::os::unix::fs::FileExt;

use self::bsd::Label;
use self::mbr::Mbr;

/// Bytes at the disk's beginning that tell whether there is anything to be looked at. The kernel has just
/// read them.
const HEAD: usize = 4096;

/// What can be done where no copy of a GPT is left.
const LOST: &str = "\n  hint: if the image is cut off or a part of a larger one, take all of it; testdisk \
                    finds partitions by what they hold";

/// A partition, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u16,
    /// Where it begins on its disk.
    pub start: u64,
    /// Its length, which is not 0.
    pub length: u64,
}

/// A table that the kernel made nothing of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The partitions by it.
    pub partitions: Vec<Partition>,
    /// Whether they are in the place of those that the kernel found.
    pub replaces: bool,
    /// What is the matter with it, as the end of the sentence "/dev/sda: …"; `None` where all is well.
    pub problem: Option<String>,
}

impl Table {
    fn broken(problem: impl Into<String>) -> Self {
        Self { problem: Some(problem.into()), ..Self::default() }
    }
}

/// Looks for a table on a disk of `size` bytes. `partitioned` tells whether the kernel found partitions,
/// `blank` whether nothing else is known to be on the whole disk. `None` where there is nothing to add
/// to what the kernel found.
pub fn find(
    disk: &File,
    size: u64,
    partitioned: impl FnOnce() -> bool,
    blank: impl FnOnce() -> bool,
) -> Option<Table> {
    let mut head = [0; HEAD];
    // What cannot be read here has been reported by the kernel.
    disk.read_exact_at(&mut head, 0).ok()?;
    let mbr = Mbr::parse(&head);
    let protective = mbr.as_ref().is_some_and(Mbr::is_protective);
    let has_gpt = gpt::is_header(&head[512..]);
    let label = Label::parse(&head);
    if let Some(label) = label.as_ref().filter(|_| mbr.as_ref().is_some_and(Mbr::is_dedicated)) {
        // FreeBSD gives that partition 50,000 sectors whatever the disk has, and the kernel refuses all of
        // the label that is not in them.
        return Some(Table {
            partitions: label.partitions(size),
            replaces: true,
            ..Table::default()
        });
    }
    let (cut, beyond) = match &mbr {
        Some(mbr) if !protective => mbr.misfits(size),
        _ => Default::default(),
    };
    if !cut.is_empty() || !beyond.is_empty() {
        // Where the kernel took nothing for a partition, something else may begin in this way.
        let hint = match partitioned() {
            true => "",
            false if blank() => LOST,
            false => return None,
        };
        return Some(Table::broken(format!(
            "its MBR is of a larger disk{}{hint}",
            misfits(&cut, &beyond)
        )));
    }
    if !protective && !has_gpt && label.is_none() || partitioned() {
        return None;
    }
    if let Some(mbr) = mbr.as_ref().filter(|_| protective) {
        return Some(protected(disk, size, mbr));
    }
    // Something that begins with a record like an MBR's, such as the boot sector of a filesystem.
    if mbr.as_ref().is_some_and(|mbr| !mbr.is_empty()) {
        return None;
    }
    if let Some(label) = label {
        let partitions = label.partitions(size);
        return (!partitions.is_empty()).then(|| Table { partitions, ..Table::default() });
    }
    match mbr {
        _ if !blank() => None,
        Some(_) => Some(Table::broken(
            "its MBR is empty and does not announce the GPT that is there, which may be older and is \
             left alone\n  hint: gdisk gives a copy of the image the MBR that announces it",
        )),
        None => Some(match gpt::read_primary(disk, size) {
            Ok(found) => Table {
                problem: Some(format!(
                    "the MBR that announces its GPT is missing{}",
                    found.remarks()
                )),
                partitions: found.partitions,
                replaces: false,
            },
            Err(damage) => Table::broken(format!(
                "its GPT is damaged ({damage}), and the MBR that announces it is missing{LOST}"
            )),
        }),
    }
}

/// The table of a disk whose MBR announces a GPT.
fn protected(disk: &File, size: u64, mbr: &Mbr) -> Table {
    let primary = gpt::read_primary(disk, size);
    let backup = match &primary {
        Ok(_) => None,
        Err(_) => Some(gpt::read_backup(disk, size, mbr.protective_end())),
    };
    let beside = || mbr.partitions(disk, size);
    match (primary, backup) {
        (Ok(found), _) if found.partitions.is_empty() && found.beyond.is_empty() => {
            let partitions = beside();
            let problem = "its GPT is empty; the partitions of its MBR are shown";
            let problem = (!partitions.is_empty()).then(|| problem.to_owned());
            Table { partitions, problem, ..Table::default() }
        }
        (Ok(found), _) => {
            let remarks = found.remarks();
            let problem =
                (!remarks.is_empty()).then(|| format!("its GPT is of a larger disk{remarks}"));
            Table { partitions: found.partitions, problem, replaces: false }
        }
        (Err(damage), Some(Ok(found))) => Table {
            problem: Some(format!(
                "its GPT is damaged at the beginning ({damage}); its copy at the end is used{}",
                found.remarks()
            )),
            partitions: found.partitions,
            replaces: false,
        },
        (Err(damage), other) => {
            let copy = other.and_then(Result::err).map_or_else(String::new, |damage| {
                format!(", and so is its copy at the end ({damage})")
            });
            let partitions = beside();
            let rest = match partitions.is_empty() {
                true => LOST,
                false => "; the partitions of its MBR are shown",
            };
            let problem = Some(format!("its GPT is damaged ({damage}){copy}{rest}"));
            Table { partitions, problem, ..Table::default() }
        }
    }
}

/// What is said of partitions that are cut off, and of those of which nothing is there.
fn misfits(cut: &[u16], beyond: &[u16]) -> String {
    let list = |numbers: &[u16]| numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let mut said = String::new();
    for (numbers, what) in [(cut, "cut off"), (beyond, "not in the image")] {
        if !numbers.is_empty() {
            said += &format!("; partition {} is {what}", list(numbers));
        }
    }
    said
}

/// Reads `length` bytes at `offset`; `None` where the disk does not have them, or cannot be read.
fn read(disk: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    disk.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
