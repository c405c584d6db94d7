//! Keys of BitLocker: how they come from passwords, and how one is wrapped in another.
//!
//! Follows lib/bitlk/bitlk.c of cryptsetup and the documentation of libbde.

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use sha2::{Digest, Sha256};

use crate::disks::noise::Noise;

/// A key that wraps another.
pub type Key = [u8; 32];

/// How often a password is hashed.
const ROUNDS: u64 = 0x10_0000;

/// Bytes of the nonce of what is wrapped.
pub const NONCE: usize = 12;

/// The flags of CCM's first block and of its counters: a tag of 16 bytes, lengths of 3.
const FIRST: u8 = 0x3a;
const COUNTER: u8 = 0x02;

/// The key that a password of the user makes.
pub fn of_password(password: &str, salt: &[u8; 16]) -> Key {
    let units: Vec<u8> = password.encode_utf16().flat_map(u16::to_le_bytes).collect();
    stretched(Sha256::digest(Sha256::digest(units)).into(), salt)
}

/// The key that a recovery password makes.
///
/// # Panics
/// Where it is none.
pub fn of_recovery(password: &str, salt: &[u8; 16]) -> Key {
    let number = |group: &str| {
        let number: u32 = group.parse().expect("groups of digits");
        assert_eq!(number % 11, 0, "{group} is no number of a recovery password");
        u16::try_from(number / 11).expect("eleven times 16 bits").to_le_bytes()
    };
    let bytes: Vec<u8> = password.split('-').flat_map(number).collect();
    stretched(Sha256::digest(bytes).into(), salt)
}

/// The key in a startup key's file. Its last byte is a line break.
pub fn of_startup() -> Key {
    let mut key = [b'\n'; 32];
    Noise::of("a startup key").fill(&mut key[..31]);
    key
}

/// The hash of the last hash, the first one, salt and count, again and again.
fn stretched(first: Key, salt: &[u8; 16]) -> Key {
    (0..ROUNDS).fold([0; 32], |last, count| {
        let mut hash = Sha256::new();
        hash.update(last);
        hash.update(first);
        hash.update(salt);
        hash.update(count.to_le_bytes());
        hash.finalize().into()
    })
}

/// Nonce, tag, and `plain` encrypted: AES-CCM without further data, RFC 3610 with L = 3 and M = 16.
pub fn wrapped(key: &Key, nonce: [u8; NONCE], plain: &[u8]) -> Vec<u8> {
    let aes = Aes256::new(key.into());
    let encrypt = |mut block: [u8; 16]| {
        aes.encrypt_block((&mut block).into());
        block
    };
    // The last three bytes are a length or a counter.
    let block = |flags: u8, number: usize| {
        let mut block = [0; 16];
        block[0] = flags;
        block[1..13].copy_from_slice(&nonce);
        let number = u32::try_from(number).expect("keys are short").to_be_bytes();
        block[13..].copy_from_slice(&number[1..]);
        block
    };
    let mut tag = encrypt(block(FIRST, plain.len()));
    let mut output = plain.to_vec();
    for (piece, counter) in output.chunks_mut(16).zip(1..) {
        xor(&mut tag, piece);
        tag = encrypt(tag);
        xor(piece, &encrypt(block(COUNTER, counter)));
    }
    xor(&mut tag, &encrypt(block(COUNTER, 0)));
    [&nonce[..], &tag, &output].concat()
}

/// `bytes` xor `others`, as far as both go.
pub fn xor(bytes: &mut [u8], others: &[u8]) {
    for (byte, other) in bytes.iter_mut().zip(others) {
        *byte ^= other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another implementation, of Python's cryptography package, makes of the same.
    #[test]
    fn keys_are_wrapped_by_aes_ccm() {
        let bytes: Vec<u8> = (0..0x50).collect();
        let key = *bytes.first_chunk().unwrap();
        let nonce = *bytes[0x40..].first_chunk().unwrap();
        let plain = &bytes[..20];
        let text: String =
            wrapped(&key, nonce, plain).iter().map(|byte| format!("{byte:02x}")).collect();
        let (nonce, tag) = ("404142434445464748494a4b", "31b8154ffe30bdae5540450022c065f6");
        let encrypted = "f98d12478fe9e54c8480c3cbc396671258fd1e3c";
        assert_eq!(text, [nonce, tag, encrypted].concat());
    }
}
