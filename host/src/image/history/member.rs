//! One image of a history: what it says of itself and of its parent, and the files that it is
//! made of.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::image::descriptor::{Cid, ParentBy, ParentLink, Storage};
use crate::image::error::{ImageError, Problem};
use crate::image::file::{FileId, ImageFile};
use crate::image::guid::Guid;
use crate::image::parent::{Parent, Shape};
use crate::image::split::Pieces;
use crate::image::vdi::VdiHeader;
use crate::image::vhd::VhdHeader;
use crate::image::{CreateType, Format, Link, Source, chain, vhdx, vmdk};

/// What tells an image, or a state of it, from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// VMware's content id.
    Content(Cid),
    /// The id of the other formats.
    Guid(Guid),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(cid) => cid.fmt(f),
            Self::Guid(guid) => guid.fmt(f),
        }
    }
}

/// An image and what is known of it.
#[derive(Debug)]
pub struct Member {
    /// Where it really is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// How a VMDK is stored.
    pub create_type: Option<CreateType>,
    /// Bytes of the virtual disk; `None` where it cannot be opened.
    pub size: Option<u64>,
    /// What it is known by, in formats that have something for that.
    pub identity: Option<Identity>,
    /// What its parent was known by when it was made over it.
    pub parent_identity: Option<Identity>,
    /// The number of the image that it is over, also of one that does not fit any more.
    pub parent: Option<usize>,
    /// Its own file, then its extents.
    pub files: Vec<StoredFile>,
    /// What keeps it from being opened, if something does.
    pub problem: Option<ImageError>,
}

/// A file that an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Where it really is.
    pub path: PathBuf,
    /// Bytes.
    pub len: u64,
    /// Bytes that the host's filesystem keeps for it.
    pub on_disk: u64,
    /// When its contents were last changed.
    pub changed: Option<SystemTime>,
    id: FileId,
}

impl Member {
    /// When one of its files was last changed.
    #[must_use]
    pub fn changed(&self) -> Option<SystemTime> {
        self.files.iter().filter_map(|file| file.changed).max()
    }

    /// Bytes that the host's filesystem keeps for its files.
    #[must_use]
    pub fn on_disk(&self) -> u64 {
        self.files.iter().map(|file| file.on_disk).sum()
    }

    /// Its own file.
    pub(super) fn id(&self) -> FileId {
        self.files[0].id
    }

    /// Whether a file is one of its extents.
    pub(super) fn has_extent(&self, id: FileId) -> bool {
        self.files[1..].iter().any(|file| file.id == id)
    }
}

/// An image with what finding its parent takes.
pub(super) struct Described {
    pub member: Member,
    /// `None` where it cannot be opened, or is over none.
    pub child: Option<(Parent, Shape)>,
    /// `None` where it cannot be opened.
    pub shape: Option<Shape>,
}

impl Described {
    /// Opens the image in `file` and notes all that is kept of it. One that cannot be opened is
    /// noted with the reason.
    ///
    /// # Errors
    /// Where `file` itself cannot be looked at.
    pub fn of(file: ImageFile, format: Format, allowed: &[PathBuf]) -> Result<Self, Problem> {
        let path = file.real.clone();
        let mut member = Member {
            path: path.clone(),
            format,
            create_type: None,
            size: None,
            identity: identity(&file, format),
            parent_identity: None,
            parent: None,
            files: vec![StoredFile::named(&file.real)?],
            problem: None,
        };
        let (link, parent) = match open(file, format, allowed) {
            Ok(opened) => opened,
            Err(problem) => {
                member.problem = Some(ImageError::new(&path, problem));
                return Ok(Self { member, child: None, shape: None });
            }
        };
        let shape = Shape::of(&link);
        member.size = Some(link.size);
        member.create_type = link.vmdk.map(|vmdk| vmdk.create_type);
        member.parent_identity = parent.as_ref().and_then(identity_of_parent);
        for extent in extents(&link) {
            let extent = StoredFile::open(extent)?;
            if member.files.iter().all(|file| file.id != extent.id) {
                member.files.push(extent);
            }
        }
        Ok(Self { member, child: parent.map(|parent| (parent, shape)), shape: Some(shape) })
    }
}

fn open(
    file: ImageFile,
    format: Format,
    allowed: &[PathBuf],
) -> Result<(Link, Option<Parent>), Problem> {
    if format == Format::Raw
        && !file.is_part()
        && let Some(pieces) = Pieces::beside(&file)?.filter(|pieces| pieces.other_first().is_none())
    {
        return Ok((pieces.open(file, allowed)?, None));
    }
    chain::open_one(file, format, allowed)
}

impl StoredFile {
    fn named(real: &Path) -> Result<Self, Problem> {
        Ok(Self::described(real, &fs::metadata(real)?))
    }

    fn open(file: &File) -> Result<Self, Problem> {
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(Self::described(&path, &file.metadata()?))
    }

    fn described(path: &Path, metadata: &fs::Metadata) -> Self {
        Self {
            path: path.to_owned(),
            len: metadata.len(),
            on_disk: metadata.blocks() * 512,
            changed: metadata.modified().ok(),
            id: FileId::from(metadata),
        }
    }
}

/// The files that an image names, without those that stand for zeros.
fn extents(link: &Link) -> Vec<&File> {
    match &link.source {
        Source::File(_) | Source::Part { .. } | Source::Patched { .. } | Source::Mapped { .. } => {
            Vec::new()
        }
        Source::Described { descriptor, extents } => {
            let named = descriptor.extents.iter().zip(extents);
            named.filter(|(extent, _)| extent.storage != Storage::Zero).map(|(_, f)| f).collect()
        }
    }
}

fn identity(file: &ImageFile, format: Format) -> Option<Identity> {
    match format {
        Format::Vmdk => vmdk::identity(file).ok().map(|(cid, ids)| match ids {
            Some(ids) => Identity::Guid(ids.image),
            None => Identity::Content(cid),
        }),
        Format::Vdi => VdiHeader::read(file).ok().map(|header| Identity::Guid(header.own.image)),
        Format::Vpc => VhdHeader::read(file).ok().map(|header| Identity::Guid(header.id)),
        Format::Vhdx => vhdx::write_id(file).ok().map(Identity::Guid),
        Format::Raw | Format::Qcow2 | Format::Qed | Format::Parallels => None,
    }
}

fn identity_of_parent(parent: &Parent) -> Option<Identity> {
    match parent {
        Parent::Vmdk(ParentLink { by: ParentBy::Ids(ids), .. }) | Parent::Vdi(ids) => {
            Some(Identity::Guid(ids.image))
        }
        Parent::Vmdk(ParentLink { cid, .. }) => cid.map(Identity::Content),
        Parent::Backing(_) => None,
        Parent::Vhd(named) | Parent::Vhdx(named) => Some(Identity::Guid(named.id())),
    }
}
