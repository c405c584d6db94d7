//! VHDX files that were not closed: what was to be written is only in the log.
//! Source: \[MS-VHDX\], 2.3.

use crate::differencing::crc32c;
use crate::images::put;

const SECTOR: usize = 4096;
const LOG: usize = 1 << 20;
const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const GUID: [u8; 16] = *b"the log's own id";

/// The closed file `vhdx` as it would be if the sectors of 4096 bytes at `places` were in the log
/// alone: in the file they are spoiled.
///
/// The log begins near its end and goes on at its beginning, several entries long; before it are
/// older ones, with the spoiled sectors.
#[must_use]
pub fn unreplayed(vhdx: &[u8], places: &[usize]) -> Vec<u8> {
    let mut bytes = vhdx.to_vec();
    let log_at = bytes.len().next_multiple_of(LOG);
    bytes.resize(log_at + LOG, 0);
    let len = bytes.len() as u64;
    for at in HEADERS.into_iter().filter(|&at| vhdx[at..].starts_with(b"head")) {
        bytes[at + 48..at + 64].copy_from_slice(&GUID);
        put(&mut bytes, at + 68, LOG as u64, 4);
        put(&mut bytes, at + 72, log_at as u64, 8);
        put(&mut bytes, at + 4, 0, 4);
        let sum = crc32c(&bytes[at..at + SECTOR]);
        put(&mut bytes, at + 4, sum.into(), 4);
    }
    for &at in places {
        bytes[at..at + SECTOR].fill(0xa5);
    }
    let chunks: Vec<&[usize]> = places.chunks(3).collect();
    // Behind a run without an end stands the one that counts.
    let mut at = LOG - 2 * SECTOR;
    let first = at;
    for (sequence, places) in (40..).zip(&chunks) {
        let entry = entry(vhdx, places, sequence, first, len);
        for sector in entry.chunks(SECTOR) {
            bytes[log_at + at..][..SECTOR].copy_from_slice(sector);
            at = (at + SECTOR) % LOG;
        }
    }
    let spoiled = bytes.clone();
    let mut at = 512 << 10;
    for (sequence, places) in (7..).zip(&chunks) {
        let entry = entry(&spoiled, places, sequence, 512 << 10, len);
        bytes[log_at + at..][..entry.len()].copy_from_slice(&entry);
        at += entry.len();
    }
    bytes
}

/// An entry with what `vhdx` has at `places`: sectors of zeros without data.
fn entry(vhdx: &[u8], places: &[usize], sequence: u64, tail: usize, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    bytes[..4].copy_from_slice(b"loge");
    put(&mut bytes, 12, tail as u64, 4);
    put(&mut bytes, 16, sequence, 8);
    put(&mut bytes, 24, places.len() as u64, 4);
    bytes[32..48].copy_from_slice(&GUID);
    put(&mut bytes, 48, len, 8);
    put(&mut bytes, 56, len, 8);
    for (i, &place) in places.iter().enumerate() {
        let at = 64 + 32 * i;
        put(&mut bytes, at + 16, place as u64, 8);
        put(&mut bytes, at + 24, sequence, 8);
        let sector = &vhdx[place..place + SECTOR];
        if sector.iter().all(|&byte| byte == 0) {
            bytes[at..at + 4].copy_from_slice(b"zero");
            put(&mut bytes, at + 8, SECTOR as u64, 8);
            continue;
        }
        bytes[at..at + 4].copy_from_slice(b"desc");
        bytes[at + 4..at + 8].copy_from_slice(&sector[SECTOR - 4..]);
        bytes[at + 8..at + 16].copy_from_slice(&sector[..8]);
        let start = bytes.len();
        bytes.extend(sector);
        bytes[start..start + 4].copy_from_slice(b"data");
        put(&mut bytes, start + 4, sequence >> 32, 4);
        put(&mut bytes, start + SECTOR - 4, sequence & 0xffff_ffff, 4);
    }
    let len = bytes.len() as u64;
    put(&mut bytes, 8, len, 4);
    let sum = crc32c(&bytes);
    put(&mut bytes, 4, sum.into(), 4);
    bytes
}
