//! What becomes of files that are taken out of an image: a stream of tar, or files of the host.
//!
//! **Invariant:** names, targets, sizes and everything else come from a hostile image. What is
//! written stays below the folder that the user named, and nothing that is written gives anybody
//! rights.

pub mod copy;
pub mod new_file;
pub mod tar;

use guestmnt_protocol::path::GuestPath;

/// Called with the bytes that were taken since it was called last.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// Called with each file that there was trouble with, and the reason.
pub type Complain<'a> = &'a mut dyn FnMut(&GuestPath, &crate::files::Trouble);
