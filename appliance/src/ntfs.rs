//! Where NTFS keeps the records of its files and the indexes of its directories: as much of the
//! format as it takes to read them ahead, for the kernel's driver to judge, and to find the mount
//! points that it does not tell of.
//!
//! Follows fs/ntfs3/ntfs.h of Linux. Everything is untrusted: what makes no sense gives nothing.

use nix::sys::statfs::FsType;

use crate::little_endian::{u16_at, u32_at, u64_at};

/// What statfs(2) calls ntfs3, `NTFS3_SUPER_MAGIC`: the text "ntfs" read as a number.
pub const MAGIC: FsType = FsType(0x7366_746e);

/// What the boot sector says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Bytes of the volume.
    pub volume: u64,
    /// Bytes of a file's record.
    pub record: u64,
    /// The volume's byte at which record 0 is: that of the table of records itself.
    pub table: u64,
}

/// Bytes of the smallest boot sector.
pub const BOOT_LEN: usize = 512;

/// Largest record and cluster that there are.
const MAX_RECORD: u64 = 4096;
const MAX_CLUSTER: u64 = 2 << 20;

impl Geometry {
    /// Reads the volume's first sector.
    #[must_use]
    pub fn parse(sector: &[u8]) -> Option<Self> {
        if sector.get(3..11)? != b"NTFS    " {
            return None;
        }
        let bytes = u64::from(u16_at(sector, 0x0b)?);
        let cluster = match *sector.get(0x0d)? {
            sectors @ ..=0x80 => bytes * u64::from(sectors),
            // More than 128 sectors are the power of two, negative.
            shift @ 0xf4.. => bytes << shift.wrapping_neg(),
            _ => return None,
        };
        let record = match i8_at(sector, 0x40)? {
            shift @ ..0 => 1u64.checked_shl(u32::from(shift.unsigned_abs()))?,
            clusters => cluster * u64::from(clusters.unsigned_abs()),
        };
        let good = |size: u64, most| size.is_power_of_two() && (512..=most).contains(&size);
        if !good(cluster, MAX_CLUSTER) || !good(record, MAX_RECORD) {
            return None;
        }
        let volume = u64_at(sector, 0x28)?.checked_mul(bytes)?;
        let table = u64_at(sector, 0x30)?.checked_mul(cluster)?;
        Some(Self { cluster, volume, record, table })
    }

    /// Where the contents of the table of records are, by its own record; those of it that this
    /// record tells of.
    #[must_use]
    pub fn table_runs(&self, record: &mut [u8]) -> Option<Runs> {
        self.runs(record, DATA, &[])
    }

    /// Where the index of a directory is, by the directory's record. `None` for a small
    /// directory, whose index is in the record.
    #[must_use]
    pub fn index_runs(&self, record: &mut [u8]) -> Option<Runs> {
        self.runs(record, INDEX_ALLOCATION, INDEX_NAME)
    }

    fn runs(&self, record: &mut [u8], kind: u32, name: &[u8]) -> Option<Runs> {
        mend(record, b"FILE")?;
        let mut attributes = attributes(record).filter(|found| found.is(kind, name));
        attributes.find_map(|attribute| attribute.runs(self))
    }
}

/// `$DATA`
pub const DATA: u32 = 0x80;
/// `$INDEX_ALLOCATION`
const INDEX_ALLOCATION: u32 = 0xa0;
/// `$I30`, the index of file names.
const INDEX_NAME: &[u8] = b"$\0I\x003\x000\0";
/// Behind the last attribute.
const END: u32 = 0xffff_ffff;

/// Puts back the last two bytes of each sector, which are replaced on the disk so that half a
/// record is noticed. A record begins with `signature`: `FILE`, or `INDX` for a block of an index.
#[must_use]
pub fn mend(record: &mut [u8], signature: &[u8; 4]) -> Option<()> {
    const SECTOR: usize = 512;
    if record.get(..4)? != signature {
        return None;
    }
    let start = usize::from(u16_at(record, 4)?);
    let count = usize::from(u16_at(record, 6)?);
    let are_in_first_sector = start.is_multiple_of(2) && start + 2 * count <= SECTOR;
    if count != record.len() / SECTOR + 1 || !are_in_first_sector {
        return None;
    }
    let sign = u16_at(record, start)?;
    for sector in 1..count {
        let end = sector * SECTOR - 2;
        if u16_at(record, end)? != sign {
            return None;
        }
        let bytes = u16_at(record, start + 2 * sector)?.to_le_bytes();
        record[end..end + 2].copy_from_slice(&bytes);
    }
    Some(())
}

/// A record's number in a reference to it, whose upper bits say how often the record was used.
#[must_use]
pub fn record_number(reference: u64) -> u64 {
    reference & 0xffff_ffff_ffff
}

/// An attribute of a file, a part of the file's record.
#[derive(Clone, Copy)]
pub struct Attribute<'a>(&'a [u8]);

/// Whether the first attribute of a record is where the driver takes one: behind the record's header,
/// at a multiple of 8.
#[must_use]
pub fn begins_soundly(record: &[u8]) -> bool {
    const HEADER: u16 = 0x2a;
    u16_at(record, 0x14).is_some_and(|first| first >= HEADER && first.is_multiple_of(8))
}

/// The attributes in a record that was mended.
pub fn attributes(record: &[u8]) -> Attributes<'_> {
    let (first, used) = (u16_at(record, 0x14).map(usize::from), u32_at(record, 0x18));
    let used = used.and_then(|used| usize::try_from(used).ok());
    let rest = first.zip(used).and_then(|(first, used)| record.get(first..used));
    Attributes { rest: rest.unwrap_or_default() }
}

/// The attributes of a record that have not been looked at.
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl Attributes<'_> {
    /// Whether there are none, as a record says it, and not because something made no sense.
    #[must_use]
    pub fn have_ended(&self) -> bool {
        u32_at(self.rest, 0) == Some(END)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        /// Of the shortest attribute.
        const HEADER: usize = 0x18;
        let length = usize::try_from(u32_at(self.rest, 4)?).ok()?;
        if self.have_ended() || length < HEADER {
            return None;
        }
        let (attribute, behind) = self.rest.split_at_checked(length)?;
        self.rest = behind;
        Some(Attribute(attribute))
    }
}

impl<'a> Attribute<'a> {
    /// Whether it is of this kind and has this name, in UTF-16.
    #[must_use]
    pub fn is(&self, kind: u32, name: &[u8]) -> bool {
        let length = 2 * usize::from(self.0[9]);
        let own = u16_at(self.0, 0x0a).map(usize::from);
        let own = own.and_then(|at| self.0.get(at..at + length));
        u32_at(self.0, 0) == Some(kind) && own == Some(name)
    }

    /// What it holds, where that is in the record.
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        let length = usize::try_from(u32_at(self.0, 0x10)?).ok()?;
        let at = usize::from(u16_at(self.0, 0x14)?);
        if self.0[8] == 0 { self.0.get(at..at.checked_add(length)?) } else { None }
    }

    /// Whether the driver takes it: it is as `mi_enum_attr()` wants every attribute of a record, of
    /// whichever kind, to be. That ends a record at the first one that is not.
    #[must_use]
    pub fn is_sound(&self, geometry: &Geometry) -> bool {
        self.is_sound_or_none(geometry).is_some()
    }

    fn is_sound_or_none(&self, geometry: &Geometry) -> Option<()> {
        const OUTSIDE: usize = 0x40;
        const SPARSE_OUTSIDE: usize = 0x48;
        const COMPRESSED_OR_SPARSE: u16 = 0x80ff;
        let length = self.0.len();
        let is_outside = match self.0[8] {
            0 => false,
            1 if length >= OUTSIDE => true,
            _ => return None,
        };
        // Where what is behind its header and its name begins.
        let body = usize::from(u16_at(self.0, if is_outside { 0x20 } else { 0x14 })?);
        let name = usize::from(u16_at(self.0, 0x0a)?) + 2 * usize::from(self.0[9]);
        let mut good = length.is_multiple_of(8) && body <= length;
        good &= !self.has_name() || name <= body;
        if !is_outside {
            let value = usize::try_from(u32_at(self.0, 0x10)?).ok()?;
            return (good && value <= length - body).then_some(());
        }
        let number = |at| u64_at(self.0, at);
        let (first, last, allocated) = (number(0x10)?, number(0x18)?, number(0x28)?);
        let (size, valid) = (number(0x30)?, number(0x38)?);
        good &= first <= last.wrapping_add(1);
        good &= valid <= size && size <= allocated && allocated.is_multiple_of(geometry.cluster);
        let flags = u16_at(self.0, 0x0c)?;
        if first == 0 && flags & COMPRESSED_OR_SPARSE != 0 {
            let taken = number(0x40).filter(|_| length >= SPARSE_OUTSIDE)?;
            good &= taken <= allocated && taken.is_multiple_of(geometry.cluster);
        } else {
            good &= self.0[0x22] == 0;
        }
        good.then_some(())
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> u32 {
        u32_at(self.0, 0).expect("an attribute has a header")
    }

    /// Whether it has a name.
    #[must_use]
    pub fn has_name(&self) -> bool {
        self.0[9] != 0
    }

    /// Whether what it holds is kept as it is: not compressed, encrypted or sparse.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        u16_at(self.0, 0x0c) == Some(0)
    }

    /// Where what it holds is outside of the record, from its beginning on.
    #[must_use]
    pub fn runs(&self, geometry: &Geometry) -> Option<Runs> {
        Some(Runs(unpack(self.run_list()?, geometry.cluster).0))
    }

    /// Likewise, of a part of what it holds: from the cluster `first` on, where this is that part.
    #[must_use]
    pub fn runs_from(&self, first: u64, geometry: &Geometry) -> Option<Runs> {
        let from = first.checked_mul(geometry.cluster)?;
        let mut runs = unpack(self.list_of_runs(first)?, geometry.cluster).0;
        for run in &mut runs {
            run.offset = run.offset.checked_add(from)?;
            run.offset.checked_add(run.length)?;
        }
        Some(Runs(runs))
    }

    /// Likewise, of one that is plain and whole: all that is allocated has a place on the volume.
    #[must_use]
    pub fn whole(&self, geometry: &Geometry) -> Option<Whole> {
        let number = |at| u64_at(self.0, at);
        let (runs, is_sound) = unpack(self.run_list()?, geometry.cluster);
        let (behind, allocated) = (number(0x18)?.wrapping_add(1), number(0x28)?);
        let (size, written) = (number(0x30)?, number(0x38)?);
        let mut covered = 0;
        for run in &runs {
            if run.offset != covered || run.start + run.length > geometry.volume {
                return None;
            }
            covered += run.length;
        }
        let is_whole = behind.checked_mul(geometry.cluster)? == covered && covered == allocated;
        let good = is_sound && is_whole && written <= size && size <= allocated;
        good.then_some(Whole { size, written, allocated, runs: Runs(runs) })
    }

    /// What says where it is, of one that is outside of the record.
    fn run_list(&self) -> Option<&'a [u8]> {
        self.list_of_runs(0)
    }

    fn list_of_runs(&self, first: u64) -> Option<&'a [u8]> {
        const HEADER: usize = 0x40;
        if self.0[8] != 1 || self.0.len() < HEADER || u64_at(self.0, 0x10)? != first {
            return None;
        }
        self.0.get(usize::from(u16_at(self.0, 0x20)?)..)
    }

    /// Bytes of what it holds outside of the record.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        u64_at(self.0, 0x30)
    }

    /// Bytes of it that were written; what follows them are zeros.
    #[must_use]
    pub fn written(&self) -> Option<u64> {
        u64_at(self.0, 0x38)
    }

    /// How what it holds is kept: compressed, encrypted, sparse.
    #[must_use]
    pub fn flags(&self) -> Option<u16> {
        u16_at(self.0, 0x0c)
    }

    /// The first cluster that this part of an attribute holds; `None` where it is in the record.
    #[must_use]
    pub fn begins_at(&self) -> Option<u64> {
        if self.0[8] == 1 { u64_at(self.0, 0x10) } else { None }
    }

    /// Where what a later part of an attribute holds is.
    #[must_use]
    pub fn later_runs(&self, geometry: &Geometry) -> Option<Runs> {
        let before = self.begins_at()?.checked_mul(geometry.cluster)?;
        let list = self.0.get(usize::from(u16_at(self.0, 0x20)?)..)?;
        let (mut runs, _) = unpack(list, geometry.cluster);
        for run in &mut runs {
            run.offset = run.offset.checked_add(before)?;
            run.offset.checked_add(run.length)?;
        }
        Some(Runs(runs))
    }
}

/// What an attribute holds outside of its record. All in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its size.
    pub size: u64,
    /// What was written; zeros follow.
    pub written: u64,
    /// What it takes.
    pub allocated: u64,
    /// Where it is.
    pub runs: Runs,
}

/// A part of a file that is in one piece on the volume. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Where in the file.
    offset: u64,
    /// Where on the volume.
    start: u64,
    length: u64,
}

/// Where a file is on the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(Vec<Run>);

impl Runs {
    /// Adds what follows; `None` where that begins before the end of what is there.
    #[must_use]
    pub fn append(&mut self, following: Self) -> Option<()> {
        let end = self.0.last().map_or(0, |run| run.offset + run.length);
        let follows = following.0.first().is_none_or(|run| run.offset >= end);
        follows.then(|| self.0.extend(following.0))
    }

    /// The volume's bytes, as start and length, that hold `length` bytes of the file from `offset`
    /// on.
    pub fn places(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> + use<'_> {
        let end = offset.saturating_add(length);
        // They are in the order of their offsets.
        let first = self.0.partition_point(|run| run.offset + run.length <= offset);
        let within = self.0[first..].iter().take_while(move |run| run.offset < end);
        within.map(move |run| {
            let from = offset.max(run.offset);
            let to = end.min(run.offset + run.length);
            (run.start + (from - run.offset), to - from)
        })
    }
}

/// Unpacks a list of runs as far as it makes sense, and says whether all of it does.
fn unpack(mut list: &[u8], cluster: u64) -> (Vec<Run>, bool) {
    let mut runs = Vec::new();
    let (mut offset, mut at) = (0u64, 0i64);
    while let Some((&sizes, behind)) = list.split_first()
        && let (length_size, at_size) = (usize::from(sizes & 0xf), usize::from(sizes >> 4))
        && length_size > 0
        && let Some((length, behind)) = number(behind, length_size)
        && let Some((step, behind)) = number(behind, at_size)
        && let Some(length) = u64::try_from(length).ok().and_then(|n| n.checked_mul(cluster))
        && let Some(next) = offset.checked_add(length)
        && let Some(there) = at.checked_add(step)
        && let Some(start) = u64::try_from(there).ok().and_then(|n| n.checked_mul(cluster))
        && start.checked_add(length).is_some()
    {
        // Without a place on the volume it is a hole.
        if at_size > 0 && length > 0 {
            runs.push(Run { offset, start, length });
        }
        (offset, at, list) = (next, there, behind);
    }
    (runs, list.first().is_none_or(|sizes| sizes & 0xf == 0))
}

/// A little-endian number with sign of `size` bytes, and what is behind it.
fn number(bytes: &[u8], size: usize) -> Option<(i64, &[u8])> {
    let (number, behind) = bytes.split_at_checked(size)?;
    let sign = number.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut whole = if sign { [0xff; 8] } else { [0; 8] };
    whole.get_mut(..size)?.copy_from_slice(number);
    Some((i64::from_le_bytes(whole), behind))
}

fn i8_at(bytes: &[u8], at: usize) -> Option<i8> {
    bytes.get(at).map(|byte| byte.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry =
        Geometry { cluster: 4096, volume: 1 << 30, record: 1024, table: 16384 };

    fn boot(cluster: u8, record: u8) -> [u8; BOOT_LEN] {
        let mut sector = [0; BOOT_LEN];
        sector[3..11].copy_from_slice(b"NTFS    ");
        sector[0x0b..0x0d].copy_from_slice(&512u16.to_le_bytes());
        sector[0x0d] = cluster;
        sector[0x28..0x2c].copy_from_slice(&(1u32 << 21).to_le_bytes());
        sector[0x30] = 4;
        sector[0x40] = record;
        sector
    }

    /// A record with one attribute, whose runs are `list`.
    fn record(kind: u32, name: &[u8], list: &[u8]) -> Vec<u8> {
        let mut record = vec![0; 1024];
        record[..8].copy_from_slice(b"FILE\x30\0\x03\0");
        record[0x14] = 0x38;
        record[0x18..0x1c].copy_from_slice(&1024u32.to_le_bytes());
        let attribute = &mut record[0x38..];
        let name_at = 0x40;
        let list_at = name_at + name.len();
        let length = u32::try_from(list_at + list.len()).unwrap().next_multiple_of(8);
        attribute[..4].copy_from_slice(&kind.to_le_bytes());
        attribute[4..8].copy_from_slice(&length.to_le_bytes());
        (attribute[8], attribute[9]) = (1, u8::try_from(name.len() / 2).unwrap());
        attribute[0x0a] = u8::try_from(name_at).unwrap();
        attribute[0x20] = u8::try_from(list_at).unwrap();
        attribute[name_at..list_at].copy_from_slice(name);
        attribute[list_at..list_at + list.len()].copy_from_slice(list);
        let end = 0x38 + length as usize;
        record[end..end + 4].copy_from_slice(&END.to_le_bytes());
        // The sign, and what belongs at the sectors' ends.
        record[0x30..0x36].copy_from_slice(&[0xaa, 0xbb, 0, 0, 0, 0]);
        for end in [510, 1022] {
            record[end..end + 2].copy_from_slice(&[0xaa, 0xbb]);
        }
        record
    }

    #[test]
    fn the_boot_sector_says_where_the_table_is() {
        assert_eq!(Geometry::parse(&boot(8, 0xf6)), Some(GEOMETRY));
        let large = Geometry::parse(&boot(0xf4, 0xf4)).unwrap();
        assert_eq!((large.cluster, large.record), (2 << 20, 4096));
        for (cluster, record) in [(3, 0xf6), (0, 0xf6), (8, 0), (8, 2), (8, 0x80), (0x81, 0xf6)] {
            assert_eq!(Geometry::parse(&boot(cluster, record)), None, "{cluster} {record}");
        }
    }

    #[test]
    fn clusters_have_every_size_that_windows_makes() {
        let size = |sector: u16, cluster: u8| {
            let mut boot = boot(cluster, 0xf6);
            boot[0x0b..0x0d].copy_from_slice(&sector.to_le_bytes());
            Geometry::parse(&boot).map(|geometry| geometry.cluster)
        };
        // Up to 128 sectors their number, beyond it the power of two.
        let table = [(1, 512), (0x40, 32 << 10), (0x80, 64 << 10), (0xf8, 128 << 10)];
        for (count, expected) in table.into_iter().chain([(0xf7, 256 << 10), (0xf4, 2 << 20)]) {
            assert_eq!(size(512, count), Some(expected), "{count:#x}");
        }
        for (count, expected) in [(1, 4 << 10), (0x80, 512 << 10), (0xf7, 2 << 20)] {
            assert_eq!(size(4096, count), Some(expected), "{count:#x}");
        }
        for (sector, count) in [(512, 0x81), (512, 0xf3), (512, 0x90), (4096, 0xf4)] {
            assert_eq!(size(sector, count), None, "{count:#x} sectors of {sector}");
        }
        assert_eq!(Geometry::parse(&[0; BOOT_LEN]), None);
        assert_eq!(Geometry::parse(&boot(8, 0xf6)[..60]), None);
    }

    #[test]
    fn runs_follow_each_other_forward_and_backward() {
        // 2 clusters at 0x100, a hole of 1, 16 clusters 0x80 before the first.
        let list = [0x21, 2, 0x00, 0x01, 0x01, 1, 0x11, 16, 0x80, 0];
        let runs = GEOMETRY.table_runs(&mut record(DATA, &[], &list)).unwrap();
        let run = |offset: u64, start: u64, length: u64| Run {
            offset: offset * 4096,
            start: start * 4096,
            length: length * 4096,
        };
        assert_eq!(runs.0, [run(0, 0x100, 2), run(3, 0x80, 16)]);
        let places = |offset, length| runs.places(offset, length).collect::<Vec<_>>();
        assert_eq!(places(4096, 1024), [(0x101 * 4096, 1024)]);
        assert_eq!(places(4096, 3 * 4096), [(0x101 * 4096, 4096), (0x80 * 4096, 4096)]);
        assert_eq!(places(2 * 4096, 4096), []);
        assert_eq!(places(u64::MAX, u64::MAX), []);
    }

    #[test]
    fn a_directorys_index_is_known_by_its_name() {
        let list = [0x11, 1, 5, 0];
        let named = |name| GEOMETRY.index_runs(&mut record(INDEX_ALLOCATION, name, &list));
        assert!(named(INDEX_NAME).is_some());
        assert_eq!(named(b"$\0I\x003\x001\0"), None);
        assert_eq!(named(b""), None);
    }

    #[test]
    fn records_that_make_no_sense_give_nothing() {
        let good = record(DATA, &[], &[0x11, 1, 5, 0]);
        assert!(GEOMETRY.table_runs(&mut good.clone()).is_some());
        for length in 0..good.len() {
            assert_eq!(GEOMETRY.table_runs(&mut good[..length].to_vec()), None, "{length}");
        }
        // Whatever bit is wrong, nothing panics.
        for bit in 0..0x90 * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let _ = GEOMETRY.table_runs(&mut bytes);
            let _ = GEOMETRY.index_runs(&mut bytes);
        }
        let mut torn = good.clone();
        torn[1022] = 0;
        assert_eq!(GEOMETRY.table_runs(&mut torn), None);
        // The signs at an odd place, and behind the first sector, where the driver takes none.
        for at in [0x31usize, 0x1fc, 0x200] {
            let mut moved = good.clone();
            moved[4..6].copy_from_slice(&u16::try_from(at).unwrap().to_le_bytes());
            moved[at..at + 6].copy_from_slice(&[0xaa, 0xbb, 0xaa, 0xbb, 0xaa, 0xbb]);
            let ends = [moved[510], moved[511]] == [0xaa, 0xbb];
            assert!(!ends || GEOMETRY.table_runs(&mut moved).is_none(), "{at:#x}");
        }
    }

    #[test]
    fn lists_that_lead_out_of_the_world_end_there() {
        let far = [0x88, 1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        let long = [0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1];
        let wide = [0x9f, 1, 1];
        let before = [0x11, 1, 0x80];
        for list in [&far[..], &long, &wide, &before, &[0x11], &[0x11, 1]] {
            assert_eq!(unpack(list, 4096), (vec![], false), "{list:x?}");
        }
    }
}
