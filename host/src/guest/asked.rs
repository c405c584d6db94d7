//! The kinds of requests on files that the guest gets.

use guestmnt_protocol::change::{Change, HeldRequest};
use guestmnt_protocol::message::Request;

use crate::counts::kinds;

kinds! {
    /// What is asked of the guest about files.
    Asked {
        /// [`Request::Stat`]
        Stat = "stat",
        /// [`Request::ReadLink`] and [`Request::StoredTarget`]
        ReadLink = "readlink",
        /// [`Request::ReadDir`]
        ReadDir = "readdir",
        /// [`Request::Read`]
        Read = "read",
        /// [`Request::ReadFiles`]
        ReadFiles = "read-files",
        /// [`Request::Layout`]
        Layout = "layout",
        /// [`Request::SampledLayout`]
        SampledLayout = "sampled-layout",
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
        /// [`Change::Write`]
        Write = "write",
        /// [`Change::Sync`]
        Sync = "sync",
        /// [`Change::Create`]
        Create = "create",
        /// [`Change::Hold`]
        Hold = "hold",
        /// [`HeldRequest::Release`]
        Release = "release",
        /// [`Change::SetAttr`]
        SetAttr = "setattr",
        /// [`Change::Finish`]
        Finish = "finish",
        /// Every other change.
        Change = "change",
    }
}

impl Asked {
    /// The kind of a request; `None` for one of the launch.
    #[must_use]
    pub fn of(request: &Request) -> Option<Self> {
        Some(match request {
            Request::Stat(_) => Self::Stat,
            Request::ReadLink(_) | Request::StoredTarget(_) => Self::ReadLink,
            Request::ReadDir { .. } => Self::ReadDir,
            Request::Read { .. } => Self::Read,
            Request::ReadFiles { .. } => Self::ReadFiles,
            Request::Layout { .. } => Self::Layout,
            Request::SampledLayout { .. } => Self::SampledLayout,
            Request::Seek { .. } => Self::Seek,
            Request::ListXattr(_) => Self::ListXattr,
            Request::GetXattr { .. } => Self::GetXattr,
            Request::ReadXattrs { .. } => Self::ReadXattrs,
            Request::StatFs(_) => Self::StatFs,
            Request::Change(change) => Self::of_change(change),
            Request::Held(_, held) => match held {
                HeldRequest::Stat => Self::Stat,
                HeldRequest::Read { .. } => Self::Read,
                HeldRequest::Seek { .. } => Self::Seek,
                HeldRequest::Release => Self::Release,
                HeldRequest::GetXattr { .. } => Self::GetXattr,
                HeldRequest::ListXattr => Self::ListXattr,
            },
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
            | Request::MountWritable { .. }
            | Request::Unmount => return None,
        })
    }

    fn of_change(change: &Change) -> Self {
        match change {
            Change::Write { .. } => Self::Write,
            Change::Sync { .. } => Self::Sync,
            Change::Create { .. } => Self::Create,
            Change::Hold { .. } => Self::Hold,
            Change::SetAttr { .. } | Change::SetAttrAt { .. } => Self::SetAttr,
            Change::Finish { .. } | Change::FinishAt { .. } => Self::Finish,
            Change::Allocate { .. }
            | Change::CopyRange { .. }
            | Change::Make { .. }
            | Change::Link { .. }
            | Change::Remove { .. }
            | Change::Rename { .. }
            | Change::SetXattr { .. }
            | Change::RemoveXattr { .. } => Self::Change,
        }
    }
}
