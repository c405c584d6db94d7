//! What `cargo xtask` does, as a library, so that the end-to-end tests make their disks and find
//! the unprivileged user with the same code.
//!
//! **Invariant:** nothing here depends on the host library or the daemon: `setup` has to run
//! before the libraries that those link against are installed.
#![forbid(unsafe_code)]

pub mod appliance;
mod apt;
pub mod bench;
pub mod corpora;
pub mod corpus;
mod daemon;
pub mod demo;
pub mod digest;
pub mod disks;
pub mod dist;
pub mod error;
pub mod fuzz;
mod initramfs;
pub mod kernel;
mod modules;
pub mod pjdfstest;
pub mod places;
pub mod process;
pub mod programs;
pub mod progress;
mod release;
pub mod setup;
pub mod skips;
pub mod stage;
pub mod template;
pub mod test;
mod thunks;
pub mod user;

pub use error::Error;
