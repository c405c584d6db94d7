//! LUKS volumes as `cryptsetup luksFormat` of the machine makes them, which takes no device-mapper: the
//! payload is encrypted here, by a key that is given to it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::bitlocker::aes_xts_256;
use super::noise::Noise;
use crate::Error;
use crate::process::Tool;

/// Bytes of LUKS2's header, and of LUKS1's with room to spare.
const HEADER: u64 = 16 << 20;

/// Bytes of a sector, which each have a number of their own.
const SECTOR: usize = 512;

/// Makes the volume `image` with `plain` in it, which opens with `passphrase`. `options` are of
/// `cryptsetup luksFormat`.
///
/// # Errors
/// Those of cryptsetup, and of the file system.
pub fn make(image: &Path, plain: &[u8], passphrase: &str, options: &[&str]) -> Result<(), Error> {
    let folder = tempfile::tempdir().map_err(Error::file("write in", std::env::temp_dir()))?;
    let (key_file, passphrase_file) = (folder.path().join("key"), folder.path().join("passphrase"));
    let mut key = [0; 64];
    Noise::of("the key of a LUKS volume").fill(&mut key);
    fs::write(&key_file, key).map_err(Error::file("write", &key_file))?;
    fs::write(&passphrase_file, passphrase).map_err(Error::file("write", &passphrase_file))?;
    let file = File::create(image).map_err(Error::file("create", image))?;
    let size = HEADER + plain.len() as u64;
    file.set_len(size).map_err(Error::file("write", image))?;
    let header_sectors = (HEADER / SECTOR as u64).to_string();
    Tool::new("cryptsetup")
        .args(["luksFormat", "--batch-mode", "--key-size", "512", "--offset", &header_sectors])
        .args(["--cipher", "aes-xts-plain64", "--sector-size", "512"])
        .args(options)
        .arg("--volume-key-file")
        .arg(&key_file)
        .arg("--key-file")
        .arg(&passphrase_file)
        .arg(image)
        .run()?;
    let mut encrypted = plain.to_vec();
    for (sector, number) in encrypted.chunks_exact_mut(SECTOR).zip(0..) {
        aes_xts_256(&key, number, sector);
    }
    file.write_all_at(&encrypted, HEADER).map_err(Error::file("write", image))
}
