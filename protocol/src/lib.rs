//! The wire between `guestmnt` on the host and `guestmntd` in the guest: messages, frames,
//! limits and the version.
//!
//! The guest is addressed by path and keeps no state that the host would miss: every file
//! request names its file from the mounted root, so that the host owns the node table and a
//! guest that died can be replaced by another. Only where files can be written does it hold some
//! open, see [`change`].
//!
//! **Invariant:** no I/O and no unsafe code here. Bytes go in, checked values come out.
#![forbid(unsafe_code)]

pub mod attr;
pub mod batch;
pub mod bay;
pub mod change;
pub mod device;
pub mod foreign;
pub mod frame;
pub mod limits;
pub mod message;
pub mod path;
pub mod secret;
pub mod system;
pub mod volume;
pub mod xattr;

/// Version of everything in this crate. Host and guest must have the same one; the appliance is
/// built from the same tree as the binaries, so there is no negotiation.
pub const VERSION: u32 = 8;
