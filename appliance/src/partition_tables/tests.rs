use std::fs::File;
use std::os::unix::fs::FileExt;

use super::gpt::crc32;
use super::*;

const MIB: u64 = 1 << 20;

/// Bytes of the disks here.
const SIZE: u64 = 24 * MIB;

/// First and last sector of the partitions here.
type Rows<'a> = &'a [(u64, u64)];

/// A disk with a GPT in sectors of `sector` bytes.
struct Disk {
    file: File,
    sector: u64,
    size: u64,
}

impl Disk {
    fn new(sector: u64, rows: Rows) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let disk = Self { file, sector, size: SIZE };
        disk.mbr(&[(0xee, 1, u32::try_from(SIZE / sector - 1).unwrap())]);
        let last = SIZE / sector - 1;
        disk.copy(rows, 1, last, 2);
        disk.copy(rows, last, 1, last - 16384 / sector);
        disk
    }

    /// Type, first sector, sectors.
    fn mbr(&self, rows: &[(u8, u32, u32)]) {
        self.record(0, rows);
    }

    fn record(&self, sector: u64, rows: &[(u8, u32, u32)]) {
        let mut record = [0; 512];
        for (row, &(kind, start, count)) in record[446..].chunks_exact_mut(16).zip(rows) {
            row[4] = kind;
            row[8..12].copy_from_slice(&start.to_le_bytes());
            row[12..16].copy_from_slice(&count.to_le_bytes());
        }
        record[510..].copy_from_slice(&[0x55, 0xaa]);
        self.write(&record, sector * 512);
    }

    fn copy(&self, rows: Rows, number: u64, other: u64, entries: u64) {
        let mut table = vec![0; 128 * 128];
        for (entry, (first, last)) in table.chunks_exact_mut(128).zip(rows) {
            entry[..16].fill(if *last == 0 { 0 } else { 7 });
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
        let last_usable = number.max(other) - 16384 / self.sector - 1;
        let fields = [(24, number), (32, other), (40, 34), (48, last_usable), (72, entries)];
        for (at, value) in fields {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(80, 128), (84, 128), (88, crc32(&table))] {
            header[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        let checksum = crc32(&header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        self.write(&header, number * self.sector);
        self.write(&table, entries * self.sector);
    }

    fn write(&self, bytes: &[u8], at: u64) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn resize(&mut self, size: u64) {
        self.file.set_len(size).unwrap();
        self.size = size;
    }

    fn find(&self) -> Option<Table> {
        find(&self.file, self.size, || false, || true)
    }

    /// Number, start and length of each partition in sectors, and what is the matter.
    fn found(&self) -> (Vec<(u16, u64, u64)>, String) {
        let Table { partitions, problem, .. } = self.find().expect("there is a table");
        let sectors = |partition: Partition| {
            (partition.number, partition.start / self.sector, partition.length / self.sector)
        };
        (partitions.into_iter().map(sectors).collect(), problem.unwrap_or_default())
    }
}

const ROWS: Rows = &[(2048, 20479), (22528, 40959), (0, 0), (43008, 45055)];
const BY_ROWS: [(u16, u64, u64); 3] = [(1, 2048, 18432), (2, 22528, 18432), (4, 43008, 2048)];

#[test]
fn the_checksum_is_that_of_ethernet() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn partitions_of_an_image_that_was_cut_off_are_those_that_it_has() {
    let mut disk = Disk::new(512, ROWS);
    disk.resize(SIZE - 100 * 512);
    let (partitions, problem) = disk.found();
    assert_eq!(partitions, BY_ROWS);
    assert_eq!(
        problem,
        "its GPT is of a larger disk; 51200 bytes are missing at the end of the image"
    );

    disk.resize(30000 * 512);
    let (partitions, problem) = disk.found();
    assert_eq!(partitions, [(1, 2048, 18432), (2, 22528, 30000 - 22528)]);
    assert!(
        problem.ends_with("; partition 2 is cut off; partition 4 is not in the image"),
        "{problem}"
    );
}

#[test]
fn the_copy_at_the_end_is_used_where_the_first_is_damaged() {
    type Harm = fn(&Disk);
    let harms: [(Harm, &str); 4] = [
        (|disk| disk.write(&[0; 512], 512), "(no header)"),
        (|disk| disk.write(&[0; 4], 512 + 16), "wrong checksum"),
        (|disk| disk.write(&[0xff; 4], 512 + 56), "wrong checksum"),
        (|disk| disk.write(&[9], 1024 + 300), "the entries have a wrong checksum"),
    ];
    for (harm, said) in harms {
        let disk = Disk::new(512, ROWS);
        harm(&disk);
        let (partitions, problem) = disk.found();
        assert_eq!(partitions, BY_ROWS, "{said}");
        assert!(
            problem.contains(said) && problem.contains("its copy at the end is used"),
            "{problem}"
        );
    }
}

#[test]
fn the_copy_at_the_end_is_found_in_an_image_that_has_grown() {
    let mut disk = Disk::new(512, ROWS);
    disk.write(&[0; 512], 512);
    disk.resize(SIZE + MIB);
    assert_eq!(disk.found().0, BY_ROWS);
}

#[test]
fn without_any_copy_the_problem_is_told() {
    let mut disk = Disk::new(512, ROWS);
    disk.write(&[0; 4], 512 + 16);
    disk.resize(SIZE - 512);
    let (partitions, problem) = disk.found();
    assert!(partitions.is_empty());
    assert!(problem.contains("wrong checksum") && problem.contains("(no header)"), "{problem}");
    assert!(problem.contains("\n  hint: "), "{problem}");
}

#[test]
fn sectors_of_4096_bytes_are_recognized() {
    let disk = Disk::new(4096, &[(256, 2559), (2816, 5119)]);
    let (partitions, problem) = disk.found();
    assert_eq!(partitions, [(1, 256, 2304), (2, 2816, 2304)]);
    assert_eq!(problem, "");
    disk.write(&[0; 512], 4096);
    assert_eq!(disk.found().0, [(1, 256, 2304), (2, 2816, 2304)], "by the copy at the end");
}

#[test]
fn partitions_of_the_mbr_are_shown_beside_an_empty_gpt() {
    let disk = Disk::new(512, &[]);
    disk.mbr(&[(0x83, 2048, 18432), (0x05, 22528, 10000), (0xee, 1, 2047)]);
    disk.record(22528, &[(0x83, 2048, 1000), (0x05, 4096, 3000)]);
    disk.record(22528 + 4096, &[(0x83, 64, 500), (0x05, 4096, 3000)]);
    let (partitions, problem) = disk.found();
    let expected =
        [(1, 2048, 18432), (2, 22528, 10000), (5, 24576, 1000), (6, 22528 + 4096 + 64, 500)];
    assert_eq!(partitions, expected);
    assert_eq!(problem, "its GPT is empty; the partitions of its MBR are shown");
}

#[test]
fn an_empty_gpt_is_no_problem() {
    assert_eq!(Disk::new(512, &[]).find(), Some(Table::default()));
}

#[test]
fn a_gpt_that_its_mbr_does_not_announce_is_left_alone() {
    let disk = Disk::new(512, ROWS);
    disk.mbr(&[(0x83, 2048, 18432)]);
    assert_eq!(disk.find(), None);
    disk.mbr(&[]);
    let (partitions, problem) = disk.found();
    assert!(partitions.is_empty() && problem.contains("may be older"), "{problem}");
}

#[test]
fn a_gpt_without_an_mbr_is_used_where_nothing_else_is_there() {
    let disk = Disk::new(512, ROWS);
    disk.write(&[0; 512], 0);
    assert_eq!(disk.found().0, BY_ROWS);
    assert_eq!(find(&disk.file, disk.size, || false, || false), None);
    // The copy at the end alone may be what an earlier user of the disk left.
    disk.write(&[0; 512], 512);
    assert_eq!(disk.find(), None);
}

#[test]
fn what_the_kernel_found_stays() {
    let disk = Disk::new(512, ROWS);
    disk.write(&[0; 512], 512);
    assert_eq!(find(&disk.file, disk.size, || true, || true), None);
}

#[test]
fn impossible_entries_are_passed_over() {
    let rows = [(2048, 20479), (30000, 20000), (u64::MAX - 1, u64::MAX), (5000, u64::MAX)];
    let (partitions, problem) = Disk::new(512, &rows).found();
    assert_eq!(partitions, [(1, 2048, 18432), (4, 5000, SIZE / 512 - 5000)]);
    assert_eq!(
        problem,
        "its GPT is of a larger disk; partition 4 is cut off; partition 3 is not in the image"
    );
}

#[test]
fn partitions_of_an_mbr_that_are_not_in_the_image_are_told() {
    let disk = Disk::new(512, &[]);
    disk.write(&[0; 512], 512);
    let end = u32::try_from(SIZE / 512).unwrap();
    disk.mbr(&[(0x83, 2048, 2048), (7, end - 100, 200), (7, end + 100, 200)]);
    let said =
        "its MBR is of a larger disk; partition 2 is cut off; partition 3 is not in the image";
    let found = find(&disk.file, disk.size, || true, || false);
    assert_eq!(found, Some(Table::broken(said)));
    let (partitions, problem) = disk.found();
    assert!(partitions.is_empty() && problem.starts_with(said), "{problem}");
    assert!(problem.contains("\n  hint: "), "{problem}");
    assert_eq!(find(&disk.file, disk.size, || false, || false), None, "a filesystem's boot sector");
    disk.write(b"M", 446);
    assert_eq!(disk.find(), None, "text of a boot sector");
}

#[test]
fn a_chain_of_boot_records_ends() {
    let disk = Disk::new(512, &[]);
    disk.mbr(&[(0x05, 2048, 18432), (0xee, 1, 2047)]);
    disk.record(2048, &[(0x83, 64, 100), (0x05, 100, 100)]);
    disk.record(2148, &[(0x83, 64, 100), (0x05, 100, 100)]);
    assert_eq!(disk.found().0.len(), 3);
}

/// A disklabel with these partitions: sectors, first sector, type.
fn disklabel(rows: &[(u32, u32, u8)]) -> Vec<u8> {
    let mut label = vec![0; 148 + 16 * rows.len()];
    for at in [0, 132] {
        label[at..at + 4].copy_from_slice(&0x8256_4557_u32.to_le_bytes());
    }
    label[40..44].copy_from_slice(&512_u32.to_le_bytes());
    label[138..140].copy_from_slice(&u16::try_from(rows.len()).unwrap().to_le_bytes());
    for (row, (count, start, kind)) in label[148..].chunks_exact_mut(16).zip(rows) {
        row[..4].copy_from_slice(&count.to_le_bytes());
        row[4..8].copy_from_slice(&start.to_le_bytes());
        row[12] = *kind;
    }
    let words = label.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
    let checksum = words.fold(0, |sum, word| sum ^ word);
    label[136..138].copy_from_slice(&checksum.to_le_bytes());
    label
}

#[test]
fn a_disklabel_on_a_whole_disk_gives_partitions_by_letter() {
    let disk = Disk::new(512, &[]);
    disk.write(&[0; 1024], 0);
    let label = disklabel(&[(10000, 0, 7), (2000, 10000, 1), (49152, 0, 0), (4000, 12000, 7)]);
    for at in [512, 64] {
        disk.write(&vec![0; 1024], 0);
        disk.write(&label, at);
        let expected = [(1, 0, 10000), (2, 10000, 2000), (4, 12000, 4000)];
        assert_eq!(disk.found(), (expected.to_vec(), String::new()), "{at}");
    }
    disk.write(&[1], 64 + 150);
    assert_eq!(disk.find(), None, "its checksum is wrong");
}

#[test]
fn a_disklabel_of_a_dedicated_disk_is_preferred_to_the_partition_around_it() {
    let disk = Disk::new(512, &[]);
    disk.write(&[0; 1024], 0);
    disk.write(&disklabel(&[(45000, 0, 7), (4152, 45000, 1)]), 512);
    disk.mbr(&[(0, 0, 0), (0, 0, 0), (0, 0, 0), (0xa5, 0, 50000)]);
    let table = find(&disk.file, disk.size, || true, || true).unwrap();
    assert_eq!((table.replaces, table.problem, table.partitions.len()), (true, None, 2));
    disk.mbr(&[(0xa5, 63, 45000)]);
    assert_eq!(find(&disk.file, disk.size, || true, || true), None);
}

#[test]
fn a_disklabel_of_the_whole_disk_alone_gives_none() {
    let disk = Disk::new(512, &[]);
    disk.write(&[0; 1024], 0);
    disk.write(&disklabel(&[(49152, 0, 7)]), 512);
    assert_eq!(disk.find(), None);
}
