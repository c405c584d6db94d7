//! What is copied within a filesystem that can share extents takes no room.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use guestmnt_tests::specimens::specimen;
use guestmnt_tests::worlds::writable::{OverImage, Writable};
use nix::fcntl::copy_file_range;
use nix::sys::statvfs::statvfs;
use xtask::disks::filesystems::Kind;

const MIB: u64 = 1 << 20;

fn copies_share_extents(kind: Kind) {
    let Some((image, _)) = specimen(kind) else { return };
    let shown = OverImage::new(&image);
    let at = |name: &str| shown.path().join(name);
    let free = || {
        let stat = statvfs(shown.path()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    let bytes: Vec<u8> = (0..16 * MIB).map(|at| (at % 251) as u8).collect();
    fs::write(at("file"), &bytes).unwrap();
    let file = File::open(at("file")).unwrap();
    file.sync_all().unwrap();
    let before = free();
    let copy = File::options().read(true).write(true).create_new(true).open(at("copy")).unwrap();
    while copy_file_range(&file, None, &copy, None, bytes.len()).unwrap() > 0 {}
    copy.sync_all().unwrap();
    let taken = before.saturating_sub(free());
    assert!(taken < 4 * MIB, "{taken} bytes");
    copy.write_all_at(b"written later", 0).unwrap();
    assert!(fs::read(at("file")).unwrap() == bytes);
    assert!(fs::read(at("copy")).unwrap()[13..] == bytes[13..]);
}

#[test]
fn copies_on_xfs_share_extents() {
    copies_share_extents(Kind::Xfs);
}

#[test]
fn copies_on_btrfs_share_extents() {
    copies_share_extents(Kind::Btrfs);
}
