//! Two dynamic disks of Windows with four volumes over them, each with the NTFS specimen in it: a simple
//! one, one that goes on from disk to disk, one in stripes over both, and a mirror.
//!
//! Follows block/partitions/ldm.h of Linux and libldm. All numbers are big-endian.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::filesystems::Kind;
use super::pair::Pair;
use super::partitions::SECTOR;
use super::sparse;
use super::specimens::{Specimen, Specimens};
use crate::Error;

/// The disks.
pub const PAIR: Pair = Pair { disks: ["dynamic-a.img", "dynamic-b.img"], what: "dynamic disks" };

/// What all volumes' names begin with: the name of their group begins with the machine's.
pub const GROUP: &str = "WORK-PC-Dg0";

/// The volumes.
pub const VOLUMES: [&str; 4] = ["Simple1", "Spanned1", "Stripe1", "Mirror1"];

/// Sectors of a track, behind which data begin; of the database at a disk's end; of a stripe.
const TRACK: u64 = 63;
const DATABASE: u64 = 2048;
const STRIPE: u64 = 128;

/// GUIDs end in these; what is before is the same.
const GROUP_ID: u8 = 0xd0;
const DISK_IDS: [u8; 2] = [0xd1, 0xd2];

/// Sectors of the database, from its begin: copies of the header, tables of contents, entries, and log.
const HEADERS: [u64; 2] = [1856, 2047];
const CONTENTS: [u64; 4] = [1, 2, 2045, 2046];
const ENTRIES: (u64, u64) = (17, 1481);
const LOG: (u64, u64) = (1498, 224);

/// A piece of a volume.
struct Piece {
    disk: usize,
    /// First sector of the disk's data.
    start: u64,
    /// First sector of the component that it is a piece of.
    offset: u64,
    sectors: u64,
}

/// Pieces that together have a volume's content.
struct Component {
    striped: bool,
    pieces: Vec<Piece>,
}

struct Volume {
    name: &'static str,
    sectors: u64,
    components: Vec<Component>,
}

/// Makes the disks in the folder of `specimens` if they are missing, or notes why it cannot.
///
/// # Errors
/// As [`Pair::ensure`].
pub fn ensure(specimens: &Specimens) -> Result<(), Error> {
    PAIR.ensure(specimens, |staging| make(staging, specimens))
}

fn make(staging: &Path, specimens: &Specimens) -> Result<(), Error> {
    let Specimen::Image { path, .. } = specimens.of(Kind::Ntfs)? else {
        return Err(Error::unfit("there is no NTFS image", "cargo xtask setup"));
    };
    let content = fs::read(&path).map_err(Error::file("read", &path))?;
    let (volumes, data) = laid_out(content.len() as u64 / SECTOR);
    let entries = entries(&volumes);
    for (number, name) in PAIR.disks.iter().enumerate() {
        let path = staging.join(name);
        let written = || {
            let disk = sparse::create(&path, (TRACK + data[number] + DATABASE) * SECTOR)
                .map_err(std::io::Error::other)?;
            write_database(&disk, number, data[number], &entries)?;
            let pieces = volumes.iter().flat_map(|volume| &volume.components);
            pieces.into_iter().try_for_each(|component| component.write(&disk, number, &content))
        };
        written().map_err(Error::file("write", &path))?;
    }
    Ok(())
}

/// Volumes of `sectors` each, and how many sectors of data that makes on each disk.
fn laid_out(sectors: u64) -> (Vec<Volume>, [u64; 2]) {
    let mut used = [0; 2];
    let mut piece = |disk: usize, offset: u64, sectors: u64| {
        let start = used[disk];
        used[disk] += sectors;
        Piece { disk, start, offset, sectors }
    };
    let half = sectors / 2;
    let long = sectors / 8 * 5;
    let of = |pieces| Component { striped: false, pieces };
    let components = [
        vec![of(vec![piece(0, 0, sectors)])],
        vec![of(vec![piece(0, 0, long), piece(1, long, sectors - long)])],
        vec![Component { striped: true, pieces: vec![piece(0, 0, half), piece(1, half, half)] }],
        vec![of(vec![piece(0, 0, sectors)]), of(vec![piece(1, 0, sectors)])],
    ];
    let volume = |(name, components)| Volume { name, sectors, components };
    (VOLUMES.into_iter().zip(components).map(volume).collect(), used)
}

impl Component {
    /// Writes the part of `content` that is on the disk with this number.
    fn write(&self, disk: &File, number: usize, content: &[u8]) -> std::io::Result<()> {
        let size = |sectors: u64| usize::try_from(sectors * SECTOR).expect("small disks");
        for (column, piece) in self.pieces.iter().enumerate().filter(|(_, it)| it.disk == number) {
            let stripes = content.chunks(size(STRIPE)).skip(column).step_by(self.pieces.len());
            let own = size(piece.offset)..size(piece.offset + piece.sectors);
            let bytes = if self.striped {
                stripes.collect::<Vec<_>>().concat()
            } else {
                content[own].to_vec()
            };
            let mut at = (TRACK + piece.start) * SECTOR;
            for block in bytes.chunks(1 << 16) {
                if block.iter().any(|byte| *byte != 0) {
                    disk.write_all_at(block, at)?;
                }
                at += block.len() as u64;
            }
        }
        Ok(())
    }
}

/// A GUID as people write it.
fn guid(last: u8) -> String {
    format!("06495a84-fbfd-11e1-8cf9-5254006165{last:02x}")
}

/// `text` in a field of `length` bytes.
fn field(text: &str, length: usize) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(length, 0);
    bytes
}

/// Everything on a disk but what is in the volumes.
fn write_database(disk: &File, number: usize, data: u64, entries: &[u8]) -> std::io::Result<()> {
    let database = TRACK + data;
    let header = header(number, data);
    disk.write_all_at(&mbr(number, data), 0)?;
    disk.write_all_at(&header, 6 * SECTOR)?;
    for at in HEADERS {
        disk.write_all_at(&header, (database + at) * SECTOR)?;
    }
    for at in CONTENTS {
        disk.write_all_at(&contents(), (database + at) * SECTOR)?;
    }
    disk.write_all_at(entries, (database + ENTRIES.0) * SECTOR)
}

/// A master boot record with one partition, of the type of dynamic disks.
fn mbr(number: usize, data: u64) -> Vec<u8> {
    let count = u32::try_from(data + DATABASE).expect("small disks").to_le_bytes();
    let mut row = vec![0, 0xfe, 0xff, 0xff, 0x42, 0xfe, 0xff, 0xff, 63, 0, 0, 0];
    row.extend(count);
    let mut sector = vec![0; 512];
    sector[0x1b8] = DISK_IDS[number];
    sector[0x1be..0x1ce].copy_from_slice(&row);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn header(number: usize, data: u64) -> Vec<u8> {
    let mut bytes = b"PRIVHEAD\0\0\0\0".to_vec();
    bytes.extend([0, 2, 0, 11]);
    bytes.resize(0x30, 0);
    for last in [DISK_IDS[number], 0, GROUP_ID] {
        bytes.extend(field(&guid(last), 64));
    }
    bytes.extend(field(GROUP, 32));
    bytes.resize(0x11b, 0);
    for number in [TRACK, data, TRACK + data, DATABASE, 1, DATABASE - 2] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    for (_, sectors) in [ENTRIES, LOG] {
        bytes.extend(sectors.to_be_bytes());
    }
    bytes
}

fn contents() -> Vec<u8> {
    let mut bytes = field("TOCBLOCK", 0x24);
    for (name, (start, sectors)) in [("config", ENTRIES), ("log", LOG)] {
        bytes.extend(field(name, 10));
        bytes.extend(start.to_be_bytes());
        bytes.extend(sectors.to_be_bytes());
        bytes.extend([0; 8]);
    }
    bytes
}

/// The entries behind their header: each names what it is a part of by a number.
fn entries(volumes: &[Volume]) -> Vec<u8> {
    const DISK_NUMBERS: u64 = 2;
    let mut records = vec![(0x35, 0, group())];
    for (disk, number) in (0..PAIR.disks.len()).zip(DISK_NUMBERS..) {
        records.push((0x34, 0, self::disk(disk, number)));
    }
    let mut counts = [0_u32, 0, 0, 2];
    let mut next = 10;
    let mut new = || {
        next += 1;
        next
    };
    for (volume, last) in volumes.iter().zip(0xa0..) {
        let id = new();
        counts[0] += 1;
        records.push((0x51, 0, volume.record(id, last)));
        for component in &volume.components {
            let parent = new();
            counts[1] += 1;
            let flags = if component.striped { 0x10 } else { 0 };
            records.push((0x32, flags, component.record(parent, volume.name, id)));
            for (index, piece) in component.pieces.iter().enumerate() {
                counts[2] += 1;
                let disk = piece.disk as u64 + DISK_NUMBERS;
                records.push((0x33, 8, piece.record(new(), parent, disk, index)));
            }
        }
    }
    with_header(&records, counts)
}

/// Entries of 128 bytes: where they stand, the type, and what they say.
fn with_header(records: &[(u8, u8, Vec<u8>)], counts: [u32; 4]) -> Vec<u8> {
    const SIZE: usize = 128;
    const FIRST: u32 = 4;
    let mut blocks = Vec::new();
    for (sequence, (kind, flags, data)) in (FIRST..).zip(records) {
        let length = u32::try_from(data.len()).expect("short");
        let mut block = b"VBLK".to_vec();
        block.extend(sequence.to_be_bytes());
        block.extend(sequence.to_be_bytes());
        block.extend([0, 0, 0, 1]);
        block.extend([0, 0, *flags, *kind]);
        block.extend(length.to_be_bytes());
        block.extend(data);
        assert!(block.len() <= SIZE, "an entry is too long");
        block.resize(SIZE, 0);
        blocks.extend(block);
    }
    // The last sector's others are in no use.
    while blocks.len() % 512 != 0 {
        blocks.extend(field("VBLK", SIZE));
    }
    let last = FIRST + u32::try_from(blocks.len() / SIZE).expect("few");
    let mut bytes = b"VMDB".to_vec();
    for number in [last, 128, 512] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend([0, 1, 0, 4, 0, 10]);
    bytes.extend(field(GROUP, 31));
    bytes.extend(field(&guid(GROUP_ID), 64));
    // Committed, and nothing pending.
    bytes.extend([1_u64, 1].map(u64::to_be_bytes).concat());
    bytes.extend(counts.map(u32::to_be_bytes).concat());
    bytes.resize(512, 0);
    [bytes, blocks].concat()
}

/// A number with its length before it, without leading zeros.
fn number(value: u64) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    let leading = bytes.iter().take(7).take_while(|byte| **byte == 0).count();
    text_of(&bytes[leading..])
}

fn text(text: &str) -> Vec<u8> {
    text_of(text.as_bytes())
}

fn text_of(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("short");
    [&[length], bytes].concat()
}

fn group() -> Vec<u8> {
    [number(1), text(GROUP), text(&guid(GROUP_ID)), vec![0; 12]].concat()
}

fn disk(disk: usize, id: u64) -> Vec<u8> {
    let name = format!("Disk{}", disk + 1);
    [number(id), text(&name), text(&guid(DISK_IDS[disk])), text(""), vec![0; 12]].concat()
}

impl Volume {
    fn record(&self, id: u64, last: u8) -> Vec<u8> {
        let mut uuid = [0x11; 16];
        uuid[15] = last;
        let general = [3, 0, 0, 0, 0, 0, 0];
        [
            [number(id), text(self.name), text("gen"), text("")].concat(),
            field("ACTIVE", 14),
            general.to_vec(),
            number(self.components.len() as u64),
            vec![0; 16],
            number(self.sectors),
            vec![0, 0, 0, 0, 7],
            uuid.to_vec(),
        ]
        .concat()
    }
}

impl Component {
    fn record(&self, id: u64, volume: &str, parent: u64) -> Vec<u8> {
        let kind = if self.striped { 1 } else { 2 };
        let columns = self.pieces.len() as u64;
        let mut bytes = [
            [number(id), text(&format!("{volume}-{id:02}")), text("ACTIVE")].concat(),
            vec![kind, 0, 0, 0, 0],
            number(columns),
            vec![0; 16],
            number(parent),
            vec![0],
        ]
        .concat();
        if self.striped {
            bytes.extend([number(STRIPE), number(columns)].concat());
        }
        bytes
    }
}

impl Piece {
    fn record(&self, id: u64, parent: u64, disk: u64, index: usize) -> Vec<u8> {
        [
            [number(id), text(&format!("Disk{}-{id:02}", self.disk + 1)), vec![0; 12]].concat(),
            [self.start, self.offset].map(u64::to_be_bytes).concat(),
            [number(self.sectors), number(parent), number(disk), number(index as u64)].concat(),
        ]
        .concat()
    }
}
