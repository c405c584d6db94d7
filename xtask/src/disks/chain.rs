//! VMDK files made with qemu-img and qemu-io: the base, and snapshots over it that hold the
//! changed blocks and nothing else.
//!
//! qemu-img gives a VMDK another CID whenever it writes to it, so a link is never opened for
//! writing once it has a child.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::sparse;
use crate::Error;
use crate::process::Tool;

/// How a VMDK is laid out in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One sparse file with the descriptor in it.
    MonolithicSparse,
    /// One flat file, and the descriptor in another.
    MonolithicFlat,
    /// Sparse extents of 2 GiB, and the descriptor in another file.
    TwoGbMaxExtentSparse,
    /// Flat extents of 2 GiB, and the descriptor in another file.
    TwoGbMaxExtentFlat,
    /// One compressed file that is only ever read.
    StreamOptimized,
}

impl Layout {
    /// The value of `createType`. Source: VMware Virtual Disk Format 5.0.
    #[must_use]
    pub fn create_type(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::StreamOptimized => "streamOptimized",
        }
    }
}

/// Bytes that a snapshot's grain covers; changes are looked for and written in this unit.
const GRAIN: usize = 64 << 10;

/// Makes the VMDK `disk` of the raw file `raw`.
///
/// # Errors
/// Those of qemu-img.
pub fn convert(raw: &Path, disk: &Path, layout: Layout) -> Result<(), Error> {
    Tool::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "vmdk", "-o"])
        .arg(format!("subformat={}", layout.create_type()))
        .args([raw, disk])
        .run()
}

/// Makes an empty snapshot `child`, naming its parent as `parent` says: by absolute path, or
/// relative to the child's folder.
///
/// # Errors
/// Those of qemu-img.
pub fn create_snapshot(child: &Path, parent: &Path, layout: Layout) -> Result<(), Error> {
    let folder = child.parent().unwrap_or(Path::new("."));
    Tool::new("qemu-img")
        .args(["create", "-q", "-f", "vmdk", "-F", "vmdk", "-o"])
        .arg(format!("subformat={}", layout.create_type()))
        .arg("-b")
        .arg(parent)
        .arg(child)
        .within(folder)
        .run()
}

/// Writes what differs between the raw files `old` and `new`, of one size, into the VMDK `child`,
/// `offset` bytes further on. Returns the bytes written.
///
/// # Errors
/// Those of qemu-io, and [`Error::File`].
pub fn write_changes(child: &Path, old: &Path, new: &Path, offset: u64) -> Result<u64, Error> {
    let runs = changed_runs(old, new)?;
    let folder = tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
    let new_file = File::open(new).map_err(Error::file("open", new))?;
    let mut commands = String::new();
    let mut written = 0;
    for (number, (start, len)) in runs.into_iter().enumerate() {
        let mut bytes = vec![0; len];
        new_file.read_exact_at(&mut bytes, start).map_err(Error::file("read", new))?;
        let piece = folder.path().join(number.to_string());
        fs::write(&piece, bytes).map_err(Error::file("write", &piece))?;
        // qemu-io knows no quoting; names without a folder need none.
        commands += &format!("write -q -s {number} {} {len}\n", offset + start);
        written += len as u64;
    }
    Tool::new("qemu-io")
        .args(["-f", "vmdk"])
        .arg(child)
        .within(folder.path())
        .filter(commands.as_bytes())?;
    Ok(written)
}

/// Runs of differing grains: where each starts, and its bytes.
fn changed_runs(old: &Path, new: &Path) -> Result<Vec<(u64, usize)>, Error> {
    let open = |path: &Path| File::open(path).map_err(Error::file("open", path));
    let (old_file, new_file) = (open(old)?, open(new)?);
    let grain = GRAIN as u64;
    // A grain that is a hole in both is equal; most of a disk is.
    let mut candidates = std::collections::BTreeSet::new();
    for (path, file) in [(old, &old_file), (new, &new_file)] {
        for (start, end) in sparse::data_ranges(file).map_err(Error::file("read", path))? {
            candidates.extend(start / grain..end.div_ceil(grain));
        }
    }
    let mut runs: Vec<(u64, usize)> = Vec::new();
    let (mut old_grain, mut new_grain) = (vec![0; GRAIN], vec![0; GRAIN]);
    for number in candidates {
        let at = number * grain;
        old_file.read_exact_at(&mut old_grain, at).map_err(Error::file("read", old))?;
        new_file.read_exact_at(&mut new_grain, at).map_err(Error::file("read", new))?;
        if old_grain == new_grain {
            continue;
        }
        match runs.last_mut() {
            Some((start, len)) if *start + *len as u64 == at => *len += GRAIN,
            _ => runs.push((at, GRAIN)),
        }
    }
    Ok(runs)
}

/// Checks that the VMDK `disk`, with its parents, reads as the raw file `raw`.
///
/// # Errors
/// [`Error::Program`] where it does not.
pub fn check_reads_as(disk: &Path, raw: &Path) -> Result<(), Error> {
    Tool::new("qemu-img").args(["compare", "-q", "-f", "vmdk", "-F", "raw"]).args([disk, raw]).run()
}

/// Checks that the child's `parentCID` is the parent's `CID`, both with text descriptors.
///
/// # Errors
/// [`Error::Unfit`] where it is not.
pub fn check_cids(child: &Path, parent: &Path) -> Result<(), Error> {
    let (expected, found) = (field(child, "parentCID")?, field(parent, "CID")?);
    if expected == found {
        return Ok(());
    }
    Err(Error::unfit(
        format!(
            "{} expects CID {expected} of {}, which has {found}",
            child.display(),
            parent.display()
        ),
        "remove target/disks and try again",
    ))
}

/// Replaces the path by which the VMDK `child`, with a text descriptor of its own, names its
/// parent. The descriptor becomes a new file: hard links to the old one keep what they have.
///
/// # Errors
/// [`Error::File`], [`Error::Unfit`].
pub fn set_parent_path(child: &Path, parent: &Path) -> Result<(), Error> {
    let old = field(child, "parentFileNameHint")?;
    let text = fs::read_to_string(child).map_err(Error::file("read", child))?;
    let text = text.replace(
        &format!("parentFileNameHint={old}"),
        &format!("parentFileNameHint=\"{}\"", parent.display()),
    );
    let mode = fs::metadata(child).map_err(Error::file("look at", child))?.permissions();
    let fresh = child.with_extension("new");
    fs::write(&fresh, text).map_err(Error::file("write", &fresh))?;
    fs::set_permissions(&fresh, mode).map_err(Error::file("set the mode of", &fresh))?;
    fs::rename(&fresh, child).map_err(Error::file("replace", child))
}

/// A field of a descriptor in a file of its own, as it stands there.
fn field(disk: &Path, name: &str) -> Result<String, Error> {
    let text = fs::read_to_string(disk).map_err(Error::file("read", disk))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .map(|value| value.trim().to_owned())
        .ok_or_else(|| {
            Error::unfit(format!("{} has no {name}", disk.display()), "remove target/disks")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_holds_the_changes_and_reads_as_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let old = sparse::create(&path("old"), 8 << 20).unwrap();
        old.write_all_at(&[1; 300_000], 1 << 20).unwrap();
        fs::copy(path("old"), path("new")).unwrap();
        let new = File::options().write(true).open(path("new")).unwrap();
        new.write_all_at(b"changed", (1 << 20) + 70_000).unwrap();
        new.write_all_at(b"added", 5 << 20).unwrap();
        let layout = Layout::TwoGbMaxExtentSparse;
        convert(&path("old"), &path("base.vmdk"), layout).unwrap();
        create_snapshot(&path("child.vmdk"), Path::new("base.vmdk"), layout).unwrap();

        let written = write_changes(&path("child.vmdk"), &path("old"), &path("new"), 0).unwrap();

        assert_eq!(written, 2 * GRAIN as u64);
        check_reads_as(&path("child.vmdk"), &path("new")).unwrap();
        check_reads_as(&path("base.vmdk"), &path("old")).unwrap();
        check_cids(&path("child.vmdk"), &path("base.vmdk")).unwrap();
        assert!(check_reads_as(&path("child.vmdk"), &path("old")).is_err());
    }

    #[test]
    fn a_parent_that_moved_is_found_at_its_new_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let layout = Layout::TwoGbMaxExtentSparse;
        sparse::create(&path("raw"), 1 << 20).unwrap();
        convert(&path("raw"), &path("base.vmdk"), layout).unwrap();
        create_snapshot(&path("child.vmdk"), &path("base.vmdk"), layout).unwrap();
        fs::create_dir(path("moved")).unwrap();
        for name in ["base.vmdk", "base-s001.vmdk"] {
            fs::rename(path(name), path("moved").join(name)).unwrap();
        }

        set_parent_path(&path("child.vmdk"), &path("moved/base.vmdk")).unwrap();

        check_reads_as(&path("child.vmdk"), &path("raw")).unwrap();
    }
}
