//! Opens a disk so that its leaf can be written: decides whether that can be, takes the files for
//! itself, and knows what has to be done before the first byte.
//!
//! Its parents stay read-only. What an image of somebody else's names is written with more care
//! than it is read: a descriptor could name the file of another disk beside it, whose contents it
//! would merely show otherwise. A VMDK's extents must therefore bear its name.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::content_id::ContentId;
use super::create_type::CreateType;
use super::descriptor::{Access, Descriptor, Extent, Storage};
use super::error::{ImageError, Problem};
use super::file::{FileId, ImageFile, LocatedFile};
use super::history::history;
use super::name::FileName;
use super::sparse::{self, SparseHeader};
use super::unwritable::Unwritable;
use super::{
    BlockSize, Disk, Format, Link, OpenOptions, SECTOR_SIZE, Source, chain, lock, qemu_lock, vmdk,
};

/// What writing to a disk takes beside its open files.
#[derive(Debug)]
pub struct Writing {
    /// Of a VMDK.
    content_id: Option<ContentId>,
    begun: OnceLock<()>,
}

impl Writing {
    /// See [`Disk::begin_writing`].
    pub(super) fn begin(&self) -> io::Result<()> {
        if self.begun.get().is_none() {
            self.content_id.as_ref().map_or(Ok(()), ContentId::renew)?;
            self.begun.get_or_init(|| ());
        }
        Ok(())
    }
}

/// Opens the disk at `path`; see [`Disk::open_for_writing`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Disk, ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    let allowed = chain::real_paths(&options.allow_paths)?;
    let take = |disk: &Disk| Taken::of(&disk.chain[0], &allowed);
    // What lacks some of its blocks would get others in their place.
    let open_whole = || {
        let disk = chain::open(path, options)?;
        let missing = disk.chain[0].missing.clone().union(&disk.missing);
        match missing.bytes() {
            0 => Ok(disk),
            bytes => Err(failed(Unwritable::CutShort(bytes).into())),
        }
    };
    let taken = take(&open_whole()?).map_err(failed)?;
    // Read once more, now that nobody else can change it.
    let mut disk = open_whole()?;
    let writing = taken.give_to(&mut disk.chain[0]).map_err(failed)?;
    disk.writing = Some(writing);
    refuse_parent(path, options)?;
    Ok(disk)
}

/// The files of a leaf, open for writing and locked.
enum Taken {
    /// What holds all itself.
    Whole(File),
    /// The pieces of a split disk.
    Pieces(Vec<File>),
    /// A VMDK.
    Vmdk {
        /// The file with the descriptor.
        home: File,
        /// The descriptor.
        text: vmdk::Text,
        /// What it names, in that order.
        extents: Vec<File>,
    },
}

impl Taken {
    /// Takes the files of `leaf`. Its extents may bear any name below `allowed`, which are real
    /// paths.
    ///
    /// # Errors
    /// [`Problem`] of the first that cannot be written.
    fn of(leaf: &Link, allowed: &[PathBuf]) -> Result<Self, Problem> {
        if matches!(leaf.format, Format::Qed | Format::Parallels) {
            return Err(kind(format!("a disk in the format {}", leaf.format)));
        }
        let mut taken = Vec::new();
        match &leaf.source {
            Source::Part { .. } => return Err(kind("in an archive")),
            Source::Patched { .. } if leaf.format == Format::Vpc => {
                return Err(kind("a VHD with a damaged footer"));
            }
            Source::Patched { .. } => return Err(Unwritable::Unreplayed.into()),
            Source::Mapped { .. } if leaf.block_size != BlockSize::default() => {
                return Err(kind(format!("a {} with sectors of 4096 bytes", leaf.format)));
            }
            Source::Mapped { .. } => {
                return Err(kind(format!("a snapshot in the format {}", leaf.format)));
            }
            Source::Described { extents, .. } if leaf.format == Format::Raw => {
                for piece in extents {
                    hold(LocatedFile::of(piece)?.open_for_writing()?, &mut taken)?;
                }
                return Ok(Self::Pieces(taken));
            }
            Source::File(_) | Source::Described { .. } => {}
        }
        let located = LocatedFile::at(&leaf.path)?;
        if let Some(lock) = lock::beside(&located.real) {
            return Err(Unwritable::VmwareLock(lock).into());
        }
        let home = located.open_for_writing()?;
        qemu_lock::for_writing(&home.duplicate()?)?;
        if leaf.format != Format::Vmdk {
            return Ok(Self::Whole(home.into_whole()));
        }
        let text = vmdk::described(&home)?;
        match &leaf.source {
            _ if text.embedded => {
                refuse_compressed(&home)?;
                taken.push(home.duplicate()?);
            }
            Source::Described { descriptor, extents } => {
                for (extent, file) in descriptor.extents.iter().zip(extents) {
                    take_extent(extent, file, &home.real, allowed, &mut taken)
                        .map_err(|problem| of_extent(extent, problem))?;
                }
            }
            _ => return Err(Unwritable::Changed.into()),
        }
        Ok(Self::Vmdk { home: home.into_whole(), text, extents: taken })
    }

    /// Puts the files into the place of those that `leaf` has, which are the same.
    ///
    /// # Errors
    /// [`Unwritable::Changed`] where they are not.
    fn give_to(self, leaf: &mut Link) -> Result<Writing, Problem> {
        let mut content_id = None;
        match (self, &mut leaf.source) {
            (Self::Whole(taken), Source::File(file)) => {
                replace(std::slice::from_mut(file), vec![taken])?;
            }
            (Self::Pieces(taken), Source::Described { extents, .. }) => replace(extents, taken)?,
            (Self::Vmdk { home, text, extents: taken }, source) => {
                // QEMU stores a content id of its own at the first write. It gets a text in memory
                // for that, also where the descriptor is in the file with the data.
                if let Source::File(file) = source {
                    let create_type = CreateType::TwoGbMaxExtentSparse;
                    let descriptor = Descriptor { create_type, ..text.descriptor.clone() };
                    let extents = vec![file.try_clone()?];
                    *source = Source::Described { descriptor, extents };
                }
                let Source::Described { descriptor, extents } = source else {
                    return Err(Unwritable::Changed.into());
                };
                let (now, then) = (&*descriptor, &text.descriptor);
                if now.extents != then.extents || now.cid != then.cid {
                    return Err(Unwritable::Changed.into());
                }
                replace(extents, taken)?;
                content_id = Some(ContentId::find(home, text.at, &text.bytes, &text.descriptor)?);
            }
            _ => return Err(Unwritable::Changed.into()),
        }
        Ok(Writing { content_id, begun: OnceLock::new() })
    }
}

/// Puts `taken` into the place of `files`.
fn replace(files: &mut [File], taken: Vec<File>) -> Result<(), Problem> {
    if files.len() != taken.len() {
        return Err(Unwritable::Changed.into());
    }
    for (file, taken) in files.iter_mut().zip(taken) {
        if FileId::of(file)? != FileId::of(&taken)? {
            return Err(Unwritable::Changed.into());
        }
        *file = taken;
    }
    Ok(())
}

/// Takes the file of an extent of the VMDK at `home`.
fn take_extent(
    extent: &Extent,
    file: &File,
    home: &Path,
    allowed: &[PathBuf],
    taken: &mut Vec<File>,
) -> Result<(), Problem> {
    refuse_kind(extent)?;
    let located = LocatedFile::of(file)?;
    check_name(home, &located.real, allowed)?;
    let file = located.open_for_writing()?;
    if matches!(extent.storage, Storage::Sparse(_)) {
        if file.start(sparse::MAGIC.len())? != sparse::MAGIC {
            return Err(kind("a snapshot of an ESX server (vmfsSparse)"));
        }
        refuse_compressed(&file)?;
    }
    hold(file, taken)
}

/// Locks a file for `taken`. One that is there already is shared: a lock keeps out whoever opened
/// the file another time, ourselves too.
fn hold(file: ImageFile, taken: &mut Vec<File>) -> Result<(), Problem> {
    let mut same = taken.iter().filter(|other| FileId::of(other).is_ok_and(|id| id == file.id));
    let file = match same.next() {
        Some(same) => same.try_clone()?,
        None => {
            let file = file.into_whole();
            qemu_lock::for_writing(&file)?;
            file
        }
    };
    taken.push(file);
    Ok(())
}

/// Refuses extents that QEMU does not write, or that VMware would not.
fn refuse_kind(extent: &Extent) -> Result<(), Problem> {
    match &extent.storage {
        Storage::Zero => Err(kind("a disk with sectors that are stored nowhere (ZERO)")),
        Storage::SeSparse(_) => Err(kind("a snapshot of an ESX server (seSparse)")),
        _ if extent.access == Access::ReadOnly => {
            Err(kind("a disk with sectors that are marked as read-only (RDONLY)"))
        }
        Storage::Flat { .. } | Storage::Sparse(_) => Ok(()),
    }
}

fn of_extent(extent: &Extent, problem: Problem) -> Problem {
    let name: &FileName = match &extent.storage {
        Storage::Flat { name, .. } | Storage::Sparse(name) | Storage::SeSparse(name) => name,
        Storage::Zero => return problem,
    };
    Problem::Extent { name: name.clone(), problem: Box::new(problem) }
}

/// Refuses a sparse file that is written once.
fn refuse_compressed(file: &ImageFile) -> Result<(), Problem> {
    let header = SparseHeader::read(file)?;
    if header.has_footer || header.is_compressed {
        return Err(kind("compressed (streamOptimized)"));
    }
    Ok(())
}

/// Checks that the extent at `extent` bears the name of the descriptor at `home`, unless the user
/// allows it: `NAME-flat.vmdk`, `NAME-s001.vmdk` and the like beside `NAME.vmdk`.
fn check_name(home: &Path, extent: &Path, allowed: &[PathBuf]) -> Result<(), Problem> {
    let bytes = |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().as_bytes().to_owned();
    let (stem, name) = (bytes(home.file_stem()), bytes(extent.file_name()));
    let is_vmdk = extent.extension().is_some_and(|end| end.eq_ignore_ascii_case("vmdk"));
    let rest = name.strip_prefix(stem.as_slice()).filter(|rest| rest.starts_with(b"-"));
    if rest.is_some() && is_vmdk || allowed.iter().any(|path| extent.starts_with(path)) {
        return Ok(());
    }
    Err(Unwritable::ForeignName.into())
}

/// The files of a leaf that take more room when they are written: all but those that hold plain
/// sectors and have no holes.
pub fn growing(leaf: &Link) -> io::Result<Vec<File>> {
    let is_plain = |number: usize| match &leaf.source {
        Source::Described { descriptor, .. } => {
            matches!(descriptor.extents[number].storage, Storage::Flat { .. })
        }
        _ => leaf.format == Format::Raw,
    };
    let mut growing = Vec::new();
    for (number, file) in leaf.files().iter().enumerate() {
        let stat = file.metadata()?;
        if !is_plain(number) || stat.blocks() * SECTOR_SIZE < stat.len() {
            growing.push(file.try_clone()?);
        }
    }
    Ok(growing)
}

/// Refuses the parent of a snapshot, as far as those around it are found.
fn refuse_parent(path: &Path, options: &OpenOptions) -> Result<(), ImageError> {
    let failed = |problem| ImageError::new(path, problem);
    let real = path.canonicalize().map_err(|error| failed(error.into()))?;
    let history = history(&[path.to_owned()], options)?;
    let own = history.members.iter().position(|member| member.path == real);
    let child = own.and_then(|own| history.children(own).into_iter().next());
    match child.and_then(|child| history.members.get(child)) {
        Some(child) => Err(failed(Unwritable::ParentOf(child.path.clone()).into())),
        None => Ok(()),
    }
}

fn kind(kind: impl Into<String>) -> Problem {
    Unwritable::Kind(kind.into()).into()
}
