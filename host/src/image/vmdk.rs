//! Opens one VMDK: a text descriptor with its extents, or one file that holds both.
//!
//! **Invariant:** knows nothing of parents but what the descriptor says.

use std::path::PathBuf;

use super::descriptor::{Cid, Descriptor, ParentBy, ParentLink, Storage, is_descriptor};
use super::error::Problem;
use super::file::ImageFile;
use super::guid::ImageIds;
use super::hint::UNPACK;
use super::sparse::SparseHeader;
use super::{
    BlockSize, CreateType, Format, Link, MAX_DESCRIPTOR, Missing, SECTOR_SIZE, Source, VmdkInfo,
    cowd, extent, owner, sesparse, sparse,
};

/// Opens the VMDK in `file`; extents may also be below `allowed`, which are real paths.
/// Returns it with what it says of its parent.
///
/// # Errors
/// [`Problem`] of this file or of one of its extents.
pub fn open(file: ImageFile, allowed: &[PathBuf]) -> Result<(Link, Option<ParentLink>), Problem> {
    let start = file.start(512)?;
    let (descriptor, is_text) = if start.starts_with(&sparse::MAGIC) {
        (read_embedded(&file)?, false)
    } else if is_descriptor(&start) {
        (read_text(&file)?, true)
    } else if start.starts_with(&cowd::MAGIC) || start.starts_with(&sesparse::MAGIC) {
        return Err(Problem::IsExtent(owner::descriptor_naming(&file)));
    } else {
        return Err(match owner::descriptor_naming(&file) {
            Some(descriptor) => Problem::IsExtent(Some(descriptor)),
            None => Problem::NotInFormat(Format::Vmdk),
        });
    };
    let parent = descriptor.parent.clone();
    let link = Link {
        path: file.path.clone(),
        format: Format::Vmdk,
        size: descriptor.sectors() * SECTOR_SIZE,
        vmdk: Some(VmdkInfo {
            create_type: descriptor.create_type,
            cid: descriptor.cid,
            parent_cid: parent.as_ref().and_then(|parent| parent.cid),
        }),
        block_size: BlockSize::default(),
        warnings: Vec::new(),
        source: match &parent {
            _ if is_text => {
                let extents = extent::open_all(&descriptor, &file, allowed)?;
                Source::Described { descriptor, extents }
            }
            // QEMU wants to see the parent's content id in a descriptor, so it gets one.
            Some(ParentLink { by: ParentBy::Ids(_), .. }) if !file.is_part() => {
                let create_type = CreateType::TwoGbMaxExtentSparse;
                let descriptor = Descriptor { create_type, ..descriptor };
                Source::Described { descriptor, extents: vec![file.into_whole()] }
            }
            _ => file.into_source()?,
        },
        missing: Missing::default(),
    };
    Ok((link, parent))
}

/// Whether `file` is an extent of growing files that no descriptor beside it names.
///
/// # Errors
/// [`Problem::Io`].
pub fn is_lone_extent(file: &ImageFile) -> Result<bool, Problem> {
    let start = file.start(sparse::MAGIC.len().max(sesparse::MAGIC.len()))?;
    let is_extent = if start.starts_with(&sparse::MAGIC) {
        matches!(read_embedded(file), Err(Problem::IsExtent(_)))
    } else {
        start.starts_with(&cowd::MAGIC) || start.starts_with(&sesparse::MAGIC)
    };
    Ok(is_extent && !file.is_part() && owner::descriptor_naming(file).is_none())
}

/// Opens a lone extent as a disk with its sectors, without others or a parent.
///
/// # Errors
/// [`Problem`] of this file.
pub fn open_lone_extent(file: ImageFile) -> Result<Link, Problem> {
    let is_sesparse = file.start(sesparse::MAGIC.len())? == sesparse::MAGIC;
    let size = if is_sesparse { sesparse::size(&file)? } else { extent::sparse_size(&file)? };
    let descriptor = Descriptor::of_lone_extent(size.sectors, is_sesparse);
    Ok(Link {
        path: file.path.clone(),
        format: Format::Vmdk,
        size: size.sectors * SECTOR_SIZE,
        vmdk: None,
        block_size: BlockSize::default(),
        warnings: vec![
            "it is one extent of a disk, opened alone; sectors that it lacks read as zeros"
                .to_owned(),
        ],
        source: Source::Described { descriptor, extents: vec![file.into_whole()] },
        missing: Missing::default(),
    })
}

/// The ids that VirtualBox gave to the VMDK in `file`, if it did.
///
/// # Errors
/// [`Problem`] of this file.
pub fn ids(file: &ImageFile) -> Result<Option<ImageIds>, Problem> {
    Ok(identity(file)?.1)
}

/// What the VMDK in `file` is known by: its content id, and the ids that VirtualBox gave it.
///
/// # Errors
/// [`Problem`] of this file.
pub fn identity(file: &ImageFile) -> Result<(Cid, Option<ImageIds>), Problem> {
    let is_sparse = file.start(sparse::MAGIC.len())? == sparse::MAGIC;
    let descriptor = if is_sparse { read_embedded(file)? } else { read_text(file)? };
    Ok((descriptor.cid, descriptor.ids))
}

/// The descriptor of the VMDK in `file`, with its text, where that begins in the file, and whether
/// the data is in the same file.
///
/// # Errors
/// [`Problem`] of this file.
pub fn described(file: &ImageFile) -> Result<Text, Problem> {
    let embedded = file.start(sparse::MAGIC.len())? == sparse::MAGIC;
    if embedded {
        let descriptor = read_embedded(file)?;
        let (at, bytes) = (SECTOR_SIZE, embedded_text(file, &SparseHeader::read(file)?)?);
        return Ok(Text { descriptor, bytes, at, embedded });
    }
    let descriptor = read_text(file)?;
    Ok(Text { descriptor, bytes: file.start(MAX_DESCRIPTOR)?, at: 0, embedded })
}

/// A descriptor where it is stored.
pub struct Text {
    /// What it says.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where they begin in the file.
    pub at: u64,
    /// Whether they are in the file with the data.
    pub embedded: bool,
}

fn read_text(file: &ImageFile) -> Result<Descriptor, Problem> {
    if file.is_part() {
        return Err(Problem::Unsupported {
            what: "it is a descriptor with its extents beside it in an archive".to_owned(),
            hint: UNPACK,
        });
    }
    if file.len > MAX_DESCRIPTOR as u64 {
        return Err(Problem::DescriptorTooLong);
    }
    let descriptor = Descriptor::parse(&file.start(MAX_DESCRIPTOR)?)?;
    if descriptor.create_type.is_embedded() {
        return Err(Problem::damaged(format!(
            "it is only the descriptor of a disk with createType \"{}\", which is one file with both",
            descriptor.create_type.name()
        )));
    }
    Ok(descriptor)
}

/// The descriptor within a sparse file. QEMU reads the data by the header alone, so both must
/// agree.
fn read_embedded(file: &ImageFile) -> Result<Descriptor, Problem> {
    let header = SparseHeader::read(file)?;
    if header.descriptor_sectors == 0 {
        return Err(Problem::IsExtent(owner::descriptor_naming(file)));
    }
    let text = embedded_text(file, &header)?;
    if text.is_empty() {
        // QEMU's extents have the place for one.
        return Err(Problem::IsExtent(owner::descriptor_naming(file)));
    }
    let descriptor = Descriptor::parse(&text)?;
    if !descriptor.create_type.is_embedded() && descriptor.create_type != CreateType::Custom {
        return Err(Problem::damaged(format!(
            "a disk with createType \"{}\" has its descriptor in a file of its own",
            descriptor.create_type.name()
        )));
    }
    let by_ids = matches!(&descriptor.parent, Some(ParentLink { by: ParentBy::Ids(_), .. }));
    if by_ids && header.has_footer {
        return Err(Problem::damaged("a stream is no snapshot"));
    }
    match descriptor.extents.as_slice() {
        // The name is not looked at: it is this file, which may have been renamed since.
        [extent] if matches!(extent.storage, Storage::Sparse(_)) => {
            if extent.sectors == header.size.sectors {
                Ok(descriptor)
            } else {
                Err(Problem::ExtentSize {
                    header_sectors: header.size.sectors,
                    line_sectors: extent.sectors,
                })
            }
        }
        _ => Err(Problem::damaged("its embedded descriptor names other extents than the file")),
    }
}

/// The text that follows the `header` of `file`.
fn embedded_text(file: &ImageFile, header: &SparseHeader) -> Result<Vec<u8>, Problem> {
    let len = header
        .descriptor_sectors
        .checked_mul(SECTOR_SIZE)
        .and_then(|len| usize::try_from(len).ok())
        .filter(|&len| len <= MAX_DESCRIPTOR)
        .ok_or(Problem::DescriptorTooLong)?;
    let mut text = file.bytes(SECTOR_SIZE, len, "descriptor")?;
    // What lies behind the first zero byte is left from longer descriptors.
    text.truncate(text.iter().position(|&b| b == 0).unwrap_or(len));
    Ok(text)
}
