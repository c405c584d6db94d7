//! From the file that the user names to the last parent.

use std::path::{Path, PathBuf};

use super::descriptor::ParentLink;
use super::error::{ImageError, Problem};
use super::file::{FileId, ImageFile};
use super::hint::UNPACK;
use super::qcow2::{Backing, Qcow2Header};
use super::reach::Reach;
use super::split::Pieces;
use super::{
    Disk, Format, Link, MAX_DISK_SIZE, MAX_LINKS, OpenOptions, SECTOR_SIZE, archive, lock, vdi,
    vhd, vhdx, vmdk,
};

/// Opens the disk at `path`; see [`Disk::open`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Disk, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    let allowed = real_paths(&options.allow_paths)?;
    let (leaf, format) = find_leaf(path, options.format).map_err(failed)?;
    let mut warnings = Vec::new();
    let pieces = match format {
        Format::Raw => Pieces::beside(&leaf).map_err(failed)?,
        _ => None,
    };
    let chain = match pieces {
        Some(pieces) if pieces.other_first().is_none() => {
            vec![pieces.open(leaf, &allowed).map_err(failed)?]
        }
        _ => open_chain(leaf, format, &allowed, &mut warnings)?,
    };
    let (size, block_size) = (chain[0].size, options.block_size);
    Ok(Disk { path: path.to_owned(), size, block_size, chain, warnings })
}

/// Opens the file that the user means, and tells its format where that is not known.
fn find_leaf(path: &Path, format: Option<Format>) -> Result<(ImageFile, Format), Problem> {
    let file = match archive::split_name(path) {
        Some((archive, member)) => archive::disk(&ImageFile::open(archive)?, Some(member))?,
        None => ImageFile::open(path)?,
    };
    if let Some(format) = format {
        return Ok((file, format));
    }
    let file = if archive::is_archive(&file)? { archive::disk(&file, None)? } else { file };
    let format = Format::probe(&file)?;
    match Pieces::beside(&file)?.map(|pieces| pieces.other_first().map(Path::to_owned)) {
        None => Ok((file, format)),
        Some(Some(first)) => Err(Problem::IsPiece(file.path.with_file_name(first))),
        Some(None) if format == Format::Raw => Ok((file, format)),
        Some(None) => Err(Problem::Unsupported {
            what: format!("it is the first piece of a split {format}"),
            hint: "join the pieces with cat and open the file that comes out; \
                   if it is a raw disk, say so with --format raw",
        }),
    }
}

/// What the user allows, as it is really called.
pub fn real_paths(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ImageError> {
    let real =
        |path: &PathBuf| path.canonicalize().map_err(|e| ImageError::new(path, Problem::Io(e)));
    paths.iter().map(real).collect()
}

/// Opens `leaf` and its parents; `allowed` are real paths.
fn open_chain(
    leaf: ImageFile,
    format: Format,
    allowed: &[PathBuf],
    warnings: &mut Vec<String>,
) -> Result<Vec<Link>, ImageError> {
    let mut chain = Vec::new();
    let mut seen = Vec::new();
    let mut place = Place::of(&leaf);
    seen.push(place.id);
    warnings.extend(lock::warning(&leaf.real));
    let is_part = leaf.is_part();
    let (mut link, mut parent) = open_link(leaf, format, allowed)?;
    if is_part && parent.is_some() {
        let problem = Problem::Unsupported {
            what: "it is a snapshot in an archive, without its parent".to_owned(),
            hint: UNPACK,
        };
        return Err(ImageError::new(&place.path, problem));
    }
    while let Some(reference) = parent {
        let failed = |problem| ImageError::new(&place.path, problem);
        if chain.len() + 1 == MAX_LINKS {
            return Err(failed(Problem::TooDeep));
        }
        let (file, format) = reference.find(&place.folder, allowed).map_err(failed)?;
        let name = place.name_from(&file);
        if seen.contains(&file.id) {
            return Err(failed(Problem::Cycle(name)));
        }
        let next_place = Place::of(&file);
        seen.push(next_place.id);
        warnings.extend(lock::warning(&file.real));
        let (next, grandparent) = open_link(file, format, allowed)?;
        reference.check_fit(&link, &next, name).map_err(failed)?;
        chain.push(std::mem::replace(&mut link, next));
        (place, parent) = (next_place, grandparent);
    }
    chain.push(link);
    Ok(chain)
}

fn open_link(
    file: ImageFile,
    format: Format,
    allowed: &[PathBuf],
) -> Result<(Link, Option<Parent>), ImageError> {
    let path = file.path.clone();
    let opened = match format {
        Format::Vmdk => {
            vmdk::open(file, allowed).map(|(link, parent)| (link, parent.map(Parent::Vmdk)))
        }
        _ => open_single(file, format),
    };
    opened.map_err(|problem| ImageError::new(&path, problem))
}

/// An image that is one file.
fn open_single(file: ImageFile, format: Format) -> Result<(Link, Option<Parent>), Problem> {
    let mut parent = None;
    let size = match format {
        Format::Qcow2 => {
            let header = Qcow2Header::read(&file)?;
            parent = header.backing.map(Parent::Backing);
            header.size
        }
        Format::Vdi => vdi::virtual_size(&file)?,
        Format::Vpc => vhd::virtual_size(&file)?,
        Format::Vhdx => vhdx::virtual_size(&file)?,
        // QEMU fills the last sector of an odd file with zeros. The length of a file is
        // below 2^63, so this cannot overflow.
        Format::Raw | Format::Vmdk => file.len.next_multiple_of(SECTOR_SIZE),
    };
    match size {
        0 if file.len == 0 => return Err(Problem::Empty),
        0 => return Err(Problem::damaged("its virtual disk has no sectors")),
        _ if size > MAX_DISK_SIZE => return Err(Problem::TooLarge),
        _ => {}
    }
    let path = file.path.clone();
    Ok((Link { path, format, size, vmdk: None, source: file.into_source() }, parent))
}

/// What an image says of the one below it.
enum Parent {
    /// Known by its content id.
    Vmdk(ParentLink),
    /// Known by its name alone.
    Backing(Backing),
}

impl Parent {
    /// Opens the first parent that exists among those that the name in a file in `folder` may
    /// mean.
    ///
    /// A VMDK's may be anywhere: it is used only if it is a VMDK with the right content id.
    /// Nothing but its name ties a backing file to its child, so that it has to be where the
    /// child may refer to any bytes.
    fn find(&self, folder: &Path, allowed: &[PathBuf]) -> Result<(ImageFile, Format), Problem> {
        let reach = Reach { folder, allowed };
        let candidates = match self {
            Self::Vmdk(link) => link.hint.candidates(folder),
            Self::Backing(backing) => backing.name.candidates(folder),
        };
        for path in &candidates {
            let wrap = |problem| Problem::Parent { path: path.clone(), problem: Box::new(problem) };
            let opened = match self {
                Self::Vmdk(_) => ImageFile::open(path),
                Self::Backing(_) => reach.locate_plain(path).and_then(|file| file.open()),
            };
            let mut file = match opened {
                Err(problem) if problem.is_missing() => continue,
                opened => opened.map_err(wrap)?,
            };
            file.path.clone_from(&file.real);
            let format = match self {
                Self::Backing(Backing { format: Some(format), .. }) => *format,
                _ => Format::probe(&file).map_err(wrap)?,
            };
            if matches!(self, Self::Vmdk(_)) && format != Format::Vmdk {
                return Err(wrap(Problem::ParentNotVmdk));
            }
            return Ok((file, format));
        }
        Err(Problem::ParentMissing(candidates))
    }

    /// Checks that `parent`, which is called `name`, is the image that `child` was made over.
    fn check_fit(&self, child: &Link, parent: &Link, name: PathBuf) -> Result<(), Problem> {
        // A backing file may have any size: what it lacks is zero.
        let Self::Vmdk(link) = self else { return Ok(()) };
        let found = parent.vmdk.expect("it was opened as a VMDK").cid;
        if found != link.cid {
            return Err(Problem::CidMismatch { expected: link.cid, found, parent: name });
        }
        if parent.size > child.size {
            let (parent_size, size) = (parent.size, child.size);
            return Err(Problem::ParentLarger { parent: name, parent_size, size });
        }
        Ok(())
    }
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
