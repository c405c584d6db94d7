//! Disks with BitLocker volumes, which no program of Linux makes.
//!
//! ```text
//! bitlocker-system.img    the system disk of [`windows`](super::windows), C: encrypted by AES-XTS
//!                         as Windows 10 does it
//! bitlocker-elephant.img  the NTFS specimen, encrypted by AES-CBC with the diffuser of Windows 7
//! bitlocker-cbc.img       likewise, by AES-CBC without it, as Windows 8 does it
//! bitlocker-xts256.img    likewise, by AES-XTS with keys of 256 bits
//! bitlocker-cbc256.img, bitlocker-elephant256.img
//!                         likewise, by AES-CBC with keys of 256 bits, without and with the diffuser
//! ```
//!
//! All open with [`PASSWORD`] and with [`RECOVERY`], the last two also with [`startup_key`].

mod keys;
mod metadata;
mod on_write;
mod sectors;

use std::fs;
use std::path::Path;

use super::filesystems::Kind;
use super::pair::Pair;
use super::partitions::{self, Partition, SECTOR};
use super::specimens::{Specimen, Specimens};
use super::windows;
use crate::Error;
use metadata::Areas;
use sectors::Cipher;

/// The password. In ASCII: cryptsetup before 2.7 makes another key than Windows of other letters.
pub const PASSWORD: &str = "open, Sesame: now";

/// The recovery password: eight numbers of 16 bits, each times eleven.
pub const RECOVERY: &str = "135795-597531-001221-440000-345565-299002-109989-660011";

/// The system disk, and the one with the diffuser.
pub const PAIR: Pair =
    Pair { disks: ["bitlocker-system.img", "bitlocker-elephant.img"], what: "BitLocker volumes" };

/// Disks with the other ciphers.
pub const OTHERS: Pair = Pair {
    disks: ["bitlocker-cbc.img", "bitlocker-xts256.img"],
    what: "BitLocker volumes with other ciphers",
};

/// Disks with keys of 256 bits, that a startup key opens too.
pub const LONG_KEYS: Pair = Pair {
    disks: ["bitlocker-cbc256.img", "bitlocker-elephant256.img"],
    what: "BitLocker volumes with a startup key",
};

/// Encrypts the sector with the number `number` by AES-XTS with keys of 256 bits, as LUKS does it too.
pub(super) fn aes_xts_256(key: &[u8; 64], number: u64, sector: &mut [u8]) {
    Cipher::Xts256.encrypt(key, number, sector);
}

/// Makes the disks in the folder of `specimens` if they are missing, or notes why it cannot.
///
/// # Errors
/// As [`Pair::ensure`].
pub fn ensure(specimens: &Specimens) -> Result<(), Error> {
    PAIR.ensure(specimens, |staging| make(staging, specimens))?;
    OTHERS.ensure(specimens, |staging| {
        make_pair(&OTHERS, [Cipher::Cbc, Cipher::Xts256], staging, specimens)
    })?;
    LONG_KEYS.ensure(specimens, |staging| {
        make_pair(&LONG_KEYS, [Cipher::Cbc256, Cipher::Elephant256], staging, specimens)
    })
}

/// What a file `GUID.BEK` holds that opens a volume. It ends in a line break, as one in 256 does.
#[must_use]
pub fn startup_key() -> Vec<u8> {
    metadata::startup_key()
}

fn make(staging: &Path, specimens: &Specimens) -> Result<(), Error> {
    let [system, elephant] = PAIR.disks.map(|name| staging.join(name));

    let [windows, _] = windows::PAIR
        .images(specimens)
        .map_err(|reason| Error::unfit(reason, "cargo xtask setup"))?;
    let disk = fs::read(&windows).map_err(Error::file("read", &windows))?;
    let c = windows::system_volume();
    let encrypted = staging.join("volume");
    write(&encrypted, &protected(&disk[c.bytes()], Cipher::Xts))?;
    let rows = [Partition { start: c.start, image: &encrypted }];
    let sectors = disk.len() as u64 / SECTOR;
    partitions::ntfs_disk(&system, sectors, c.disk_id, &rows)?;

    write(&elephant, &protected(&ntfs(specimens)?, Cipher::Elephant))
}

fn make_pair(
    pair: &Pair,
    ciphers: [Cipher; 2],
    staging: &Path,
    specimens: &Specimens,
) -> Result<(), Error> {
    let plain = ntfs(specimens)?;
    for (name, cipher) in pair.disks.iter().zip(ciphers) {
        write(&staging.join(name), &protected(&plain, cipher))?;
    }
    Ok(())
}

/// The NTFS specimen.
fn ntfs(specimens: &Specimens) -> Result<Vec<u8>, Error> {
    let Specimen::Image { path, .. } = specimens.of(Kind::Ntfs)? else {
        return Err(Error::unfit("there is no NTFS image", "cargo xtask setup"));
    };
    fs::read(&path).map_err(Error::file("read", &path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(Error::file("write", path))
}

/// A volume with `filesystem` in it. What BitLocker needs for itself lies behind that, where the
/// filesystem has no clusters; Windows takes it from the middle.
fn protected(filesystem: &[u8], cipher: Cipher) -> Vec<u8> {
    protected_in(filesystem, cipher, Condition::Encrypted)
}

/// The condition that a volume is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is encrypted and its key protected.
    Encrypted,
    /// It is encrypted, and its key stands in the clear: protection is suspended.
    Suspended,
    /// It is encrypted up to this byte: Windows was interrupted at it.
    UpTo(u64),
    /// Windows encrypts what is written, and has done every other chunk.
    OnWrite,
}

/// The NTFS specimen in a volume that is in `condition`, encrypted by AES-XTS.
///
/// # Errors
/// [`Error::Unfit`] where there is no specimen.
pub fn volume_in(condition: Condition, specimens: &Specimens) -> Result<Vec<u8>, Error> {
    Ok(protected_in(&ntfs(specimens)?, Cipher::Xts, condition))
}

/// Bytes of the filesystem in such a volume, behind which are BitLocker's own.
///
/// # Errors
/// As [`volume_in`].
pub fn size_of_filesystem(specimens: &Specimens) -> Result<u64, Error> {
    Ok(ntfs(specimens)?.len() as u64)
}

fn protected_in(filesystem: &[u8], cipher: Cipher, condition: Condition) -> Vec<u8> {
    let areas = Areas::behind(filesystem.len());
    let key = cipher.key();
    let mut volume = filesystem.to_vec();
    volume.resize(areas.end, 0);
    // The filesystem's first sectors give way to BitLocker's own, and stand elsewhere.
    let (header, place) = (areas.header.len(), areas.header.clone());
    volume.copy_within(..header, place.start);
    for range in [header..filesystem.len(), place] {
        let first = range.start as u64 / SECTOR;
        for (sector, number) in volume[range].chunks_exact_mut(sectors::SIZE).zip(first..) {
            if condition.encrypts(number * SECTOR) {
                cipher.encrypt(&key, number, sector);
            }
        }
    }
    volume[..header].fill(0);
    volume[..sectors::SIZE].copy_from_slice(&metadata::boot_sector(&areas, condition));
    let block = metadata::block(&areas, cipher.number(), &key, condition);
    for start in areas.metadata {
        volume[start..start + block.len()].copy_from_slice(&block);
    }
    if condition == Condition::OnWrite {
        for (at, bytes) in on_write::records(&areas) {
            volume[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    volume
}

impl Condition {
    /// Whether the byte at `at` is encrypted.
    fn encrypts(self, at: u64) -> bool {
        match self {
            Self::Encrypted | Self::Suspended => true,
            Self::UpTo(end) => at < end,
            Self::OnWrite => on_write::encrypts(at),
        }
    }
}
