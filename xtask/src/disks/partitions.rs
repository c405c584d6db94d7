//! Disks made of filesystem images: the demo's MBR, and tables of several for the tests.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::sparse;
use crate::Error;
use crate::process::Tool;

/// Bytes of a sector, here and in every table of these disks.
pub const SECTOR: u64 = 512;

/// Sectors before the first partition and between logical ones: a MiB.
const GAP: u64 = 2048;

/// A partition to be written.
pub struct Partition<'a> {
    /// Its first sector.
    pub start: u64,
    /// The raw image of what is in it; its size is the partition's.
    pub image: &'a Path,
}

/// Writes a raw disk of `sectors` with an MBR of NTFS partitions, four at most.
///
/// # Errors
/// [`Error::File`].
pub fn ntfs_disk(
    disk: &Path,
    sectors: u64,
    disk_id: u32,
    partitions: &[Partition<'_>],
) -> Result<(), Error> {
    let file = sparse::create(disk, sectors * SECTOR)?;
    let mut rows = Vec::new();
    for partition in partitions {
        sparse::copy_into(partition.image, &file, partition.start * SECTOR)?;
        rows.push((partition.start, sectors_of(partition.image)?));
    }
    file.write_all_at(&mbr(disk_id, &rows), 0).map_err(Error::file("write", disk))
}

/// A master boot record without code. Source: the layout that sfdisk(8) calls `dos`.
fn mbr(disk_id: u32, partitions: &[(u64, u64)]) -> [u8; 512] {
    const DISK_ID: usize = 0x1b8;
    const TABLE: usize = 0x1be;
    const TYPE_NTFS: u8 = 7;
    /// Cylinder, head and sector of what lies beyond the first 8 GB.
    const CHS_BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];
    let field = |n: u64| u32::try_from(n).expect("disks here are below 2 TiB").to_le_bytes();
    let mut sector = [0; 512];
    sector[DISK_ID..DISK_ID + 4].copy_from_slice(&disk_id.to_le_bytes());
    for (row, &(start, count)) in sector[TABLE..TABLE + 64].chunks_exact_mut(16).zip(partitions) {
        row[1..4].copy_from_slice(&CHS_BEYOND);
        row[4] = TYPE_NTFS;
        row[5..8].copy_from_slice(&CHS_BEYOND);
        row[8..12].copy_from_slice(&field(start));
        row[12..16].copy_from_slice(&field(count));
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Writes a raw disk with an MBR: the first image in a primary partition, the others in logical
/// ones, from number 5 on.
///
/// # Errors
/// Those of sfdisk, and [`Error::File`].
pub fn mbr_with_logical(disk: &Path, images: &[&Path]) -> Result<(), Error> {
    let Some((first, logical)) = images.split_first() else {
        return table(disk, "label: dos\n", &[], GAP);
    };
    let mut at = GAP;
    let mut rows = vec![(at, sectors_of(first)?)];
    at = round_up(at + rows[0].1);
    let extended = at;
    for image in logical {
        // Each logical partition has a boot record of its own before it.
        at += GAP;
        rows.push((at, sectors_of(image)?));
        at = round_up(at + sectors_of(image)?);
    }
    let mut script = format!("label: dos\nstart={GAP}, size={}, type=83\n", rows[0].1);
    if !logical.is_empty() {
        script += &format!("start={extended}, size={}, type=5\n", at - extended);
    }
    for (start, count) in &rows[1..] {
        script += &format!("start={start}, size={count}, type=83\n");
    }
    let starts: Vec<(u64, &Path)> =
        rows.iter().map(|&(start, _)| start).zip(images.iter().copied()).collect();
    table(disk, &script, &starts, at)
}

/// Writes a raw disk with a GPT, one image in each partition.
///
/// # Errors
/// Those of sfdisk, and [`Error::File`].
pub fn gpt(disk: &Path, images: &[&Path]) -> Result<(), Error> {
    let mut script = "label: gpt\n".to_owned();
    let mut starts = Vec::new();
    let mut at = GAP;
    for image in images {
        let count = sectors_of(image)?;
        script += &format!("start={at}, size={count}, type=linux\n");
        starts.push((at, *image));
        at = round_up(at + count);
    }
    table(disk, &script, &starts, at)
}

/// Lets sfdisk write the table, then puts the images at their sectors. A gap stays behind the
/// last, for the GPT's second copy.
fn table(disk: &Path, script: &str, images: &[(u64, &Path)], end: u64) -> Result<(), Error> {
    let file = sparse::create(disk, (end + GAP) * SECTOR)?;
    Tool::new("sfdisk").args(["--quiet", "--no-reread"]).arg(disk).filter(script.as_bytes())?;
    for (start, image) in images {
        sparse::copy_into(image, &file, start * SECTOR)?;
    }
    Ok(())
}

fn round_up(sectors: u64) -> u64 {
    sectors.next_multiple_of(GAP)
}

fn sectors_of(image: &Path) -> Result<u64, Error> {
    Ok(fs::metadata(image).map_err(Error::file("look at", image))?.len().div_ceil(SECTOR))
}

/// Reads `length` bytes of `disk` from the sector `start`; for those who check what was written.
///
/// # Errors
/// [`Error::File`].
pub fn read_sectors(disk: &Path, start: u64, length: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; length];
    File::open(disk)
        .and_then(|file| file.read_exact_at(&mut bytes, start * SECTOR))
        .map_err(Error::file("read", disk))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mbr_is_what_windows_writes() {
        let sector = mbr(0x0efb_9e3e, &[(2048, 5_310_464), (5_312_512, 3_072_000)]);
        assert_eq!(sector[0x1b8..0x1bc], [0x3e, 0x9e, 0xfb, 0x0e]);
        assert_eq!(
            sector[0x1be..0x1ce],
            [0, 0xfe, 0xff, 0xff, 7, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 8, 0x51, 0]
        );
        assert_eq!(
            sector[0x1ce..0x1de],
            [0, 0xfe, 0xff, 0xff, 7, 0xfe, 0xff, 0xff, 0, 0x10, 0x51, 0, 0, 0xe0, 0x2e, 0]
        );
        assert_eq!(sector[510..], [0x55, 0xaa]);
    }

    #[test]
    fn images_arrive_in_their_partitions() {
        let folder = tempfile::tempdir().unwrap();
        let images = [b"one", b"two", b"six"].map(|text| {
            let path = folder.path().join(String::from_utf8_lossy(text).as_ref());
            sparse::create(&path, 3 << 20).unwrap().write_all_at(text, 0).unwrap();
            path
        });
        let images: Vec<&Path> = images.iter().map(|path| path.as_path()).collect();
        let disk = folder.path().join("disk");
        let starts = |disk: &Path| -> Vec<u64> {
            let dump = Tool::new("sfdisk").arg("--dump").arg(disk).output().unwrap();
            String::from_utf8(dump)
                .unwrap()
                .lines()
                .filter(|line| !line.ends_with("type=5"))
                .filter_map(|line| {
                    line.split_once("start=")?.1.split_once(',')?.0.trim().parse().ok()
                })
                .collect()
        };
        for make in [mbr_with_logical, gpt] {
            make(&disk, &images).unwrap();
            let found: Vec<Vec<u8>> =
                starts(&disk).iter().map(|&at| read_sectors(&disk, at, 3).unwrap()).collect();
            assert_eq!(found, [b"one", b"two", b"six"]);
        }
    }
}
