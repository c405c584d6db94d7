//! What the end-to-end tests share: the worlds that one test body runs in, the bodies, the built
//! programs as a user runs them, and what is expected in a mount.

pub mod calls;
pub mod canary;
pub mod chance;
pub mod differencing;
pub mod dirty;
pub mod fsck;
pub mod hungry;
pub mod images;
pub mod lacking;
pub mod live;
pub mod load;
pub mod model;
pub mod ntfs_records;
pub mod opens;
pub mod operations;
pub mod planted;
pub mod posix;
pub mod program;
pub mod reading;
pub mod showing;
pub mod specimens;
pub mod told;
pub mod trap;
pub mod tree;
pub mod vhdx_log;
pub mod walks;
pub mod worlds;
pub mod writing;
pub mod written;
