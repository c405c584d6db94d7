//! From the file that the user names to the last parent.

use std::path::{Path, PathBuf};

use super::error::{ImageError, Problem, show};
use super::file::{FileId, ImageFile};
use super::hint::UNPACK;
use super::name::FileName;
use super::parallels::ParallelsHeader;
use super::parent::{self, Parent, Shape};
use super::qcow2::Qcow2Header;
use super::qed::QedHeader;
use super::sector_map::{MAX_TABLES_LEN, too_many_changes};
use super::split::Pieces;
use super::vdi::VdiHeader;
use super::vhd::{self, VhdHeader};
use super::vhdx::{self, VhdxHeader};
use super::{
    BlockSize, Disk, Format, Link, MAX_DISK_SIZE, MAX_LINKS, Missing, OpenOptions, SECTOR_SIZE,
    Source, archive, cut_short, foreign, lock, vmdk,
};

/// Opens the disk at `path`; see [`Disk::open`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Disk, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    let allowed = real_paths(&options.allow_paths)?;
    let (leaf, format) = find_leaf(path, options.format).map_err(failed)?;
    let mut warnings = Vec::new();
    if format == Format::Raw && options.format.is_none() {
        warnings.extend(doubt(&leaf).map_err(failed)?);
    }
    let pieces = match format {
        Format::Raw => Pieces::beside(&leaf).map_err(failed)?,
        _ => None,
    };
    let chain = match pieces {
        Some(pieces) if pieces.other_first().is_none() => {
            vec![pieces.open(leaf, &allowed).map_err(failed)?]
        }
        // Only where the user says that this is what there is.
        _ if options.format == Some(Format::Vmdk)
            && vmdk::is_lone_extent(&leaf).map_err(failed)? =>
        {
            let mut link = vmdk::open_lone_extent(leaf).map_err(failed)?;
            cut_short::examine(&mut link).map_err(failed)?;
            vec![link]
        }
        _ => open_chain(leaf, format, &allowed, &mut warnings)?,
    };
    for link in &chain {
        warnings
            .extend(link.warnings.iter().map(|warning| format!("{}: {warning}", show(&link.path))));
    }
    let (size, block_size) = (chain[0].size, options.block_size.unwrap_or(chain[0].block_size));
    let missing = cut_short::visible(&chain)?;
    let (path, on_missing) = (path.to_owned(), options.on_missing);
    Ok(Disk { path, size, block_size, chain, missing, on_missing, warnings, writing: None })
}

/// Opens the file that the user means, and tells its format where that is not known.
///
/// # Errors
/// [`Problem`], for a piece of a split disk among others.
pub fn find_leaf(path: &Path, format: Option<Format>) -> Result<(ImageFile, Format), Problem> {
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

/// What to say of `file`, which passes for a raw disk as its first bytes say nothing else.
fn doubt(file: &ImageFile) -> Result<Option<String>, Problem> {
    let is_like_one = foreign::begins_like_a_disk(file)?;
    Ok((!is_like_one).then(|| {
        format!(
            "{}: it begins like no disk that is known, and is read as plain sectors\n  hint: \
             --format raw says that it is one; otherwise it may be compressed, encrypted or a backup",
            show(&file.path)
        )
    }))
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
    let mut tables_len = 0;
    let mut place = Place::of(&leaf);
    seen.push(place.id);
    warnings.extend(lock::warning(&leaf.real));
    let is_part = leaf.is_part();
    let (mut link, mut parent) = open_link(leaf, format, allowed)?;
    if is_part && parent.is_some() {
        return Err(ImageError::new(&place.path, snapshot_in_archive()));
    }
    while let Some(reference) = parent {
        let failed = |problem| ImageError::new(&place.path, problem);
        tables_len += tables_len_of(&link).map_err(failed)?;
        if tables_len > MAX_TABLES_LEN * 2 {
            return Err(failed(too_many_changes()));
        }
        if chain.len() + 1 == MAX_LINKS {
            return Err(failed(Problem::TooDeep));
        }
        let (file, format) = reference.find(&place.folder, allowed).map_err(failed)?;
        let name = place.name_from(&file);
        if seen.contains(&file.id) {
            return Err(failed(Problem::Cycle(name)));
        }
        let stated = reference.stand_in(&place.folder, &file);
        let next_place = Place::of(&file);
        seen.push(next_place.id);
        warnings.extend(lock::warning(&file.real));
        let (next, grandparent) = open_link(file, format, allowed)?;
        if let Some(stated) = stated {
            warnings.push(check_stand_in(&link, &next, stated).map_err(failed)?);
        }
        reference.check_fit(Shape::of(&link), Shape::of(&next), name).map_err(failed)?;
        parent::adopt(&mut link, &next);
        chain.push(std::mem::replace(&mut link, next));
        (place, parent) = (next_place, grandparent);
    }
    chain.push(link);
    Ok(chain)
}

/// What to say of `parent` that is read in the place of the backing file of `link`, which is called
/// `stated` and not there.
///
/// # Errors
/// [`Problem::OtherBacking`] where it cannot be the same.
fn check_stand_in(link: &Link, parent: &Link, stated: FileName) -> Result<String, Problem> {
    if parent.size > link.size {
        return Err(Problem::OtherBacking {
            stated,
            found: parent.path.clone(),
            found_size: parent.size,
            size: link.size,
        });
    }
    let sizes = match parent.size == link.size {
        true => String::new(),
        false => format!(" (its disk has {} bytes, not {})", parent.size, link.size),
    };
    Ok(format!(
        "{}: its backing file {stated} does not exist; {} is read in its place{sizes}, of which only \
         the name is the same\n  hint: what is shown is wrong if it is another file; put the right one \
         there, or see `qemu-img rebase -u`",
        show(&link.path),
        show(&parent.path)
    ))
}

/// Bytes of memory that the tables of a link take.
fn tables_len_of(link: &Link) -> Result<u64, Problem> {
    match &link.source {
        Source::Mapped { extents, .. } => Ok(extents[0].metadata()?.len()),
        _ => Ok(0),
    }
}

fn open_link(
    file: ImageFile,
    format: Format,
    allowed: &[PathBuf],
) -> Result<(Link, Option<Parent>), ImageError> {
    let path = file.path.clone();
    let opened = open_one(file, format, allowed).and_then(|(mut link, parent)| {
        cut_short::examine(&mut link)?;
        Ok((link, parent))
    });
    opened.map_err(|problem| ImageError::new(&path, problem))
}

/// Opens one image, whatever it is over. Its extents may also be below `allowed`, which are real
/// paths. Returns it with what it says of its parent.
///
/// # Errors
/// [`Problem`] of this file or of one of its extents.
pub fn open_one(
    file: ImageFile,
    format: Format,
    allowed: &[PathBuf],
) -> Result<(Link, Option<Parent>), Problem> {
    match format {
        Format::Vmdk => {
            vmdk::open(file, allowed).map(|(link, parent)| (link, parent.map(Parent::Vmdk)))
        }
        _ => open_single(file, format),
    }
}

/// An image that is one file.
fn open_single(mut file: ImageFile, format: Format) -> Result<(Link, Option<Parent>), Problem> {
    let (mut map, mut missing) = (None, Missing::default());
    let mut block_size = BlockSize::default();
    let mut warnings = Vec::new();
    let (size, parent) = match format {
        Format::Qcow2 => {
            let header = Qcow2Header::read(&file)?;
            (header.size, header.backing.map(Parent::Backing))
        }
        Format::Qed => {
            let header = QedHeader::read(&file)?;
            (header.size, header.backing.map(Parent::Backing))
        }
        Format::Parallels => (ParallelsHeader::read(&file)?.size, None),
        Format::Vdi => {
            let header = VdiHeader::read(&file)?;
            if header.parent.is_some() {
                check_size(header.size, &file)?;
                let (sectors, cut) = header.map(&file)?;
                (map, missing) = (Some(sectors), cut);
            }
            (header.size, header.parent.map(Parent::Vdi))
        }
        Format::Vpc => {
            (file, warnings) = vhd::mended(file)?;
            let header = VhdHeader::read(&file)?;
            if header.parent.is_some() {
                check_size(header.size, &file)?;
                let (sectors, cut) = header.map(&file)?;
                (map, missing) = (Some(sectors), cut);
            }
            (header.size, header.parent.map(Parent::Vhd))
        }
        Format::Vhdx => {
            file = vhdx::replayed(file)?;
            warnings.extend(file.is_patched().then(|| REPLAYED.to_owned()));
            let header = VhdxHeader::read(&file)?;
            block_size = header.sector_size();
            if header.needs_map() {
                check_size(header.size, &file)?;
                let (sectors, cut) = header.map(&file)?;
                (map, missing) = (Some(sectors), cut);
            }
            (header.size, header.parent.map(Parent::Vhdx))
        }
        // QEMU fills the last sector of an odd file with zeros. The length of a file is
        // below 2^63, so this cannot overflow.
        Format::Raw | Format::Vmdk => (file.len.next_multiple_of(SECTOR_SIZE), None),
    };
    check_size(size, &file)?;
    let path = file.path.clone();
    let source = match map {
        None => file.into_source()?,
        Some(_) if file.is_part() && parent.is_some() => return Err(snapshot_in_archive()),
        Some(_) if file.is_part() => return Err(unpacked_only()),
        Some(map) => {
            let (descriptor, extents) = map.joined(size, &file)?;
            Source::Mapped { descriptor, extents }
        }
    };
    Ok((Link { path, format, size, vmdk: None, block_size, warnings, source, missing }, parent))
}

/// What is said of a file with a log.
const REPLAYED: &str = "it was not closed; its log was replayed in memory, the file is unchanged";

fn unpacked_only() -> Problem {
    Problem::Unsupported {
        what: "it has sectors of 4096 bytes, in an archive".to_owned(),
        hint: UNPACK,
    }
}

fn snapshot_in_archive() -> Problem {
    Problem::Unsupported {
        what: "it is a snapshot in an archive, without its parent".to_owned(),
        hint: UNPACK,
    }
}

fn check_size(size: u64, file: &ImageFile) -> Result<(), Problem> {
    match size {
        0 if file.len == 0 => Err(Problem::Empty),
        0 => Err(Problem::damaged("its virtual disk has no sectors")),
        _ if size > MAX_DISK_SIZE => Err(Problem::TooLarge),
        _ => Ok(()),
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
