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
    let Some(mut input) = Input::parse(bytes) else { return };
    // Bytes that cannot be mended are tried as well, since hardly any mutant can.
    let _ = mend(&mut input.record, b"FILE");
    let Some(file) = input.ordinary() else { return };
    let size = file.facts.size();
    match file.held {
        Held::Here(bytes) => assert_eq!(bytes.len() as u64, size),
        Held::Stored { start, length } => {
            assert!(length <= size && start + length <= geometry().volume);
        }
    }
}

/// Whether `bytes` are an ordinary file.
#[must_use]
pub fn is_ordinary(bytes: &[u8]) -> bool {
    Input::parse(bytes).is_some_and(|mut input| {
        mend(&mut input.record, b"FILE").is_some() && input.ordinary().is_some()
    })
}

struct Input<'a> {
    number: u64,
    folder: u64,
    name: &'a [u8],
    record: Vec<u8>,
}

impl<'a> Input<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (number, bytes) = bytes.split_first_chunk()?;
        let (folder, bytes) = bytes.split_first_chunk()?;
        let (&length, bytes) = bytes.split_first()?;
        let (name, record) = bytes.split_at_checked(length.into())?;
        let [number, folder] = [number, folder].map(|bytes| u64::from_le_bytes(*bytes));
        Some(Self { number, folder, name, record: record.to_vec() })
    }

    fn ordinary(&self) -> Option<Ordinary<'_>> {
        Ordinary::read(&self.record, self.number, &geometry(), self.folder, self.name)
    }
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
