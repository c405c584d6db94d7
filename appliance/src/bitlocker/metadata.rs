//! What BitLocker writes into a volume for itself: a boot sector that leads to three copies of a block,
//! which says how far the volume is encrypted and holds its key, wrapped by that of each protector.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::secret::Secret;

use super::SIGNATURE;
use super::conversion::EncryptOnWrite;
use super::keys::{self, Key};
use crate::failure::explained;
use crate::little_endian::{u16_at, u32_at, u64_at};

/// Bytes of one copy of the block with what belongs to it.
pub const AREA: u64 = 64 << 10;

/// What says in the boot sector where things are, and that it also says where the bitmaps of
/// encrypt-on-write are.
const ORDINARY: [u8; 16] = [
    0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01,
];
const ON_WRITE: [u8; 16] = [
    0x3b, 0x4d, 0xa8, 0x92, 0x80, 0xdd, 0x0e, 0x4d, 0x9e, 0x4e, 0xb1, 0xe3, 0x28, 0x4e, 0xae, 0xd8,
];

/// The states of a volume.
const ENCRYPTED: u16 = 4;
const SWITCHING_DIRTY: u16 = 5;

/// Kinds of entries, and of what is in them.
const VOLUME_MASTER_KEY: u16 = 2;
const FULL_VOLUME_KEY: u16 = 3;
const KEY: u16 = 1;
const STRETCH_KEY: u16 = 3;
const WRAPPED_KEY: u16 = 5;

/// Protectors.
const IN_THE_CLEAR: u16 = 0;
const BY_STARTUP_KEY: u16 = 0x0200;
const BY_RECOVERY: u16 = 0x0800;
const BY_PASSWORD: u16 = 0x2000;

/// How a volume's sectors are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cipher {
    mode: Mode,
    /// Bytes of one key of AES.
    key: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Elephant,
    Cbc,
    Xts,
}

impl Cipher {
    fn of(number: u16) -> Option<Self> {
        let (mode, key) = match number {
            0x8000 => (Mode::Elephant, 16),
            0x8001 => (Mode::Elephant, 32),
            0x8002 => (Mode::Cbc, 16),
            0x8003 => (Mode::Cbc, 32),
            0x8004 => (Mode::Xts, 16),
            0x8005 => (Mode::Xts, 32),
            _ => return None,
        };
        Some(Self { mode, key })
    }

    /// What dm-crypt calls it.
    #[must_use]
    pub fn mapper_name(self) -> &'static str {
        match self.mode {
            Mode::Elephant => "aes-cbc-elephant",
            Mode::Cbc => "aes-cbc-eboiv",
            Mode::Xts => "aes-xts-plain64",
        }
    }

    /// The key as dm-crypt takes it, of one as it is stored: with the diffuser, each of two has room for
    /// 256 bits.
    fn mapper_key(self, stored: &[u8]) -> Option<String> {
        let key = match self.mode {
            Mode::Cbc => stored.get(..self.key)?.to_vec(),
            Mode::Xts => stored.get(..2 * self.key)?.to_vec(),
            Mode::Elephant => [stored.get(..self.key)?, stored.get(32..32 + self.key)?].concat(),
        };
        Some(key.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// One protector's copy of the master key.
#[derive(Debug, PartialEq, Eq)]
struct Protector {
    kind: u16,
    guid: [u8; 16],
    salt: Option<[u8; 16]>,
    /// A key that is not wrapped.
    clear: Option<Key>,
    wrapped: Vec<u8>,
}

/// How far the volume is encrypted.
#[derive(Debug, PartialEq, Eq)]
pub enum Extent {
    /// Up to this byte, and beyond the next ones, which Windows was about to convert, not at all.
    UpTo {
        /// Where it ends.
        end: u64,
        /// Bytes behind that of which nobody knows.
        in_between: u64,
    },
    /// As bitmaps say.
    InChunks(EncryptOnWrite),
}

/// The metadata of a volume.
#[derive(Debug)]
pub struct Metadata {
    /// The copies of the block.
    pub areas: [u64; 3],
    /// Where the filesystem's first bytes are, and how many those are.
    pub header: (u64, u64),
    /// How far it is encrypted.
    pub extent: Extent,
    /// How.
    pub cipher: Cipher,
    throughout: bool,
    protectors: Vec<Protector>,
    wrapped: Vec<u8>,
}

impl Metadata {
    /// Those of the volume on `device`, which has `size` bytes; `None` where it is none that is known.
    ///
    /// # Errors
    /// `EIO` where the device ends before the volume does, or where it cannot be read.
    pub fn read(device: &File, size: u64) -> Result<Option<Self>, Failure> {
        let mut boot = [0; 512];
        if device.read_exact_at(&mut boot, 0).is_err() || boot[3..11] != *SIGNATURE {
            return Ok(None);
        }
        let on_write = match boot[160..176] {
            ref guid if *guid == ORDINARY => false,
            ref guid if *guid == ON_WRITE => true,
            _ => return Ok(None),
        };
        let place = |at: usize| u64_at(&boot, at).unwrap_or(u64::MAX);
        let areas = [176, 184, 192].map(place);
        let mut block = vec![0; usize::try_from(AREA).expect("64 KiB")];
        // Each of the copies will do.
        let found = areas.iter().any(|&at| {
            ends_by(at, AREA, size)
                && device.read_exact_at(&mut block, at).is_ok()
                && block.starts_with(SIGNATURE)
        });
        let cut = || {
            let detail = format!(
                "BitLocker's volume is cut short: some of its own data is beyond the {size} bytes that \
                 there are\nhint: the image or the partition lost its end; take a complete copy"
            );
            explained(Errno::EIO, detail)
        };
        if !found {
            return if areas.iter().all(|&at| ends_by(at, AREA, size)) {
                Ok(None)
            } else {
                Err(cut())
            };
        }
        let Some((mut metadata, state)) = Self::parse(&block, areas) else { return Ok(None) };
        let (header, length) = metadata.header;
        let inside = areas.iter().all(|&at| ends_by(at, AREA, size));
        if !inside || !ends_by(header, length, size) {
            return Err(cut());
        }
        let Extent::UpTo { end, .. } = metadata.extent else { return Ok(Some(metadata)) };
        if end > size && state == ENCRYPTED {
            let detail = format!(
                "BitLocker's volume is cut short: it has {end} bytes, and there are {size}\nhint: the \
                 image or the partition lost its end; take a complete copy"
            );
            return Err(explained(Errno::EIO, detail));
        }
        metadata.throughout = state == ENCRYPTED && !on_write;
        if metadata.throughout {
            // What it says here may be a bit less than there is.
            metadata.extent = Extent::UpTo { end: u64::MAX, in_between: 0 };
        }
        if on_write && state != ENCRYPTED {
            let places = [200, 208].map(place);
            metadata.extent = Extent::InChunks(EncryptOnWrite::read(device, places, size)?);
        } else if on_write {
            metadata.extent = Extent::UpTo { end: u64::MAX, in_between: 0 };
        }
        Ok(Some(metadata))
    }

    /// For tests of what is made of it.
    #[cfg(test)]
    pub fn for_tests(areas: [u64; 3], header: (u64, u64), extent: Extent) -> Self {
        let cipher = Cipher { mode: Mode::Xts, key: 16 };
        let (throughout, protectors, wrapped) = (false, Vec::new(), Vec::new());
        Self { areas, header, extent, cipher, throughout, protectors, wrapped }
    }

    /// With the volume's state.
    fn parse(block: &[u8], areas: [u64; 3]) -> Option<(Self, u16)> {
        let (version, state) = (u16_at(block, 10)?, u16_at(block, 12)?);
        (version == 2).then_some(())?;
        let (end, in_between) = (u64_at(block, 16)?, u64::from(u32_at(block, 24)?));
        let in_between = if state == SWITCHING_DIRTY { in_between } else { 0 };
        let header = (u64_at(block, 56)?, u64::from(u32_at(block, 28)?).checked_mul(512)?);
        let length = usize::try_from(u32_at(block, 64)?).ok()?;
        let cipher = Cipher::of(u16_at(block, 100)?)?;
        let entries = block.get(64 + 48..64 + length.max(48))?;
        let mut protectors = Vec::new();
        let mut wrapped = Vec::new();
        for (kind, value, data) in entries_in(entries) {
            match (kind, value) {
                (VOLUME_MASTER_KEY, _) => protectors.extend(protector(data)),
                (FULL_VOLUME_KEY, WRAPPED_KEY) => wrapped = data.to_vec(),
                _ => {}
            }
        }
        let extent = Extent::UpTo { end, in_between };
        let throughout = false;
        let metadata = Self { areas, header, extent, cipher, throughout, protectors, wrapped };
        Some((metadata, state))
    }

    /// Whether all of it is encrypted, and nothing says otherwise.
    #[must_use]
    pub fn is_encrypted_throughout(&self) -> bool {
        self.throughout
    }

    /// The key that opens it without another.
    #[must_use]
    pub fn clear_key(&self) -> Option<&Key> {
        let in_the_clear = self.protectors.iter().filter(|it| it.kind == IN_THE_CLEAR);
        in_the_clear.filter_map(|it| it.clear.as_ref()).next()
    }

    /// The key of its sectors, as dm-crypt takes it: by the key in the clear, or by the user's, which is a
    /// password, a recovery password or the file of a startup key. `None` where none fits.
    #[must_use]
    pub fn volume_key(&self, key: Option<&Secret>) -> Option<String> {
        let master = |protector: &Protector| {
            let own = match protector.kind {
                IN_THE_CLEAR => protector.clear,
                BY_PASSWORD => keys::of_password(key?.as_bytes(), protector.salt.as_ref()?),
                BY_RECOVERY => keys::of_recovery(key?.as_bytes(), protector.salt.as_ref()?),
                BY_STARTUP_KEY => keys::of_startup(key?.as_bytes(), &protector.guid),
                _ => None,
            };
            keys::unwrapped(&own?, &protector.wrapped)
        };
        // The one that takes no time comes first.
        let clear = self.protectors.iter().filter(|it| it.kind == IN_THE_CLEAR);
        let others = self.protectors.iter().filter(|it| it.kind != IN_THE_CLEAR);
        let master: Key = clear.chain(others).find_map(master)?.try_into().ok()?;
        self.cipher.mapper_key(&keys::unwrapped(&master, &self.wrapped)?)
    }
}

fn ends_by(at: u64, length: u64, size: u64) -> bool {
    at.checked_add(length).is_some_and(|end| end <= size)
}

/// The entries in `bytes`: kind, kind of what is in it, and that.
pub fn entries_in(bytes: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let (entry, behind) = rest.split_at_checked(length)?;
        let (kind, value) = (u16_at(entry, 2)?, u16_at(entry, 4)?);
        rest = behind;
        Some((kind, value, entry.get(8..)?))
    })
}

fn protector(data: &[u8]) -> Option<Protector> {
    let mut protector = Protector {
        kind: u16_at(data, 26)?,
        guid: *data.first_chunk()?,
        salt: None,
        clear: None,
        wrapped: Vec::new(),
    };
    for (_, value, data) in entries_in(data.get(28..)?) {
        match value {
            STRETCH_KEY => protector.salt = data.get(4..).and_then(|it| it.first_chunk()).copied(),
            KEY => protector.clear = data.get(4..).and_then(|it| it.first_chunk()).copied(),
            WRAPPED_KEY => protector.wrapped = data.to_vec(),
            _ => {}
        }
    }
    Some(protector)
}
