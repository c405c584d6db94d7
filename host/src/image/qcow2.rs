//! The header of qcow2, and what it says of a backing file. Source: docs/interop/qcow2 of QEMU.
//!
//! **Invariant:** opens no file.

use super::SECTOR_SIZE;
use super::error::Problem;
use super::fields::{be32, be64};
use super::file::ImageFile;
use super::format::Format;
use super::name::FileName;

/// The first bytes.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Incompatible features that change nothing for a reader of this file alone: dirty,
/// corrupt (refused for writing only), compression type, extended L2 entries.
const HARMLESS_FEATURES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Bits of a cluster's size that QEMU takes.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Most bytes of a backing file's name.
const MAX_NAME: usize = 1023;

/// What the header of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Header {
    /// Bytes of the virtual disk, a multiple of [`SECTOR_SIZE`].
    pub size: u64,
    /// What is read where the file itself has nothing.
    pub backing: Option<Backing>,
}

/// The file below another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name.
    pub name: FileName,
    /// Its format, where the header says it.
    pub format: Option<Format>,
}

impl Qcow2Header {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`Problem::NotInFormat`], [`Problem::Unsupported`] for what cannot be read and for data
    /// in another file, [`Problem::Name`], [`Problem::BackingFormat`].
    pub fn read(file: &ImageFile) -> Result<Self, Problem> {
        if !file.start(MAGIC.len())?.starts_with(&MAGIC) {
            return Err(Problem::NotInFormat(Format::Qcow2));
        }
        let header: [u8; 72] = file.header(0, "qcow2 header")?;
        let (features, header_len) = match be32(&header, 4) {
            2 => (0, 72),
            3 => {
                let header: [u8; 104] = file.header(0, "qcow2 header")?;
                (be64(&header, 72), be32(&header, 100))
            }
            version => return unsupported(format!("it is a qcow2 of version {version}"), CONVERT),
        };
        match be32(&header, 32) {
            0 => {}
            2 => return unsupported("it is a qcow2 encrypted with LUKS".to_owned(), DECRYPT),
            _ => return unsupported("it is an encrypted qcow2".to_owned(), DECRYPT),
        }
        if features & EXTERNAL_DATA != 0 {
            return unsupported("it is a qcow2 with its data in another file".to_owned(), CONVERT);
        }
        if features & !HARMLESS_FEATURES != 0 {
            return unsupported("it is a qcow2 with unknown features".to_owned(), CONVERT);
        }
        let cluster_bits = be32(&header, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(Problem::damaged("its clusters are of no valid size"));
        }
        let backing = match be64(&header, 8) {
            0 => None,
            at => Some(read_backing(file, at, be32(&header, 16), header_len, 1 << cluster_bits)?),
        };
        // QEMU leaves the last sector off where it is not whole.
        Ok(Self { size: be64(&header, 24) / SECTOR_SIZE * SECTOR_SIZE, backing })
    }
}

/// Reads name and format of the backing file: both are in the first cluster, the extensions of
/// the header between its end and the name.
fn read_backing(
    file: &ImageFile,
    at: u64,
    name_len: u32,
    header_len: u32,
    cluster_len: u64,
) -> Result<Backing, Problem> {
    let end = at.saturating_add(name_len.into());
    let bounds = || Some((usize::try_from(at).ok()?, usize::try_from(end).ok()?));
    let (at, end) = bounds()
        .filter(|&(at, end)| end as u64 <= cluster_len && end - at <= MAX_NAME)
        .ok_or_else(|| Problem::damaged("its backing file's name is not in its first cluster"))?;
    // A cluster is at most 2 MiB.
    let bytes = file.bytes(0, end, "name of the backing file")?;
    let (extensions, name) = bytes.split_at(at);
    let format = backing_format(extensions, usize::try_from(header_len).unwrap_or(usize::MAX))?;
    // What other readers take for the name's end would make it another file's.
    let name = FileName::new(name).map_err(Problem::Name)?;
    Ok(Backing { name, format })
}

/// Looks for the format among the header's extensions, which go from `at` to the end.
fn backing_format(bytes: &[u8], mut at: usize) -> Result<Option<Format>, Problem> {
    const END: u32 = 0;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const HEAD: usize = 8;
    let damaged = || Problem::damaged("its header's extensions do not end where they must");
    while let Some(head) = bytes.get(at..).and_then(|rest| rest.first_chunk::<HEAD>()) {
        let (kind, len) = (be32(head, 0), usize::try_from(be32(head, 4)).unwrap_or(usize::MAX));
        let data = bytes[at + HEAD..].get(..len).ok_or_else(damaged)?;
        match kind {
            END => break,
            BACKING_FORMAT => {
                let format = std::str::from_utf8(data).ok().and_then(|name| name.parse().ok());
                let name = || String::from_utf8_lossy(data).into_owned();
                return format.map(Some).ok_or_else(|| Problem::BackingFormat(name()));
            }
            _ => at += HEAD + len.next_multiple_of(8),
        }
    }
    Ok(None)
}

const CONVERT: &str = "if its source is trusted, qemu-img convert makes a single file of it";
const DECRYPT: &str =
    "qemu-img convert makes a plain file of it, with the passphrase in an --object secret";

fn unsupported<T>(what: String, hint: &'static str) -> Result<T, Problem> {
    Err(Problem::Unsupported { what, hint })
}
