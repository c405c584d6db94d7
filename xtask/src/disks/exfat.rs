//! Fills a fresh exFAT filesystem with a folder. No tool does so without mounting it; what comes
//! out here is held against exfatprogs' fsck.exfat.
//!
//! Follows Microsoft's "exFAT file system specification", revision 1.00.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::Error;
use crate::process::Tool;

/// Bytes of a directory entry.
const ENTRY: usize = 32;
/// Files of more bytes lie backwards on the disk, cluster by cluster, so that there is a chain to
/// be followed; all others lie in one piece, as exFAT has it.
const IN_ONE_PIECE_MAX: usize = 1 << 20;

/// What is known of a volume while it is filled.
struct Volume {
    file: File,
    /// Bytes from the start of the file to the FAT and to the first cluster, number 2.
    fat: u64,
    heap: u64,
    cluster_size: usize,
    root: u32,
    /// The next free cluster; all behind it are free as well.
    next: u32,
    /// A bit for each cluster from number 2 on, set where it is used, and the cluster that it
    /// starts in.
    bitmap: Vec<u8>,
    bitmap_at: u32,
    /// Upper case of each UTF-16 unit.
    upper: Vec<u16>,
}

/// Where something lies.
struct Extent {
    first: u32,
    length: usize,
    /// Whether the FAT has to be asked for what follows the first cluster.
    chained: bool,
}

/// Makes the raw file `image` an exFAT filesystem that holds the files and folders of `tree`. It has
/// its final size already.
///
/// # Errors
/// Those of mkfs.exfat and fsck.exfat, and [`Error::File`].
pub fn make(tree: &Path, image: &Path) -> Result<(), Error> {
    // Clusters of a size that the root's entries fit into one.
    Tool::new("mkfs.exfat").args(["-c", "32K"]).arg(image).run()?;
    let file = File::options().read(true).write(true).open(image);
    let mut volume = file.and_then(Volume::open).map_err(Error::file("read", image))?;
    let entries = volume.entries_of(tree)?;
    volume.finish(&entries).map_err(Error::file("write", image))?;
    Tool::new("fsck.exfat").arg("-n").arg(image).run()
}

impl Volume {
    /// A volume as mkfs.exfat leaves it.
    fn open(file: File) -> io::Result<Self> {
        let mut boot = [0; 512];
        file.read_exact_at(&mut boot, 0)?;
        let sector = 1u64 << boot[108];
        let at = |offset: usize| u64::from(u32_at(&boot, offset)) * sector;
        let mut volume = Self {
            fat: at(80),
            heap: at(88),
            cluster_size: 1 << (boot[108] + boot[109]),
            root: u32_at(&boot, 96),
            next: 0,
            bitmap: Vec::new(),
            bitmap_at: 0,
            upper: (0..=u16::MAX).collect(),
            file,
        };
        let root = volume.read(volume.root, volume.cluster_size)?;
        for entry in root.chunks_exact(ENTRY) {
            let (first, length) = (u32_at(entry, 20), u32_at(entry, 24) as usize);
            match entry[0] {
                0x81 => {
                    volume.bitmap = volume.read(first, length)?;
                    volume.bitmap_at = first;
                }
                0x82 => expand(&volume.read(first, length)?, &mut volume.upper),
                _ => {}
            }
        }
        let used: u32 = volume.bitmap.iter().map(|byte| byte.count_ones()).sum();
        volume.next = 2 + used;
        Ok(volume)
    }

    /// Puts everything below `folder` into the volume, and gives the folder's entries.
    fn entries_of(&mut self, folder: &Path) -> Result<Vec<u8>, Error> {
        let mut entries = Vec::new();
        for path in super::mkfs::children(folder)? {
            let meta = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
            let content = if meta.is_dir() {
                let mut inner = self.entries_of(&path)?;
                inner.resize(inner.len().max(1).next_multiple_of(self.cluster_size), 0);
                inner
            } else {
                fs::read(&path).map_err(Error::file("read", &path))?
            };
            let extent = self.store(&content).map_err(Error::file("copy", &path))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            entries.extend(self.entry_set(&name, &meta, &extent));
        }
        Ok(entries)
    }

    /// Writes `content` into free clusters.
    fn store(&mut self, content: &[u8]) -> io::Result<Extent> {
        let length = content.len();
        let count = u32::try_from(length.div_ceil(self.cluster_size)).expect("images are small");
        let first = self.next;
        for cluster in first..first + count {
            let bit = (cluster - 2) as usize;
            let byte = self.bitmap.get_mut(bit / 8).ok_or(io::ErrorKind::StorageFull)?;
            *byte |= 1 << (bit % 8);
        }
        self.next += count;
        if length <= IN_ONE_PIECE_MAX {
            self.write(first, content)?;
            return Ok(Extent {
                first: if count == 0 { 0 } else { first },
                length,
                chained: false,
            });
        }
        let backwards = (first..first + count).rev();
        for (cluster, piece) in backwards.zip(content.chunks(self.cluster_size)) {
            self.write(cluster, piece)?;
            let next = if cluster == first { u32::MAX } else { cluster - 1 };
            self.file.write_all_at(&next.to_le_bytes(), self.fat + 4 * u64::from(cluster))?;
        }
        Ok(Extent { first: first + count - 1, length, chained: true })
    }

    /// Writes the root's entries and the bitmap.
    fn finish(self, entries: &[u8]) -> io::Result<()> {
        let mut root = self.read(self.root, self.cluster_size)?;
        let end = root.chunks_exact(ENTRY).position(|entry| entry[0] == 0).unwrap_or(0) * ENTRY;
        let place = root.get_mut(end..end + entries.len()).ok_or(io::ErrorKind::StorageFull)?;
        place.copy_from_slice(entries);
        self.write(self.root, &root)?;
        self.write(self.bitmap_at, &self.bitmap)
    }

    /// The entries of one file: what it is, where it lies, its name.
    fn entry_set(&self, name: &str, meta: &Metadata, extent: &Extent) -> Vec<u8> {
        const UTC: u8 = 0x80;
        let name: Vec<u16> = name.encode_utf16().collect();
        let mut set = vec![0; 2 * ENTRY];
        let (moment, hundredths) = timestamp(meta.mtime(), meta.mtime_nsec());

        set[0] = 0x85;
        set[1] = byte(1 + name.len().div_ceil(15));
        set[4] = if meta.is_dir() { 0x10 } else { 0x20 };
        for at in [8, 12, 16] {
            set[at..at + 4].copy_from_slice(&moment.to_le_bytes());
        }
        set[20..25].copy_from_slice(&[hundredths, hundredths, UTC, UTC, UTC]);

        let upper: Vec<u8> =
            name.iter().flat_map(|&unit| self.upper[usize::from(unit)].to_le_bytes()).collect();
        let length = (extent.length as u64).to_le_bytes();
        let stream = &mut set[ENTRY..];
        stream[0] = 0xc0;
        stream[1] = if extent.chained || extent.first == 0 { 1 } else { 3 };
        stream[3] = byte(name.len());
        stream[4..6].copy_from_slice(&checksum(upper.into_iter()).to_le_bytes());
        stream[8..16].copy_from_slice(&length);
        stream[20..24].copy_from_slice(&extent.first.to_le_bytes());
        stream[24..32].copy_from_slice(&length);

        for piece in name.chunks(15) {
            let mut entry = [0; ENTRY];
            entry[0] = 0xc1;
            for (place, unit) in entry[2..].chunks_exact_mut(2).zip(piece) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
            set.extend(entry);
        }
        let summed = set.iter().enumerate().filter(|(at, _)| !matches!(at, 2 | 3));
        let sum = checksum(summed.map(|(_, &byte)| byte));
        set[2..4].copy_from_slice(&sum.to_le_bytes());
        set
    }

    fn at(&self, cluster: u32) -> u64 {
        self.heap + u64::from(cluster - 2) * self.cluster_size as u64
    }

    fn read(&self, cluster: u32, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.at(cluster))?;
        Ok(bytes)
    }

    fn write(&self, cluster: u32, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at(cluster))
    }
}

/// Reads a compressed up-case table: units in order, where 0xffff and a number stand for so many
/// that are their own upper case.
fn expand(table: &[u8], upper: &mut [u16]) {
    let mut units = table.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let mut at = 0;
    while let Some(unit) = units.next() {
        if unit == 0xffff {
            at += usize::from(units.next().unwrap_or_default());
        } else if let Some(place) = upper.get_mut(at) {
            *place = unit;
            at += 1;
        }
    }
}

/// The sum that guards entry sets and finds names.
fn checksum(bytes: impl Iterator<Item = u8>) -> u16 {
    bytes.fold(0, |sum: u16, byte| sum.rotate_right(1).wrapping_add(u16::from(byte)))
}

/// Seconds since 1970 as FAT's date and time, and the hundredths of a second beyond its two seconds.
fn timestamp(seconds: i64, nanoseconds: i64) -> (u32, u8) {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (mut year, mut day) = (1970, days);
    while day >= days_in(year) {
        day -= days_in(year);
        year += 1;
    }
    let february = days_in(year) - 337;
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let field = |value: i64, shift: u32| u32::try_from(value).expect("a part of a date") << shift;
    let moment = field(year - 1980, 25)
        | field(month, 21)
        | field(day + 1, 16)
        | field(second / 3600, 11)
        | field(second / 60 % 60, 5)
        | field(second % 60 / 2, 0);
    (moment, byte(usize::try_from(second % 2 * 100 + nanoseconds / 10_000_000).expect("below 200")))
}

fn days_in(year: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    365 + i64::from(leap)
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).expect("names here are short")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_packed_as_fat_packs_them() {
        let packed = |year: u32, month: u32, day: u32, hour: u32, minute: u32, second: u32| {
            (year - 1980) << 25 | month << 21 | day << 16 | hour << 11 | minute << 5 | (second / 2)
        };
        let table = [
            ((315_532_800, 0), (packed(1980, 1, 1, 0, 0, 0), 0)),
            ((1_600_000_001, 129_999_999), (packed(2020, 9, 13, 12, 26, 40), 112)),
            ((951_868_799, 0), (packed(2000, 2, 29, 23, 59, 58), 100)),
            ((4_102_444_800, 0), (packed(2100, 1, 1, 0, 0, 0), 0)),
        ];
        for ((seconds, nanoseconds), expected) in table {
            assert_eq!(timestamp(seconds, nanoseconds), expected, "{seconds}");
        }
    }

    #[test]
    fn an_up_case_table_skips_what_has_none() {
        let mut upper: Vec<u16> = (0..100).collect();
        let table = [0xffff, 97, u16::from(b'A'), u16::from(b'B')];
        expand(&table.map(u16::to_le_bytes).concat(), &mut upper);
        assert_eq!(upper[95..], [95, 96, 65, 66, 99]);
    }
}
