//! Which sectors of a disk a differencing image holds, and where in its file.
//!
//! QEMU's drivers for VDI, VHD and VHDX know no parents. That of qcow2 does: a map becomes the
//! tables of a qcow2 in memory, and the image's file stands behind them as its data. The two are
//! joined by the flat extents of a descriptor, so that nothing is copied. Extended table entries
//! have a bit for each 32nd of a cluster, which tell single sectors apart, as VHD and VHDX do.
//!
//! The data of a cluster has to be aligned like a cluster, which that of VHD is not: its blocks
//! lie at any sector. The file is therefore joined once for each way in which its blocks are out
//! of line, 32 at most, each time shifted so that those are in line.
//!
//! Source: docs/interop/qcow2 of QEMU, "Extended L2 Entries".

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;
use std::fs::File;
use std::io::{self, BufWriter, Write};

use super::SECTOR_SIZE;
use super::descriptor::Descriptor;
use super::error::Problem;
use super::file::ImageFile;
use super::memory;

/// Parts of a cluster that an entry has bits for.
const PARTS: u64 = 32;

/// Bytes of an entry.
const ENTRY: u64 = 16;

/// Features of a qcow2: entries with bits for parts of a cluster; data in another file.
const EXTENDED_ENTRIES: u64 = 1 << 4;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Most bytes of the tables of one map.
pub const MAX_TABLES_LEN: u64 = 128 << 20;

/// Most bytes of the bitmaps behind one map: those of a TiB of changes.
const MAX_BITMAPS_LEN: u64 = 256 << 20;

/// What sectors are mapped in: an image has the sectors of one of these, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granule(u64);

impl Granule {
    /// One sector of 512 bytes.
    pub const SECTOR: Self = Self(1);

    /// Sectors of `len` bytes, a power of two.
    pub fn of_sectors(len: u64) -> Self {
        Self((len / SECTOR_SIZE).max(1))
    }

    /// So many sectors of 512 bytes, a power of two.
    pub const fn of_count(sectors: u64) -> Self {
        Self(sectors)
    }

    /// Bytes of one.
    pub fn len(self) -> u64 {
        self.0 * SECTOR_SIZE
    }

    /// A large one for blocks of `len` bytes, a power of two, of which an image has all or
    /// nothing.
    pub fn of_blocks(len: u64) -> Self {
        /// Clusters of 128 KiB: the tables of a small disk are small, and those of 128 GiB of
        /// changes take 16 MiB.
        const LARGEST: u64 = 8;
        Self((len / PARTS / SECTOR_SIZE).clamp(1, LARGEST))
    }

    /// Bytes of the smallest blocks that a map in these can have.
    pub fn least_block(self) -> u64 {
        self.cluster()
    }

    fn cluster_sectors(self) -> u64 {
        self.0 * PARTS
    }

    fn cluster(self) -> u64 {
        self.cluster_sectors() * SECTOR_SIZE
    }

    /// Entries of a table, which takes a cluster.
    fn entries(self) -> u64 {
        self.cluster() / ENTRY
    }
}

/// Where the sectors of a disk are in a file. What is not mapped is the parent's.
pub struct SectorMap {
    granule: Granule,
    tables: BTreeMap<u64, Vec<Entry>>,
}

/// A cluster: where in the file its first sector is or would be, and bits for its granules, the
/// lowest for the first.
#[derive(Clone, Copy, Default)]
struct Entry {
    file_sector: u64,
    stored: u32,
    zero: u32,
}

impl SectorMap {
    /// An empty one.
    pub fn new(granule: Granule) -> Self {
        Self { granule, tables: BTreeMap::new() }
    }

    /// Notes that `count` sectors from `sector` on are in the file from `file_sector` on.
    ///
    /// All sectors of one cluster that are stored must be in the file at their distances, and
    /// the file must have room for what would be the first sector of the cluster.
    ///
    /// # Errors
    /// [`Problem::Unsupported`] where the map becomes too large.
    pub fn store(&mut self, sector: u64, file_sector: u64, count: u64) -> Result<(), Problem> {
        self.each_cluster(sector, count, |entry, first, bits| {
            entry.file_sector = file_sector + first - sector;
            entry.stored |= bits;
        })
    }

    /// Bytes of its tables.
    pub fn tables_len(&self) -> u64 {
        self.tables.len() as u64 * self.granule.cluster()
    }

    /// Notes that `count` sectors from `sector` on are zero, whatever the parent has there.
    ///
    /// # Errors
    /// As [`Self::store`].
    pub fn zero(&mut self, sector: u64, count: u64) -> Result<(), Problem> {
        self.each_cluster(sector, count, |entry, _, bits| entry.zero |= bits)
    }

    /// Calls `change` with the entry of each cluster that the sectors are in, the number of its
    /// first sector, and the bits of those that are meant. The sectors begin with a granule.
    fn each_cluster(
        &mut self,
        sector: u64,
        count: u64,
        mut change: impl FnMut(&mut Entry, u64, u32),
    ) -> Result<(), Problem> {
        let Granule(granule) = self.granule;
        let cluster_sectors = self.granule.cluster_sectors();
        let entries = self.granule.entries();
        let table_sectors = cluster_sectors * entries;
        let end = sector + count;
        let mut at = sector;
        while at < end {
            let number = at / table_sectors;
            let table_end = end.min((number + 1) * table_sectors);
            let len = (self.tables.len() as u64 + 1) * self.granule.cluster();
            // Once for all of its clusters: an image can have millions.
            let table = match self.tables.entry(number) {
                Place::Occupied(table) => table.into_mut(),
                Place::Vacant(_) if len > MAX_TABLES_LEN => return Err(too_many_changes()),
                Place::Vacant(free) => free.insert(vec![Entry::default(); index(entries)]),
            };
            while at < table_end {
                let first = at - at % cluster_sectors;
                let next = end.min(first + cluster_sectors);
                // Behind the end of a disk there is nothing to be wrong.
                let (from, to) = ((at - first) / granule, (next - first).div_ceil(granule));
                let bits = ((1u64 << to) - 1) & !((1u64 << from) - 1);
                let bits = u32::try_from(bits).expect("at most 32 bits");
                change(&mut table[index(first / cluster_sectors % entries)], first, bits);
                at = next;
            }
        }
        Ok(())
    }

    /// The qcow2 of `size` bytes that the map of `file` makes: a descriptor that joins the
    /// tables and the file, and these.
    ///
    /// # Errors
    /// Where there is no memory for the tables.
    pub fn joined(&self, size: u64, file: &ImageFile) -> io::Result<(Descriptor, Vec<File>)> {
        let file_sectors = file.len.div_ceil(SECTOR_SIZE);
        let shifts = self.shifts();
        let layout = Layout::of(size, self.granule, self.tables.len() as u64);
        let tables =
            memory::holding(|tables| self.write(&layout, size, &shifts, file_sectors, tables))?;
        let mut extents = vec![(layout.end() / SECTOR_SIZE, 0)];
        let mut files = vec![tables];
        for &shift in &shifts {
            for (count, first, file) in
                file.extents(shift, layout.shifted_len(file_sectors, shift))?
            {
                extents.push((count, first));
                files.push(file);
            }
        }
        Ok((Descriptor::of_flat_files(&extents), files))
    }

    /// The tables of a qcow2 of `size` bytes, at most the largest disk, whose data are in another
    /// node, each byte at its place on the disk. Where in a file something is stored plays no part.
    ///
    /// # Errors
    /// Where there is no memory for the tables.
    pub fn over_data_node(&self, size: u64) -> io::Result<File> {
        /// Set where offset 0 is a place.
        const IN_USE: u64 = 1 << 63;
        let mut layout = Layout::of(size, self.granule, self.tables.len() as u64);
        layout.features |= EXTERNAL_DATA;
        let place = |cluster: u64, _: &Entry| (cluster * layout.cluster) | IN_USE;
        memory::holding(|tables| self.write_tables(&layout, size, place, tables))
    }

    /// By how many sectors the clusters that are stored are out of line in the file, in ascending
    /// order.
    fn shifts(&self) -> Vec<u64> {
        let cluster_sectors = self.granule.cluster_sectors();
        let mut seen = vec![false; index(cluster_sectors)];
        for entry in self.tables.values().flatten().filter(|entry| entry.stored != 0) {
            seen[index(entry.file_sector % cluster_sectors)] = true;
        }
        (0..cluster_sectors).filter(|shift| seen[index(*shift)]).collect()
    }

    fn write(
        &self,
        layout: &Layout,
        size: u64,
        shifts: &[u64],
        file_sectors: u64,
        file: &mut File,
    ) -> io::Result<()> {
        let cluster_sectors = self.granule.cluster_sectors();
        let mut starts = vec![0; index(cluster_sectors)];
        let mut at = layout.end();
        for &shift in shifts {
            starts[index(shift)] = at;
            at += layout.shifted_len(file_sectors, shift) * SECTOR_SIZE;
        }
        let place = |_, entry: &Entry| {
            let shift = entry.file_sector % cluster_sectors;
            starts[index(shift)] + (entry.file_sector - shift) * SECTOR_SIZE
        };
        self.write_tables(layout, size, place, file)
    }

    /// Writes all of a qcow2 but its data; `place` says where that of a cluster is, by its number.
    fn write_tables(
        &self,
        layout: &Layout,
        size: u64,
        place: impl Fn(u64, &Entry) -> u64,
        file: &mut File,
    ) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&layout.header(size))?;
        // An empty table of reference counts, which nobody needs who only reads.
        out.write_all(&vec![0; index(layout.cluster)])?;
        let mut table_at = layout.first_table();
        let mut directory = vec![0; index(layout.directory_clusters * layout.cluster)];
        for &number in self.tables.keys() {
            let at = index(number) * 8;
            directory[at..at + 8].copy_from_slice(&table_at.to_be_bytes());
            table_at += layout.cluster;
        }
        out.write_all(&directory)?;
        let mut bytes = Vec::with_capacity(index(layout.cluster));
        for (number, table) in &self.tables {
            bytes.clear();
            for (cluster, entry) in (number * self.granule.entries()..).zip(table) {
                let host = if entry.stored == 0 { 0 } else { place(cluster, entry) };
                bytes.extend_from_slice(&host.to_be_bytes());
                // What is stored is not zero as well.
                bytes.extend_from_slice(&(entry.zero & !entry.stored).to_be_bytes());
                bytes.extend_from_slice(&entry.stored.to_be_bytes());
            }
            out.write_all(&bytes)?;
        }
        out.flush()
    }
}

/// Checks that so many bitmaps of `len` bytes can be read: a table of blocks, which may be a hole in
/// its file, can name the same one again and again.
///
/// # Errors
/// [`Problem::Unsupported`] where they are too many.
pub fn check_bitmaps(count: u64, len: u64) -> Result<(), Problem> {
    if count.saturating_mul(len) > MAX_BITMAPS_LEN { Err(too_many_changes()) } else { Ok(()) }
}

/// For an image whose tables would take too much memory.
pub fn too_many_changes() -> Problem {
    Problem::Unsupported {
        what: "it holds changes in too many places".to_owned(),
        hint: "merge it into its parent where it was made",
    }
}

/// Where the tables are: the header's cluster, one of reference counts, the directory, then
/// they.
struct Layout {
    features: u64,
    cluster: u64,
    directory_entries: u64,
    directory_clusters: u64,
    tables: u64,
}

impl Layout {
    fn of(size: u64, granule: Granule, tables: u64) -> Self {
        let cluster = granule.cluster();
        let directory_entries = size.div_ceil(cluster * granule.entries()).max(1);
        let directory_clusters = (directory_entries * 8).div_ceil(cluster);
        let features = EXTENDED_ENTRIES;
        Self { features, cluster, directory_entries, directory_clusters, tables }
    }

    fn directory(&self) -> u64 {
        2 * self.cluster
    }

    fn first_table(&self) -> u64 {
        self.directory() + self.directory_clusters * self.cluster
    }

    fn end(&self) -> u64 {
        self.first_table() + self.tables * self.cluster
    }

    /// Sectors of a file from `shift` on, in whole clusters; QEMU reads zeros behind its end.
    fn shifted_len(&self, file_sectors: u64, shift: u64) -> u64 {
        let cluster_sectors = self.cluster / SECTOR_SIZE;
        file_sectors.saturating_sub(shift).next_multiple_of(cluster_sectors).max(cluster_sectors)
    }

    fn header(&self, size: u64) -> Vec<u8> {
        const HEADER_LEN: u32 = 104;
        let directory_entries =
            u32::try_from(self.directory_entries).expect("disks are at most 64 TiB");
        let mut bytes = Vec::with_capacity(index(self.cluster));
        bytes.extend(super::qcow2::MAGIC);
        bytes.extend(3u32.to_be_bytes());
        bytes.extend([0; 12]); // no backing file by name: QEMU is told the node
        bytes.extend(self.cluster.trailing_zeros().to_be_bytes());
        bytes.extend(size.to_be_bytes());
        bytes.extend(0u32.to_be_bytes()); // not encrypted
        bytes.extend(directory_entries.to_be_bytes());
        bytes.extend(self.directory().to_be_bytes());
        bytes.extend(self.cluster.to_be_bytes());
        bytes.extend(1u32.to_be_bytes()); // clusters of the table of reference counts
        bytes.extend([0; 12]); // no snapshots
        bytes.extend(self.features.to_be_bytes());
        bytes.extend([0; 16]); // no other features
        bytes.extend(4u32.to_be_bytes()); // bits of a reference count, as a power of two
        bytes.extend(HEADER_LEN.to_be_bytes());
        bytes.resize(index(self.cluster), 0);
        bytes
    }
}

/// A number of things in memory. Those here are bounded by [`MAX_TABLES_LEN`] and the largest disk.
const fn index(number: u64) -> usize {
    assert!(number <= u32::MAX as u64, "bounded by the largest disk");
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line before")]
    let number = number as usize;
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    impl SectorMap {
        /// Whether a sector is stored, and where; or whether it is zero.
        pub fn look_up(&self, sector: u64) -> (Option<u64>, bool) {
            let Granule(granule) = self.granule;
            let sectors = self.granule.cluster_sectors();
            let (cluster, within) = (sector / sectors, sector % sectors);
            let entries = self.granule.entries();
            let Some(table) = self.tables.get(&(cluster / entries)) else { return (None, false) };
            let entry = table[index(cluster % entries)];
            let bit = 1u32 << (within / granule);
            let stored = (entry.stored & bit != 0).then(|| entry.file_sector + within);
            (stored, entry.zero & bit != 0)
        }
    }

    /// All runs about the borders of clusters, in granules of one sector and of eight.
    #[test]
    fn sectors_are_found_where_they_were_stored() {
        const FILE: u64 = 1000;
        for granule in [Granule::SECTOR, Granule::of_sectors(4096)] {
            let Granule(step) = granule;
            let places = (0..70).map(|n| n * step);
            for first in places.clone() {
                for count in [1, 2, 31, 32, 33, 64, 65].map(|n| n * step) {
                    let mut map = SectorMap::new(granule);
                    map.store(first, FILE + first, count).unwrap();
                    let mut zeros = SectorMap::new(granule);
                    zeros.zero(first, count).unwrap();
                    for sector in places.clone().chain([first + count, first + count + step]) {
                        let inside = (first..first + count).contains(&sector);
                        let stored = inside.then_some(FILE + sector);
                        assert_eq!(map.look_up(sector), (stored, false), "{first} {count}");
                        assert_eq!(zeros.look_up(sector), (None, inside), "{first} {count}");
                    }
                }
            }
        }
    }
}
