//! How BitLocker encrypts a sector: AES-XTS, or AES-CBC with and without the Elephant diffuser.
//!
//! Sources: IEEE 1619; Ferguson, "AES-CBC + Elephant diffuser" (2006); drivers/md/dm-crypt.c of Linux.

use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherEncrypt, BlockSizeUser, KeyInit};
use aes::{Aes128, Aes256};

use super::keys::xor;
use crate::disks::noise::Noise;

/// AES with keys of any length.
trait Aes: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> {}
impl<T: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>> Aes for T {}

/// Bytes of a sector.
pub const SIZE: usize = 512;

/// How sectors are encrypted; with keys of 128 bits, unless it says otherwise.
#[derive(Clone, Copy)]
pub enum Cipher {
    /// AES-XTS, the usual one since Windows 10.
    Xts,
    /// The same with keys of 256 bits.
    Xts256,
    /// AES-CBC, the usual one of Windows 8 and of removable disks.
    Cbc,
    /// The same with a key of 256 bits.
    Cbc256,
    /// AES-CBC with diffuser, the usual one of Vista and Windows 7.
    Elephant,
    /// The same with keys of 256 bits.
    Elephant256,
}

impl Cipher {
    /// BitLocker's number for it.
    pub fn number(self) -> u16 {
        match self {
            Self::Xts => 0x8004,
            Self::Xts256 => 0x8005,
            Self::Cbc => 0x8002,
            Self::Cbc256 => 0x8003,
            Self::Elephant => 0x8000,
            Self::Elephant256 => 0x8001,
        }
    }

    /// A key, as it is stored: two of AES, or one for CBC. With the diffuser, each has room for 256 bits.
    pub fn key(self) -> Vec<u8> {
        let length = match self {
            Self::Cbc => 16,
            Self::Xts | Self::Cbc256 | Self::Elephant => 32,
            Self::Xts256 | Self::Elephant256 => 64,
        };
        let mut key = vec![0; length];
        Noise::of("the key of a volume").fill(&mut key);
        match self {
            Self::Elephant => [&key[..16], &[0; 16], &key[16..], &[0; 16]].concat(),
            Self::Xts | Self::Xts256 | Self::Cbc | Self::Cbc256 | Self::Elephant256 => key,
        }
    }

    /// Encrypts the sector with the number `number`.
    pub fn encrypt(self, key: &[u8], number: u64, sector: &mut [u8]) {
        let aes = |key: &[u8]| Aes128::new(key.try_into().expect("16 bytes"));
        let aes256 = |key: &[u8]| Aes256::new(key.try_into().expect("32 bytes"));
        match self {
            Self::Xts => xts(&aes(&key[..16]), &aes(&key[16..]), number, sector),
            Self::Xts256 => xts(&aes256(&key[..32]), &aes256(&key[32..]), number, sector),
            Self::Cbc => cbc(&aes(key), number, sector),
            Self::Cbc256 => cbc(&aes256(key), number, sector),
            Self::Elephant => elephant(&aes(&key[..16]), &aes(&key[32..48]), number, sector),
            Self::Elephant256 => elephant(&aes256(&key[..32]), &aes256(&key[32..]), number, sector),
        }
    }
}

fn encrypted(aes: &impl Aes, mut block: [u8; 16]) -> [u8; 16] {
    aes.encrypt_block((&mut block).into());
    block
}

fn encrypt(aes: &impl Aes, block: &mut [u8]) {
    aes.encrypt_block(block.try_into().expect("16 bytes"));
}

fn xts(data: &impl Aes, tweaks: &impl Aes, number: u64, sector: &mut [u8]) {
    let mut tweak = encrypted(tweaks, u128::from(number).to_le_bytes());
    for block in sector.chunks_exact_mut(16) {
        xor(block, &tweak);
        encrypt(data, block);
        xor(block, &tweak);
        let value = u128::from_le_bytes(tweak);
        // Times x in the field of 2^128 elements.
        let carry = if value >> 127 == 1 { 0x87 } else { 0 };
        tweak = (value << 1 ^ carry).to_le_bytes();
    }
}

fn elephant(data: &impl Aes, sectors: &impl Aes, number: u64, sector: &mut [u8]) {
    let place = u128::from(number * SIZE as u64);
    let halves = [place, place | 0x80 << 120];
    let sector_key = halves.map(|half| encrypted(sectors, half.to_le_bytes())).concat();
    for piece in sector.chunks_exact_mut(sector_key.len()) {
        xor(piece, &sector_key);
    }
    let mut words: Vec<u32> = sector
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("4 bytes")))
        .collect();
    diffuse(&mut words, 5, |count| (count - 2, count - 5), [9, 0, 13, 0]);
    diffuse(&mut words, 3, |_| (2, 5), [0, 10, 0, 25]);
    for (bytes, word) in sector.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }

    cbc(data, number, sector);
}

/// The first block is mixed with the sector's place, encrypted by the same key.
fn cbc(data: &impl Aes, number: u64, sector: &mut [u8]) {
    let place = u128::from(number * SIZE as u64);
    let mut before = encrypted(data, place.to_le_bytes());
    for block in sector.chunks_exact_mut(16) {
        xor(block, &before);
        encrypt(data, block);
        before.copy_from_slice(block);
    }
}

/// One diffuser: from the last word to the first, each is lessened by two others, which are as far
/// behind it as `distances` says and of which the second is rotated.
fn diffuse(
    words: &mut [u32],
    cycles: usize,
    distances: fn(usize) -> (usize, usize),
    rotations: [u32; 4],
) {
    let count = words.len();
    let (one, other) = distances(count);
    for _ in 0..cycles {
        for at in (0..count).rev() {
            let rotated = words[(at + other) % count].rotate_left(rotations[at % 4]);
            let both = words[(at + one) % count] ^ rotated;
            words[at] = words[at].wrapping_sub(both);
        }
    }
}
