//! Encrypted volumes: LUKS and BitLocker, opened by cryptsetup. The key goes to its standard input.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use guestmnt_protocol::message::{Content, Failure};
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::volume::{PlainName, VolumeName};

use crate::bitlocker::Volume;
use crate::failure::explained;
use crate::modules::Modules;
use crate::programs::Programs;

/// An encrypted volume that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The encrypted one.
    pub of: VolumeName,
    /// What is in it: `/dev/mapper/NAME`.
    pub name: PlainName,
}

impl Opened {
    /// The node of what is in it.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        Path::new("/dev/mapper").join(self.name.as_str())
    }

    /// Opens the volume `of`, which has the node `node` and holds `content`.
    ///
    /// # Errors
    /// `EMEDIUMTYPE` for what is not encrypted, `EACCES` for a key that is none of its keys, `EIO`
    /// with what cryptsetup said.
    pub fn open(
        of: &VolumeName,
        node: &Path,
        content: &Content,
        key: &Secret,
        programs: &Programs,
        modules: &Modules,
    ) -> Result<Self, Failure> {
        let kind = match content {
            Content::Other(kind) if kind == "crypto_LUKS" => "luks",
            Content::Other(kind) if kind == "BitLocker" => "bitlk",
            _ => return Err(explained(Errno::EMEDIUMTYPE, "is not encrypted")),
        };
        let opened = Self { of: of.clone(), name: of.opened() };
        if kind == "bitlk"
            && let Some(volume) = Volume::of(node)?
            && !volume.is_usual()
        {
            volume.open(&opened.name, Some(key), programs, modules)?;
            return Ok(opened);
        }
        let node = node.to_string_lossy();
        let arguments = [
            "open",
            "--batch-mode",
            "--disable-locks",
            "--disable-keyring",
            "--type",
            kind,
            "--key-file",
            "-",
            node.as_ref(),
            opened.name.as_str(),
        ];
        match programs.run(modules, "cryptsetup", &arguments, key.as_bytes())? {
            Ok(_) => Ok(opened),
            Err(failed) => Err(match failed.status {
                Some(NO_PERMISSION) => refused(),
                // Of a wrong password of BitLocker it says nothing, of all else it does.
                Some(WRONG_PARAMETERS) if kind == "bitlk" && failed.said.is_empty() => refused(),
                _ if failed.said.contains(DETACHED) => explained(
                    Errno::EOPNOTSUPP,
                    "it is a detached header of LUKS, without the data that it belongs to\n\
                     hint: a volume whose header is in another file cannot be opened; \
                     cryptsetup's luksHeaderRestore puts a header back where there was room left for it",
                ),
                Some(NO_MEMORY) => explained(
                    Errno::ENOMEM,
                    "the VM has too little memory for its key; --memsize gives more",
                ),
                _ => failed.explained(Errno::EIO, "cryptsetup cannot open it"),
            }),
        }
    }
}

/// Opens the volume `of`, which has the node `node`, if its key stands in the clear, as where BitLocker's
/// protection is suspended.
///
/// # Errors
/// As [`Volume::of`] and [`Volume::open`].
pub fn open_without_key(
    of: &VolumeName,
    node: &Path,
    programs: &Programs,
    modules: &Modules,
) -> Result<Option<Opened>, Failure> {
    let Some(volume) = Volume::of(node)?.filter(Volume::needs_no_key) else { return Ok(None) };
    let opened = Opened { of: of.clone(), name: of.opened() };
    volume.open(&opened.name, None, programs, modules)?;
    Ok(Some(opened))
}

fn refused() -> Failure {
    explained(Errno::EACCES, "the key does not open it")
}

/// cryptsetup's statuses for what it does not like, a key that does not fit, and memory;
/// cryptsetup(8), RETURN CODES.
const WRONG_PARAMETERS: i32 = 1;
const NO_PERMISSION: i32 = 2;
const NO_MEMORY: i32 = 3;

/// What cryptsetup says of a header without data behind it.
const DETACHED: &str = "detached LUKS header";
