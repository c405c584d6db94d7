//! The text of a VMDK: settings, and lines that say where the sectors are.
//!
//! The lines that matter are parsed into types; all else (comments, `ddb.` settings, change
//! tracking) is left out. [`Descriptor::rewritten`] makes a new text from the types, so that
//! no byte of the image's text reaches QEMU.
//!
//! **Invariant:** opens no file.

use std::fmt;

use super::create_type::CreateType;
use super::encoding::{self, TextEncoding};
use super::error::Problem;
use super::guid::{Guid, ImageIds};
use super::line_problem::LineProblem;
use super::name::FileName;
use super::{MAX_DESCRIPTOR, MAX_DISK_SIZE, MAX_EXTENTS, SECTOR_SIZE};

/// A content id: a number that VMware changes whenever the contents are first written after
/// the disk was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cid(pub u32);

impl Cid {
    /// In the place of a parent's id: there is none.
    pub(super) const NO_PARENT: Self = Self(u32::MAX);

    /// Of a descriptor that does not say one.
    pub(super) const UNKNOWN: Self = Self(0);
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A descriptor, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// How the disk is stored.
    pub create_type: CreateType,
    /// Its content id.
    pub cid: Cid,
    /// What it is a snapshot of.
    pub parent: Option<ParentLink>,
    /// Its own ids, where VirtualBox wrote it.
    pub ids: Option<ImageIds>,
    /// Where its sectors are, one behind the other. 1 to [`MAX_EXTENTS`] of them.
    pub extents: Vec<Extent>,
}

/// How a snapshot refers to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's content id when the snapshot was taken; VirtualBox does not keep it.
    pub cid: Option<Cid>,
    /// How it is found.
    pub by: ParentBy,
}

/// What the parent of a snapshot is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentBy {
    /// Where it was.
    Hint(FileName),
    /// What VirtualBox calls it.
    Ids(ImageIds),
}

/// A run of a disk's sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whether VMware would write to it.
    pub access: Access,
    /// Number of sectors: at least one, at most those of [`MAX_DISK_SIZE`].
    pub sectors: u64,
    /// Where they are.
    pub storage: Storage,
}

/// Who may do what with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `RW`.
    ReadWrite,
    /// `RDONLY`.
    ReadOnly,
}

/// Where an extent's sectors are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Plain in a file (`FLAT`, `VMFS`).
    Flat {
        /// The file.
        name: FileName,
        /// Where in it they start.
        first_sector: u64,
    },
    /// In a file with a sparse header of either kind (`SPARSE`, `VMFSSPARSE`).
    Sparse(FileName),
    /// In a file with an ESXi 6 header (`SESPARSE`).
    SeSparse(FileName),
    /// Nowhere: they are zero.
    Zero,
}

/// Whether a file that starts with `start` is a descriptor: VMware's first comment, or any
/// comments and then a version.
pub fn is_descriptor(start: &[u8]) -> bool {
    let is_version = |key: &[u8]| key.eq_ignore_ascii_case(b"version");
    without_mark(start).starts_with(b"# Disk DescriptorFile")
        || lines(start)
            .find(|line| !line.is_empty() && !line.starts_with(b"#"))
            .is_some_and(|line| setting(line).is_some_and(|(key, _)| is_version(key)))
}

impl Descriptor {
    /// Parses a descriptor's text; it may be padded with zero bytes.
    ///
    /// # Errors
    /// [`Problem::Line`] with the number of the first bad line; otherwise what is missing or
    /// too much of the whole.
    pub fn parse(text: &[u8]) -> Result<Self, Problem> {
        if text.len() > MAX_DESCRIPTOR {
            return Err(Problem::DescriptorTooLong);
        }
        let text = without_padding(text)?;
        let encoding = encoding::of_text(lines(text), b"encoding");
        let mut draft = Draft { encoding, ..Draft::default() };
        for (i, line) in lines(text).enumerate() {
            draft.read(line).map_err(|problem| Problem::Line { number: i + 1, problem })?;
            if draft.extents.len() > MAX_EXTENTS {
                return Err(Problem::TooManyExtents);
            }
        }
        draft.finish()
    }

    /// That of bytes in several files, one behind the other: for each its number of sectors
    /// and the first one of them. The files go by their numbers.
    ///
    /// # Panics
    /// With no or too many files.
    pub(super) fn of_flat_files(files: &[(u64, u64)]) -> Self {
        assert!((1..=MAX_EXTENTS).contains(&files.len()), "the caller counted the files");
        let extent = |(i, &(sectors, first_sector)): (usize, &(u64, u64))| Extent {
            access: Access::ReadOnly,
            sectors,
            storage: Storage::Flat {
                name: FileName::new(i.to_string().as_bytes()).expect("digits are a name"),
                first_sector,
            },
        };
        Self {
            create_type: CreateType::TwoGbMaxExtentFlat,
            cid: Cid(0),
            parent: None,
            ids: None,
            extents: files.iter().enumerate().map(extent).collect(),
        }
    }

    /// That of one growing file of `sectors`, which goes by its number.
    pub(super) fn of_lone_extent(sectors: u64, is_sesparse: bool) -> Self {
        let name = FileName::new(b"0").expect("a digit is a name");
        let storage = if is_sesparse { Storage::SeSparse(name) } else { Storage::Sparse(name) };
        Self {
            create_type: CreateType::TwoGbMaxExtentSparse,
            cid: Cid::UNKNOWN,
            parent: None,
            ids: None,
            extents: vec![Extent { access: Access::ReadOnly, sectors, storage }],
        }
    }

    /// Sectors of the whole disk.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.extents.iter().map(|extent| extent.sectors).sum()
    }

    /// The descriptor for QEMU, in which the file of extent `i` is called `name(i)`.
    ///
    /// It says what the original says, in the words that QEMU's block/vmdk.c reads: that
    /// skips ZERO and RDONLY lines without a word, and checks the content ids against the
    /// parent's. The parent's name is left out, since QEMU would follow it; and no line is
    /// empty, since QEMU would read the extent behind it twice.
    ///
    /// # Panics
    /// Where a name holds a quote or a control character, or is longer than 511 bytes.
    #[must_use]
    pub fn rewritten(&self, name: impl Fn(usize) -> String) -> Vec<u8> {
        let parent = self.parent.as_ref().and_then(|parent| parent.cid).unwrap_or(Cid::NO_PARENT);
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={}\nparentCID={parent}\ncreateType=\"{}\"\n",
            self.cid,
            self.create_type.qemu_name()
        );
        for (i, extent) in self.extents.iter().enumerate() {
            let name = name(i);
            assert!(name.len() < 512 && !name.contains(|c: char| c == '"' || c.is_control()));
            let sectors = extent.sectors;
            text += &match extent.storage {
                Storage::Flat { first_sector, .. } => {
                    format!("RW {sectors} FLAT \"{name}\" {first_sector}\n")
                }
                Storage::Sparse(_) => format!("RW {sectors} SPARSE \"{name}\"\n"),
                Storage::SeSparse(_) => format!("RW {sectors} SESPARSE \"{name}\"\n"),
                Storage::Zero => format!("RW {sectors} FLAT \"{name}\" 0\n"),
            };
        }
        text.into_bytes()
    }
}

/// VirtualBox' own settings that matter.
const IDS: [&[u8]; 4] = [
    b"ddb.uuid.image",
    b"ddb.uuid.modification",
    b"ddb.uuid.parent",
    b"ddb.uuid.parentmodification",
];

/// A descriptor while its lines are read.
#[derive(Default)]
struct Draft {
    encoding: TextEncoding,
    version: Option<()>,
    create_type: Option<CreateType>,
    cid: Option<Cid>,
    parent_cid: Option<Cid>,
    parent_hint: Option<FileName>,
    /// The `ddb.uuid.` settings: image, modification, parent, parentmodification.
    ids: [Option<Guid>; 4],
    extents: Vec<Extent>,
}

impl Draft {
    fn read(&mut self, line: &[u8]) -> Result<(), LineProblem> {
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(());
        }
        let (first, rest) = word(line);
        let access = match first.to_ascii_uppercase().as_slice() {
            b"RW" => Access::ReadWrite,
            b"RDONLY" => Access::ReadOnly,
            b"NOACCESS" => return Err(LineProblem::NoAccess),
            _ => {
                let (key, value) = setting(line).ok_or(LineProblem::Unknown)?;
                return self.set(key, value);
            }
        };
        self.extents.push(parse_extent(access, rest, self.encoding)?);
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), LineProblem> {
        match key.to_ascii_lowercase().as_slice() {
            // Later versions added settings; those that are read here stayed as they were.
            b"version" => match value {
                b"1" | b"2" | b"3" | b"4" => once(&mut self.version, "version", ()),
                _ => Err(LineProblem::Version),
            },
            b"createtype" => once(&mut self.create_type, "createType", CreateType::parse(value)?),
            b"cid" => once(&mut self.cid, "CID", parse_cid("CID", value)?),
            b"parentcid" => once(&mut self.parent_cid, "parentCID", parse_cid("parentCID", value)?),
            // VMware leaves it empty where there is no parent.
            b"parentfilenamehint" if value.is_empty() => Ok(()),
            b"parentfilenamehint" => {
                let name = FileName::encoded(value, self.encoding).map_err(LineProblem::Name)?;
                once(&mut self.parent_hint, "parentFileNameHint", name)
            }
            key => match IDS.iter().position(|name| *name == key) {
                Some(which) => once(&mut self.ids[which], "ddb.uuid", parse_id(value)?),
                None => Ok(()),
            },
        }
    }

    fn finish(self) -> Result<Descriptor, Problem> {
        self.version.ok_or(Problem::Lacks("version"))?;
        let parent_cid = match (self.parent_cid, &self.parent_hint) {
            (Some(cid), _) => cid,
            (None, Some(_)) => return Err(Problem::Lacks("parentCID")),
            (None, None) => Cid::NO_PARENT,
        };
        let [image, modification, parent, parent_modification] = self.ids;
        let ids = |image: Option<Guid>, modification: Option<Guid>| {
            let image = image.filter(|id| !id.is_nil())?;
            Some(ImageIds { image, modification: modification.unwrap_or(Guid::NIL) })
        };
        let cid = (parent_cid != Cid::NO_PARENT).then_some(parent_cid);
        let parent = match (cid, self.parent_hint, ids(parent, parent_modification)) {
            (None, None, None) => None,
            // Readers differ in which of the two they believe, and so in what they show.
            (None, Some(_), _) => {
                return Err(Problem::damaged(
                    "its parentCID says that it has no parent, its parentFileNameHint names one",
                ));
            }
            (cid, Some(hint), _) => Some(ParentLink { cid, by: ParentBy::Hint(hint) }),
            (cid, None, Some(ids)) => Some(ParentLink { cid, by: ParentBy::Ids(ids) }),
            (Some(_), None, None) => return Err(Problem::Lacks("parentFileNameHint")),
        };
        let descriptor = Descriptor {
            create_type: self.create_type.unwrap_or(CreateType::Custom),
            cid: self.cid.unwrap_or(Cid::UNKNOWN),
            parent,
            ids: ids(image, modification),
            extents: self.extents,
        };
        // The sum cannot overflow: MAX_EXTENTS times the most of one is below 2^50.
        match descriptor.sectors() {
            0 => Err(Problem::Lacks("extents")),
            sectors if sectors > MAX_DISK_SIZE / SECTOR_SIZE => Err(Problem::TooLarge),
            _ => Ok(descriptor),
        }
    }
}

/// The text up to its first zero byte, which ends it as a C string. It must stand behind a
/// whole line with hardly anything after it, so that no extent is lost by it.
fn without_padding(text: &[u8]) -> Result<&[u8], Problem> {
    // QEMU changes a content id in place, without leading zeros: a shorter one draws the rest
    // forward, and as many bytes of the old end stay behind the new one.
    const MOST_LEFT_OVER: usize = 7;
    let Some(end) = text.iter().position(|&b| b == 0) else { return Ok(text) };
    let (text, rest) = text.split_at(end);
    let left_over = rest.iter().filter(|&&b| b != 0).count();
    if text.ends_with(&[line_end(text)]) && left_over <= MOST_LEFT_OVER {
        return Ok(text);
    }
    let number = text.iter().filter(|&&b| b == line_end(text)).count() + 1;
    Err(Problem::Line { number, problem: LineProblem::Nul })
}

/// The rest of an extent's line, behind the access: `SECTORS TYPE ["NAME" [FIRST_SECTOR [IDS]]]`.
/// The ids are those of a device and of a partition, which a file has not.
fn parse_extent(
    access: Access,
    line: &[u8],
    encoding: TextEncoding,
) -> Result<Extent, LineProblem> {
    let (sectors, rest) = word(line);
    let (kind, rest) = word(rest);
    let sectors = number(sectors)
        .filter(|n| (1..=MAX_DISK_SIZE / SECTOR_SIZE).contains(n))
        .ok_or(LineProblem::Sectors)?;
    let storage = match kind.to_ascii_uppercase().as_slice() {
        b"ZERO" if rest.is_empty() || rest.starts_with(b"\"\"") => Storage::Zero,
        b"FLAT" | b"VMFS" | b"VMFSRDM" | b"VMFSRDMP" | b"VMFSRAW" => {
            let (name, rest) = quoted_name(rest, encoding)?;
            let (first_sector, ids) = word(rest);
            let first_sector = match first_sector {
                b"" => 0,
                _ => number(first_sector).ok_or(LineProblem::Form)?,
            };
            if words(ids) > MAX_IDS {
                return Err(LineProblem::Form);
            }
            Storage::Flat { name, first_sector }
        }
        b"SPARSE" | b"VMFSSPARSE" => Storage::Sparse(last_name(rest, encoding)?),
        b"SESPARSE" => Storage::SeSparse(last_name(rest, encoding)?),
        b"" | b"ZERO" => return Err(LineProblem::Form),
        _ => return Err(LineProblem::ExtentType(String::from_utf8_lossy(kind).into_owned())),
    };
    Ok(Extent { access, sectors, storage })
}

/// Most ids at the end of an extent's line: seven values in all.
const MAX_IDS: usize = 2;

fn words(line: &[u8]) -> usize {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count()
}

/// Takes `"NAME"` off the line. There is no escape for a quote.
fn quoted_name(line: &[u8], encoding: TextEncoding) -> Result<(FileName, &[u8]), LineProblem> {
    let inner = line.strip_prefix(b"\"").ok_or(LineProblem::Form)?;
    let end = inner.iter().position(|&b| b == b'"').ok_or(LineProblem::Form)?;
    let name = FileName::encoded(&inner[..end], encoding).map_err(LineProblem::Name)?;
    if name.is_device() {
        return Err(LineProblem::Device(String::from_utf8_lossy(&inner[..end]).into_owned()));
    }
    Ok((name, inner[end + 1..].trim_ascii_start()))
}

/// A name behind which nothing counts: a sparse file begins with its first sector.
fn last_name(line: &[u8], encoding: TextEncoding) -> Result<FileName, LineProblem> {
    let (name, rest) = quoted_name(line, encoding)?;
    let (first_sector, ids) = word(rest);
    if matches!(first_sector, b"" | b"0") && words(ids) <= MAX_IDS {
        return Ok(name);
    }
    Err(LineProblem::Form)
}

/// The lines without what surrounds their text.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = line_end(text);
    without_mark(text).split(move |&b| b == end).map(<[u8]>::trim_ascii)
}

/// What ends lines: a text of an old Mac has no other than carriage returns.
fn line_end(text: &[u8]) -> u8 {
    if text.contains(&b'\n') { b'\n' } else { b'\r' }
}

/// The text behind the byte order mark of UTF-8, which some editors put at the start.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Splits `key = value`, the value freed of its quotes.
fn setting(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|&b| b == b'=')?;
    let value = line[equals + 1..].trim_ascii();
    let unquoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
    Some((line[..equals].trim_ascii_end(), unquoted.unwrap_or(value)))
}

/// Splits off the first word.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    (&line[..end], line[end..].trim_ascii_start())
}

/// A decimal number of digits alone.
fn number(word: &[u8]) -> Option<u64> {
    let digits = word.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| digits)?.parse().ok()
}

fn parse_cid(key: &'static str, value: &[u8]) -> Result<Cid, LineProblem> {
    let digits = value.strip_prefix(b"0x").unwrap_or(value);
    let text = std::str::from_utf8(digits).ok().filter(|t| !t.starts_with('+'));
    text.and_then(|t| u32::from_str_radix(t, 16).ok()).map(Cid).ok_or(LineProblem::BadValue(key))
}

fn parse_id(value: &[u8]) -> Result<Guid, LineProblem> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(Guid::parse).ok_or(LineProblem::BadValue("ddb.uuid"))
}

fn once<T>(slot: &mut Option<T>, key: &'static str, value: T) -> Result<(), LineProblem> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(LineProblem::Repeated(key)),
    }
}

#[cfg(test)]
#[path = "descriptor_tests.rs"]
mod tests;
