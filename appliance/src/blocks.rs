//! Disks, partitions and what is assembled from them as files of one folder.
//!
//! The folder holds a node for each. The tree over it shows them as regular files of the devices'
//! sizes, so that everything that is done with files is done with them.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, mknod, stat};

use guestmnt_protocol::attr::Attr;
use guestmnt_protocol::message::{Failure, Layout, Run};

use crate::assembly::Block;
use crate::devices::Disks;
use crate::failure::{errno_of, explained};
use crate::kmsg;
use crate::layouts::Place;

/// Where the nodes are.
pub const FOLDER: &str = "/blocks";

/// A block device that is shown as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFile {
    /// Its number (`st_rdev`).
    number: u64,
    /// Bytes.
    size: u64,
    /// Where it is, unless it is assembled.
    place: Option<Place>,
}

/// Makes a node in [`FOLDER`] for each of `blocks`.
///
/// # Errors
/// As mkdir(2) and mknod(2). A device without a node is left out.
pub fn show(blocks: &[Block], disks: &Disks) -> Result<Vec<BlockFile>, Failure> {
    let failed = |errno: Errno| explained(errno, format!("cannot show devices: {}", errno.desc()));
    let folder = Path::new(FOLDER);
    fs::create_dir(folder).map_err(|error| failed(errno_of(&error)))?;
    let mut files = Vec::with_capacity(blocks.len());
    for Block { name, node, size } in blocks {
        let number = match stat(node) {
            Ok(stat) => stat.st_rdev,
            Err(errno) => {
                kmsg::warn(format_args!("{name} is not shown: {}", errno.desc()));
                continue;
            }
        };
        match mknod(&folder.join(name.file_name()), SFlag::S_IFBLK, Mode::S_IRUSR, number) {
            Err(Errno::EEXIST) => {
                // Names of arrays are what their superblocks say.
                kmsg::warn(format_args!("{name} is not shown: another device has its name"));
                continue;
            }
            made => made.map_err(failed)?,
        }
        let place = name
            .device()
            .and_then(|device| Some(Place { disk: device.disk, start: disks.start(device)? }));
        files.push(BlockFile { number, size: *size, place });
    }
    Ok(files)
}

impl BlockFile {
    /// The one of `files` whose node has this mode and device number.
    pub fn find(files: &[Self], mode: u32, number: u64) -> Option<&Self> {
        let is_block = mode & libc::S_IFMT == libc::S_IFBLK;
        files.iter().find(|file| is_block && file.number == number)
    }

    /// `attr`, which describes its node, as that of a regular file.
    pub fn shown(&self, attr: Attr) -> Attr {
        Attr {
            mode: libc::S_IFREG | 0o444,
            size: self.size,
            // Nobody knows how much of it is stored before all of it was looked at. A file that
            // seems to be whole is not asked for its holes.
            blocks: (self.size / 512).saturating_sub(1),
            rdev: 0,
            ..attr
        }
    }

    /// Where its bytes are, as long as its disk was not written to.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where only the guest can read them.
    pub fn layout(&self, disks: &Disks) -> nix::Result<Layout> {
        let Place { disk, start } =
            self.place.filter(|place| !disks.written(place.disk)).ok_or(Errno::EOPNOTSUPP)?;
        let size = self.size;
        let runs =
            if size == 0 { Vec::new() } else { vec![Run { at: 0, length: size, stored: start }] };
        Ok(Layout { disk, size, end: size, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_shown_as_a_file_of_its_size() {
        let place = Some(Place { disk: 1, start: 512 });
        let file = BlockFile { number: 0x810, size: 4096, place };
        let attr = file.shown(Attr { mode: libc::S_IFBLK | 0o600, rdev: 0x810, ..Attr::default() });
        assert_eq!((attr.mode, attr.size, attr.rdev), (libc::S_IFREG | 0o444, 4096, 0));
        assert!(attr.blocks < 8);
        let found = |mode, number| BlockFile::find(&[file], mode, number).copied();
        assert_eq!(found(libc::S_IFBLK | 0o600, 0x810), Some(file));
        assert_eq!(found(libc::S_IFCHR, 0x810), None);
        assert_eq!(found(libc::S_IFBLK, 0x811), None);
    }

    #[test]
    fn what_is_assembled_or_unknown_is_for_the_guest_to_read() {
        let disks = Disks::default();
        for place in [None, Some(Place { disk: 0, start: 0 })] {
            let file = BlockFile { number: 1, size: 4096, place };
            assert_eq!(file.layout(&disks), Err(Errno::EOPNOTSUPP));
        }
    }
}
