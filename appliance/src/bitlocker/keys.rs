//! Keys of BitLocker: how they come from passwords, and how one is wrapped in another.

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use sha2::{Digest, Sha256};

use super::metadata::entries_in;

/// A key that wraps another.
pub type Key = [u8; 32];

/// How often a password is hashed.
const ROUNDS: u64 = 0x10_0000;

/// Bytes of the nonce and of the tag of what is wrapped.
const NONCE: usize = 12;
const TAG: usize = 16;

/// The flags of CCM's first block and of its counters: a tag of 16 bytes, lengths of 3.
const FIRST: u8 = 0x3a;
const COUNTER: u8 = 0x02;

/// Kinds in a startup key's file.
const STARTUP_KEY: u16 = 6;
const KEY: u16 = 1;

/// The key that a password of the user makes; `None` for what is not text.
pub fn of_password(password: &[u8], salt: &[u8; 16]) -> Option<Key> {
    let text = std::str::from_utf8(password).ok()?;
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    Some(stretched(Sha256::digest(Sha256::digest(units)).into(), salt))
}

/// The key that a recovery password makes; `None` for what is none: eight groups of six digits, each a
/// number of 16 bits times eleven.
pub fn of_recovery(password: &[u8], salt: &[u8; 16]) -> Option<Key> {
    let groups: Vec<&[u8]> = password.split(|byte| *byte == b'-').collect();
    let number = |group: &&[u8]| {
        let digits = group.len() == 6 && group.iter().all(u8::is_ascii_digit);
        let number: u32 = std::str::from_utf8(group).ok().filter(|_| digits)?.parse().ok()?;
        u16::try_from(number / 11).ok().filter(|_| number.is_multiple_of(11))
    };
    let numbers: Vec<u16> = groups.iter().map(number).collect::<Option<_>>()?;
    (numbers.len() == 8).then_some(())?;
    let bytes: Vec<u8> = numbers.into_iter().flat_map(u16::to_le_bytes).collect();
    Some(stretched(Sha256::digest(bytes).into(), salt))
}

/// The key in a startup key's file for the protector `guid`.
pub fn of_startup(file: &[u8], guid: &[u8; 16]) -> Option<Key> {
    const HEADER: usize = 48;
    let (kind, _, data) = entries_in(file.get(HEADER..)?).next()?;
    (kind == STARTUP_KEY && data.starts_with(guid)).then_some(())?;
    let mut within = entries_in(data.get(24..)?);
    let (.., key) = within.find(|(_, value, _)| *value == KEY)?;
    key.get(4..)?.try_into().ok()
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

/// What was wrapped by `key`; `None` where it was another key. AES-CCM without further data, RFC 3610
/// with L = 3 and M = 16; in front of what it holds are twelve bytes that describe it.
pub fn unwrapped(key: &Key, wrapped: &[u8]) -> Option<Vec<u8>> {
    const DESCRIPTION: usize = 12;
    let (nonce, rest) = wrapped.split_at_checked(NONCE)?;
    let (tag, encrypted) = rest.split_at_checked(TAG)?;
    let aes = Aes256::new(key.into());
    let encrypt = |mut block: [u8; 16]| {
        aes.encrypt_block((&mut block).into());
        block
    };
    // The last three bytes are a length or a counter.
    let block = |flags: u8, number: usize| -> Option<[u8; 16]> {
        let mut block = [0; 16];
        block[0] = flags;
        block[1..13].copy_from_slice(nonce);
        block[13..].copy_from_slice(&u32::try_from(number).ok()?.to_be_bytes()[1..]);
        Some(block)
    };
    let mut expected = encrypt(block(FIRST, encrypted.len())?);
    let mut plain = encrypted.to_vec();
    for (piece, counter) in plain.chunks_mut(16).zip(1..) {
        xor(piece, &encrypt(block(COUNTER, counter)?));
        xor(&mut expected, piece);
        expected = encrypt(expected);
    }
    xor(&mut expected, &encrypt(block(COUNTER, 0)?));
    (expected == *tag && plain.len() > DESCRIPTION).then(|| plain.split_off(DESCRIPTION))
}

fn xor(bytes: &mut [u8], others: &[u8]) {
    for (byte, other) in bytes.iter_mut().zip(others) {
        *byte ^= other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What another implementation, of Python's cryptography package, makes of the same.
    #[test]
    fn what_was_wrapped_is_unwrapped_by_its_key_alone() {
        let bytes: Vec<u8> = (0..0x50).collect();
        let key: Key = *bytes.first_chunk().unwrap();
        let text = "404142434445464748494a4b31b8154ffe30bdae5540450022c065f6\
                    f98d12478fe9e54c8480c3cbc396671258fd1e3c";
        let wrapped: Vec<u8> = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(unwrapped(&key, &wrapped).unwrap(), &bytes[12..20]);
        assert_eq!(unwrapped(&[0; 32], &wrapped), None);
        assert_eq!(unwrapped(&key, &wrapped[..27]), None);
    }

    #[test]
    fn what_is_no_recovery_password_makes_no_key() {
        for text in ["", "135795", "135796-597531-001221-440000-345565-299002-109989-660011"] {
            assert_eq!(of_recovery(text.as_bytes(), &[0; 16]), None, "{text}");
        }
    }
}
