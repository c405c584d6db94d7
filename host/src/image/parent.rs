//! What an image says of the one below it, how that is found, and whether it is the right one.

use std::fs;
use std::path::{Path, PathBuf};

use super::descriptor::{Cid, ParentBy, ParentLink};
use super::error::Problem;
use super::file::{FileId, ImageFile};
use super::guid::{Guid, ImageIds};
use super::name::FileName;
use super::qcow2::Backing;
use super::reach::Reach;
use super::vdi::VdiHeader;
use super::vhd::VhdHeader;
use super::{Format, Link, Source, vhdx, vmdk};

/// What an image says of the one below it.
pub enum Parent {
    /// Known by its content id, or by VirtualBox' ids.
    Vmdk(ParentLink),
    /// Known by its name alone.
    Backing(Backing),
    /// Known by its ids, whatever its name.
    Vdi(ImageIds),
    /// Known by name and id.
    Vhd(Named),
    /// Known by name and id.
    Vhdx(Named),
}

/// Names that a parent may have, and ids of which it must have one.
#[derive(Debug)]
pub struct Named {
    names: Vec<FileName>,
    ids: Vec<Guid>,
}

impl Named {
    /// Reads the names, which may end with zeros. Those without text are left out.
    ///
    /// # Errors
    /// [`Problem::Name`] for one that is none; [`Problem::Damaged`] without a name or id.
    pub fn new(names: Vec<Vec<u16>>, ids: Vec<Guid>) -> Result<Self, Problem> {
        let mut read = Vec::new();
        for name in names {
            let text = String::from_utf16(&name)
                .map_err(|_| Problem::damaged("its parent's name is no text"))?;
            match text.trim_end_matches('\0') {
                "" => {}
                text => read.push(FileName::new(text.as_bytes()).map_err(Problem::Name)?),
            }
        }
        if read.is_empty() || ids.is_empty() {
            return Err(Problem::damaged("it says too little of its parent"));
        }
        Ok(Self { names: read, ids })
    }
}

/// What of an image decides whether it fits its parent or child.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of the virtual disk.
    size: u64,
    /// The content id of a VMDK.
    cid: Option<Cid>,
}

impl Shape {
    /// That of `link`.
    pub fn of(link: &Link) -> Self {
        Self { size: link.size, cid: link.vmdk.map(|vmdk| vmdk.cid) }
    }
}

impl Parent {
    /// Opens the parent of an image in `folder`: the first that exists among those that its name
    /// may mean, or that has the right id where there is one.
    ///
    /// A parent with ids may be anywhere: it is used only if it is of the child's format and has
    /// them. Nothing but its name ties a backing file to its child, so that it has to be where
    /// the child may refer to any bytes.
    ///
    /// # Errors
    /// [`Problem::Parent`] for one that cannot be used, [`Problem::ParentMissing`],
    /// [`Problem::ParentId`], [`Problem::ParentUnknown`].
    pub fn find(&self, folder: &Path, allowed: &[PathBuf]) -> Result<(ImageFile, Format), Problem> {
        match self {
            Self::Vmdk(ParentLink { by: ParentBy::Ids(ids), .. }) => {
                let opened = find_by_ids(*ids, folder, "vmdk", |file| vmdk::ids(file).ok()?)?;
                Ok((opened, Format::Vmdk))
            }
            Self::Vmdk(ParentLink { by: ParentBy::Hint(hint), .. }) => {
                let opened = first_of(&hint.candidates(folder), ImageFile::open)?;
                match Format::probe(&opened).map_err(|problem| wrap(&opened.path, problem))? {
                    Format::Vmdk => Ok((opened, Format::Vmdk)),
                    _ => Err(wrap(&opened.path, Problem::ParentNotVmdk)),
                }
            }
            Self::Backing(backing) => {
                let reach = Reach { folder, allowed };
                let opened = first_of(&backing.name.candidates(folder), |path| {
                    reach.locate_plain(path).and_then(|file| file.open())
                })?;
                let format = match backing.format {
                    Some(format) => format,
                    None => {
                        Format::probe(&opened).map_err(|problem| wrap(&opened.path, problem))?
                    }
                };
                Ok((opened, format))
            }
            Self::Vdi(ids) => {
                let own = |file: &ImageFile| VdiHeader::read(file).ok().map(|header| header.own);
                Ok((find_by_ids(*ids, folder, "vdi", own)?, Format::Vdi))
            }
            Self::Vhd(named) => {
                let id = |file: &ImageFile| VhdHeader::read(file).map(|header| header.id);
                Ok((named.find(folder, id)?, Format::Vpc))
            }
            Self::Vhdx(named) => Ok((named.find(folder, vhdx::write_id)?, Format::Vhdx)),
        }
    }

    /// The name by which nothing was found, where `found` in the place of what it names bears only
    /// its last part and nothing else shows that it is the same.
    pub fn stand_in(&self, folder: &Path, found: &ImageFile) -> Option<FileName> {
        let Self::Backing(backing) = self else { return None };
        let is_found = |path: &PathBuf| FileId::at(path).is_ok_and(|id| id == found.id);
        let is_stated = backing.name.stated(folder).as_ref().is_some_and(is_found);
        (!is_stated).then(|| backing.name.clone())
    }

    /// Checks that `parent`, which is called `name`, is the image that `child` was made over, as
    /// far as [`Self::find`] did not.
    ///
    /// # Errors
    /// [`Problem::CidMismatch`], [`Problem::ParentLarger`].
    pub fn check_fit(&self, child: Shape, parent: Shape, name: PathBuf) -> Result<(), Problem> {
        // Those of other formats may have any size: what a parent lacks is zero.
        let Self::Vmdk(link) = self else { return Ok(()) };
        let found = parent.cid.expect("it was opened as a VMDK");
        if let Some(expected) = link.cid.filter(|&expected| expected != found) {
            return Err(Problem::CidMismatch { expected, found, parent: name });
        }
        if parent.size > child.size {
            let (parent_size, size) = (parent.size, child.size);
            return Err(Problem::ParentLarger { parent: name, parent_size, size });
        }
        Ok(())
    }
}

/// Writes down the content id of `parent` in `child`, where VirtualBox did not: QEMU compares
/// the two.
pub fn adopt(child: &mut Link, parent: &Link) {
    let Source::Described { descriptor, .. } = &mut child.source else { return };
    if let Some(ParentLink { cid: cid @ None, .. }) = &mut descriptor.parent {
        *cid = Some(cid_of(parent));
    }
}

fn cid_of(vmdk: &Link) -> Cid {
    vmdk.vmdk.expect("it was opened as a VMDK").cid
}

impl Named {
    /// The id that the parent had when the child was made over it.
    pub fn id(&self) -> Guid {
        self.ids[0]
    }

    /// The first file with one of the ids among those that the names may mean.
    fn find(
        &self,
        folder: &Path,
        id: impl Fn(&ImageFile) -> Result<Guid, Problem>,
    ) -> Result<ImageFile, Problem> {
        let mut candidates: Vec<PathBuf> = Vec::new();
        for path in self.names.iter().flat_map(|name| name.candidates(folder)) {
            if !candidates.contains(&path) {
                candidates.push(path);
            }
        }
        let mut mismatch = None;
        for path in &candidates {
            let file = match first_of(std::slice::from_ref(path), ImageFile::open) {
                Err(Problem::ParentMissing(_)) => continue,
                opened => opened?,
            };
            let found = id(&file).map_err(|problem| wrap(&file.path, problem))?;
            if self.ids.contains(&found) {
                return Ok(file);
            }
            let parent = file.path;
            mismatch.get_or_insert(Problem::ParentId { expected: self.ids[0], found, parent });
        }
        Err(mismatch.unwrap_or(Problem::ParentMissing(candidates)))
    }
}

fn wrap(path: &Path, problem: Problem) -> Problem {
    Problem::Parent { path: path.to_owned(), problem: Box::new(problem) }
}

/// Opens the first of `candidates` that exists.
fn first_of(
    candidates: &[PathBuf],
    open: impl Fn(&Path) -> Result<ImageFile, Problem>,
) -> Result<ImageFile, Problem> {
    for path in candidates {
        match open(path) {
            Err(problem) if problem.is_missing() => {}
            Err(problem) => return Err(wrap(path, problem)),
            Ok(mut file) => {
                file.path.clone_from(&file.real);
                return Ok(file);
            }
        }
    }
    Err(Problem::ParentMissing(candidates.to_owned()))
}

/// Looks for the image with the ids `wanted`: beside the child, in `Snapshots` there, and in the
/// folder above, since VirtualBox keeps snapshots in a folder of that name. `read` gives the ids
/// of a file, if it has some.
fn find_by_ids(
    wanted: ImageIds,
    folder: &Path,
    extension: &str,
    read: impl Fn(&ImageFile) -> Option<ImageIds>,
) -> Result<ImageFile, Problem> {
    const MAX_ENTRIES: usize = 1 << 16;
    const MAX_READ: usize = 1024;
    let mut folders = vec![folder.to_owned(), folder.join("Snapshots")];
    folders.extend(folder.parent().map(Path::to_owned));
    for folder in &folders {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let paths = entries.take(MAX_ENTRIES).flatten().map(|entry| entry.path());
        let paths = paths
            .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)));
        for path in paths.take(MAX_READ) {
            let Ok(mut file) = ImageFile::open(&path) else { continue };
            let Some(own) = read(&file).filter(|own| own.image == wanted.image) else { continue };
            file.path.clone_from(&file.real);
            let (expected, found) = (wanted.modification, own.modification);
            if expected == found || expected.is_nil() {
                return Ok(file);
            }
            return Err(Problem::ParentId { expected, found, parent: file.path });
        }
    }
    Err(Problem::ParentUnknown { id: wanted.image, folders })
}
