//! Why a disk that can be read cannot be written, and what the user can do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::error::show;

/// A reason.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unwritable {
    /// Its kind, as in "it is …".
    Kind(String),
    /// Its files lack so many bytes that it should hold.
    CutShort(u64),
    /// No user has the permission to write to it.
    ReadOnlyFile,
    /// The system does not let it be opened for writing.
    Refused(io::Error),
    /// Another program has it.
    InUse,
    /// VMware's lock.
    VmwareLock(PathBuf),
    /// An image that was made over it.
    ParentOf(PathBuf),
    /// A file that the image names and that does not bear its name.
    ForeignName,
    /// Others changed it while it was opened.
    Changed,
    /// It has a log that was replayed in memory only.
    Unreplayed,
}

/// What is possible with every image.
const OVERLAY: &str = "--overlay FILE keeps what is written in a file of its own";

impl Unwritable {
    /// What the user can do.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::CutShort(_) => "copy it once more from where it came from".to_owned(),
            Self::Kind(_) | Self::ReadOnlyFile | Self::Refused(_) => OVERLAY.to_owned(),
            Self::InUse => "shut the virtual machine down or end the program that has it; \
                            `guestimg status` shows your mounts"
                .to_owned(),
            Self::VmwareLock(lock) => format!(
                "shut the virtual machine down; if it is off and VMware left {} behind, remove that",
                show(lock)
            ),
            Self::ParentOf(_) => format!("write to the newest snapshot instead; or {OVERLAY}"),
            Self::ForeignName => {
                "if it belongs to the disk, --allow-path with its path lets it be written"
                    .to_owned()
            }
            Self::Changed => "try again when nobody else works with it".to_owned(),
            Self::Unreplayed => format!(
                "attach it once where it was made, or `qemu-img check -r all` on a copy of it; \
                 or {OVERLAY}"
            ),
        }
    }
}

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "it is {kind}, which can be read and not be written"),
            Self::CutShort(bytes) => {
                write!(f, "it was cut short and lacks {bytes} bytes, so that it cannot be written")
            }
            Self::ReadOnlyFile => {
                f.write_str("nobody has the permission to write to it; it is a read-only file")
            }
            Self::Refused(error) => match error.raw_os_error() {
                Some(errno) => {
                    write!(f, "it cannot be written: {}", Errno::from_raw(errno).desc())
                }
                None => write!(f, "it cannot be written: {error}"),
            },
            Self::InUse => f.write_str("another program uses it, so that it cannot be written"),
            Self::VmwareLock(lock) => {
                write!(f, "{} says that a virtual machine uses it", show(lock))
            }
            Self::ParentOf(child) => {
                write!(f, "{} was made over it and would be destroyed by a change", show(child))
            }
            Self::ForeignName => f.write_str("its name does not begin like that of the disk"),
            Self::Changed => f.write_str("it was changed while it was being opened"),
            Self::Unreplayed => f.write_str(
                "it was not closed, and its log has to be replayed before it can be written",
            ),
        }
    }
}
