//! How the image's files look on the host: who they belong to, what may be done with them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use guestmnt_protocol::attr::{Attr, Time};

use super::nodes::NodeId;

/// What `-o uid=,gid=,umask=,fmask=,dmask=` change of the owners and permissions that the
/// image holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Owner of everything, instead of the image's.
    pub uid: Option<u32>,
    /// Group of everything, instead of the image's.
    pub gid: Option<u32>,
    /// Permission bits that files lose. With a mask, files get `0777 & !mask`.
    pub file_mask: Option<u16>,
    /// Permission bits that directories lose.
    pub directory_mask: Option<u16>,
    /// Where symbolic links lead.
    pub targets: Targets,
    /// Who checks permissions.
    pub permissions: Permissions,
}

/// Whether the kernel checks permissions (`-o default_permissions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permissions {
    /// They are shown: whoever may use the mount may use all of its files.
    #[default]
    Shown,
    /// It does.
    Enforced,
}

/// What is shown as the target of a symbolic link (`-o symlinks=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// What leads, inside the mount, where the image means it to.
    #[default]
    Inside,
    /// What is stored, which may lead to the host's files.
    Raw,
}

impl View {
    /// Whether access control lists are enforced along with permissions: where these are the image's
    /// own. Other owners and masks would not go with the users and the mask of a list.
    #[must_use]
    pub fn enforces_access_lists(&self) -> bool {
        let Self { uid, gid, file_mask, directory_mask, targets: _, permissions } = *self;
        let others = uid.is_some() || gid.is_some();
        let masks = file_mask.is_some() || directory_mask.is_some();
        permissions == Permissions::Enforced && !others && !masks
    }

    /// What the kernel is told of a file.
    #[must_use]
    pub fn of(&self, id: NodeId, attr: &Attr) -> FileAttr {
        let kind = kind(attr.mode);
        let stored = u16::try_from(attr.mode & 0o7777).expect("twelve bits");
        let mask = match kind {
            FileType::Directory => self.directory_mask,
            FileType::Symlink => None,
            _ => self.file_mask,
        };
        FileAttr {
            ino: INodeNo(id.0),
            size: attr.size,
            blocks: attr.blocks,
            atime: system_time(attr.accessed),
            mtime: system_time(attr.modified),
            ctime: system_time(attr.changed),
            crtime: UNIX_EPOCH,
            kind,
            perm: mask.map_or(stored, |mask| 0o777 & !mask),
            nlink: attr.nlink,
            uid: self.uid.unwrap_or(attr.uid),
            gid: self.gid.unwrap_or(attr.gid),
            // The kernel's FUSE has 32 bits for it, as Linux' own device numbers do.
            rdev: u32::try_from(attr.rdev).unwrap_or(0),
            blksize: attr.block_size,
            flags: 0,
        }
    }
}

/// A file's type. The mode was checked when it came from the guest.
#[must_use]
pub fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// A time of the host as the guest is told of it.
#[must_use]
pub fn since_1970(time: SystemTime) -> Time {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { secs: seconds(after), nanos: after.subsec_nanos() },
        Err(error) => {
            let before = error.duration();
            let (secs, nanos) = (-seconds(before), before.subsec_nanos());
            match nanos {
                0 => Time { secs, nanos },
                _ => Time { secs: secs - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}

fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = if time.secs < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    second + Duration::from_nanos(u64::from(time.nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_owners_replace_what_is_stored() {
        let view = View {
            uid: Some(1000),
            gid: None,
            file_mask: Some(0o133),
            directory_mask: Some(0o022),
            ..View::default()
        };
        let attr = Attr { mode: libc::S_IFREG | 0o777, uid: 5, gid: 6, ..Attr::default() };
        let file = view.of(NodeId(2), &attr);
        assert_eq!((file.perm, file.uid, file.gid), (0o644, 1000, 6));
        let folder = view.of(NodeId(2), &Attr { mode: libc::S_IFDIR, ..attr });
        assert_eq!(folder.perm, 0o755);
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = system_time(Time { secs: -2, nanos: 500_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(time).unwrap(), Duration::from_millis(1500));
    }

    #[test]
    fn times_before_1970_count_their_nanoseconds_forward() {
        let half = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(since_1970(half), Time { secs: -2, nanos: 500_000_000 });
        assert_eq!(since_1970(UNIX_EPOCH - Duration::from_secs(1)), Time { secs: -1, nanos: 0 });
        let after = UNIX_EPOCH + Duration::from_nanos(1_000_000_001);
        assert_eq!(since_1970(after), Time { secs: 1, nanos: 1 });
    }
}
