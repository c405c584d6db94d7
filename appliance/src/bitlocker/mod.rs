//! BitLocker volumes that cryptsetup refuses: those whose protection is suspended, so that their key
//! stands in the clear, and those that are not encrypted throughout, because Windows is at it or was
//! interrupted. Device-mapper's tables are computed here.
//!
//! Follows the documentation of libbde, and lib/bitlk of cryptsetup; encrypt-on-write as dissect.fve
//! describes it.

mod conversion;
mod keys;
mod map;
mod metadata;

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::volume::PlainName;

use self::map::{Kind, Segment};
use self::metadata::Metadata;
use crate::devices::size_of_node;
use crate::failure::{errno_of, explained};
use crate::modules::Modules;
use crate::programs::Programs;

/// What the first sector of a volume begins with behind its jump.
const SIGNATURE: &[u8] = b"-FVE-FS-";

/// A volume whose metadata was read.
pub struct Volume {
    node: PathBuf,
    size: u64,
    metadata: Metadata,
}

impl Volume {
    /// Reads what BitLocker keeps on the device with the node `node`; `None` where it is not of the kind
    /// that is known here, Windows 7's and later.
    ///
    /// # Errors
    /// `EIO` where the device cannot be read or ends before the volume does.
    pub fn of(node: &Path) -> Result<Option<Self>, Failure> {
        let failed = |errno: Errno| explained(errno, format!("cannot be read: {}", errno.desc()));
        let size = size_of_node(node).map_err(|error| failed(errno_of(&error)))?;
        let file = File::open(node).map_err(|error| failed(errno_of(&error)))?;
        let Some(metadata) = Metadata::read(&file, size)? else { return Ok(None) };
        Ok(Some(Self { node: node.to_owned(), size, metadata }))
    }

    /// Whether its key stands in the clear.
    #[must_use]
    pub fn needs_no_key(&self) -> bool {
        self.metadata.clear_key().is_some()
    }

    /// Whether cryptsetup opens it: it is encrypted throughout, and its key is protected.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        !self.needs_no_key() && self.metadata.is_encrypted_throughout()
    }

    /// Makes the device `name` of what is in it, by its clear key or by `key`.
    ///
    /// # Errors
    /// `EACCES` for a key that does not fit or is missing; `EIO` where its metadata contradict each other;
    /// else as [`Programs::run`], with what dmsetup said.
    pub fn open(
        &self,
        name: &PlainName,
        key: Option<&Secret>,
        programs: &Programs,
        modules: &Modules,
    ) -> Result<(), Failure> {
        let key = self
            .metadata
            .volume_key(key)
            .ok_or_else(|| explained(Errno::EACCES, "the key does not open it"))?;
        let segments = map::segments(&self.metadata, self.size / map::SECTOR)?;
        let node = self.node.to_string_lossy();
        let create = |name: &str, table: &str| -> Result<(), Failure> {
            // Nobody is told of a device's making: there is no udev.
            let arguments = ["create", name, "--noudevrules", "--noudevsync"];
            let made = programs.run(modules, "dmsetup", &arguments, table.as_bytes())?;
            made.map(drop).map_err(|failed| failed.explained(Errno::EIO, "dmsetup cannot map it"))
        };
        // One device decrypts everything, and the pieces are cut from it: a target that decrypts takes
        // threads and memory of its own, and there may be thousands of pieces.
        let whole = format!("{name}-whole");
        let sectors = self.size / map::SECTOR;
        let cipher = self.metadata.cipher.mapper_name();
        create(&whole, &format!("0 {sectors} crypt {cipher} {key} 0 {node} 0\n"))?;
        let line = |Segment { start, length, kind }: &Segment| match kind {
            Kind::Encrypted(at) => format!("{start} {length} linear /dev/mapper/{whole} {at}\n"),
            Kind::Clear(at) => format!("{start} {length} linear {node} {at}\n"),
            Kind::Zeros => format!("{start} {length} zero\n"),
            Kind::InBetween => format!("{start} {length} error\n"),
        };
        create(name.as_str(), &segments.iter().map(line).collect::<String>())
    }
}
