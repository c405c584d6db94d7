//! Keys of encrypted volumes: which key is for which volume, where keys come from, and opening the
//! volumes with them before anything is mounted.
//!
//! **Invariant:** no message holds a key.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use guestmnt_protocol::limits::MAX_SECRET;
use guestmnt_protocol::message::{Content, Volume};
use guestmnt_protocol::path::Printable;
use guestmnt_protocol::secret::Secret;
use guestmnt_protocol::volume::{Mountable, VolumeName};
use log::{info, warn};
use nix::errno::Errno;

use crate::guest::{Guest, GuestError};

/// How often the volumes are looked through: one that was opened may hold others, which hold
/// others, but nobody has more storeys than these.
const STOREYS: usize = 4;

/// Memory for a VM that is given keys, in MiB: LUKS2 asks for up to a GiB to try one.
pub const MEMORY_MIB: u32 = 1536;

/// What a key is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Selector {
    /// Every encrypted volume.
    All,
    /// This one.
    Volume(VolumeName),
    /// The one with this UUID.
    Uuid(String),
}

/// Where a key is.
#[derive(Clone, PartialEq, Eq)]
enum Source {
    Text(String),
    File(PathBuf),
    Descriptor(RawFd),
}

/// What `--key` says: `SELECTOR:key:TEXT`, `SELECTOR:file:PATH` or `SELECTOR:fd:N`.
pub struct KeySpec {
    selector: Selector,
    source: Source,
}

/// A key, and what it is for.
pub struct Key {
    selector: Selector,
    secret: Secret,
}

/// Why keys cannot be had, or do not do what they should.
#[derive(Debug)]
pub enum KeyError {
    /// A `--key` that cannot be read. It is not repeated, since a key may stand in it.
    Form,
    /// A file, descriptor or standard input that cannot be read.
    Source(String, io::Error),
    /// A key that is too long.
    TooLong,
    /// The keys for a volume do not open it.
    Refused(VolumeName, Refusal),
    /// A volume cannot be opened, for a reason that is not the key.
    Failed(VolumeName, GuestError),
    /// The guest broke down.
    Guest(GuestError),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => f.write_str(
                "cannot read a --key\n  hint: it is SELECTOR:key:PASSPHRASE, SELECTOR:file:PATH or \
                 SELECTOR:fd:N; SELECTOR is a device such as /dev/sda2, a UUID, or all",
            ),
            Self::Source(source, error) => write!(f, "cannot read a key from {source}: {error}"),
            Self::TooLong => write!(f, "a key has at most {MAX_SECRET} bytes"),
            Self::Refused(volume, refusal) => {
                write!(f, "cannot open {volume}: no key given for it fits\n  hint: {refusal}")
            }
            Self::Failed(volume, error) => write!(f, "cannot open {volume}: {error}"),
            Self::Guest(error) => write!(f, "cannot look for encrypted volumes: {error}"),
        }
    }
}

impl std::error::Error for KeyError {}

/// What may be the matter with a key that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing that could be told.
    Plain,
    /// It has other letters than ASCII's, of which cryptsetup before 2.8.1 does not make the key that
    /// Windows makes of them.
    Letters,
    /// It is a startup key.
    StartupKey,
}

impl Refusal {
    fn of(volume: &Volume, key: &Secret) -> Self {
        let is_bitlocker = matches!(&volume.content, Content::Other(kind) if kind == BITLOCKER);
        match key.as_bytes() {
            bytes if is_startup_key(bytes) => Self::StartupKey,
            bytes if is_bitlocker && !bytes.is_ascii() => Self::Letters,
            _ => Self::Plain,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartupKey => {
                "a startup key opens the volume that it was made for, as long as that has not got \
                 another one"
            }
            Self::Plain => {
                "a file's last line break is not taken for a part of the key, all else is"
            }
            Self::Letters => {
                "a password of BitLocker with letters beyond ASCII takes cryptsetup 2.8.1 in the \
                 appliance; the recovery password opens the volume with any"
            }
        })
    }
}

impl FromStr for KeySpec {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let kinds = [":key:", ":file:", ":fd:"];
        let found = kinds.iter().filter_map(|kind| Some((text.find(kind)?, *kind))).min();
        let (at, kind) = found.ok_or(KeyError::Form)?;
        let (selector, value) = (&text[..at], &text[at + kind.len()..]);
        let selector = match selector {
            "" => return Err(KeyError::Form),
            "all" => Selector::All,
            device if device.starts_with("/dev/") => {
                Selector::Volume(device.parse().map_err(|_| KeyError::Form)?)
            }
            uuid => Selector::Uuid(uuid.to_owned()),
        };
        let source = match kind {
            ":key:" => Source::Text(value.to_owned()),
            ":file:" => Source::File(value.into()),
            _ => Source::Descriptor(value.parse().map_err(|_| KeyError::Form)?),
        };
        Ok(Self { selector, source })
    }
}

impl KeySpec {
    /// Fetches the key.
    ///
    /// # Errors
    /// [`KeyError::Source`], [`KeyError::TooLong`].
    pub fn fetch(self) -> Result<Key, KeyError> {
        let secret = match self.source {
            Source::Text(text) => text.into_bytes(),
            Source::File(path) => {
                let shown = path.display().to_string();
                let file = fs::File::open(&path);
                file.and_then(read_key).map_err(|error| KeyError::Source(shown, error))?
            }
            Source::Descriptor(number) => {
                // Opened once more rather than taken over: it may be given twice, or be 0.
                let file = File::open(format!("/proc/self/fd/{number}"));
                file.and_then(read_key)
                    .map_err(|error| KeyError::Source(format!("descriptor {number}"), error))?
            }
        };
        Key::new(self.selector, secret)
    }
}

/// All of a file, up to what is certainly too long; of text, without a line break at its end.
fn read_key(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_SECRET as u64 + 2).read_to_end(&mut bytes)?;
    Ok(if is_startup_key(&bytes) { bytes } else { without_line_break(bytes) })
}

/// Whether this is a startup key of BitLocker, a file `GUID.BEK`. It begins with its length and a
/// version, and its last byte, whatever that is, is the key's.
fn is_startup_key(bytes: &[u8]) -> bool {
    let number = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    number(0) == u32::try_from(bytes.len()).ok() && number(4) == Some(1)
}

/// `bytes` without a line break at their end.
pub(super) fn without_line_break(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.pop_if(|last| *last == b'\n').is_some() {
        bytes.pop_if(|last| *last == b'\r');
    }
    bytes
}

/// The keys on standard input, one on each line, for all volumes.
///
/// # Errors
/// [`KeyError::Source`], [`KeyError::TooLong`].
pub fn from_lines(input: impl BufRead) -> Result<Vec<Key>, KeyError> {
    let failed = |error| KeyError::Source("standard input".to_owned(), error);
    let lines = input.split(b'\n').map(|line| Key::new(Selector::All, line.map_err(failed)?));
    lines.collect()
}

impl Key {
    /// The key `secret` of one volume.
    ///
    /// # Errors
    /// [`KeyError::TooLong`].
    pub fn of_volume(volume: VolumeName, secret: Vec<u8>) -> Result<Self, KeyError> {
        Self::new(Selector::Volume(volume), secret)
    }

    fn new(selector: Selector, secret: Vec<u8>) -> Result<Self, KeyError> {
        let secret = Secret::try_from(secret).map_err(|_| KeyError::TooLong)?;
        Ok(Self { selector, secret })
    }

    fn is_for(&self, name: &VolumeName, uuid: &str) -> bool {
        match &self.selector {
            Selector::All => true,
            Selector::Volume(volume) => volume == name,
            Selector::Uuid(wanted) => wanted.eq_ignore_ascii_case(uuid),
        }
    }
}

/// What the guest calls encrypted volumes.
const LUKS: &str = "crypto_LUKS";
const BITLOCKER: &str = "BitLocker";

/// Whether a volume is one that a key could open.
#[must_use]
pub fn is_encrypted(volume: &Volume) -> bool {
    matches!(&volume.content, Content::Other(kind) if kind == LUKS || kind == BITLOCKER)
}

/// Whether a volume among `volumes` is encrypted, and what is in it is not among them: one whose key
/// stands in the clear is opened by itself.
#[must_use]
pub fn is_closed(volume: &Volume, volumes: &[Volume]) -> bool {
    let opened = Mountable::from(VolumeName::Mapper(volume.device.volume().opened()));
    is_encrypted(volume) && !volumes.iter().any(|other| other.device == opened)
}

/// Opens the encrypted volumes for which there are keys, those within others as well, and returns
/// which are open.
///
/// # Errors
/// [`KeyError`]. That a key for all volumes does not open one of them is only a warning.
pub fn open_volumes(guest: &Guest, keys: &[Key]) -> Result<Vec<VolumeName>, KeyError> {
    let mut tried: Vec<VolumeName> = Vec::new();
    let mut open = Vec::new();
    for _ in 0..STOREYS {
        if keys.is_empty() {
            break;
        }
        let volumes = guest.volumes().map_err(KeyError::Guest)?;
        let before = open.len();
        for volume in volumes.iter().filter(|volume| is_encrypted(volume)) {
            let name = volume.device.volume();
            if !tried.contains(name) {
                if open_one(guest, volume, keys)? {
                    open.push(name.clone());
                }
                tried.push(name.clone());
            }
        }
        if open.len() == before {
            break;
        }
    }
    Ok(open)
}

/// Tries the keys for one volume; false where there is none, or none fits.
fn open_one(guest: &Guest, volume: &Volume, keys: &[Key]) -> Result<bool, KeyError> {
    let name = volume.device.volume();
    let mut meant = None;
    let mut any = None;
    for key in keys.iter().filter(|key| key.is_for(name, &volume.uuid)) {
        match guest.unlock(name.clone(), key.secret.clone()) {
            Ok(()) => {
                info!("{name} is open");
                return Ok(true);
            }
            Err(GuestError::Failed(failure)) if failure.errno == EACCES => {}
            Err(error) => return Err(KeyError::Failed(name.clone(), error)),
        }
        let refusal = Refusal::of(volume, &key.secret);
        any = Some(refusal);
        if key.selector != Selector::All {
            meant = Some(refusal);
        }
    }
    match (meant, any) {
        (Some(refusal), _) => return Err(KeyError::Refused(name.clone(), refusal)),
        (None, Some(Refusal::Plain)) => match volume.uuid.as_str() {
            "" => warn!("no key fits {name}"),
            uuid => warn!("no key fits {name} ({})", Printable(uuid.as_bytes())),
        },
        (None, Some(refusal)) => warn!("no key fits {name}: {refusal}"),
        (None, None) => {}
    }
    Ok(false)
}

/// The number on the wire of a key that does not fit.
const EACCES: u16 = Errno::EACCES as u16;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn key(text: &str) -> Key {
        text.parse::<KeySpec>().unwrap().fetch().unwrap()
    }

    #[test]
    fn a_key_is_for_a_device_a_uuid_or_all() {
        let sda2: VolumeName = "/dev/sda2".parse().unwrap();
        let table = [
            ("all:key:x", true),
            ("/dev/sda2:key:x", true),
            ("/dev/vda2:key:x", true),
            ("/dev/sda1:key:x", false),
            ("12ab-34:key:x", true),
            ("12ab-35:key:x", false),
        ];
        for (text, expected) in table {
            assert_eq!(key(text).is_for(&sda2, "12AB-34"), expected, "{text}");
        }
    }

    #[test]
    fn a_passphrase_may_hold_what_separates() {
        assert_eq!(key("all:key:a:file:b:key:").secret.as_bytes(), b"a:file:b:key:");
    }

    #[test]
    fn the_last_line_break_of_a_file_is_no_part_of_the_key() {
        for (content, expected) in
            [("pass\n", "pass"), ("pass\r\n", "pass"), ("a\nb\n\n", "a\nb\n"), ("", "")]
        {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let fetched = key(&format!("all:file:{}", file.path().display()));
            assert_eq!(fetched.secret.as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn a_startup_key_is_taken_as_it_is_and_called_so() {
        let volume = Volume {
            device: "/dev/sda".parse().unwrap(),
            size: 1 << 30,
            content: Content::Other(BITLOCKER.to_owned()),
            label: String::new(),
            uuid: String::new(),
        };
        let file_of = |length: u32| [&length.to_le_bytes()[..], &[1, 0, 0, 0, 200], b"\n"].concat();
        let table = [(file_of(10), 10, Refusal::StartupKey), (file_of(11), 9, Refusal::Letters)];
        for (content, kept, refusal) in table {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&content).unwrap();
            let key = key(&format!("all:file:{}", file.path().display()));
            assert_eq!(key.secret.as_bytes(), &content[..kept]);
            assert_eq!(Refusal::of(&volume, &key.secret), refusal);
        }
    }

    #[test]
    fn each_line_of_standard_input_is_a_key() {
        let keys = from_lines(&b"one\ntwo words\n"[..]).unwrap();
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.secret.as_bytes()).collect();
        assert_eq!(keys, [&b"one"[..], b"two words"]);
    }

    #[test]
    fn errors_do_not_repeat_the_key() {
        for text in ["", "hunter2", ":key:hunter2", "all:kee:hunter2", "/dev/nothing:key:hunter2"] {
            let error = text.parse::<KeySpec>().map(drop).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{text}");
        }
        let long = format!("all:key:{}", "x".repeat(MAX_SECRET + 1));
        assert!(long.parse::<KeySpec>().unwrap().fetch().is_err());
    }
}
