//! Descriptions of virtual machines: the disks that a `.vmx` or `.vbox` names.

use std::path::{Path, PathBuf};

use super::error::{ImageError, Problem};
use super::file::ImageFile;
use super::folder::{entries, lone_disk};
use super::name::FileName;
use super::reach::Reach;
use super::vdi::VdiHeader;
use super::{Format, OpenOptions, chain, vbox, vmdk, vmx};

/// A program whose descriptions are read, or that has others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `.vmx`.
    Vmware,
    /// `.vbox`.
    VirtualBox,
    /// `.vmcx` and what belongs to it, in a format that is not published.
    HyperV,
}

fn kind(path: &Path) -> Option<Kind> {
    let extension = path.extension()?.to_ascii_lowercase();
    match extension.to_str()? {
        "vmx" => Some(Kind::Vmware),
        "vbox" => Some(Kind::VirtualBox),
        "vmcx" | "vmrs" | "vmgs" => Some(Kind::HyperV),
        _ => None,
    }
}

/// Whether a file is called like the description of a machine.
pub fn is_description(path: &Path) -> bool {
    kind(path).is_some()
}

/// Whether the disks of a description so called are read.
pub fn is_readable(path: &Path) -> bool {
    kind(path).is_some_and(|kind| kind != Kind::HyperV)
}

/// The disks that the description at `path` names, in the order of their buses.
///
/// # Errors
/// [`ImageError`] of the description, or of the first disk that is missing or forbidden.
pub fn disks(path: &Path, options: &OpenOptions) -> Result<Vec<PathBuf>, ImageError> {
    let allowed = chain::real_paths(&options.allow_paths)?;
    let read = || -> Result<Vec<PathBuf>, Problem> {
        let file = ImageFile::open(path)?;
        let reach = Reach { folder: file.folder(), allowed: &allowed };
        let disks = match kind(path) {
            Some(Kind::VirtualBox) => disks_of_virtualbox(&text(&file, vbox::MAX_LEN)?, reach)?,
            Some(Kind::HyperV) => return Err(binary()),
            Some(Kind::Vmware) | None => {
                let names = vmx::disks(&text(&file, vmx::MAX_LEN)?)?;
                let disks = names.iter().map(|name| disk_of_vmware(name, reach, options));
                disks.collect::<Result<_, _>>()?
            }
        };
        if disks.is_empty() { Err(Problem::NoDisk) } else { Ok(disks) }
    };
    read().map_err(|problem| ImageError::new(path, problem))
}

fn text(file: &ImageFile, limit: usize) -> Result<Vec<u8>, Problem> {
    if file.len > limit as u64 {
        return Err(Problem::damaged("it is too long for a description of a machine"));
    }
    file.start(limit)
}

fn binary() -> Problem {
    Problem::Unsupported {
        what: "it is Hyper-V's own description of a machine, whose format is not published"
            .to_owned(),
        hint: "name the directory with the disks after -a, often \"Virtual Hard Disks\", \
               or the newest .avhdx or .vhdx in it",
    }
}

/// The disk that a `.vmx` calls `name`.
fn disk_of_vmware(
    name: &FileName,
    reach: Reach,
    options: &OpenOptions,
) -> Result<PathBuf, Problem> {
    let problem = match first_of(&name.candidates(reach.folder), reach) {
        Ok(path) => return Ok(path),
        Err(problem) => problem,
    };
    if problem.is_missing() {
        let there = same_disk(name, reach.folder, options);
        if !there.is_empty() {
            return Err(Problem::DeltaMissing { name: name.clone(), there });
        }
    }
    Err(Problem::Disk { name: name.clone(), problem: Box::new(problem) })
}

/// The newest of the disks in `folder` that the snapshot called `name` belongs to:
/// `disk.vmdk` and `disk-000001.vmdk` for `disk-000002.vmdk`.
fn same_disk(name: &FileName, folder: &Path, options: &OpenOptions) -> Vec<PathBuf> {
    let base = |path: &Path| {
        let stem = path.file_stem()?.to_str()?;
        let digits = stem.rsplit_once('-').filter(|(_, number)| is_number(number));
        Some((digits.map_or(stem, |(base, _)| base).to_owned(), digits.is_some()))
    };
    let wanted = name.candidates(folder).pop();
    let Some((wanted, true)) = wanted.and_then(|path| base(&path)) else { return Vec::new() };
    let mut names = entries(folder).unwrap_or_default();
    names.retain(|path| base(path).is_some_and(|(base, _)| base == wanted));
    match lone_disk(names, options) {
        Ok(disk) => vec![disk],
        Err(Problem::SeveralDisks(disks)) => disks,
        Err(_) => Vec::new(),
    }
}

/// The number of a VMware snapshot: six digits.
fn is_number(text: &str) -> bool {
    text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The disks of a `.vbox`. Each must have the id that it has there, as far as its format has one.
fn disks_of_virtualbox(text: &[u8], reach: Reach) -> Result<Vec<PathBuf>, Problem> {
    let machine = vbox::machine(text)?;
    let snapshots = machine.snapshots.candidates(reach.folder);
    let find = |disk: &vbox::AttachedDisk| -> Result<PathBuf, Problem> {
        let Some(name) = &disk.location else {
            let folders = [reach.folder.to_owned()].into_iter().chain(snapshots.clone()).collect();
            return by_id(disk, folders);
        };
        let mut candidates = name.candidates(reach.folder);
        candidates.extend(snapshots.iter().flat_map(|folder| name.candidates(folder).pop()));
        let failed = |problem| Problem::Disk { name: name.clone(), problem: Box::new(problem) };
        let path = first_of(&candidates, reach).map_err(failed)?;
        match id_of(&path) {
            Some(found) if found != disk.id => {
                Err(failed(Problem::DiskId { expected: disk.id, found }))
            }
            _ => Ok(path),
        }
    };
    machine.disks.iter().map(find).collect()
}

/// The disk in one of `folders` that has the id, where the description does not say its name.
fn by_id(disk: &vbox::AttachedDisk, folders: Vec<PathBuf>) -> Result<PathBuf, Problem> {
    const MAX_READ: usize = 1024;
    for folder in &folders {
        let names = entries(folder).unwrap_or_default().into_iter().take(MAX_READ);
        if let Some(found) = names.into_iter().find(|path| id_of(path) == Some(disk.id)) {
            return Ok(found);
        }
    }
    Err(Problem::DiskUnknown { id: disk.id, folders })
}

/// The id that VirtualBox gave to the image at `path`.
fn id_of(path: &Path) -> Option<super::Guid> {
    let file = ImageFile::open(path).ok()?;
    match Format::probe(&file).ok()? {
        Format::Vdi => VdiHeader::read(&file).ok().map(|header| header.own.image),
        Format::Vmdk => vmdk::ids(&file).ok()?.map(|ids| ids.image),
        _ => None,
    }
}

/// The first of `candidates` that exists and may be named.
fn first_of(candidates: &[PathBuf], reach: Reach) -> Result<PathBuf, Problem> {
    reach.first_of(candidates, |path| reach.locate(path).map(|_| path.to_owned()))
}
