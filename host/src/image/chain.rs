//! From the file that the user names to the last parent.

use std::path::{Path, PathBuf};

use super::descriptor::ParentLink;
use super::error::{ImageError, Problem};
use super::file::{FileId, ImageFile};
use super::{
    Disk, Format, Link, MAX_DISK_SIZE, MAX_LINKS, OpenOptions, SECTOR_SIZE, Source, lock, qcow2,
    vdi, vhd, vhdx, vmdk,
};

/// Opens the disk at `path`; see [`Disk::open`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Disk, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    let allowed = real_paths(&options.allow_paths)?;
    let leaf = ImageFile::open(path).map_err(failed)?;
    let format = match options.format {
        Some(format) => format,
        None => Format::probe(&leaf).map_err(failed)?,
    };
    let mut warnings = Vec::from_iter(lock::warning(&leaf.real));
    let chain = match format {
        Format::Vmdk => open_vmdk_chain(leaf, &allowed, &mut warnings)?,
        _ => vec![open_single(leaf, format).map_err(failed)?],
    };
    Ok(Disk { path: path.to_owned(), size: chain[0].size, chain, warnings })
}

fn real_paths(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ImageError> {
    let real =
        |path: &PathBuf| path.canonicalize().map_err(|e| ImageError::new(path, Problem::Io(e)));
    paths.iter().map(real).collect()
}

/// A format that is one file without a parent.
fn open_single(file: ImageFile, format: Format) -> Result<Link, Problem> {
    let size = match format {
        Format::Qcow2 => qcow2::virtual_size(&file)?,
        Format::Vdi => vdi::virtual_size(&file)?,
        Format::Vpc => vhd::virtual_size(&file)?,
        Format::Vhdx => vhdx::virtual_size(&file)?,
        // QEMU fills the last sector of an odd file with zeros. The length of a file is
        // below 2^63, so this cannot overflow.
        Format::Raw | Format::Vmdk => file.len.next_multiple_of(SECTOR_SIZE),
    };
    match size {
        0 if file.len == 0 => Err(Problem::Empty),
        0 => Err(Problem::damaged("its virtual disk has no sectors")),
        _ if size > MAX_DISK_SIZE => Err(Problem::TooLarge),
        _ => Ok(Link {
            path: file.path.clone(),
            format,
            size,
            vmdk: None,
            source: Source::File(file.into_file()),
        }),
    }
}

fn open_vmdk_chain(
    leaf: ImageFile,
    allowed: &[PathBuf],
    warnings: &mut Vec<String>,
) -> Result<Vec<Link>, ImageError> {
    let mut chain = Vec::new();
    let mut seen = Vec::new();
    let mut place = Place::of(&leaf);
    seen.push(place.id);
    let (mut link, mut parent) = open_link(leaf, allowed)?;
    while let Some(reference) = parent {
        let failed = |problem| ImageError::new(&place.path, problem);
        if chain.len() + 1 == MAX_LINKS {
            return Err(failed(Problem::TooDeep));
        }
        let file = find_parent(&reference, &place.folder).map_err(failed)?;
        let name = place.name_from(&file);
        if seen.contains(&file.id) {
            return Err(failed(Problem::Cycle(name)));
        }
        let next_place = Place::of(&file);
        seen.push(next_place.id);
        warnings.extend(lock::warning(&file.real));
        let (next, grandparent) = open_link(file, allowed)?;
        check_fit(&link, &next, &reference, name).map_err(failed)?;
        chain.push(std::mem::replace(&mut link, next));
        (place, parent) = (next_place, grandparent);
    }
    chain.push(link);
    Ok(chain)
}

fn open_link(
    file: ImageFile,
    allowed: &[PathBuf],
) -> Result<(Link, Option<ParentLink>), ImageError> {
    let path = file.path.clone();
    vmdk::open(file, allowed).map_err(|problem| ImageError::new(&path, problem))
}

/// Where a link's own file is.
struct Place {
    path: PathBuf,
    folder: PathBuf,
    id: FileId,
}

impl Place {
    fn of(file: &ImageFile) -> Self {
        Self { path: file.path.clone(), folder: file.folder().to_owned(), id: file.id }
    }

    /// What to call `file` in a message about this link: its bare name where both are in
    /// one folder.
    fn name_from(&self, file: &ImageFile) -> PathBuf {
        match file.real.file_name() {
            Some(name) if file.folder() == self.folder => name.into(),
            _ => file.real.clone(),
        }
    }
}

/// Opens the first parent that exists among those that the hint of a file in `folder` may
/// mean. It may be anywhere: it is used only if it is a VMDK with the right content id.
fn find_parent(reference: &ParentLink, folder: &Path) -> Result<ImageFile, Problem> {
    let candidates = reference.hint.candidates(folder);
    for path in &candidates {
        let wrap = |problem| Problem::Parent { path: path.clone(), problem: Box::new(problem) };
        let mut file = match ImageFile::open(path) {
            Err(problem) if problem.is_missing() => continue,
            opened => opened.map_err(wrap)?,
        };
        file.path.clone_from(&file.real);
        return match Format::probe(&file).map_err(wrap)? {
            Format::Vmdk => Ok(file),
            _ => Err(wrap(Problem::ParentNotVmdk)),
        };
    }
    Err(Problem::ParentMissing(candidates))
}

/// Checks that `parent` is the image that `child` was made over.
fn check_fit(
    child: &Link,
    parent: &Link,
    reference: &ParentLink,
    name: PathBuf,
) -> Result<(), Problem> {
    let found = parent.vmdk.expect("every link of this chain is a VMDK").cid;
    if found != reference.cid {
        return Err(Problem::CidMismatch { expected: reference.cid, found, parent: name });
    }
    if parent.size > child.size {
        return Err(Problem::ParentLarger {
            parent: name,
            parent_size: parent.size,
            size: child.size,
        });
    }
    Ok(())
}
