//! The daemon in the guest. It is the only code that stands between an image's filesystem,
//! as the guest kernel shows it, and the host; it never panics on what the host sends.
//!
//! A library, so that tests run the very same server over a folder of the host.
//!
//! **Invariant:** nothing of an image is ever executed, and no file of it is opened for writing but
//! by `held.rs` and `creating.rs`, on the host's request.
#![deny(unsafe_code)]

mod agreement;
mod ahead;
#[allow(unsafe_code)]
mod aio;
mod assembly;
mod attempt;
mod bitlocker;
#[allow(unsafe_code)]
mod blkid;
mod blocks;
mod btrfs;
mod bulk;
mod changes;
mod changing;
mod clock;
mod contents;
mod creating;
mod damaged;
mod devices;
mod directories;
mod driver_times;
mod dynamic;
mod encryption;
mod failure;
mod files;
mod filesystems;
mod grafts;
pub mod guest;
mod held;
mod hfsplus;
mod hibernation;
pub mod init;
mod inodes;
mod inspection;
mod kmsg;
mod lane;
mod layouts;
mod listing;
mod little_endian;
mod lvm;
mod machine;
mod md_linear;
mod modules;
mod mount_points;
mod mounts;
pub mod ntfs;
mod ntfs_3g;
mod open_files;
pub mod ordinary;
mod partition_tables;
mod payload;
mod place;
mod placeholders;
mod ports;
mod posix_links;
mod programs;
mod raid;
mod readdir_errors;
mod records;
mod remarks;
mod reparse;
mod reparse_index;
mod resolve;
pub mod serve;
mod signatures;
mod small_files;
mod source;
mod spelling;
mod streams;
mod syncing;
#[allow(unsafe_code)]
mod sys;
mod taking_apart;
mod tree;
mod uevent;
mod ufs;
mod valid_length;
mod volumes;
mod windows_links;
pub mod wof;
mod write_counts;
mod xattrs;
mod xfs;
