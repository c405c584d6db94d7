//! What BitLocker writes into a volume for itself: a boot sector that leads to three copies of a
//! block of entries, which hold the volume's key, wrapped, and the key of that for each protector.
//!
//! Follows lib/bitlk of cryptsetup and the documentation of libbde.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::keys::{self, NONCE, wrapped};
use super::{Condition, PASSWORD, RECOVERY, on_write};
use crate::disks::noise::Noise;

const SIGNATURE: &[u8; 8] = b"-FVE-FS-";

/// What says in the boot sector that this is an ordinary volume.
const ORDINARY: [u8; 16] = [
    0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01,
];

/// What says there that bitmaps tell what is encrypted.
const ON_WRITE: [u8; 16] = [
    0x3b, 0x4d, 0xa8, 0x92, 0x80, 0xdd, 0x0e, 0x4d, 0x9e, 0x4e, 0xb1, 0xe3, 0x28, 0x4e, 0xae, 0xd8,
];

/// Bytes of one copy of the entries, and of what is moved from the filesystem's start.
const AREA: usize = 64 << 10;
const HEADER: usize = 8 << 10;

/// Kinds of entries, and of what is in them.
const PROPERTY: u16 = 0;
const VOLUME_MASTER_KEY: u16 = 2;
const FULL_VOLUME_KEY: u16 = 3;
const STARTUP_KEY: u16 = 6;
const DESCRIPTION: u16 = 7;
const VOLUME_HEADER: u16 = 0xf;
const KEY: u16 = 1;
const STRING: u16 = 2;
const STRETCH_KEY: u16 = 3;
const WRAPPED_KEY: u16 = 5;
const MASTER_KEY: u16 = 8;
const EXTERNAL_KEY: u16 = 9;
const OFFSET_AND_SIZE: u16 = 0xf;

/// Protectors, in an entry of a master key.
const IN_THE_CLEAR: u16 = 0;
const BY_STARTUP_KEY: u16 = 0x0200;
const BY_RECOVERY: u16 = 0x0800;
const BY_PASSWORD: u16 = 0x2000;

/// 2026-11-22 as Windows counts.
const WRITTEN: u64 = 134_402_112_000_000_000;

/// The protector by a startup key, which names it.
const STARTUP: [u8; 16] = *b"a protector's id";

/// Ways to use a key: to make one of a password, to wrap another, to know the entries by.
const STRETCHING: u32 = 0x1000;
const EXTERNAL: u32 = 0x2002;
const WRAPPING: u32 = 0x2003;
const HASHING: u16 = 0x2005;

/// Where things are, in bytes of the volume.
pub struct Areas {
    /// The copies of the entries.
    pub metadata: [usize; 3],
    /// The filesystem's first sectors.
    pub header: Range<usize>,
    /// The volume's end.
    pub end: usize,
}

impl Areas {
    /// Behind a filesystem of `size` bytes.
    pub fn behind(size: usize) -> Self {
        let metadata = [size, size + AREA, size + 2 * AREA];
        let header = size + 3 * AREA;
        Self { metadata, header: header..header + HEADER, end: size + (1 << 20) }
    }
}

/// The volume's first sector.
pub fn boot_sector(areas: &Areas, condition: Condition) -> [u8; 512] {
    let mut sector = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0xeb, 0x58, 0x90]);
    put(3, SIGNATURE);
    put(11, &512_u16.to_le_bytes());
    put(160, if condition == Condition::OnWrite { &ON_WRITE } else { &ORDINARY });
    put(176, &places(areas));
    if condition == Condition::OnWrite {
        put(200, &on_write::places(areas).map(u64::to_le_bytes).concat());
    }
    put(510, &[0x55, 0xaa]);
    sector
}

/// The block of entries for a volume with this cipher and key, and what it is checked by.
pub fn block(areas: &Areas, cipher: u16, key: &[u8], condition: Condition) -> Vec<u8> {
    let mut noise = Noise::of("BitLocker");
    let mut random = || std::array::from_fn::<u8, 32, _>(|_| noise.next().to_le_bytes()[0]);
    let nonce = |random: [u8; 32]| *random.first_chunk::<NONCE>().expect("shorter");
    let master = random();
    let mut protector = |kind: u16, name: &str, own: fn(&[u8; 16]) -> keys::Key| {
        let random = random();
        let (guid, salt) = random.split_first_chunk::<16>().expect("longer");
        let salt = salt.try_into().expect("the other half");
        let kept = wrapped(&own(salt), nonce(random), &container(WRAPPING, &master));
        let properties = [
            entry(PROPERTY, STRING, &utf16(name)),
            entry(PROPERTY, STRETCH_KEY, &[&STRETCHING.to_le_bytes()[..], salt].concat()),
            entry(PROPERTY, WRAPPED_KEY, &kept),
        ];
        let head = [&guid[..], &[0; 10], &kind.to_le_bytes()].concat();
        entry(VOLUME_MASTER_KEY, MASTER_KEY, &[head, properties.concat()].concat())
    };
    let by_passwords = [
        protector(BY_RECOVERY, "RecoveryPassword", |salt| keys::of_recovery(RECOVERY, salt)),
        protector(BY_PASSWORD, "DiskPassword", |salt| keys::of_password(PASSWORD, salt)),
    ];
    let kept = container(WRAPPING, &master);
    let kept = wrapped(&keys::of_startup(), nonce(random()), &kept);
    let properties =
        [entry(PROPERTY, STRING, &utf16("ExternalKey")), entry(PROPERTY, WRAPPED_KEY, &kept)];
    let head = [&STARTUP[..], &[0; 10], &BY_STARTUP_KEY.to_le_bytes()].concat();
    let by_startup_key =
        entry(VOLUME_MASTER_KEY, MASTER_KEY, &[head, properties.concat()].concat());
    let full = wrapped(&master, nonce(random()), &container(cipher.into(), key));
    let place = [areas.header.start as u64, HEADER as u64].map(u64::to_le_bytes).concat();
    let by_clear_key = match condition {
        Condition::Suspended => {
            let own = random();
            let kept = wrapped(&own, nonce(random()), &container(WRAPPING, &master));
            let properties = [container(EXTERNAL, &own), entry(PROPERTY, WRAPPED_KEY, &kept)];
            let head = [&random()[..16], &[0; 10], &IN_THE_CLEAR.to_le_bytes()].concat();
            entry(VOLUME_MASTER_KEY, MASTER_KEY, &[head, properties.concat()].concat())
        }
        _ => Vec::new(),
    };
    let entries = [
        by_clear_key,
        entry(DESCRIPTION, STRING, &utf16("WORK-PC C: 22.11.2026")),
        by_startup_key,
        by_passwords.concat(),
        entry(FULL_VOLUME_KEY, WRAPPED_KEY, &full),
        entry(VOLUME_HEADER, OFFSET_AND_SIZE, &place),
    ]
    .concat();
    let block = with_heads(areas, cipher, &random(), &entries, condition);
    let check = check(&master, nonce(random()), &block);
    [block, check].concat()
}

/// What a startup key's file holds: a header as that of the entries, and one entry with the key.
pub fn startup_key() -> Vec<u8> {
    let properties =
        [entry(PROPERTY, STRING, &utf16("ExternalKey")), container(EXTERNAL, &keys::of_startup())];
    let external = [&STARTUP[..], &WRITTEN.to_le_bytes(), &properties.concat()].concat();
    let entry = entry(STARTUP_KEY, EXTERNAL_KEY, &external);
    let length = u32::try_from(48 + entry.len()).expect("short");
    let heads = [length, 1, 48, length].map(u32::to_le_bytes).concat();
    [&heads[..], &STARTUP, &1_u32.to_le_bytes(), &[0; 4], &WRITTEN.to_le_bytes(), &entry].concat()
}

/// The entries behind their two headers, in units of 16 bytes.
fn with_heads(
    areas: &Areas,
    cipher: u16,
    guid: &[u8; 32],
    entries: &[u8],
    condition: Condition,
) -> Vec<u8> {
    // The volume's state, the next one, and how far it is encrypted.
    let (state, next, encrypted) = match condition {
        Condition::Encrypted | Condition::Suspended => (4, 4, areas.end as u64),
        Condition::UpTo(end) => (2, 4, end),
        Condition::OnWrite => (3, 4, areas.end as u64),
    };
    const HEADS: usize = 64 + 48;
    let length = (HEADS + entries.len()).next_multiple_of(16);
    let short = |value: usize| u16::try_from(value).expect("fits").to_le_bytes();
    let long = |value: usize| u32::try_from(value).expect("fits").to_le_bytes();
    let metadata = 48 + entries.len();
    let mut block = [
        &SIGNATURE[..],
        &short(length / 16),
        &short(2), // version
        &short(state),
        &short(next),
        &encrypted.to_le_bytes(),
        &[0; 4],
        &long(HEADER / 512),
        &places(areas),
        &(areas.header.start as u64).to_le_bytes(),
        &long(metadata),
        &long(1), // version
        &long(48),
        &long(metadata),
        &guid[..16],
        &long(16), // the next nonce
        &cipher.to_le_bytes(),
        &[0; 2],
        &WRITTEN.to_le_bytes(),
        entries,
    ]
    .concat();
    block.resize(length, 0);
    block
}

/// A checksum of `block`, and a hash that only the master key could have made.
fn check(master: &keys::Key, nonce: [u8; NONCE], block: &[u8]) -> Vec<u8> {
    let hash = [&HASHING.to_le_bytes()[..], &[0; 2], &Sha256::digest(block)].concat();
    let hash = wrapped(master, nonce, &entry(PROPERTY, KEY, &hash));
    let hash = entry(PROPERTY, WRAPPED_KEY, &hash);
    let length = u16::try_from(8 + hash.len()).expect("short");
    [&length.to_le_bytes()[..], &2_u16.to_le_bytes(), &crc32(block).to_le_bytes(), &hash].concat()
}

fn places(areas: &Areas) -> Vec<u8> {
    areas.metadata.iter().flat_map(|&place| (place as u64).to_le_bytes()).collect()
}

/// One entry: length, kind, kind of what is in it, version, and that.
fn entry(kind: u16, value: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).expect("entries are short");
    let head: Vec<u8> = [length, kind, value, 1].into_iter().flat_map(u16::to_le_bytes).collect();
    [&head, data].concat()
}

/// A key as it is wrapped.
fn container(method: u32, key: &[u8]) -> Vec<u8> {
    entry(PROPERTY, KEY, &[&method.to_le_bytes()[..], key].concat())
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// CRC-32 of IEEE 802.3.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_everybody() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
