//! What `--stats` tells at the end.

use std::fmt;
use std::sync::Arc;

use crate::counts::{Counts, kinds};
use crate::guest::{Guest, Landing};

kinds! {
    /// What the kernel asks.
    Asked {
        /// A name in a folder.
        Lookup = "lookup",
        /// Attributes.
        GetAttr = "getattr",
        /// A link's target.
        ReadLink = "readlink",
        /// To open a file.
        Open = "open",
        /// Contents.
        Read = "read",
        /// To open a folder.
        OpenDir = "opendir",
        /// Names in a folder.
        ReadDir = "readdir",
        /// Names in a folder with their attributes.
        ReadDirPlus = "readdirplus",
        /// To close a folder.
        ReleaseDir = "releasedir",
        /// Size and usage of the filesystem.
        StatFs = "statfs",
        /// An extended attribute.
        GetXattr = "getxattr",
        /// Names of extended attributes.
        ListXattr = "listxattr",
        /// Whether something is allowed.
        Access = "access",
        /// The next data or hole.
        Seek = "lseek",
        /// To make a file and open it.
        Create = "create",
        /// To make something else.
        Make = "mknod",
        /// One more name.
        Link = "link",
        /// To take a name away.
        Remove = "unlink",
        /// Another name.
        Rename = "rename",
        /// Other attributes.
        SetAttr = "setattr",
        /// Other extended attributes.
        SetXattr = "setxattr",
        /// Other contents.
        Write = "write",
        /// Space for contents.
        Allocate = "fallocate",
        /// Contents of another file.
        Copy = "copy_file_range",
        /// To bring a file to the disk.
        Sync = "fsync",
        /// That a descriptor is closed.
        Flush = "flush",
        /// That all are.
        Release = "release",
    }
}

kinds! {
    /// How contents are had.
    Way {
        /// They had come with others.
        Batch = "batch",
        /// From the images, past the VM.
        Disk = "disk",
        /// By the guest, when they were asked for or ahead of that.
        Guest = "guest",
    }
}

kinds! {
    /// How the kernel gets contents that it did not ask for.
    Ahead {
        /// From the page cache of the images to that of the mount.
        Spliced = "spliced",
        /// Read here, and put into its page cache.
        Copied = "copied",
    }
}

/// What was counted of a mount.
pub struct Stats {
    /// What the kernel asked.
    pub asked: Counts<Asked>,
    /// How its reads were answered.
    pub ways: Counts<Way>,
    /// What the kernel was given ahead of its requests.
    pub ahead: Counts<Ahead>,
    /// Where contents arrived that the guest sent, one file's at a time.
    pub landed: Arc<Counts<Landing>>,
}

impl Stats {
    /// Of a mount that shows the files of `guest`: nothing yet, but what it was asked before.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let landed = Arc::clone(guest.landed());
        Self { asked: Counts::default(), ways: Counts::default(), ahead: Counts::default(), landed }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, ways, ahead, landed } = self;
        write!(f, "kernel: {asked}; reads answered: {ways}; given ahead: {ahead}; ")?;
        write!(f, "contents landed: {landed}")
    }
}
