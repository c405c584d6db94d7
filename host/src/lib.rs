//! guestmnt's host side: image files, the microVM, the client of the guest, and the FUSE face.

pub mod cli;
pub mod counts;
pub mod disk;
pub mod ending;
pub mod export;
pub mod extract;
pub mod files;
pub mod fs;
pub mod guest;
pub mod image;
pub mod insert;
pub mod path_json;
pub mod session;
pub mod sys;
pub mod vm;
