//! By which way the contents of files come from a real VM, and how many requests that takes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use guestmnt_tests::chance::Chance;
use guestmnt_tests::images::{self, backwards};
use guestmnt_tests::program::{Workplace, text};
use guestmnt_tests::told::{Told, told};
use guestmnt_tests::worlds::ext4::Ext4;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Neither whole pages nor whole requests of the kernel.
const SIZE: u64 = (32 << 20) + 10_000;

/// What the file `large` holds from `offset` on: so many bytes.
fn content(offset: u64, length: usize) -> Vec<u8> {
    let byte = |at: u64| (at / 8 % 251 + at % 8 * (at / 8192)).to_le_bytes()[0];
    (offset..).take(length).map(byte).collect()
}

/// An ext4 with the file `large`.
fn ext4_with_large(place: &Workplace) -> Ext4 {
    let source = place.folder("source");
    fs::write(source.join("large"), content(0, SIZE.try_into().unwrap())).unwrap();
    Ext4::of(&source, place.path().join("image"))
}

/// What is told of a mount of an ext4 with the file `large`, at which `look` looked.
fn of_large(how: &[&str], look: impl FnOnce(&Path)) -> Told {
    let place = Workplace::new();
    let image = ext4_with_large(&place);
    let disk = ["--format", "raw", "-a", text(image.path()), "-m", "/dev/sda"];
    told(&place, &[how, &disk].concat(), |mnt| look(&mnt.join("large")))
}

/// Reads a file from its start to its end, in small pieces.
fn in_sequence(path: &Path) {
    let mut file = File::open(path).unwrap();
    let mut piece = vec![0; 65_536];
    let mut offset = 0;
    while offset < SIZE {
        let length = file.read(&mut piece).unwrap();
        assert!(length > 0 && piece[..length] == content(offset, length), "at {offset}");
        offset += length as u64;
    }
    assert_eq!(file.read(&mut piece).unwrap(), 0);
    assert_eq!((offset, file.metadata().unwrap().len()), (SIZE, SIZE));
}

#[test]
fn what_comes_through_the_guest_lands_in_bulk_memory() {
    let told = of_large(&["--through-guest"], in_sequence);
    assert_eq!((told.landed.of("lane"), told.landed.bytes), (0, SIZE), "{told:?}");
    assert_eq!(told.landed.of("slot"), told.guest.of("read"), "{told:?}");
    assert_eq!((told.reads.of("disk"), told.reads.bytes), (0, SIZE), "{told:?}");
    assert_eq!((told.reads.of("guest"), told.ahead.total), (told.reads.total, 0), "{told:?}");
}

#[test]
fn without_bulk_memory_it_comes_by_the_lanes() {
    let told = of_large(&["--through-guest", "--no-bulk-memory"], in_sequence);
    assert_eq!((told.landed.of("slot"), told.landed.bytes), (0, SIZE), "{told:?}");
    assert_eq!(told.landed.of("lane"), told.guest.of("read"), "{told:?}");
}

#[test]
fn past_the_vm_all_but_the_beginning_is_read_from_the_image() {
    let told = of_large(&[], in_sequence);
    assert!(told.reads.of("disk") > 10 && told.landed.bytes < SIZE / 8, "{told:?}");
    assert!(told.reads.bytes + told.ahead.bytes >= SIZE, "{told:?}");
}

#[test]
fn what_follows_is_in_the_kernels_page_cache_before_it_is_asked_for() {
    let told = of_large(&[], in_sequence);
    assert!(told.ahead.bytes > 0 && told.reads.bytes < SIZE, "{told:?}");
    assert_eq!(told.kernel.bytes, told.reads.bytes, "{told:?}");
    assert_eq!(told.ahead.of("spliced"), told.ahead.total, "{told:?}");
    // Who went from end to end is asked for nothing more.
    let told = of_large(&[], |path| {
        in_sequence(path);
        in_sequence(path);
    });
    assert!(told.reads.bytes < SIZE, "{told:?}");
}

#[test]
fn what_lies_in_too_many_pieces_to_be_spliced_is_copied() {
    let place = Workplace::new();
    let image = ext4_with_large(&place);
    let disk = fs::read(image.path()).unwrap();
    let (extent, descriptor) = (place.path().join("grains.vmdk"), place.path().join("disk.vmdk"));
    fs::write(extent, backwards(&disk)).unwrap();
    let line = format!("RW {} SPARSE \"grains.vmdk\"", disk.len() / 512);
    fs::write(&descriptor, images::descriptor("twoGbMaxExtentSparse", &line)).unwrap();
    let told = told(&place, &["-a", text(&descriptor), "-m", "/dev/sda"], |mnt| {
        in_sequence(&mnt.join("large"));
    });
    assert!(told.ahead.of("copied") > 0, "{told:?}");
    assert_eq!(told.ahead.of("spliced"), 0, "{told:?}");
}

#[test]
fn many_read_a_file_right_while_it_is_put_there() {
    const ROUNDS: usize = 5;
    let told = of_large(&[], |path| {
        let file = File::open(path).unwrap();
        let read = |offset: u64| {
            let mut piece = vec![0; 65_536];
            let length = file.read_at(&mut piece, offset).unwrap();
            assert!(piece[..length] == content(offset, length), "at {offset}");
        };
        let in_sequence = |from: u64| (from..SIZE).step_by(65_536).for_each(read);
        let scattered = || (0..200).for_each(|n| read(n * 7_919 % 200 * 160_001));
        for _ in 0..ROUNDS {
            // The kernel forgets what it has, unless it is being read.
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            thread::scope(|scope| {
                (0..5).for_each(|n| drop(scope.spawn(move || in_sequence(n * 6_000_000))));
                scope.spawn(scattered);
            });
        }
        assert_eq!(file.metadata().unwrap().len(), SIZE);
    });
    assert!(told.ahead.total > 0 && told.reads.of("disk") > ROUNDS as u64, "{told:?}");
}

#[test]
fn nothing_is_put_there_for_who_reads_here_and_there() {
    let told = of_large(&[], |path| {
        let file = File::open(path).unwrap();
        let mut page = [0; 4096];
        for n in 0..500 {
            let offset = n * 7_919 % 500 * 65_536;
            file.read_exact_at(&mut page, offset).unwrap();
            assert!(page[..] == content(offset, page.len()), "at {offset}");
        }
    });
    assert!(told.reads.of("disk") > 0, "{told:?}");
    assert_eq!(told.ahead.total, 0, "{told:?}");
}

#[test]
fn a_sequence_is_read_ahead_in_large_pieces() {
    let told = of_large(&["--through-guest"], in_sequence);
    let reads = told.guest.of("read");
    // A MiB each, once it is known for a sequence; the kernel asks for 128 KiB or more.
    assert!((33..=41).contains(&reads), "{told:?}");
}

#[test]
fn nothing_is_read_ahead_of_who_reads_here_and_there() {
    const READS: u64 = 500;
    const BYTES: usize = 4096;
    let told = of_large(&["--through-guest"], |path| {
        let file = File::open(path).unwrap();
        let mut chance = Chance::seeded(3);
        let mut page = vec![0; BYTES];
        for _ in 0..READS {
            let offset = BYTES as u64 * chance.below(SIZE / BYTES as u64);
            file.read_exact_at(&mut page, offset).unwrap();
            assert!(page == content(offset, BYTES), "at {offset}");
        }
    });
    let reads = told.guest.of("read");
    assert!(reads > READS / 2 && told.guest.total <= READS + 10, "{told:?}");
    assert!(told.guest.bytes <= 2 * READS * BYTES as u64, "{told:?}");
}
