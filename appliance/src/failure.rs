//! From error numbers to the failures that are answered.

use nix::errno::Errno;

use guestmnt_protocol::message::Failure;

/// A failure that its number explains.
#[must_use]
pub fn plain(errno: Errno) -> Failure {
    Failure::new(number(errno))
}

/// A failure of a launch request, with what a person should know.
#[must_use]
pub fn explained(errno: Errno, detail: impl Into<String>) -> Failure {
    Failure::with_detail(number(errno), detail.into())
}

/// The error number in an error of the standard library; `EIO` where it has none.
#[must_use]
pub fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The number on the wire: 1 to 4095. An error that nix has no name for becomes `EIO`.
#[must_use]
pub fn number(errno: Errno) -> u16 {
    let number = if errno == Errno::UnknownErrno { Errno::EIO } else { errno };
    u16::try_from(number as i32).expect("Linux' error numbers are below 4096")
}
