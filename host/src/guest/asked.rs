//! The kinds of requests on files that the guest gets.

use guestmnt_protocol::message::Request;

use crate::counts::kinds;

kinds! {
    /// What is asked of the guest about files.
    Asked {
        /// [`Request::Stat`]
        Stat = "stat",
        /// [`Request::ReadLink`]
        ReadLink = "readlink",
        /// [`Request::ReadDir`]
        ReadDir = "readdir",
        /// [`Request::Read`]
        Read = "read",
        /// [`Request::ReadFiles`]
        ReadFiles = "read-files",
        /// [`Request::Layout`]
        Layout = "layout",
        /// [`Request::Seek`]
        Seek = "seek",
        /// [`Request::ListXattr`]
        ListXattr = "listxattr",
        /// [`Request::GetXattr`]
        GetXattr = "getxattr",
        /// [`Request::ReadXattrs`]
        ReadXattrs = "read-xattrs",
        /// [`Request::StatFs`]
        StatFs = "statfs",
    }
}

impl Asked {
    /// The kind of a request; `None` for one of the launch.
    #[must_use]
    pub fn of(request: &Request) -> Option<Self> {
        Some(match request {
            Request::Stat(_) => Self::Stat,
            Request::ReadLink(_) => Self::ReadLink,
            Request::ReadDir { .. } => Self::ReadDir,
            Request::Read { .. } => Self::Read,
            Request::ReadFiles { .. } => Self::ReadFiles,
            Request::Layout { .. } => Self::Layout,
            Request::Seek { .. } => Self::Seek,
            Request::ListXattr(_) => Self::ListXattr,
            Request::GetXattr { .. } => Self::GetXattr,
            Request::ReadXattrs { .. } => Self::ReadXattrs,
            Request::StatFs(_) => Self::StatFs,
            Request::Hello
            | Request::Wake { .. }
            | Request::Prepare
            | Request::AwaitDisks { .. }
            | Request::Volumes
            | Request::Listing
            | Request::Inspect
            | Request::Folders(_)
            | Request::Unlock { .. }
            | Request::Mount(_)
            | Request::Blocks
            | Request::Unmount => return None,
        })
    }
}
