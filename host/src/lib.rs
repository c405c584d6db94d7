//! guestmnt's host side: image files, the microVM, the client of the guest, and the FUSE face.

pub mod image;
