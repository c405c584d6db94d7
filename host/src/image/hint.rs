//! What the user can do about a problem.

use std::io;

use super::error::{Problem, show};
use super::line_problem::LineProblem;

/// For what cannot be read where it is in an archive.
pub const UNPACK: &str = "unpack the archive with tar -xf and open the disk that comes out";

/// For what the program that made a disk has to finish.
pub const REPLAY: &str = "attach it once where it was made, or copy it while the machine is off";

impl Problem {
    /// What the user can do, where that is not plain from the problem.
    pub(super) fn hint(&self) -> Option<String> {
        let text = match self {
            Self::UnknownFormat => "--format raw before -a reads it as plain sectors",
            Self::Foreign(foreign) => foreign.hint,
            Self::NotInFormat(_) => "without --format, the format is told from the first bytes",
            Self::SeveralDisks(_) | Self::SeveralMachines(_) => "name one of them after -a",
            Self::IsPiece(first) => return Some(format!("open {} instead", show(first))),
            Self::NoDisk => "name the disk itself after -a",
            Self::PieceMissing(_) => "copy it from where the disk came from; all pieces are needed",
            Self::OddPiece(_) | Self::ShortPiece { .. } => {
                "compare its size with the original's, or join them with cat"
            }
            Self::IsExtent(Some(path)) => return Some(format!("open {} instead", show(path))),
            Self::IsExtent(None) => {
                "open the descriptor, a small text file NAME.vmdk; none here names this file; \
                 --format vmdk before -a opens the extent alone"
            }
            Self::Truncated { .. } | Self::Empty => {
                "compare its size with the original's; it may have been copied in part"
            }
            Self::Damaged(_) | Self::ExtentSize { .. } => "compare it with the original",
            Self::Line { problem: LineProblem::Device(_), .. } => {
                "if there is a copy of it in a file, open that with --format raw"
            }
            Self::TextModeCopy => "copy it again in binary mode",
            Self::Unsupported { hint, .. } => hint,
            Self::DeltaMissing { there, .. } => {
                let newest = there.first().map(|path| show(path).to_string()).unwrap_or_default();
                return Some(format!(
                    "copy it from where the machine came from; -a {newest} shows the disk without it, \
                     as it was before"
                ));
            }
            Self::Extent { problem, .. } if problem.is_missing() => {
                "copy it from where the disk came from; all extents are needed"
            }
            Self::Parent { problem, .. }
            | Self::Extent { problem, .. }
            | Self::Disk { problem, .. }
            | Self::Piece { problem, .. } => return problem.hint(),
            Self::OutsideFolder { real } => {
                let folder = real.parent().unwrap_or(real);
                return Some(format!(
                    "if it belongs to the disk, --allow-path {} lets it be read",
                    show(folder)
                ));
            }
            Self::HardLinked { .. } => {
                "if it belongs to the disk, --allow-path with its folder lets it be read"
            }
            Self::Name(_) | Self::BackingFormat(_) => {
                "only files are read; if its source is trusted, qemu-img convert makes one of it"
            }
            Self::ParentMissing(_) => "put the parent beside this file, under its own name",
            Self::ParentUnknown { .. } => "put the parent beside this file",
            Self::DiskId { .. } | Self::DiskUnknown { .. } => {
                "look for the right one, or name the disk itself after -a"
            }
            Self::CidMismatch { .. } | Self::ParentId { .. } => {
                "the base was changed after the snapshot was taken; look for an unchanged copy of it"
            }
            Self::OtherBacking { .. } => "copy the backing file from where the image came from",
            Self::ParentLarger { .. } => {
                "the parent was enlarged after the snapshot was taken; look for an unchanged copy of it"
            }
            Self::BeingWritten => {
                "shut the virtual machine down or end the program that has it; \
                 `guestimg status` shows your mounts"
            }
            Self::Unwritable(reason) => return Some(reason.hint()),
            Self::Io(e) => match e.kind() {
                io::ErrorKind::PermissionDenied => {
                    "it must be readable to the user who runs this program"
                }
                _ if e.raw_os_error() == Some(libc::EMFILE) => {
                    "the disk has more extents than files may be open; raise `ulimit -n`"
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(text.to_owned())
    }
}
