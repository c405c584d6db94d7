//! Bytes as the record of a file of NTFS, which the daemon reads in the driver's place.
//!
//! The first are the record's number, that of the folder, and the name that the folder has, with its
//! length before it; the others are the record, as it is on the disk.

use guestmnt_appliance::ntfs::{BOOT_LEN, Geometry, mend};
use guestmnt_appliance::ordinary::{Held, Ordinary};

/// Reads them, mended if they can be.
///
/// # Panics
/// Where what was read is not as promised.
pub fn run(bytes: &[u8]) {
    let Some((number, bytes)) = bytes.split_first_chunk() else { return };
    let Some((folder, bytes)) = bytes.split_first_chunk() else { return };
    let Some((&length, bytes)) = bytes.split_first() else { return };
    let Some((name, record)) = bytes.split_at_checked(length.into()) else { return };
    let (mut record, geometry) = (record.to_vec(), geometry());
    // Bytes that cannot be mended are tried as well, since hardly any mutant can.
    let _ = mend(&mut record, b"FILE");
    let (number, folder) = (u64::from_le_bytes(*number), u64::from_le_bytes(*folder));
    let Some(file) = Ordinary::read(&record, number, &geometry, folder, name) else { return };
    let size = file.facts.size();
    match file.held {
        Held::Here(bytes) => assert_eq!(bytes.len() as u64, size),
        Held::Stored { start, length } => {
            assert!(length <= size && start + length <= geometry.volume);
        }
    }
}

/// Whether `bytes` are an ordinary file.
#[must_use]
pub fn is_ordinary(bytes: &[u8]) -> bool {
    let number = u64::from_le_bytes(*bytes.first_chunk().expect("a seed has a number"));
    let folder = u64::from_le_bytes(*bytes[8..].first_chunk().expect("a seed has a folder"));
    let (name, record) = bytes[17..].split_at(bytes[16].into());
    let mut record = record.to_vec();
    mend(&mut record, b"FILE").is_some()
        && Ordinary::read(&record, number, &geometry(), folder, name).is_some()
}

/// A volume of 4 GiB in clusters of 4 KiB.
fn geometry() -> Geometry {
    let mut sector = [0; BOOT_LEN];
    sector[3..11].copy_from_slice(b"NTFS    ");
    // 512 bytes a sector, 8 sectors a cluster, 2^23 sectors, the table at cluster 4, records of 2^10.
    for (at, byte) in [(0x0c, 2), (0x0d, 8), (0x2a, 0x80), (0x30, 4), (0x40, 0xf6)] {
        sector[at] = byte;
    }
    Geometry::parse(&sector).expect("it is the boot sector of a volume")
}
