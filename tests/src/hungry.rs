//! A filesystem that keeps the guest's memory for itself: the kernel's driver of minix reads its
//! bitmaps when it is mounted, as long as the superblock says that they are, and holds them.
//!
//! Source: fs/minix/inode.c of Linux.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: u64 = 4096;

/// Writes one with an empty root, of whose bitmaps `mib` MiB are held. The file is all but a hole.
///
/// # Panics
/// Where it cannot be written, or for 256 MiB and more.
pub fn write(path: &Path, mib: u16) {
    const INODES: u32 = 64;
    const FOLDER: u16 = 0o40755;
    const ZONES: u32 = 64;
    let of_inodes: u16 = mib.checked_mul(256).and_then(|n| n.checked_sub(1)).expect("not so much");
    let of_zones: u16 = 1;
    // Before them are the boot block and the superblock.
    let inodes_at = (2 + u64::from(of_inodes) + u64::from(of_zones)) * BLOCK;
    let data = u32::from(of_inodes) + u32::from(of_zones) + 3;
    let numbers: [&[u8]; 11] = [
        &INODES.to_le_bytes(),
        &[0; 2],
        &of_inodes.to_le_bytes(),
        &of_zones.to_le_bytes(),
        &u16::try_from(data).expect("not so much").to_le_bytes(),
        &[0; 4],
        &i32::MAX.to_le_bytes(),
        &(data + ZONES).to_le_bytes(),
        &0x4d5a_u16.to_le_bytes(),
        &[0; 2],
        &u16::try_from(BLOCK).expect("it is 4096").to_le_bytes(),
    ];
    let file = File::create(path).expect("a new file");
    let write = |bytes: &[u8], at| file.write_all_at(bytes, at).expect("there is room");
    write(&numbers.concat(), 1024);
    write(&[FOLDER.to_le_bytes(), 2_u16.to_le_bytes()].concat(), inodes_at);
    file.set_len(u64::from(data + ZONES) * BLOCK).expect("there is room");
}
