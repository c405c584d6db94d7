//! Where links of Windows lead in the tree: into the volume that they name by a drive's letter or by
//! its GUID.
//!
//! The drivers do not know: ntfs3 takes each drive for the volume that the link is on, and shows
//! symbolic links as they are stored; ntfs-3g leads out of the tree. So a link is read from the
//! volume's device here. What is relative is left to the drivers.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};

use guestmnt_protocol::path::GuestPath;
use guestmnt_protocol::volume::VolumeName;

use crate::ntfs;
use crate::records::Records;
use crate::reparse::{self, Absolute, Link, Root};
use crate::resolve;
use crate::spelling::spelled;

/// Which target of a link is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// The one that leads in the tree to where the link means to lead.
    InTree,
    /// The one that is stored.
    Stored,
}

/// A volume that is mounted.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// Where it is in the tree.
    pub at: GuestPath,
    /// The directory on which it is mounted.
    pub path: PathBuf,
    /// Its name on the wire.
    pub name: VolumeName,
    /// Its device's node.
    pub node: PathBuf,
    /// The number of that device.
    pub number: u64,
    /// The number by which its files say on what they are.
    pub st_dev: u64,
    /// Whether it is mounted for writing.
    pub writable: bool,
}

/// What a Windows knows of volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knowledge {
    /// The number of the device that the Windows is on.
    pub of: u64,
    /// Drives and volumes, each with the number of its device.
    pub volumes: Vec<(Root, u64)>,
}

/// Whether the filesystem on which `file` is may have links of Windows: it is ntfs3, or ntfs-3g, which
/// alone is served by FUSE here.
#[must_use]
pub fn may_be_on_filesystem_of(file: BorrowedFd) -> bool {
    const FUSE: FsType = FsType(0x6573_5546);
    fstatfs(file).is_ok_and(|stat| [ntfs::MAGIC, FUSE].contains(&stat.filesystem_type()))
}

/// The link of Windows `link`, and the one of `mounted` that it is on. `None` for others, and for what
/// is stored otherwise than the driver says, by which it is `shown`: on a volume that is written, a new
/// file's record may not be on the device yet.
#[must_use]
pub fn find<'m>(
    link: BorrowedFd,
    shown: &nix::Result<OsString>,
    mounted: &'m [Mounted],
) -> Option<(Link, &'m Mounted)> {
    let stat = resolve::attributes(link).ok()?;
    let own = mounted.iter().find(|volume| volume.st_dev == stat.st_dev)?;
    let records = Records::open(&own.node)?;
    let record = records.record(stat.st_ino)?;
    let data = records.attribute(&record, reparse::ATTRIBUTE, "", reparse::MAX_LEN)?;
    let found = Link::parse(&data)?;
    let is_same = |shown: &OsString| found.is_shown_as(shown.as_bytes());
    let believed = !own.writable || shown.as_ref().map_or(true, is_same);
    believed.then_some((found, own))
}

impl Absolute {
    /// Where it leads in the tree, for a link on `own`. A target on a volume that is not mounted is
    /// shown as Windows shows it.
    #[must_use]
    pub fn in_tree(&self, own: &Mounted, mounted: &[Mounted], known: &[Knowledge]) -> Vec<u8> {
        let names = self.names.join("/");
        let volume = match &self.root {
            Root::Own => Some(own),
            root => meant(root, own.number, known)
                .and_then(|number| mounted.iter().find(|volume| volume.number == number)),
        };
        match (volume, &self.root) {
            (Some(volume), _) => {
                let names = spelled_on(volume, &names).unwrap_or(names);
                let at = volume.at.as_bytes();
                let separator: &[u8] = if at.is_empty() || names.is_empty() { b"" } else { b"/" };
                [b"/", at, separator, names.as_bytes()].concat()
            }
            (None, Root::Volume(guid)) => format!("Volume{{{guid}}}/{names}").into_bytes(),
            (None, Root::Drive(letter)) => format!("{letter}/{names}").into_bytes(),
            (None, Root::Own) => unreachable!("its own volume is mounted"),
        }
    }
}

/// The number of the device that `root` means, for a link on the device `own`.
fn meant(root: &Root, own: u64, known: &[Knowledge]) -> Option<u64> {
    let knows_own = |known: &&Knowledge| known.volumes.iter().any(|(_, number)| *number == own);
    let knowledge =
        known.iter().find(|known| known.of == own).or_else(|| known.iter().find(knows_own));
    let volumes = knowledge.map_or(&[][..], |known| &known.volumes);
    let found = volumes.iter().find(|(other, _)| root.is_same(other)).map(|(_, number)| *number);
    // Where nothing is known of the volume itself, a drive is nearly always that.
    let unknown = !knowledge.is_some_and(|known| knows_own(&known));
    found.or_else(|| (matches!(root, Root::Drive(_)) && unknown).then_some(own))
}

/// `names`, a way from the root of `volume`, as it is spelled there.
fn spelled_on(volume: &Mounted, names: &str) -> Option<String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&volume.path, flags, Mode::empty()).ok()?;
    if names.is_empty() || resolve::locate_following(root.as_fd(), names).is_ok() {
        return None;
    }
    spelled(root.as_fd(), names).map(|found| found.trim_start_matches("./").to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn mounted(at: &str, path: &Path, number: u64) -> Mounted {
        Mounted {
            at: GuestPath::parse(at.as_bytes()).unwrap(),
            path: path.to_owned(),
            name: "/dev/sda1".parse().unwrap(),
            node: PathBuf::new(),
            number,
            st_dev: number,
            writable: false,
        }
    }

    fn drive(letter: char) -> Root {
        Root::Drive(letter.try_into().unwrap())
    }

    fn volume(guid: &str) -> Root {
        Root::Volume(guid.to_owned())
    }

    #[test]
    fn targets_lead_to_where_their_volume_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("Users/Ann")).unwrap();
        let all = [mounted("/", folder.path(), 1), mounted("/mnt/d", folder.path(), 2)];
        let known = [Knowledge {
            of: 1,
            volumes: vec![(drive('C'), 1), (drive('D'), 2), (drive('E'), 3), (volume("aa-0"), 2)],
        }];
        let leads = |root: Root, names: &str, own: usize, known: &[Knowledge]| {
            let names = names.split_terminator('/').map(str::to_owned).collect();
            let target = Absolute { root, names }.in_tree(&all[own], &all, known);
            String::from_utf8(target).unwrap()
        };
        let table = [
            (drive('C'), "Users/Ann", 0, "/Users/Ann"),
            (drive('C'), "", 0, "/"),
            (drive('C'), "users/ann", 1, "/Users/Ann"),
            (drive('C'), "users/other", 0, "/users/other"),
            (drive('D'), "x/y", 0, "/mnt/d/x/y"),
            (drive('D'), "", 1, "/mnt/d"),
            (volume("AA-0"), "USERS", 0, "/mnt/d/Users"),
            (Root::Own, "x", 1, "/mnt/d/x"),
            // Not mounted, and not there.
            (drive('E'), "x", 0, "E:/x"),
            (drive('F'), "x", 1, "F:/x"),
            (volume("bb"), "x", 0, "Volume{bb}/x"),
        ];
        for (root, names, own, expected) in table {
            assert_eq!(leads(root, names, own, &known), expected);
        }
        // Without a Windows, and with one that does not know the volume that it is on.
        let strange = [Knowledge { of: 1, volumes: vec![(drive('D'), 2)] }];
        for known in [&[][..], &strange] {
            assert_eq!(leads(drive('C'), "x", 0, known), "/x");
            assert_eq!(leads(volume("aa-0"), "x", 0, known), "Volume{aa-0}/x");
        }
        assert_eq!(leads(drive('C'), "x", 1, &[]), "/mnt/d/x");
    }

    #[test]
    fn other_filesystems_are_left_to_their_drivers() {
        let file = tempfile::tempfile().unwrap();
        assert!(!may_be_on_filesystem_of(file.as_fd()));
    }
}
