//! What the guest says when it does not do what it was asked to, for people and for the kernel.

use std::fmt;

use guestmnt_protocol::message::Failure;
use guestmnt_protocol::path::Printable;
use nix::errno::Errno;

use super::lane::LaneError;

/// Why the guest did not do what it was asked to at launch.
#[derive(Debug)]
pub enum GuestError {
    /// No usable answer.
    Lane(LaneError),
    /// An answer of the wrong kind.
    Unexpected,
    /// The daemon speaks another version.
    OtherVersion(u32),
    /// The guest says no. The first line of its text ends a sentence, the others are what its
    /// kernel logged.
    Failed(Failure),
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lane(error) => error.fmt(f),
            Self::Unexpected => f.write_str("the guest sent an answer of another kind"),
            Self::OtherVersion(version) => {
                write!(f, "the daemon in the appliance speaks protocol {version}, this guestmnt ")?;
                write!(f, "{}", guestmnt_protocol::VERSION)?;
                f.write_str("\n  hint: `cargo xtask build-appliance` builds the right one")
            }
            Self::Failed(failure) if failure.detail.is_empty() => {
                f.write_str(errno_of(failure.errno).desc())
            }
            Self::Failed(failure) => {
                let mut lines = failure.detail.trim_end().lines();
                Printable(lines.next().unwrap_or_default().as_bytes()).fmt(f)?;
                lines.try_for_each(|line| {
                    // What the daemon advises is set as our own advice is.
                    let indent = if line.starts_with("hint: ") { "  " } else { "    " };
                    write!(f, "\n{indent}{}", Printable(line.as_bytes()))
                })
            }
        }
    }
}

impl std::error::Error for GuestError {}

impl From<LaneError> for GuestError {
    fn from(error: LaneError) -> Self {
        Self::Lane(error)
    }
}

/// An error number as the guest sent it; `EIO` for what Linux does not have.
pub(super) fn errno_of(number: u16) -> Errno {
    match Errno::from_raw(i32::from(number)) {
        Errno::UnknownErrno => Errno::EIO,
        errno => errno,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_guests_text_is_a_line_and_none_can_steer_a_terminal() {
        let detail = "not a good xfs filesystem\nXFS (sda): bad \x1b[31m magic\r\nXFS: \u{202e}\n";
        let failure = Failure::with_detail(22, detail.to_owned());
        let expected = "not a good xfs filesystem\n    XFS (sda): bad \\u{1b}[31m magic\n    \
                        XFS: \\u{202e}";
        assert_eq!(GuestError::Failed(failure).to_string(), expected);
        assert_eq!(GuestError::Failed(Failure::new(5)).to_string(), "I/O error");
    }

    #[test]
    fn errors_that_linux_does_not_have_become_eio() {
        assert_eq!(errno_of(2), Errno::ENOENT);
        for number in [0, 4095, u16::MAX] {
            assert_eq!(errno_of(number), Errno::EIO, "{number}");
        }
    }
}
