//! What Windows keeps of a volume that it encrypts as it is written: a description, and a bitmap of the
//! chunks that are encrypted, in two records of which the younger counts.
//!
//! Follows dissect.fve.

use super::metadata::{Areas, crc32};

/// Bytes of a chunk.
const CHUNK: u64 = 64 << 10;

/// Where they are behind the header's copy, and what is set aside for each.
const DESCRIPTIONS: [usize; 2] = [64 << 10, 72 << 10];
const BITMAP: usize = 80 << 10;
const LOG: usize = 112 << 10;
const LOG_SIZE: u32 = 8 << 10;
const RECORD: usize = 8 << 10;

/// Where the descriptions are, in bytes of the volume.
pub fn places(areas: &Areas) -> [u64; 2] {
    DESCRIPTIONS.map(|at| (areas.header.start + at) as u64)
}

/// Whether the byte at `at` is encrypted: every other chunk is.
pub fn encrypts(at: u64) -> bool {
    (at / CHUNK).is_multiple_of(2)
}

/// All of it, with its places in the volume.
pub fn records(areas: &Areas) -> Vec<(usize, Vec<u8>)> {
    let base = areas.header.start;
    let bitmap_at = (base + BITMAP) as u64;
    let description = checked(36, {
        let [one, other] = places(areas);
        let numbers = [512, 1, u32::try_from(CHUNK).expect("small"), LOG_SIZE, 512, 1, 0];
        let places = [one, other, bitmap_at].map(u64::to_le_bytes).concat();
        let sizes = [56_u16, 64].map(u16::to_le_bytes).concat();
        [&b"FVE-EOW\0"[..], &sizes, &numbers.map(u32::to_le_bytes).concat(), &places].concat()
    });
    let chunks = (areas.end as u64).div_ceil(CHUNK);
    let bits = |of: fn(u64) -> bool| {
        let byte = |n: u64| {
            (0..8).fold(0_u8, |byte, bit| {
                let chunk = 8 * n + bit;
                byte | u8::from(chunk < chunks && of(chunk * CHUNK)) << bit
            })
        };
        (0..chunks.div_ceil(8)).map(byte).collect::<Vec<u8>>()
    };
    let record = |number: u64, bits: Vec<u8>| {
        let size = u32::try_from(36 + bits.len()).expect("small");
        let count = u32::try_from(chunks).expect("small");
        let numbers = [size, count].map(u32::to_le_bytes).concat();
        let head = [&b"FVE-EOWBR\0"[..], &36_u16.to_le_bytes(), &numbers].concat();
        checked(32, [&head[..], &number.to_le_bytes(), &[0; 8], &bits].concat())
    };
    // The first one is older, and says that nothing is encrypted.
    let (old, young) = (record(1, bits(|_| false)), record(2, bits(encrypts)));
    let size = u32::try_from(512 + 2 * RECORD).expect("small");
    let offsets = [512, 512 + RECORD].map(|at| u32::try_from(at).expect("small"));
    let head = checked(56, {
        let numbers = [size, 0].map(u32::to_le_bytes).concat();
        let places = [0, areas.end as u64, (base + LOG) as u64].map(u64::to_le_bytes).concat();
        let records = [offsets[0], offsets[1], u32::try_from(RECORD).expect("small"), 0];
        let records = records.map(u32::to_le_bytes).concat();
        let mut head =
            [&b"FVE-EOWBM\0"[..], &60_u16.to_le_bytes(), &numbers, &places, &records].concat();
        head.resize(512, 0);
        head
    });
    vec![
        (base + DESCRIPTIONS[0], description.clone()),
        (base + DESCRIPTIONS[1], description),
        (base + BITMAP, head),
        (base + BITMAP + 512, old),
        (base + BITMAP + 512 + RECORD, young),
    ]
}

/// `bytes` with their CRC-32 at byte `at`, where they hold zeros.
fn checked(at: usize, mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32(&bytes).to_le_bytes();
    bytes[at..at + 4].copy_from_slice(&crc);
    bytes
}
